"""Debian's Alertmanager and the rules: a burst of a thousand alerts, and Alertmanager asked back before an act."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from exporter.control.audit import Trail
from tests.control_service import ControlService
from tests.exporter.control.rule_bench import guests
from tests.live.alerting import alertmanager_server
from tests.live.operating import eventually
from tests.live.servers import Server

GUESTS = 1000
BURST = """\
budget_per_hour: 1000
here: ['instance = alpha']
rules:
  - name: budgeted
    mode: enforce
    match: [alertname = Bad]
    action: {operation: domain.autostart}
    budget_per_hour: 7
  - name: capped
    mode: enforce
    match: [alertname = Bad, 'domain =~ "web9.*"']
    action: {operation: domain.suspend}
    budget_per_hour: 1000
    most_of: {domains: 'web9*', ratio: 0.04}
"""
ASKING = """\
here: ['instance = alpha']
alertmanager: ADDRESS
rules:
  - name: suspend-it
    mode: approve
    match: [alertname = Bad]
    action: {operation: domain.suspend}
"""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ControlService]:
    service = ControlService(tmp_path, guests(tmp_path, GUESTS))
    try:
        yield service
    finally:
        service.stop(signal.SIGKILL)


@pytest.fixture
def alertmanager(service: ControlService, tmp_path: Path) -> Iterator[Server]:
    url = f"http://127.0.0.1:{service.port}/api/v1/alerts"
    with alertmanager_server(tmp_path, {url: service.tokens["alerts"]}) as server:
        server.start()
        server.wait_ready()
        yield server


def post(alertmanager: Server, path: str, document: Any) -> None:
    request = urllib.request.Request(alertmanager.url(path), json.dumps(document).encode(),
                                     {"Content-Type": "application/json"})  # fmt: skip
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 200


def labels(domain: str) -> dict[str, str]:
    return {"alertname": "Bad", "instance": "alpha", "domain": domain}


def counted(service: ControlService, name: str, *wanted: str) -> float:
    page = service.ask("GET", "/metrics", token="reader")[1]
    found = re.findall(rf"^virtgauge_control_{name}(?:{{(.*)}})? (\S+)$", page, re.MULTILINE)
    return sum(float(value) for told, value in found if all(one in told for one in wanted))


def test_a_thousand_alerts_at_once_meet_budget_and_cap(
    service: ControlService, alertmanager: Server, tmp_path: Path
) -> None:
    """Each guest's is a group of its own, as docs/alert-driven-control.md has it: a thousand webhooks."""
    (tmp_path / "rules.yml").write_text(BURST)
    service.start(f"--control.rules-file={tmp_path}/rules.yml")
    now = datetime.now(UTC).isoformat()
    post(alertmanager, "/api/v2/alerts", [{"labels": labels(f"web{n}"), "startsAt": now} for n in range(GUESTS)])

    def reached(most: int, *which: str) -> bool:
        # Above 512 connections the service closes idle ones; Alertmanager comes again with what was not answered in its
        # time, and so do we. What comes again is counted again, and never acted upon again.
        with contextlib.suppress(OSError):
            return counted(service, *which) >= most
        return False

    eventually(lambda: reached(GUESTS, "alerts_received_total", "firing"), "all alerts have come", 120)
    eventually(lambda: reached(GUESTS - 7, "rule_skips_total", "budgeted", "budget"), "all but 7 are skipped", 120)
    eventually(lambda: reached(107, "rule_skips_total", "capped", "share"), "all but 4 of 111 are", 120)
    eventually(lambda: counted(service, "alerts_waiting") == 0, "all alerts are judged", 120)
    assert counted(service, "rule_matches_total", "budgeted") >= GUESTS
    assert counted(service, "rule_runs_total", "budgeted", "done") == 7
    assert counted(service, "rule_runs_total", "capped", "done") == 4
    paused = service.ask("GET", "/api/v1/domains?which=all", token="reader")[1]["details"]["rows"]
    assert [row["state"] for row in paused].count("paused") == 4
    begun = [record for record in Trail(service.state / "control" / "audit.jsonl").records()
             if record["event"] == "begin"]  # fmt: skip
    assert len(begun) == 11


def test_alertmanager_is_asked_before_an_act(service: ControlService, alertmanager: Server, tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(ASKING.replace("ADDRESS", alertmanager.url("")))
    service.start(f"--control.rules-file={tmp_path}/rules.yml")
    trail = Trail(service.state / "control" / "audit.jsonl")

    def skipped(domain: str) -> list[str]:
        return [str(record.get("outcome")) for record in trail.records() if record["event"] in
                ("rule-skipped", "rule-cancelled") and record["subject"]["name"] == domain]  # fmt: skip

    # Somebody forges a webhook: Alertmanager has no such alert.
    forged = {"alerts": [{"status": "firing", "labels": labels("web1"), "startsAt": datetime.now(UTC).isoformat()}]}
    assert service.ask("POST", "/api/v1/alerts", forged, token="operator")[0] == 202
    eventually(lambda: skipped("web1"), "the forged alert is skipped", 30)
    assert "no longer fires" in skipped("web1")[0]
    # Two real ones; one is silenced before it is approved.
    now = datetime.now(UTC)
    post(alertmanager, "/api/v2/alerts", [{"labels": labels(name), "startsAt": now.isoformat()}
                                          for name in ("web2", "web3")])  # fmt: skip
    pending: list[Any] = eventually(lambda: _pending(service, 2), "both wait for approval", 30)
    post(alertmanager, "/api/v2/silences", {
        "matchers": [{"name": "domain", "value": "web2", "isRegex": False, "isEqual": True}], "comment": "leave it",
        "startsAt": now.isoformat(), "endsAt": (now + timedelta(hours=1)).isoformat(), "createdBy": "anna",
    })  # fmt: skip
    silenced = alertmanager.url("/api/v2/alerts?silenced=true&active=false")
    eventually(lambda: json.load(urllib.request.urlopen(silenced, timeout=10)), "the silence holds", 30)
    for act in pending:
        assert service.ask("POST", f"/api/v1/pending/{act['id']}/approve", {}, token="operator")[0] == 200
    eventually(lambda: skipped("web2"), "the silenced alert is not acted upon", 30)
    assert "silenced" in skipped("web2")[0]
    eventually(lambda: _state(service, "web3") == "paused", "the other is", 30)
    assert (_state(service, "web1"), _state(service, "web2")) == ("running", "running")


def _pending(service: ControlService, count: int) -> list[Any]:
    found = service.ask("GET", "/api/v1/pending", token="reader")[1]["pending"]
    return list(found) if len(found) == count else []


def _state(service: ControlService, name: str) -> str:
    return str(service.ask("GET", f"/api/v1/domains/{name}", token="reader")[1]["details"]["state"])
