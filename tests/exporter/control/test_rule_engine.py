"""The rules at work on libvirt's test driver: guards, duplicates, bursts, approval, crashes, hostile labels."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exporter.control.alert_store import AlertStore
from exporter.control.alerted_guest import MARK_URI
from exporter.control.audit import Trail
from exporter.control.executor import Executor
from exporter.control.rule_engine import RuleEngine
from tests.control_service import ControlService
from tests.exporter.control.rule_bench import ACTED, PARSED, RULES, WITHOUT_UNDO, Bench, alert, guests


def test_it_acts_and_undoes_when_the_alert_resolves(bench: Bench) -> None:
    assert bench.send(alert()) == ACTED
    assert bench.state() == "paused"
    assert bench.send(alert(status="resolved")) == ACTED
    assert bench.state() == "running"
    assert bench.executor.trail.verify() == 8


def test_a_duplicate_acts_once_and_a_new_firing_again(bench: Bench) -> None:
    assert bench.send(alert(), alert(), alert()) == ACTED
    assert bench.send(alert()) == []
    assert bench.send(alert(status="resolved"), alert(status="resolved")) == ACTED
    assert bench.send(alert(number=1)) == ACTED


def test_dry_run_is_the_default_and_changes_nothing(bench: Bench) -> None:
    bench.text = RULES.replace("    mode: enforce\n", "")
    assert bench.send(alert()) == ["rule-dry-run", "rule-would"]
    assert bench.send(alert(status="resolved")) == ["rule-dry-run", "rule-would"]
    assert bench.state() == "running"


@pytest.mark.parametrize(("change", "domain", "reason"), [
    ("protected: {domains: ['web*']}\n", "web0", "protected"),
    ("prometheus: http://127.0.0.1:9\n", "web0", "unconfirmed"),
    ("", "nobody", "no-domain"),
])  # fmt: skip
def test_guards_of_the_file(bench: Bench, change: str, domain: str, reason: str) -> None:
    bench.text = change + RULES
    assert bench.send(alert(domain)) == [reason]
    assert bench.state() == "running"


@pytest.mark.parametrize(("labels", "told"), [
    ({}, "there is no domain 'nobody'"),
    ({"uuid": "00000000-0000-4000-8000-00000000ffff"},
     "there is no domain with the UUID '00000000-0000-4000-8000-00000000ffff'"),
])  # fmt: skip
def test_a_guest_that_is_not_there_is_named(bench: Bench, labels: dict[str, str], told: str) -> None:
    assert bench.send(alert("nobody", **labels)) == ["no-domain"]
    assert [record["outcome"] for record in bench.told("rule-skipped")] == [told]


def test_alerts_of_other_hosts_and_other_names_are_nothing(bench: Bench) -> None:
    assert bench.send(alert(instance="beta:9177"), alert(alertname="Fine")) == []


def test_a_guest_that_its_owner_marked_is_not_touched(bench: Bench) -> None:
    domain = bench.executor.session.connection.lookupByName("web0")
    domain.setMetadata(2, "<protect/>", "virtgauge", MARK_URI, 0)
    assert bench.send(alert()) == ["protected"]
    domain.setMetadata(2, None, "virtgauge", MARK_URI, 0)
    assert bench.send(alert(number=1)) == ACTED


def test_state_cooldown_budget_share_and_age(bench: Bench) -> None:
    bench.executor.session.connection.lookupByName("web2").suspend()
    assert bench.send(alert("web2")) == ["state"]
    bench.text = RULES.replace("cooldown: 0s", "cooldown: 10m")
    assert bench.send(alert()) == ACTED
    bench.executor.session.connection.lookupByName("web0").resume()
    assert bench.send(alert(number=1)) == ["cooldown"]
    bench.now_s += 601
    assert bench.send(alert(number=1)) == ACTED
    bench.text = RULES.replace("budget_per_hour: 100", "budget_per_hour: 2")
    assert bench.send(alert("web1")) == ["budget"]
    bench.text = RULES + "    most_of: {domains: 'web*', ratio: 0.34}\n"
    assert bench.send(alert("web1")) == ["share"]
    bench.now_s += 3601
    assert bench.send(alert("web1")) == ACTED
    bench.store.put([alert("web1", number=7)], bench.now_s - 601)
    assert bench.send() == ["stale"]


def test_the_kill_switch_stands_before_all(bench: Bench) -> None:
    bench.engine.switch.turn(True, "somebody")
    assert bench.send(alert()) == ["stopped"]
    bench.engine.switch.turn(False, "somebody")
    assert bench.send(alert(number=1)) == ACTED


def test_failures_in_a_row_open_the_breaker_until_it_is_reset(bench: Bench) -> None:
    bench.text = WITHOUT_UNDO.replace("domain.suspend", "domain.core-dump")
    for number in range(3):
        assert bench.send(alert(number=number))[-1] in ("rule-failed",)
    assert bench.send(alert(number=4)) == ["breaker"]
    bench.store.close_breaker("suspend-it")
    assert bench.send(alert(number=5))[-1] == "rule-failed"


def test_approval_expires_and_is_judged_anew(bench: Bench) -> None:
    bench.text = RULES.replace("enforce", "approve")
    assert bench.send(alert(), alert("web1"), alert("web2")) == ["rule-pending"] * 3
    first, second, third = bench.store.in_state("pending")
    bench.store.decide(first.id, "approved", "anna", bench.now_s)
    bench.store.decide(second.id, "refused", "anna", bench.now_s)
    bench.executor.session.connection.lookupByName("web0").suspend()
    assert bench.send() == ["rule-cancelled"]  # no longer in the state that the rule expects
    assert bench.send(alert("web1", status="resolved")) == ["rule-resolved"]
    bench.now_s += 3601
    assert bench.send() == ["rule-expired"]
    assert bench.state("web1") == bench.state("web2") == "running"
    assert third.domain == "web2"


def test_a_thousand_alerts_meet_the_budget(bench: Bench) -> None:
    bench.text = WITHOUT_UNDO.replace("hour: 100", "hour: 7").replace("domain.suspend", "domain.autostart")
    events = bench.send(*(alert(f"web{n % 3}", number=n) for n in range(1000)))
    assert events.count("rule-acts") == 7
    assert events.count("budget") == 3  # one a guest; the others are counted
    bench.now_s += 600
    assert bench.send() == ["budget"] * 3
    assert sum(record.get("times", 1) for record in bench.told("rule-skipped")) == 993
    assert bench.store.waiting() == 0


class SlowExecutor:
    """The bench's own, with acts that last; it counts how many run at once."""

    def __init__(self, executor: Executor, seconds: float) -> None:
        self._executor = executor
        self._seconds = seconds
        self._running: list[str] = []
        self.most = 0
        self.most_of_rule = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._executor, name)

    def run(self, operation: Any, reference: Any, parameters: Any, request: Any) -> Any:
        self._running.append(request.actor.name)
        self.most = max(self.most, len(self._running))
        self.most_of_rule = max(self.most_of_rule, self._running.count(request.actor.name))
        time.sleep(self._seconds)
        self._running.remove(request.actor.name)
        return self._executor.run(operation, reference, parameters, request)


