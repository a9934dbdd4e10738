"""Refused callers in the audit trail: each one, up to what a flood may write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exporter.audited_refusals import TOLD_OF_TOKEN, WINDOW_S, AuditedRefusals
from exporter.control.audit import Trail
from exporter.tokens import Principal, Role

SCOPE: dict[str, Any] = {"path": "/api/v1/domains", "method": "GET", "client": ("127.0.0.1", 1)}
MANY = 500


def caller(name: str) -> Principal:
    return Principal("1234", name, Role.ALERTS, ("*",))


def test_a_known_token_cannot_fill_the_trail_by_being_refused(tmp_path: Path) -> None:
    now_s = [1000.0]
    trail = Trail(tmp_path / "audit.jsonl")
    refusals = AuditedRefusals(trail, lambda: now_s[0])
    for _ in range(MANY):
        refusals.told(caller("mallory"), SCOPE, "role", "no")
        refusals.told(None, SCOPE, "token", "no")
    refusals.told(caller("anna"), SCOPE, "role", "no")  # told, whatever others do
    now_s[0] += WINDOW_S
    refusals.told(caller("mallory"), SCOPE, "role", "no")
    refusals.told(None, SCOPE, "token", "no")
    refusals.stop()
    told: dict[object, list[object]] = {}
    for record in trail.records():
        told.setdefault(record.get("actor"), []).append(record.get("refused_since_last", 1))
    assert told == {
        "mallory (1234)": [1] * TOLD_OF_TOKEN + [MANY - TOLD_OF_TOKEN + 1],
        None: [1, MANY],
        "anna (1234)": [1],
    }
