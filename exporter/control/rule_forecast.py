"""What an alert would lead to, rule by rule, and why: for `control rules test`. Changes nothing, makes no file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from exporter.control.alert_store import AlertStore
from exporter.control.alerted_guest import find_target
from exporter.control.connection import Session
from exporter.control.errors import ControlError
from exporter.control.executor import Executor
from exporter.control.folders import Folders
from exporter.control.kill_switch import KillSwitch
from exporter.control.rule_acting import Acting
from exporter.control.rule_guards import Case, Guards
from exporter.control.rule_metrics import RuleMetrics
from exporter.control.rule_trail import RuleTrail
from exporter.control.rules import Rule, RuleFile
from exporter.control.webhook import Alert

_DOES = {"dry-run": "would only tell", "approve": "would ask for approval", "enforce": "would do"}


@dataclass(frozen=True)
class Foreseen:
    """One alert, one rule, and what it would do with it or why nothing, in words."""

    alert: str
    status: str
    rule: str
    mode: str
    what: str


class Forecast:
    """One thread, from the constructor to `close`."""

    def __init__(self, uri: str | None, folders: Folders, file: RuleFile) -> None:
        self._file = file
        self._session = Session(uri)
        self._executor = Executor(self._session, folders)
        self._store = AlertStore(folders.state, make=False)
        switch = KillSwitch(folders.state)
        self._guards = Guards(self._store, switch, self._session)
        metrics = RuleMetrics(self._store, lambda: file, switch.is_on)
        self._acting = Acting(self._store, self._executor, RuleTrail(self._executor.trail), metrics,
                              lambda: datetime.now().timestamp())  # fmt: skip

    def close(self) -> None:
        self._store.close()
        self._executor.close()

    def of(self, alert: Alert) -> Iterator[Foreseen]:
        """One of each rule."""
        elsewhere = next((matcher for matcher in self._file.here if not matcher.matches(alert.labels)), None)
        for rule in self._file.rules:
            missed = next((matcher for matcher in rule.match if not matcher.matches(alert.labels)), None)
            if elsewhere is not None:
                what = f"not of this host: here is {elsewhere}, and the alert's is {_label(alert, elsewhere.label)}"
            elif missed is not None:
                what = f"does not match {missed}: it is {_label(alert, missed.label)}"
            elif rule.mode == "off":
                what = "matches, but is off"
            else:
                what = self._of_match(rule, alert)
            yield Foreseen(alert.name, alert.status, rule.name, rule.mode, what)

    def _of_match(self, rule: Rule, alert: Alert) -> str:
        try:
            if rule.on == "firing" and not alert.is_firing:
                return self._of_resolved(rule, alert)
            if alert.status != rule.on:
                return f"does nothing: it acts when the alert is {rule.on}"
            if (act := self._store.find(rule.name, alert)) is not None:
                return f"does nothing (duplicate): action {act.id} was for this firing, and is {act.state}"
            if alert.is_firing and self._store.has_ended(alert):
                return "does nothing (ended): this firing has resolved already"
            target, now = find_target(self._session, alert), datetime.now().astimezone()
            against = self._guards.all_against(Case(self._file, rule, alert, target, now.timestamp(), now))
            if against:
                return "does nothing: " + "; ".join(f"{text} ({word})" for word, text in against)
            return f"{_DOES[rule.mode]} on {target.name}: {self._acting.foreseen(rule, alert, target.uuid)}"
        except ControlError as error:
            return f"does nothing: {error.cause}"

    def _of_resolved(self, rule: Rule, alert: Alert) -> str:
        act = self._store.find(rule.name, alert)
        if act is None:
            return "does nothing: it has not acted on this firing"
        if act.state in ("pending", "approved", "retry"):
            return f"would cancel action {act.id}"
        if rule.undo is None or act.state not in ("done", "dry-run") or act.told == "unchanged":
            return f"does nothing: action {act.id} is {act.state}, and there is nothing to undo"
        undo = "setting back what it changed" if rule.undo == "reverse" else rule.undo.operation
        return f"would {'undo' if act.state == 'done' else 'tell of undoing'} action {act.id} by {undo}"


def _label(alert: Alert, name: str) -> str:
    return repr(alert.labels[name][:100]) if name in alert.labels else "absent"
