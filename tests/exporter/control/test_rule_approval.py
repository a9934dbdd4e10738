"""Acts that wait for a person, by the command line and the API of a real service; the kill switch by signal."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from exporter.control.audit import Trail
from tests.control_service import ControlService
from tests.exporter.control.rule_bench import RULES, alert, guests

BURST = 1200


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlService]:
    folder = tmp_path_factory.mktemp("approval")
    service = ControlService(folder, guests(folder, 4))
    (folder / "rules.yml").write_text(RULES.replace("enforce", "approve"))
    service.start(f"--control.rules-file={folder}/rules.yml")
    yield service
    service.stop(signal.SIGKILL)


def send(service: ControlService, *names: str) -> None:
    body = {"alerts": [alert(name).as_json() for name in names]}
    assert service.ask("POST", "/api/v1/alerts", body, token="alerts") == (202, {"accepted": len(names)})


def until(seen: Any) -> Any:
    end_s = time.monotonic() + 60
    while not (found := seen()):
        assert time.monotonic() < end_s
        time.sleep(0.05)
    return found


def told(service: ControlService, event: str) -> list[dict[str, Any]]:
    trail = Trail(service.state / "control" / "audit.jsonl")
    return [dict(record) for record in trail.records() if record["event"] == event]


def command(service: ControlService, *words: str) -> Any:
    done = service.run("control", "pending", *words, "-o", "json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["details"]


def test_listed_shown_approved_and_refused_both_ways(service: ControlService) -> None:
    send(service, "web0", "web1", "web2", "web3")
    until(lambda: len(told(service, "rule-pending")) == 4)
    rows = command(service, "list")["rows"]
    assert {(row["domain"], row["would"]) for row in rows} == {
        (f"web{n}", "domain.suspend: stop its CPUs") for n in range(4)}  # fmt: skip
    number = {row["domain"]: row["action"] for row in rows}
    shown = command(service, "show", str(number["web0"]))
    assert (shown["state"], shown["labels"]["alertname"]) == ("pending", "Bad")
    assert shown["expires"] == rows[0]["expires"] > shown["asked"]
    status, document = service.ask("GET", f"/api/v1/pending/{number['web0']}", token="reader")
    assert (status, document["told"]) == (200, "domain.suspend: stop its CPUs")
    assert 3500 < document["expires_s"] - document["made_s"] <= 3600
    assert service.problem("GET", "/api/v1/pending/999", token="reader") == (404, "not-found")

    def by_api(name: str, word: str, token: str) -> int:
        return int(service.ask("POST", f"/api/v1/pending/{number[name]}/{word}", {}, token=token)[0])

    assert [by_api("web0", "approve", token) for token in ("alerts", "reader", "operator")] == [403, 403, 200]
    assert by_api("web1", "refuse", "operator") == 200
    assert by_api("web1", "approve", "operator") == 409
    assert service.run("control", "pending", "approve", str(number["web2"])).returncode == 0
    assert service.run("control", "pending", "refuse", str(number["web3"])).returncode == 0
    assert service.run("control", "pending", "approve", str(number["web3"])).returncode == 3
    until(lambda: len(told(service, "rule-acted")) == 2)
    states = [service.ask("GET", f"/api/v1/domains/web{n}", token="reader")[1]["details"]["state"] for n in range(4)]
    assert states == ["paused", "running", "paused", "running"]
    decided = [(record["event"], record["subject"]["name"], record["way"])
               for event in ("rule-approved", "rule-refused") for record in told(service, event)]  # fmt: skip
    assert decided == [("rule-approved", "web0", "api"), ("rule-approved", "web2", "command line"),
                       ("rule-refused", "web1", "api"), ("rule-refused", "web3", "command line")]  # fmt: skip
    assert all(record["actor"] for event in ("rule-approved", "rule-refused") for record in told(service, event))
    later = command(service, "show", str(number["web3"]))
    assert (later["state"], bool(later["decided_by"])) == ("refused", True)
    for counted in ('result="refused",rule="suspend-it"} 2.0', 'result="done",rule="suspend-it"} 2.0'):
        until(lambda counted=counted: counted in service.ask("GET", "/metrics", token="reader")[1])


def test_annotations_are_the_acts_however_many_alerts_were_held(service: ControlService) -> None:
    trail = Trail(service.state / "control" / "audit.jsonl")
    for _ in range(BURST):
        trail.append("rule-skipped", {"rule": "suspend-it", "subject": {"kind": "domain", "name": "web0"}})
    rows = service.ask("GET", "/api/v1/annotations?from=1h&domain=web0", token="reader")[1]
    assert [row["title"] for row in rows] == ["rule-pending web0", "rule-approved web0", "domain.suspend web0"]
    assert "approved by operator" in rows[-1]["text"]


def test_a_signal_stops_the_rules_and_the_trail_says_so(service: ControlService) -> None:
    assert service.process is not None
    service.process.send_signal(signal.SIGUSR1)
    (record,) = until(lambda: told(service, "rule-stopped"))
    assert (record["actor"], record["way"]) == ("SIGUSR1", "signal")
    assert (service.state / "control" / "rules-stopped").exists()
    assert service.ask("POST", "/api/v1/rules:go", {}, token="operator")[1] == {"stopped": False}