TWO_RULES = WITHOUT_UNDO.replace("here:", "concurrency: 4\nhere:", 1) + """\
  - name: autostart-it
    mode: enforce
    match: [alertname = Bad]
    action: {operation: domain.autostart}
    cooldown: 0s
    budget_per_hour: 100
    concurrency: 3
"""


@pytest.mark.parametrize(("text", "most", "most_of_rule"), [
    (TWO_RULES.replace("concurrency: 4", "concurrency: 1"), 1, 1), (TWO_RULES, 4, 3),
    (TWO_RULES.replace("concurrency: 3", "concurrency: 1"), 2, 1)], ids=["one", "four", "one each"])  # fmt: skip
def test_so_many_act_at_once(tmp_path: Path, text: str, most: int, most_of_rule: int) -> None:
    bench = Bench(tmp_path, 6)
    bench.text = text
    slow = SlowExecutor(bench.executor, 0.2)
    engine = RuleEngine(lambda: PARSED(bench.text), bench.store, slow)  # type: ignore[arg-type]
    engine.receive([alert(f"web{n}") for n in range(6)])
    engine.start()
    try:
        eventually_s = time.monotonic() + 30
        while len(bench.store.in_state("done")) < 12:
            assert time.monotonic() < eventually_s, bench.store.in_state("acting", "retry", "failed", "cancelled")
            time.sleep(0.02)
    finally:
        engine.stop(10)
    assert (slow.most, slow.most_of_rule) == (most, most_of_rule)
    assert [bench.state(f"web{n}") for n in range(6)] == ["paused"] * 6
    acted = [record for record in bench.executor.trail.records() if record["event"] == "rule-acted"]
    assert len(acted) == 12
    assert bench.executor.trail.verify() >= 48  # more where two rules met at one guest: busy, tried again
    bench.executor.close()


