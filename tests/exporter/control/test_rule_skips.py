"""What a rule left alone: told once, then counted, so that whoever may send alerts cannot fill the audit trail."""

from __future__ import annotations

from exporter.control.rule_skips import MOST_UNKNOWN
from tests.exporter.control.rule_bench import ACTED, RULES, WITHOUT_UNDO, Bench, alert

SUMMARY = 601
"""Seconds after which what was counted is told."""


def test_the_first_skip_is_told_and_equal_ones_are_counted(bench: Bench) -> None:
    bench.domain().suspend()
    bench.domain("web1").suspend()
    begin_s = bench.now_s
    assert bench.send(alert(), alert("web1")) == ["state", "state"]
    bench.now_s += 10
    assert bench.send(*(alert(number=n) for n in range(1, 50))) == []
    bench.now_s = begin_s + SUMMARY
    assert bench.send() == ["state"]
    summary = bench.told("rule-skipped")[-1]
    assert (summary["times"], summary["subject"]["name"]) == (49, "web0")
    assert summary["outcome"].startswith("49 times like this: web0 is paused")
    assert summary["since"] == summary["until"] != summary["time"]
    assert summary["starts_at"] == alert(number=49).starts_at
    assert bench.executor.trail.verify() == 3
    bench.now_s += SUMMARY
    assert bench.send() == []
    assert bench.send(alert(number=50), alert(number=51)) == ["state"]  # forgotten by now, so the next one is told


def test_each_act_is_told_and_what_was_counted_before_it(bench: Bench) -> None:
    bench.text = WITHOUT_UNDO
    bench.domain().suspend()
    assert bench.send(*(alert(number=n) for n in range(3))) == ["state"]
    bench.domain().resume()
    assert bench.send(alert(number=3)) == ["state", *ACTED]
    assert bench.told("rule-skipped")[-1]["times"] == 2  # the act has suspended it
    assert bench.send(alert(number=4)) == ["state"]  # a first one again
    bench.domain().resume()
    assert bench.send(alert(number=5)) == ACTED


def test_reasons_that_alternate_and_invented_names_are_bounded(bench: Bench) -> None:
    bench.domain().suspend()
    assert bench.send(alert(status="resolved")) == []
    assert bench.send(*(alert(number=n % 2 * n) for n in range(200))) == ["ended", "state"]
    told = bench.send(*(alert(f"invented{n}") for n in range(300)))
    assert told == ["no-domain"] * MOST_UNKNOWN  # "ended" has one of them, what they share is another
    bench.now_s += SUMMARY
    assert sorted(bench.send()) == ["ended", "no-domain", "state"]
    assert sum(record.get("times", 1) for record in bench.told("rule-skipped")) == 500
    bench.now_s += SUMMARY
    bench.send()
    assert bench.send(alert("invented299")) == ["no-domain"]


def test_what_was_counted_is_told_at_the_end(bench: Bench) -> None:
    bench.domain().suspend()
    assert bench.send(alert(), alert(number=1), alert(number=2)) == ["state"]
    bench.engine.start()
    bench.engine.stop(10)
    assert [record.get("times") for record in bench.told("rule-skipped")] == [None, 2]


def test_an_alert_that_resolves_again_and_again_is_told_once(bench: Bench) -> None:
    bench.text = WITHOUT_UNDO
    assert bench.send(alert()) == ACTED
    assert bench.send(*[alert(status="resolved")] * 20) == ["rule-resolved"]
    bench.reopen()
    assert bench.send(alert(status="resolved")) == []


def test_what_is_asked_for_in_vain_is_bounded(bench: Bench) -> None:
    """An alert that fires and resolves has a record for each, and a person to be asked."""
    bench.text = RULES.replace("enforce", "approve").replace("hour: 100", "hour: 1")
    flapping = [alert(number=n, status=status) for n in range(30) for status in ("firing", "resolved")]
    assert bench.send(*flapping) == ["rule-pending", "rule-cancelled"] * 10 + ["budget"]
    assert bench.told("rule-skipped")[-1]["outcome"] == "10 acts of this rule came to nothing within an hour"
    bench.now_s += 3601
    assert bench.send(alert(number=31)) == ["budget", "rule-pending"]
