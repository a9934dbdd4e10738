"""A rule's act carried out: at most once, written down before and after, its outcome counted.

The store says `acting` before libvirt is asked; the outcome is what the operation saw in libvirt, not what was asked.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from exporter.control.alert_store import AlertStore, RuleAct
from exporter.control.errors import BusyError, ControlError
from exporter.control.executor import Actor, Executor, Request
from exporter.control.operation import Operation, Parameters, Result
from exporter.control.operations import by_name
from exporter.control.request_parameters import parse_parameters
from exporter.control.rule_metrics import RuleMetrics
from exporter.control.rule_trail import RuleTrail
from exporter.control.rules import Rule
from exporter.control.webhook import Alert

_log = logging.getLogger(__name__)
BUSY_AGAIN_S = 5.0
_UNDO_PATIENCE_S = 3600.0
"""For so long, at least, a busy guest is asked again before what was done to it stays: a limit is not to be left."""

Step = tuple[Operation[Any], Parameters]


class Acting:
    """Any thread; each act is one thread's."""

    def __init__(self, store: AlertStore, executor: Executor, trail: RuleTrail, metrics: RuleMetrics,
                 clock: Callable[[], float]) -> None:  # fmt: skip
        self._store = store
        self._executor = executor
        self._trail = trail
        self._metrics = metrics
        self._clock = clock

    def run(self, rule: Rule, act: RuleAct, received_s: float, *, dry_run: bool) -> None:
        """Carries it out. Raises nothing: what cannot be written down stays `acting`; the next start tells of it."""
        try:
            self._run(rule, act, received_s, dry_run)
        except ControlError as error:
            _log.error("a rule's act could not be written down", extra={"cause": str(error)})
        except Exception:  # noqa: BLE001 - a defect in one act must not end the rules
            _log.exception("a rule's act broke off")

    def foreseen(self, rule: Rule, alert: Alert, uuid: str) -> str:
        """What the rule's action would do, in words; where it could not be done, why."""
        try:
            parameters = rule.action.resolved(alert.labels)
            request = Request(Actor(f"rule {rule.name}", "webhook"), dry_run=True)
            told = _planned([self._executor.run(rule.action.declared, uuid, parameters, request)])
        except ControlError as error:
            told = f"would fail now: {error.cause}"
        return f"{rule.action.operation}: {told}"

    def is_of_running_guest(self, rule: Rule, act: RuleAct) -> bool:
        """Whether all that it does is in the running guest, so that there is nothing to do in one that is off."""
        try:
            steps = self._steps(rule, act, dry_run=False)
        except ControlError:
            return False
        return all(getattr(parameters, "apply_to", None) == "live" for _, parameters in steps)

    def _run(self, rule: Rule, act: RuleAct, received_s: float, dry_run: bool) -> None:
        words = [rule.action.operation if act.phase == "do" else _undoing(rule)]
        self._trail.tell_of(act, "dry-run" if dry_run else "acts", operation=words[0],
                            waited_s=round(self._clock() - received_s, 3),
                            **({"approved_by": act.by} if act.by else {}))  # fmt: skip
        try:
            steps = self._steps(rule, act, dry_run)
            results = [self._executor.run(operation, act.uuid, parameters, self._request(rule, act, dry_run))
                       for operation, parameters in steps]  # fmt: skip
        except ControlError as error:
            self._failed(rule, act, error, self._clock() - received_s)
            return
        if dry_run:
            self._would(rule, act, _planned(results), self._clock() - received_s)
        else:
            self._done(rule, act, results, self._clock() - received_s)

    def _steps(self, rule: Rule, act: RuleAct, dry_run: bool) -> list[Step]:
        labels = act.alert.labels
        if act.phase == "do":
            return [(rule.action.declared, rule.action.resolved(labels))]
        if rule.undo is not None and rule.undo != "reverse":
            return [(rule.undo.declared, rule.undo.resolved(labels))]
        if dry_run:
            return []
        done = self._store.find(rule.name, act.alert)
        back = self._store.way_back(done.id) if done is not None else []
        return [(by_name()[step["operation"]], parse_parameters(by_name()[step["operation"]], step["parameters"]))
                for step in back]  # fmt: skip

    @staticmethod
    def _request(rule: Rule, act: RuleAct, dry_run: bool) -> Request:
        by = f", approved by {act.by}" if act.by else ""
        alert = act.alert
        actor = Actor(f"rule {rule.name}{by}", "webhook", f"{alert.name} {alert.fingerprint} since {alert.starts_at}")
        return Request(actor, dry_run=dry_run, confirmed=act.domain)

    def _would(self, rule: Rule, act: RuleAct, told: str, seconds: float) -> None:
        if act.phase == "undo" and rule.undo == "reverse":
            told = "what the action would have changed, set back"
        self._store.set_state(act.id, "dry-run", self._clock(), told)
        self._metrics.ran(rule.name, "dry-run", seconds)
        self._trail.tell_of(act, "would", outcome=told)

    def _done(self, rule: Rule, act: RuleAct, results: list[Result], seconds: float) -> None:
        changed = any(result.changed for result in results)
        outcome = ("undone" if act.phase == "undo" else "done") if changed else "unchanged"
        back = [step for result in results for step in _reverse(result)]
        if back and act.phase == "do":
            self._store.keep_way_back(act.id, back)
        self._store.set_state(act.id, "done", self._clock(), outcome, more_attempts=1)
        self._store.count_outcome(rule.name, False, rule.failures_to_open)
        self._metrics.ran(rule.name, outcome, seconds)
        self._trail.tell_of(act, "acted", outcome=outcome, seconds=round(seconds, 3))

    def _failed(self, rule: Rule, act: RuleAct, error: ControlError, seconds: float) -> None:
        now_s, retry = self._clock(), rule.retry
        patience_s = max(rule.expires, _UNDO_PATIENCE_S) if act.phase == "undo" else rule.expires
        if isinstance(error, BusyError) and not error.outcome_unknown and now_s - act.made_s < patience_s:
            self._store.set_state(act.id, "retry", now_s, error.cause, now_s + BUSY_AGAIN_S)
            return
        if act.phase == "do" and retry is not None and act.attempts < retry.times and not error.outcome_unknown:
            self._store.set_state(act.id, "retry", now_s, error.cause, now_s + retry.every, more_attempts=1)
            self._trail.tell_of(act, "will-retry", outcome=error.cause)
            return
        state = "unknown" if error.outcome_unknown else "failed"
        self._store.set_state(act.id, state, now_s, error.cause, more_attempts=1)
        opened = self._store.count_outcome(rule.name, True, rule.failures_to_open)
        self._metrics.ran(rule.name, state, seconds)
        self._trail.tell_of(act, "failed", outcome=f"{state}: {error.cause}",
                            **({"breaker": "opened"} if opened else {}))  # fmt: skip


def _undoing(rule: Rule) -> str:
    return "reverse" if rule.undo == "reverse" or rule.undo is None else rule.undo.operation


def _planned(results: list[Result]) -> str:
    steps = [step for result in results if result.plan is not None for step in result.plan.steps]
    return "; ".join(steps) or "nothing to do"


def _reverse(result: Result) -> list[Any]:
    back = result.details.get("reverse")
    return list(back) if result.changed and isinstance(back, list) else []