def test_what_resolves_while_its_act_runs_is_undone_after_it(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.text = RULES.replace("here:", "concurrency: 2\nhere:", 1)
    slow = SlowExecutor(bench.executor, 0.3)
    engine = RuleEngine(lambda: PARSED(bench.text), bench.store, slow)  # type: ignore[arg-type]
    engine.receive([alert(), alert(status="resolved")])
    while engine._one_alert():
        pass
    engine._turns.end(10)
    told = [str(record["event"]) for record in bench.executor.trail.records()]
    assert told == [*ACTED, *ACTED]
    assert bench.state() == "running"
    bench.executor.close()


def test_what_was_begun_when_the_service_died_is_unknown_and_not_repeated(bench: Bench) -> None:
    """Every stage of a kill -9: the alert waits, the act is marked, the act is done but not told."""
    bench.store.put([alert("web1")], bench.now_s)
    number = bench.store.add("suspend-it", alert(), "do", "web0", "u", "acting", bench.now_s)
    assert number is not None
    bench.store.close()
    bench.open()
    bench.engine.start()
    try:
        end_s = time.monotonic() + 30
        while bench.store.waiting() or bench.store.find("suspend-it", alert("web1")) is None:
            assert time.monotonic() < end_s
            time.sleep(0.02)
    finally:
        bench.engine.stop(10)
    assert bench.store.get(number).state == "unknown"
    bench.settle()
    assert (bench.state("web0"), bench.state("web1")) == ("running", "paused")
    told = [record for record in bench.executor.trail.records() if record["event"] == "rule-interrupted"]
    assert "not repeated" in str(told[0]["outcome"])
    assert bench.send(alert()) == []


HOSTILE = st.one_of(
    st.text(max_size=60),
    st.sampled_from(["$(touch /tmp/x)", "`id`", "; rm -rf /", "../../etc/passwd", "web0\0", "<a/>]]>&lt;", "'--",
                     "web0\n", "%00", "\ud800", "{{.}}", "web0' or '1'='1"]),
)


# Where a label would show up if it were more than data: paths, programs, addresses, SQL. Python tells of each.
_REACHED: list[tuple[str, str]] = []
_WATCHED = ("open", "os.", "subprocess.", "shutil.", "socket.", "ctypes.", "exec", "compile", "import", "tempfile.",
            "urllib.", "glob.", "pathlib.", "pty.")
_MARK = "zqx"
_watching = False


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if _watching and event.startswith(_WATCHED) and _MARK in (told := repr(arguments)):
        _REACHED.append((event, told[:200]))


@pytest.fixture
def watched() -> Iterator[list[tuple[str, str]]]:
    """What reached the system with the mark in it."""
    global _watching
    if not any(hook is _hook for hook in _HOOKS):
        sys.addaudithook(_hook)
        _HOOKS.append(_hook)
    _REACHED.clear()
    _watching = True
    yield _REACHED
    _watching = False


_HOOKS: list[object] = []
LIMITING = WITHOUT_UNDO.replace("{operation: domain.suspend}", """
      operation: domain.set-block-limit
      parameters: {device: {from_label: target_device}, total_bytes_sec: 1000, total_bytes_sec_max: 2000}""")
SAVING = WITHOUT_UNDO.replace("{operation: domain.suspend}",
                              "{operation: domain.save, parameters: {comment: {from_label: target_device}}}")


def test_the_watch_sees_what_reaches_the_system(watched: list[tuple[str, str]], tmp_path: Path) -> None:
    (tmp_path / _MARK).write_text("")
    subprocess.run(["true", _MARK], check=True)
    assert {event for event, _ in watched} >= {"open", "subprocess.Popen"}


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=HOSTILE, rules=st.sampled_from([LIMITING, SAVING]),
       label=st.sampled_from(["target_device", "instance", "alertname", "reason", "uuid", "domain"]))  # fmt: skip
