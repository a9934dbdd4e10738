"""The audit trail read: backwards, by domain and time, over the command line and the API."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import JsonValue

from exporter import cli
from exporter.control import audit
from exporter.control.audit import Trail, TrailDamagedError
from tests.control_service import ControlService

WEB1 = {"kind": "domain", "name": "web1", "uuid": "d61f00c8-8819-5aef-9860-c529fe864c9e"}
DB1 = {"kind": "domain", "name": "db1", "uuid": "0b5a4b2e-7d5e-4b5a-9f0e-3a9f5d1c2b3a"}


class Clock:
    def __init__(self) -> None:
        self.now = datetime.now(UTC) - timedelta(hours=5)

    def __call__(self) -> datetime:
        self.now += timedelta(hours=1)
        return self.now


@pytest.mark.parametrize("block", [7, 64, 1000])
def test_backwards_is_forwards_turned_whatever_the_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    trail = Trail(tmp_path / "audit.jsonl")
    assert trail.records() == []
    for number in range(20):
        trail.append("begin", {"text": "x" * number})
        if number == 9:
            with trail.path.open("ab") as file:
                file.write(b'{"torn')
    whole = [json.loads(line) for line in trail.path.read_bytes().splitlines() if not line.startswith(b'{"torn')]
    monkeypatch.setattr(audit, "_TAIL_BYTES", block)
    assert list(trail.backwards()) == whole[::-1]
    assert trail.records(3) == whole[-3:]
    assert len(whole) == 20


def test_the_command_shows_by_domain_and_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "control").mkdir()
    trail = Trail(tmp_path / "control" / "audit.jsonl", Clock())
    for subject in (WEB1, DB1, WEB1, DB1):
        trail.append("begin", {"operation": "domain.start", "subject": subject})

    def shown(*words: str) -> list[int]:
        assert cli.run(["control", "audit", "--state.directory", str(tmp_path), "--output", "json", *words]) == 0
        return [row["sequence"] for row in json.loads(capsys.readouterr().out)["details"]["rows"]]

    assert shown() == [1, 2, 3, 4]
    assert shown("--domain", "web1") == shown("--domain", WEB1["uuid"]) == [1, 3]
    assert shown("--since", "150m") == [3, 4]
    assert shown("--since", "150m", "--domain", "db1") == [4]
    assert shown("--domain", "web1", "--newest", "1") == [3]
    assert cli.run(["control", "audit", "--state.directory", str(tmp_path), "--since", "yesterday"]) == 2
    assert "yesterday" in capsys.readouterr().err


def test_the_table_shows_how_each_act_went_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "control").mkdir()
    trail = Trail(tmp_path / "control" / "audit.jsonl", Clock())
    told: list[tuple[str, dict[str, JsonValue]]] = [
        ("begin", {}),
        ("end", {"changed": True}),
        ("unchanged", {}),
        ("refused", {"error": {"kind": "busy", "cause": "busy"}}),
        ("end", {"error": {"kind": "refused", "cause": "no"}}),
        ("end", {"error": {"kind": "timed-out", "cause": "late"}}),
        ("end", {"error": {"kind": "failed", "cause": "broken", "outcome_unknown": True}}),
        ("unanswered", {"error": {"kind": "timed-out", "cause": "silent", "outcome_unknown": True}}),
        ("late", {"changed": False}),
        ("interrupted", {"outcome": "gone"}),
    ]
    for event, facts in told:
        trail.append(event, facts)
    assert cli.run(["control", "audit", "--state.directory", str(tmp_path)]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["sequence", "time", "event", "outcome", "changed", "error"]
    assert [row.split()[2:] for row in rows] == [
        ["begin"], ["end", "done", "yes"], ["unchanged", "done", "no"], ["refused", "refused", "no", "busy"],
        ["end", "refused", "no"], ["end", "failed", "late"], ["end", "unknown", "broken"],
        ["unanswered", "unknown", "silent"], ["late", "done", "no"], ["interrupted", "gone"],
    ]  # fmt: skip


def test_verify_names_the_line(tmp_path: Path) -> None:
    trail = Trail(tmp_path / "audit.jsonl")
    for number in range(3):
        trail.append("begin", {"number": number})
    assert trail.verify() == 3
    trail.path.write_bytes(trail.path.read_bytes().replace(b'"number":1', b'"number":5'))
    with pytest.raises(TrailDamagedError, match="line 2"):
        trail.verify()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlService]:
    made = ControlService(tmp_path_factory.mktemp("audit"), "test:///default").start()
    yield made
    made.stop()


def test_the_api_gives_records_and_annotations_of_the_tokens_scope(service: ControlService) -> None:
    for name in ("web1", "db1"):
        xml = f"<domain type='test'><name>{name}</name><memory>1024</memory><os><type>hvm</type></os></domain>"
        status, _ = service.ask("POST", "/api/v1/domains:define-xml", {"parameters": {"xml": xml}})
        assert status == 200
        status, _ = service.ask("POST", f"/api/v1/domains/{name}/start", {"reason": "ticket <b>1</b>"})
        assert status == 200
    status, document = service.ask("GET", "/api/v1/audit?domain=web1", token="web")
    started = [record for record in document["records"] if record["operation"] == "domain.start"]
    assert [record["event"] for record in started] == ["begin", "end"]
    assert service.ask("GET", "/api/v1/audit?domain=db1", token="web")[1]["records"] == []
    assert {r["subject"]["name"] for r in service.ask("GET", "/api/v1/audit", token="reader")[1]["records"]} == {
        "web1", "db1"
    }
    status, rows = service.ask("GET", "/api/v1/annotations?from=1h&domain=web1", token="reader")
    row = next(row for row in rows if row["title"] == "domain.start web1")
    assert status == 200
    assert row["text"].startswith("done, ")
    assert "ticket <b>1</b>" in row["text"]
    assert {"virtgauge", "domain.start", "web1"} <= set(row["tags"])
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", row[name]) for name in ("time", "timeEnd"))
    milliseconds = int(datetime.now(UTC).timestamp() * 1000)
    assert service.ask("GET", f"/api/v1/annotations?from={milliseconds + 60000}", token="reader")[1] == []
    assert service.ask("GET", f"/api/v1/annotations?to={milliseconds - 600000}", token="reader")[1] == []


@pytest.mark.parametrize("query", ["audit?since=yesterday", "audit?newest=0", "audit?newest=x", "annotations?from=x"])
def test_a_query_that_is_wrong_is_told(service: ControlService, query: str) -> None:
    assert service.problem("GET", f"/api/v1/{query}", token="reader") == (422, "invalid")


def test_nobody_reads_the_trail_without_a_token(service: ControlService) -> None:
    assert service.ask("GET", "/api/v1/audit", token=None)[0] == 401
    assert service.ask("GET", "/api/v1/annotations", token="wrong")[0] == 401
