"""What stands in front of an act: replays, expiry, dry runs that count, approvals, asking back, defects."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

import libvirt
import pytest

from exporter.control.alerted_guest import MARK_URI
from exporter.control.errors import BusyError, RefusedError, UnreachableError
from exporter.control.kill_switch import KillSwitch
from exporter.control.locks import Locks
from exporter.control.rule_engine import RuleEngine
from tests.exporter.control.rule_bench import ACTED, PARSED, RULES, WITHOUT_UNDO, Bench, alert

APPROVE = RULES.replace("enforce", "approve")
FAILING = WITHOUT_UNDO.replace("{operation: domain.suspend}", "{operation: domain.set-block-limit, parameters: "
                               "{device: sdz, total_bytes_sec: 1}}\n    retry: {times: 2, every: 60s}")  # fmt: skip


def test_an_alert_that_resolved_before_is_played_again_in_vain(bench: Bench) -> None:
    """It was skipped, so there is no act that would make it a duplicate."""
    bench.engine.switch.turn(True, "somebody")
    assert bench.send(alert(), alert(status="resolved")) == ["stopped"]
    bench.engine.switch.turn(False, "somebody")
    bench.reopen()
    assert bench.send(alert()) == ["ended"]
    assert bench.send(alert(number=1)) == ACTED


@pytest.mark.parametrize("hand", ["another process", "the service"])
def test_a_stop_that_could_not_be_written_holds_until_somebody_says_go(bench: Bench, hand: str) -> None:
    """A folder in the file's place fails the write as a full disk does; the word to go on reaches who holds."""
    switch = bench.engine.switch
    switch.path.mkdir()
    with pytest.raises(UnreachableError, match="cannot be turned"):
        switch.turn(True, "somebody")
    switch.path.rmdir()
    assert bench.send(alert()) == ["stopped"]
    (KillSwitch(bench.folders.state) if hand == "another process" else switch).turn(False, "somebody")
    assert bench.send(alert(number=1)) == ACTED
    switch.hold()
    assert switch.is_on()  # and a second stop holds again


def test_a_rule_on_resolved_has_the_same_guards(bench: Bench) -> None:
    bench.text = WITHOUT_UNDO.replace("mode:", "on: resolved\n    mode:").replace("hour: 100", "hour: 1")
    bench.domain("web2").suspend()
    assert bench.send(alert(status="resolved"), alert("web1", status="resolved"), alert("web2", status="resolved")) == [
        *ACTED, "budget", "state"]  # fmt: skip


@pytest.mark.parametrize("side", [libvirt.VIR_DOMAIN_AFFECT_LIVE, libvirt.VIR_DOMAIN_AFFECT_CONFIG])
def test_an_owners_mark_counts_on_either_side(bench: Bench, side: int) -> None:
    bench.domain().setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, "<protect/>", "virtgauge", MARK_URI, side)
    assert bench.send(alert()) == ["protected"]


def test_a_maintenance_window_is_kept(bench: Bench) -> None:
    now = datetime.fromtimestamp(bench.now_s)
    begin, end = (now + timedelta(minutes=minutes) for minutes in (-5, 5))
    bench.text = RULES + f"    quiet: [{{from: '{begin:%H:%M}', to: '{end:%H:%M}'}}]\n"
    assert bench.send(alert()) == ["quiet"]
    bench.now_s += 301
    assert bench.send(alert()) == ACTED


def test_a_dry_run_shows_what_cooldown_and_budget_would_let_through(bench: Bench) -> None:
    text = RULES.replace("    mode: enforce\n", "").replace("cooldown: 0s", "cooldown: 10m")
    bench.text = text.replace("hour: 100", "hour: 2")
    dry = ["rule-dry-run", "rule-would"]
    assert bench.send(alert(), alert(number=1), alert("web1"), alert("web2")) == [*dry, "cooldown", *dry, "budget"]
    bench.text = bench.text.replace("suspend-it", "other").replace("match:", "mode: enforce\n    match:")
    assert bench.send(alert()) == ACTED  # and takes nothing from a rule that acts


def test_what_is_tried_again_is_counted_once(bench: Bench) -> None:
    once = FAILING.replace("hour: 100", "hour: 1").replace("cooldown: 0s", "cooldown: 1h")
    bench.text = "budget_per_hour: 1\n" + once
    assert bench.send(alert()) == ["rule-acts", "refused", "rule-will-retry"]
    bench.now_s += 61
    assert bench.send() == ["rule-acts", "refused", "rule-will-retry"]
    bench.now_s += 61
    assert bench.send() == ["rule-acts", "refused", "rule-failed"]


def test_what_was_held_up_for_too_long_is_not_begun(bench: Bench) -> None:
    """The kill switch, then an hour, then go: what was due long ago does not happen all at once."""
    bench.text = FAILING
    bench.send(alert())
    bench.text = APPROVE
    bench.send(alert("web1"))
    (pending,) = bench.store.in_state("pending")
    bench.store.decide(pending.id, "approved", "anna", bench.now_s)
    bench.engine.switch.turn(True, "somebody")
    bench.now_s += 61
    bench.send()
    assert len(bench.store.in_state("approved", "retry")) == 2
    bench.now_s += 2 * 3600
    bench.engine.switch.turn(False, "somebody")
    assert bench.send() == ["rule-expired", "rule-expired"]
    assert (bench.state(), bench.state("web1")) == ("running", "running")


def test_a_busy_guest_is_asked_until_the_alert_is_stale(bench: Bench) -> None:
    with held(bench):
        assert bench.send(alert()) == ["rule-acts", "refused"]
        bench.now_s += 601
        assert bench.send() == ["rule-expired"]
    bench.now_s += 6
    assert bench.send() == []