def test_no_label_reaches_the_system(
    bench: Bench, watched: list[tuple[str, str]], text: str, rules: str, label: str
) -> None:
    """In a rule that takes a parameter from a label, for a guest that is there: no path, program, address or XML."""
    bench.text = rules.replace("[alertname = Bad]", """['alertname =~ "(?s).*"']""").replace("alpha(:.*)?", "(?s).*")
    bench.now_s += 4000  # past every budget, so that each of them gets as far as it can
    bench.store.close_breaker("suspend-it")
    before = bench.domain().XMLDesc()
    hostile, number = f"{text}{_MARK}{text}", int(bench.now_s / 4000) % 1440
    labels = {"target_device": "none", **({} if label == "domain" else {label: hostile})}
    events = bench.send(alert(hostile if label == "domain" else "web0", number=number, **labels))
    assert watched == []
    assert "rule-acts" in events if label not in ("domain", "uuid") else "no-domain" in events, events
    bench.executor.trail.verify()
    if bench.state() == "shutoff":  # saved, with the label's text as a comment in its record
        assert (rules == SAVING, label not in ("domain", "uuid")) == (True, True)
        bench.domain().create()
    else:
        assert "end" not in events
        assert bench.domain().XMLDesc() == before


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(domain=HOSTILE, device=HOSTILE, uuid=HOSTILE)
def test_no_label_is_more_than_data(bench: Bench, domain: str, device: str, uuid: str) -> None:
    """Whatever stands in labels: nothing but an existing guest's name finds a guest, and the trail stays whole."""
    bench.text = WITHOUT_UNDO.replace(
        "{operation: domain.suspend}",
        "{operation: domain.set-block-limit, parameters: {device: {from_label: target_device}, total_bytes_sec: 1}}",
    )
    files = sorted(bench.folders.state.parent.rglob("*"))
    events = bench.send(alert(domain, target_device=device, fuzz=uuid))
    assert "begin" not in events
    assert set(events) <= {"no-domain", "rule-acts", "rule-failed", "breaker", "refused", "budget"}
    assert sorted(bench.folders.state.parent.rglob("*")) == files or len(files) < 8
    bench.executor.trail.verify()


