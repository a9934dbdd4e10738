"""The tables of who did what, asked of a real control service through Infinity's way."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.control_service import ControlService
from tests.grafana.expressions import Target, acts_targets
from tests.grafana.infinity import asked


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlService]:
    made = ControlService(tmp_path_factory.mktemp("acts"), "test:///default").start()
    yield made
    made.stop()


@pytest.mark.parametrize("target", acts_targets(), ids=str)
def test_the_table_shows_who_did_what_and_how_it_went(service: ControlService, target: Target) -> None:
    status, _ = service.ask("POST", "/api/v1/domains/test/suspend", {"reason": "the disk is moved"})
    assert status == 200
    assert service.ask("POST", "/api/v1/domains/test/resume", {})[0] == 200
    now_ms = int(time.time() * 1000)
    rows = asked(target.target, f"http://127.0.0.1:{service.port}", service.tokens["reader"],
                 {"domain": "test", "__from": str(now_ms - 60_000), "__to": str(now_ms + 1000)})
    row = next(row for row in rows if row["Act"] == "domain.suspend test")
    told = row["How it went, who, by which way, why"]
    assert told.startswith("done, ")
    assert "the disk is moved" in told
    assert now_ms / 1000 - 60 < row["Began"] <= row["Ended"] <= now_ms / 1000 + 1