@contextmanager
def held(bench: Bench) -> Iterator[None]:
    lock = Locks(bench.folders).acquire(f"domain-{bench.domain().UUIDString()}", "the test")
    yield
    lock.release()


def test_no_more_is_asked_for_than_the_budget_would_grant(bench: Bench) -> None:
    bench.text = APPROVE.replace("hour: 100", "hour: 2")
    assert bench.send(alert(), alert(number=1), alert("web1"), alert("web2")) == [
        "rule-pending", "pending", "rule-pending", "budget"]  # fmt: skip
    first, second = bench.store.in_state("pending")
    assert first.told == "domain.suspend: stop its CPUs"
    for act in (first, second):
        bench.store.decide(act.id, "approved", "anna", bench.now_s)
    assert bench.send() == ACTED * 2


def test_nobody_approves_what_has_expired(bench: Bench) -> None:
    """Also where no service runs that would say so."""
    bench.text = APPROVE
    bench.send(alert())
    with pytest.raises(RefusedError, match="has expired"):
        bench.store.decide(bench.store.in_state("pending")[0].id, "approved", "anna", bench.now_s + 3601)
    assert bench.state() == "running"


def test_a_refusal_is_counted_once(bench: Bench) -> None:
    bench.text = APPROVE
    bench.send(alert())
    bench.store.decide(bench.store.in_state("pending")[0].id, "refused", "anna", bench.now_s)
    bench.settle()
    bench.settle()
    assert counted(bench, "virtgauge_control_rule_runs_total", result="refused") == 1


def counted(bench: Bench, name: str, **labels: str) -> float:
    return sum(sample.value for family in bench.engine.metrics.collect() for sample in family.samples
               if sample.name == name and labels.items() <= sample.labels.items())  # fmt: skip


def test_a_defect_costs_one_alert_and_one_act(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something that nobody foresaw: neither the thread nor the alerts after it are lost."""
    bench.text = WITHOUT_UNDO
    bench.store.put([alert(), alert("web1")], bench.now_s)
    number = bench.store.add("suspend-it", alert("web2"), "do", "web2", bench.domain("web2").UUIDString(), "retry", 0)
    assert number is not None
    find = bench.engine._target

    def broken(rule: Any, one: Any) -> Any:
        if one.labels["domain"] != "web1":
            raise ZeroDivisionError
        return find(rule, one)

    monkeypatch.setattr(bench.engine, "_target", broken)
    bench.now_s = 1.0  # the waiting act is not too old for its time
    bench.engine.start()
    ended = threading.Event()
    for _ in range(300):
        if bench.store.get(number).state == "failed" and bench.state("web1") == "paused":
            break
        ended.wait(0.1)
    bench.engine.stop(10)
    assert bench.store.get(number).state == "failed"
    assert (bench.state(), bench.state("web1"), bench.store.waiting()) == ("running", "paused", 0)


def test_one_service_works_on_the_rules_of_a_folder(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporter.control.rule_engine._PREDECESSOR_S", 0.1)
    bench.engine.start()
    second = RuleEngine(lambda: PARSED(bench.text), bench.store, bench.executor)
    with pytest.raises(BusyError, match="another control service"):
        second.start()
    bench.engine.stop(10)
    second.start()
    second.stop(10)


def test_a_queue_that_is_full_sends_alerts_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporter.control.alert_store.MOST_WAITING", 3)
    bench.engine.receive([alert(), alert("web1")])
    with pytest.raises(UnreachableError, match="2 alerts wait already"):
        bench.engine.receive([alert("web2"), alert(number=1)])
    assert bench.store.waiting() == 2


class Answering(http.server.BaseHTTPRequestHandler):
    """Stands where Prometheus or Alertmanager should, and answers what no real one would."""

    body = b""
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(f"{self.headers.get('Authorization')} {self.path}")
        self.send_response(302 if self.body == b"away" else 200)
        if self.body == b"away":
            self.send_header("Location", f"http://{self.headers['Host']}/else")
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None: ...


@pytest.mark.parametrize("server", ["prometheus", "alertmanager"])
@pytest.mark.parametrize("body", [
    b"", b"away", b"no JSON", b"[]]", b"7", b'{"data": 1}', b'[{"status": 1}]', b"null", b" " * (2 << 20),
    b"[" * 100000])  # fmt: skip
def test_an_answer_that_is_wrong_is_none(bench: Bench, server: str, body: bytes) -> None:
    handler = type("Handler", (Answering,), {"body": body, "asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as answering:
        threading.Thread(target=answering.serve_forever, daemon=True).start()
        bench.text = f"{server}: http://127.0.0.1:{answering.server_address[1]}\n" + RULES
        assert bench.send(alert()) == ["unconfirmed"]
        answering.shutdown()
    assert len(handler.asked) == 1  # type: ignore[attr-defined]
    assert bench.state() == "running"


def test_it_is_asked_with_the_credentials_of_the_files(bench: Bench) -> None:
    handler = type("Handler", (Answering,), {"body": json.dumps({"data": {"result": [1]}}).encode(), "asked": []})
    folder = bench.folders.state.parent
    (folder / "token").write_text("t0ken\n")
    (folder / "password").write_text("p4ss\n")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as answering:
        threading.Thread(target=answering.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{answering.server_address[1]}"
        for number, more in enumerate((f"credentials_file: {folder}/token",
                                       f"username: me, password_file: {folder}/password")):  # fmt: skip
            bench.text = f"prometheus: {{url: '{url}', {more}}}\n" + WITHOUT_UNDO
            assert bench.send(alert(f"web{number}", reason='"},x={"\n\ud800'[:7])) == ACTED
        answering.shutdown()
    assert [told.split(" /")[0] for told in handler.asked] == [  # type: ignore[attr-defined]
        "Bearer t0ken", "Basic bWU6cDRzcw=="]