def test_the_webhook_needs_a_token_with_the_right_role(tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(RULES)
    service = ControlService(tmp_path, guests(tmp_path, 3))
    service.environment["VIRTGAUGE_CONTROL_RULES_FILE"] = str(tmp_path / "rules.yml")
    service.start()
    try:
        labels = {"alertname": "Bad", "instance": "alpha:1", "domain": "web1"}
        body: dict[str, Any] = {"alerts": [{"status": "firing", "labels": labels, "startsAt": "2026-11-23T01:00:00Z"}]}
        path = "/api/v1/alerts"
        assert [service.ask("POST", path, body, token=token)[0] for token in (None, "forged", "reader", "web")] == [
            401, 401, 403, 403]  # fmt: skip
        assert service.problem("POST", path, {"alerts": 1}, token="operator") == (422, "invalid")
        # The token for Alertmanager sends alerts, and that is all.
        assert service.ask("POST", path, {"alerts": []}, token="alerts")[0] == 202
        for method, other in (("GET", "domains"), ("GET", "rules"), ("GET", "pending"), ("GET", "audit"),
                              ("POST", "domains/web1/suspend"), ("POST", "rules:stop"), ("POST", "pending/1/approve")):
            assert service.ask(method, f"/api/v1/{other}", {}, token="alerts")[0] == 403, other
        assert service.ask("GET", "/metrics", token="alerts")[0] == 403
        large = {"Content_Length": str(1024 * 1024 + 1), "Content_Type": "application/json"}
        assert service.ask("POST", path, token="operator", **large)[0] == 413
        assert service.ask("POST", path, body, token="alerts") == (202, {"accepted": 1})
        end_s = time.monotonic() + 30
        while service.ask("GET", "/api/v1/domains/web1", token="reader")[1]["details"]["state"] != "paused":
            assert time.monotonic() < end_s
            time.sleep(0.05)
        assert service.ask("POST", "/api/v1/rules:stop", {}, token="reader")[0] == 403
        assert service.ask("POST", "/api/v1/rules:stop", {}, token="operator")[1] == {"stopped": True}
        assert service.ask("GET", "/api/v1/rules", token="reader")[1]["stopped"] is True
        assert service.run("control", "rules", "go").returncode == 0
        assert service.process is not None
        service.process.send_signal(signal.SIGUSR1)
        end_s = time.monotonic() + 30
        while not service.ask("GET", "/api/v1/rules", token="reader")[1]["stopped"]:
            assert time.monotonic() < end_s
            time.sleep(0.05)
        page = service.ask("GET", "/metrics", token="reader")[1]
        assert 'virtgauge_control_alerts_received_total{status="firing"} 1.0' in page
        assert "virtgauge_control_rules_stopped 1.0" in page
    finally:
        service.stop(signal.SIGKILL)
    stored = sqlite3.connect(service.state / "control" / "alerts.db")
    assert stored.execute("SELECT state FROM acts").fetchall() == [("done",)]


def test_killed_again_and_again_no_act_is_done_twice(tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text("budget_per_hour: 1000\n" + RULES)
    service = ControlService(tmp_path, guests(tmp_path, 30))
    service.environment["VIRTGAUGE_CONTROL_RULES_FILE"] = str(tmp_path / "rules.yml")
    path = "/api/v1/alerts"
    sent = {"alerts": [{**alert(f"web{n}").as_json()} for n in range(30)]}
    for delay_s in (0.0, 0.05, 0.2):
        service.start()
        assert service.ask("POST", path, sent, token="operator")[0] == 202
        time.sleep(delay_s)
        service.stop(signal.SIGKILL)
    service.start()
    try:
        end_s = time.monotonic() + 60
        while "virtgauge_control_alerts_waiting 0.0" not in service.ask("GET", "/metrics", token="reader")[1]:
            assert time.monotonic() < end_s
            time.sleep(0.1)
    finally:
        service.stop()
    store = AlertStore(service.state / "control")
    states = [act.state for act in store.in_state("acting", "done", "unknown", "failed", "retry")]
    store.close()
    assert len(states) == 30
    assert set(states) <= {"done", "unknown"}
    trail = Trail(service.state / "control" / "audit.jsonl")
    begun = [record["subject"]["name"] for record in trail.records() if record["event"] == "begin"]
    assert len(begun) == len(set(begun)) >= states.count("done")
    told = [record for record in trail.records() if record["event"] == "rule-interrupted"]
    assert len(told) == states.count("unknown")
    assert trail.verify() > 60


def test_what_an_alert_would_lead_to_is_told_rule_by_rule(tmp_path: Path) -> None:
    service = ControlService(tmp_path, guests(tmp_path, 2))
    file, one = tmp_path / "rules.yml", tmp_path / "alert.json"
    file.write_text(RULES + "  - name: other\n    match: [alertname = Fine]\n    action: {operation: domain.start}\n")
    one.write_text(json.dumps({"labels": {"alertname": "Bad", "instance": "alpha", "domain": "web1"}}))
    done = service.run("control", "rules", "test", str(file), "--alert", str(one), "--libvirt.uri", service.uri)
    assert done.returncode == 0, done.stderr
    assert "would do on web1: domain.suspend: stop its CPUs" in done.stdout
    assert 'does not match alertname = "Fine"' in done.stdout
    assert not (service.state / "control").exists()
