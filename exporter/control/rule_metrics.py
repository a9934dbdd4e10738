"""What the rules count of themselves: virtgauge_control_rule_* and virtgauge_control_alerts_*."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from exporter.control.alert_store import AlertStore
from exporter.control.errors import ControlError
from exporter.control.rules import RuleFile

RESULTS = ("dry-run", "done", "unchanged", "failed", "unknown", "undone", "refused", "expired")


class RuleMetrics(Collector):
    """Any thread. `file` gives the rules now; `stopped` whether the kill switch is on; `file_ok` whether the rule
    file as it is now is the one in force.
    """

    def __init__(self, store: AlertStore, file: Callable[[], RuleFile], stopped: Callable[[], bool],
                 file_ok: Callable[[], bool] = lambda: True) -> None:  # fmt: skip
        self._store = store
        self._file = file
        self._stopped = stopped
        self._file_ok = file_ok
        self._lock = threading.Lock()
        self._received: Counter[str] = Counter({"firing": 0, "resolved": 0})
        self._matched: Counter[str] = Counter()
        self._skipped: Counter[tuple[str, str]] = Counter()
        self._runs: Counter[tuple[str, str]] = Counter()
        self._seconds: dict[str, float] = {}

    def received(self, status: str) -> None:
        with self._lock:
            self._received[status] += 1

    def matched(self, rule: str) -> None:
        with self._lock:
            self._matched[rule] += 1

    def skipped(self, rule: str, reason: str) -> None:
        with self._lock:
            self._skipped[rule, reason] += 1

    def ran(self, rule: str, result: str, seconds: float = 0.0) -> None:
        """`result` is of RESULTS; `seconds` from the alert's arrival to the outcome."""
        with self._lock:
            self._runs[rule, result] += 1
            self._seconds[rule] = self._seconds.get(rule, 0.0) + seconds

    def collect(self) -> Iterator[Metric]:
        """The families; called by the page."""
        with self._lock:
            received, matched, skipped = dict(self._received), dict(self._matched), dict(self._skipped)
            runs, seconds = dict(self._runs), dict(self._seconds)
        for rule in self._file().rules:  # from 0 on, so that the first one is an increase
            matched.setdefault(rule.name, 0)
            runs = {(rule.name, result): 0 for result in RESULTS} | runs
        yield _counter("alerts_received", "Alerts that came by the webhook, by status.", ("status",),
                       {(status,): count for status, count in received.items()})
        yield _counter("rule_matches", "Alerts that matched a rule.", ("rule",),
                       {(rule,): count for rule, count in matched.items()})
        yield _counter("rule_skips", "Matches on which a rule did not act, by reason.", ("rule", "reason"), skipped)
        yield _counter("rule_runs", "What became of a rule's acts, by result: " + ", ".join(RESULTS) + ".",
                       ("rule", "result"), runs)
        yield _counter("rule_run_seconds", "Seconds from an alert's arrival to the outcome, all runs together.",
                       ("rule",), {(rule,): spent for rule, spent in seconds.items()})
        yield from self._stored()

    def _stored(self) -> Iterator[Metric]:
        try:
            waiting, failures = self._store.waiting(), self._store.failures()
            open_acts = self._store.in_state("pending", "retry")
            recent, last = self._store.since(time.time() - 86400), self._store.last_changes()
        except ControlError:
            return
        rules = self._file().rules
        cooling = {rule.name: 0 for rule in rules}
        for rule in rules:
            uncounted = ("pending", "approved") if rule.mode == "dry-run" else ("pending", "approved", "dry-run")
            cooling[rule.name] = len({act.uuid for act in recent if act.rule == rule.name and act.phase == "do"
                                      and act.state not in uncounted and time.time() - act.changed_s < rule.cooldown})
        yield _gauge("alerts_waiting", "Alerts in the queue.", (), {(): waiting})
        yield _gauge("rule_acts_pending", "Acts that wait for a person's approval.", (),
                     {(): sum(act.state == "pending" for act in open_acts)})
        yield _gauge("rule_acts_retrying", "Acts that failed and will be tried again.", (),
                     {(): sum(act.state == "retry" for act in open_acts)})
        yield _gauge("rule_cooldowns", "Guests that the rule does not touch now, since it just did.", ("rule",),
                     {(name,): count for name, count in cooling.items()})
        yield _gauge("rule_breaker_open", "Whether the rule's circuit breaker is open after failures in a row.",
                     ("rule",), {(rule.name,): failures.get(rule.name, (0, False))[1] for rule in rules})
        yield _gauge("rule_last_run_timestamp_seconds", "Time of the rule's last run, also before a restart.",
                     ("rule",), {(rule,): at for rule, at in last.items()})
        yield _gauge("rule_file_ok", "Whether the rule file is in force as it is; a mistake leaves the earlier one.",
                     (), {(): self._file_ok()})
        yield _gauge("rules_stopped", "Whether the kill switch is on.", (), {(): self._stopped()})


def _counter(name: str, text: str, labels: tuple[str, ...], values: Mapping[Any, int | float]) -> Metric:
    family = CounterMetricFamily(f"virtgauge_control_{name}", text, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric(key, value)
    return family


def _gauge(name: str, text: str, labels: tuple[str, ...], values: Mapping[Any, int | float]) -> Metric:
    family = GaugeMetricFamily(f"virtgauge_control_{name}", text, labels=labels)
    for key, value in sorted(values.items()):
        family.add_metric(key, value)
    return family
