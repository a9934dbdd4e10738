"""What a rule did is undone when its alert resolves: once, whatever comes between, and only what the rule did."""

from __future__ import annotations

from typing import Any

import pytest

from exporter.control.locks import Locks
from tests.exporter.control.rule_bench import ACTED, RULES, Bench, alert

LIMIT = RULES.replace("{operation: domain.suspend}", """
      operation: domain.set-block-limit
      parameters: {device: {from_label: disk}, total_bytes_sec: 1000, total_bytes_sec_max: 2000, apply_to: live}""")
REVERSED = LIMIT.replace("undo: {operation: domain.resume}", "undo: reverse")
NOISY = {"disk": "vda"}


def limits(bench: Bench, name: str = "web0") -> dict[str, Any]:
    found = bench.domain(name).blockIoTune("vda", 0)
    return {key: value for key, value in found.items() if value and key != "group_name"}


def test_what_was_there_before_comes_back(bench: Bench) -> None:
    """The owner's own limit is the owner's: lifting every limit would take it, too."""
    own = {"total_bytes_sec": 5000, "total_bytes_sec_max": 6000}
    bench.domain().setBlockIoTune("vda", own, 0)
    bench.text = REVERSED
    assert bench.send(alert(**NOISY)) == ACTED
    assert limits(bench) == {"total_bytes_sec": 1000, "total_bytes_sec_max": 2000}
    assert bench.send(alert(status="resolved", **NOISY)) == ACTED
    assert limits(bench) == own


def test_what_was_so_already_is_not_undone(bench: Bench) -> None:
    own = {"total_bytes_sec": 1000, "total_bytes_sec_max": 2000}
    bench.domain().setBlockIoTune("vda", own, 0)
    bench.text = LIMIT.replace("domain.resume", "domain.lift-block-limit")
    assert bench.send(alert(**NOISY)) == ["rule-acts", "unchanged", "rule-acted"]
    assert bench.send(alert(status="resolved", **NOISY)) == ["rule-resolved"]
    assert limits(bench) == own


def test_a_busy_guest_is_undone_later_and_not_acted_upon_again(bench: Bench) -> None:
    bench.send(alert())
    lock = Locks(bench.folders).acquire(f"domain-{bench.domain().UUIDString()}", "the test")
    assert bench.send(alert(status="resolved")) == ["rule-acts", "refused"]
    lock.release()
    assert bench.state() == "paused"
    bench.now_s += 6
    assert bench.send() == ACTED
    assert bench.state() == "running"
    assert [record["operation"] for record in bench.told("begin")] == ["domain.suspend", "domain.resume"]
    bench.now_s += 6
    assert bench.send() == []


def test_the_kill_switch_holds_it_and_it_is_done_afterwards(bench: Bench) -> None:
    bench.send(alert())
    bench.engine.switch.turn(True, "somebody")
    assert bench.send(alert(status="resolved")) == ["stopped"]
    bench.now_s += 3600
    assert bench.send() == []  # told once
    assert bench.state() == "paused"
    bench.engine.switch.turn(False, "somebody")
    bench.now_s += 6
    assert bench.send() == ACTED
    assert bench.state() == "running"


def test_a_guest_that_is_off_has_nothing_to_undo(bench: Bench) -> None:
    """Its live limit went with its QEMU: no failure, and no step to the breaker."""
    bench.text = LIMIT.replace("{operation: domain.resume}",
                               "{operation: domain.lift-block-limit, parameters: {apply_to: live}}")
    assert bench.send(alert(**NOISY)) == ACTED
    bench.domain().destroy()
    assert bench.send(alert(status="resolved", **NOISY)) == ["rule-cancelled"]
    assert bench.store.failures()["suspend-it"] == (0, False)


def test_a_dry_run_undoes_dry(bench: Bench) -> None:
    bench.text = REVERSED.replace("    mode: enforce\n", "")
    assert bench.send(alert(**NOISY)) == ["rule-dry-run", "rule-would"]
    bench.text = REVERSED  # switched to enforce meanwhile: what was not done is not undone
    assert bench.send(alert(status="resolved", **NOISY)) == ["rule-dry-run", "rule-would"]
    assert limits(bench) == {}


def test_a_rule_that_is_off_by_then_says_what_stays(bench: Bench) -> None:
    bench.send(alert())
    bench.text = RULES.replace("enforce", "'off'")
    assert bench.send(alert(status="resolved")) == ["off"]
    assert bench.state() == "paused"


@pytest.mark.parametrize("change", ["protected: {domains: ['web*']}\n", ""], ids=["protected", "gone"])
def test_what_may_not_be_touched_any_more_is_left(bench: Bench, change: str) -> None:
    bench.send(alert())
    bench.text = change + RULES
    if not change:
        bench.domain().destroy()
        bench.domain().undefine()
    assert bench.send(alert(status="resolved")) == ["protected" if change else "no-domain", "rule-cancelled"]


def test_killed_while_it_undid_it_is_unknown_and_not_repeated(bench: Bench) -> None:
    bench.send(alert())
    number = bench.store.add("suspend-it", alert(), "undo", "web0", "u", "acting", bench.now_s)
    bench.reopen()
    bench.engine.start()
    bench.engine.stop(10)
    assert number is not None
    assert bench.store.get(number).state == "unknown"
    assert bench.send(alert(status="resolved")) == []
    assert len(bench.told("begin")) == 1
