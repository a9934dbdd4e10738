"""Refused callers in the audit trail: each one, up to what a flood may write."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exporter import audited_refusals
from exporter.audited_refusals import TOLD_OF_TOKEN, WINDOW_S, AuditedRefusals
from exporter.control.audit import Trail
from exporter.tokens import Principal, Role

SCOPE: dict[str, Any] = {"path": "/api/v1/domains", "method": "GET", "client": ("127.0.0.1", 1)}
MANY = 500


def caller(name: str) -> Principal:
    return Principal("1234", name, Role.ALERTS, ("*",))


def told(trail: Trail) -> dict[object, list[object]]:
    found: dict[object, list[object]] = {}
    for record in trail.records():
        found.setdefault(record.get("actor"), []).append(record.get("refused_since_last", 1))
    return found


def eventually_told(trail: Trail, wanted: Callable[[dict[object, list[object]]], bool]) -> dict[object, list[object]]:
    """Each record is synchronized, which takes long on a disk that others use."""
    until_s = time.monotonic() + 60
    while not wanted(found := told(trail)):
        assert time.monotonic() < until_s, found
        time.sleep(0.01)
    return found


@pytest.fixture
def trail(tmp_path: Path) -> Trail:
    made = Trail(tmp_path / "audit.jsonl")
    made.append("begun", {})  # so that there is a file to read
    return made


def test_a_known_token_cannot_fill_the_trail_by_being_refused(trail: Trail) -> None:
    now_s = [1000.0]
    refusals = AuditedRefusals(trail, lambda: now_s[0])
    for _ in range(MANY):
        refusals.told(caller("mallory"), SCOPE, "role", "no")
        refusals.told(None, SCOPE, "token", "no")
    refusals.told(caller("anna"), SCOPE, "role", "no")  # told, whatever others do
    now_s[0] += WINDOW_S
    refusals.told(caller("mallory"), SCOPE, "role", "no")
    refusals.told(None, SCOPE, "token", "no")
    wanted = {
        "mallory (1234)": [1] * TOLD_OF_TOKEN + [MANY - TOLD_OF_TOKEN, 1],
        None: [1, 1, MANY - 1, 1],  # the trail's own beginning is the first
        "anna (1234)": [1],
    }
    eventually_told(trail, lambda found: sum(map(len, found.values())) >= sum(map(len, wanted.values())))
    refusals.stop()
    assert told(trail) == wanted


def test_what_was_only_counted_is_told_when_the_service_stops(trail: Trail) -> None:
    refusals = AuditedRefusals(trail, lambda: 1000.0)
    for _ in range(MANY):
        refusals.told(caller("mallory"), SCOPE, "role", "no")
    mallory = "mallory (1234)"
    eventually_told(trail, lambda found: len(found.get(mallory, [])) == TOLD_OF_TOKEN)
    refusals.stop()
    found = eventually_told(trail, lambda found: len(found[mallory]) > TOLD_OF_TOKEN)
    assert found[mallory] == [1] * TOLD_OF_TOKEN + [MANY - TOLD_OF_TOKEN]


def test_what_was_only_counted_is_told_when_the_window_is_over_and_nobody_comes(
        trail: Trail, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audited_refusals, "WINDOW_S", 0.3)
    refusals = AuditedRefusals(trail)
    for _ in range(MANY):
        refusals.told(None, SCOPE, "token", "no")
    eventually_told(trail, lambda found: sum(map(int, map(str, found[None]))) == MANY + 1)
    refusals.stop()
    record = list(trail.records())[-1]
    assert (record["reason"], record["path"]) == ("token", "/api/v1/domains")
