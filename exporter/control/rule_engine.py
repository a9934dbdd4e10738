"""The rules at work: one thread that takes alerts from the store, one by one, and acts or says why not.

A control service is of one host, so `concurrency` is the host's; each rule has its own beside it. Everything that
happens is a record of the audit trail: `rule` events beside the operation's own `begin` and `end`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from pydantic import JsonValue

from exporter.control.alert_store import AlertStore, RuleAct
from exporter.control.errors import BusyError, ControlError, UnreachableError
from exporter.control.executor import Actor, Executor, Request
from exporter.control.rule_guards import AlertedGuest, Guards, KillSwitch, find_target
from exporter.control.rule_metrics import RuleMetrics
from exporter.control.rule_turns import Turns
from exporter.control.rules import Action, Rule, RuleFile
from exporter.control.webhook import Alert

_log = logging.getLogger(__name__)
_LOOK_EVERY_S = 0.5
_BUSY_AGAIN_S = 5.0
_TURN_AGAIN_S = 0.5


class RuleEngine:
    """`start` and `stop` from one thread; `receive` and `wake` from any. `file` gives the rules now."""

    def __init__(self, file: Callable[[], RuleFile], store: AlertStore, executor: Executor,
                 clock: Callable[[], float] = time.time) -> None:  # fmt: skip
        self._file = file
        self._store = store
        self._executor = executor
        self._clock = clock
        self.switch = KillSwitch(executor.folders.private(executor.folders.state))
        self.metrics = RuleMetrics(store, file, self.switch.is_on)
        self._guards = Guards(store, self.switch, executor.session)
        self._turns = Turns()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rules", daemon=True)

    def start(self) -> None:
        """Tells the trail of acts that a dead process left, and begins."""
        for act in self._store.interrupt(self._clock()):
            self._tell("interrupted", act.rule, act.alert, act.domain, act.uuid,
                       outcome="unknown: the service ended in the middle; it is not repeated")  # fmt: skip
            self.metrics.ran(act.rule, "unknown")
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Ends after the acts in progress or after `timeout_s`; what waits stays in the store."""
        end_s = time.monotonic() + timeout_s
        self._stopping.set()
        self._wake.set()
        self._thread.join(timeout_s)
        self._turns.end(end_s - time.monotonic())

    def receive(self, alerts: list[Alert]) -> None:
        """Keeps them on the disk; they are judged later. Raises UnreachableError."""
        self._store.put(alerts, self._clock())
        for alert in alerts:
            self.metrics.received(alert.status)
        self._wake.set()

    def wake(self) -> None:
        """There may be something to do: a person decided."""
        self._wake.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                busy = self._one_alert() or self._one_act()
            except ControlError as error:
                _log.error("a rule could not go on; it is tried again", extra={"cause": str(error)})
                busy = False
                self._stopping.wait(1.0)
            except Exception:  # noqa: BLE001 - a defect in one alert must not end the rules
                _log.exception("an alert could not be judged; it is left out")
                self._drop_oldest()
                busy = True
            if not busy:
                self._wake.wait(_LOOK_EVERY_S)
                self._wake.clear()

    def _drop_oldest(self) -> None:
        waiting = self._store.oldest()
        if waiting is not None:
            self._store.taken(waiting[0])

    def _one_alert(self) -> bool:
        waiting = self._store.oldest()
        if waiting is None:
            return False
        number, received_s, alert = waiting
        file = self._file()
        if all(matcher.matches(alert.labels) for matcher in file.here):
            for rule in file.rules:
                if rule.mode != "off" and rule.matches(alert.labels):
                    self._judge(file, rule, alert, received_s)
        self._store.taken(number)
        return True

    def _judge(self, file: RuleFile, rule: Rule, alert: Alert, received_s: float) -> None:
        self.metrics.matched(rule.name)
        if rule.on == "firing" and not alert.is_firing:
            self._resolved(file, rule, alert, received_s)
            return
        if alert.status != rule.on:
            return
        if self._store.find(rule.name, alert) is not None:
            self.metrics.skipped(rule.name, "duplicate")
            return
        self._turns.wait(file.concurrency)  # first, so that the guards see what is when it is its turn
        try:
            target = find_target(self._executor.session, alert)
        except UnreachableError:
            raise
        except ControlError as error:
            self._skip(rule, alert, "no-domain", error.cause)
            return
        against = self._guards.reason_against(file, rule, alert, target, received_s, self._now(),
                                              resolved=rule.on == "resolved")  # fmt: skip
        if against is not None:
            self._skip(rule, alert, *against, target=target)
            return
        state = {"approve": "pending", "dry-run": "acting", "enforce": "acting"}[rule.mode]
        if state == "acting" and self._turns.of_rule(rule.name) >= rule.concurrency:
            state = "retry"
        number = self._store.add(rule.name, alert, "do", target.name, target.uuid, state, self._clock())
        if number is None:
            return
        if rule.mode == "approve":
            self._tell("pending", rule, alert, target.name, target.uuid, outcome=f"action {number} waits for approval")
        elif state == "acting":
            self._begin(file, rule, rule.action, self._store.get(number), received_s, dry_run=rule.mode == "dry-run")

    def _resolved(self, file: RuleFile, rule: Rule, alert: Alert, received_s: float) -> None:
        act = self._store.find(rule.name, alert)
        if act is not None:
            self._turns.wait_for_end(act.id)  # its outcome says whether there is something to undo
            act = self._store.find(rule.name, alert)
        if act is None:
            return
        if act.state in ("pending", "approved", "retry"):
            self._store.set_state(act.id, "cancelled", self._clock(), "the alert resolved first")
            self._tell("cancelled", rule, alert, act.domain, act.uuid, outcome="the alert resolved first")
            return
        if rule.undo is None or act.state not in ("done", "dry-run"):
            self._tell("resolved", rule, alert, act.domain, act.uuid)
            return
        try:
            target = find_target(self._executor.session, alert)
        except UnreachableError:
            raise
        except ControlError as error:
            self._skip(rule, alert, "no-domain", error.cause)
            return
        against = self._guards.reason_against(file, rule, alert, target, received_s, self._now(), resolved=True)
        if against is not None:
            self._skip(rule, alert, *against, target=target)
            return
        number = self._store.add(rule.name, alert, "undo", target.name, target.uuid, "acting", self._clock())
        if number is not None:
            self._turns.wait(file.concurrency)
            self._begin(file, rule, rule.undo, self._store.get(number), received_s, dry_run=act.state == "dry-run")

    def _one_act(self) -> bool:
        """An approved act, or a failed one that is due again; pending ones that are too old expire."""
        now_s, rules = self._clock(), {rule.name: rule for rule in self._file().rules}
        for act in self._store.in_state("pending", "approved", "retry"):
            rule = rules.get(act.rule)
            if rule is None or rule.mode == "off":
                self._end(act, "cancelled", "the rule is gone or off")
            elif act.state == "pending":
                if now_s - act.made_s > rule.approval_expires:
                    self._end(act, "expired", "nobody approved it in time")
                    self.metrics.ran(rule.name, "expired")
            elif act.due_s <= now_s:
                self._again(rule, act)
                return True
        return False

    def _again(self, rule: Rule, act: RuleAct) -> None:
        """All guards once more: much may have changed since. Its own earlier attempts are no cool-down of it."""
        file = self._file()
        self._turns.wait(file.concurrency)
        if self._turns.of_rule(rule.name) >= rule.concurrency:
            self._store.set_state(act.id, act.state, self._clock(), "waits for its turn", self._clock() + _TURN_AGAIN_S)
            return
        retrying = act.state == "retry"
        free = rule.model_copy(update={"cooldown": 0.0, "budget_per_hour": 1_000_000}) if retrying else rule
        try:
            target = find_target(self._executor.session, act.alert)
        except UnreachableError:
            raise
        except ControlError as error:
            self._end(act, "failed", error.cause)
            return
        against = self._guards.reason_against(file, free, act.alert, target, self._clock(), self._now())
        if against is not None and (against[0] in ("stopped", "unconfirmed", "quiet")):
            self._store.set_state(act.id, act.state, self._clock(), against[1], self._clock() + _BUSY_AGAIN_S)
            return
        if against is not None:
            self.metrics.skipped(rule.name, against[0])
            self._end(act, "cancelled", against[1])
            return
        self._store.set_state(act.id, "acting", self._clock())
        since_s = act.changed_s if act.by else self._clock()
        self._begin(file, rule, rule.action, act, since_s, dry_run=rule.mode == "dry-run")

    def _begin(self, file: RuleFile, rule: Rule, action: Action, act: RuleAct, received_s: float, *,
               dry_run: bool) -> None:  # fmt: skip
        def work() -> None:
            try:
                self._act(rule, action, act, received_s, dry_run=dry_run)
            except ControlError as error:
                # The store or the trail: the row stays `acting`, and the next start tells of it.
                _log.error("a rule's act could not be written down", extra={"cause": str(error)})
            except Exception:  # noqa: BLE001 - a defect in one act must not end the rules
                _log.exception("a rule's act broke off")
            self._wake.set()

        self._turns.run(act.id, rule.name, work, file.concurrency)

    def _act(self, rule: Rule, action: Action, act: RuleAct, received_s: float, *, dry_run: bool) -> None:
        """Runs it; the store says `acting`. The outcome is what the operation saw in libvirt, not what was asked."""
        alert = act.alert
        by = f", approved by {act.by}" if act.by else ""
        actor = Actor(f"rule {rule.name}{by}", "webhook", f"{alert.name} {alert.fingerprint} since {alert.starts_at}")
        request = Request(actor, dry_run=dry_run, confirmed=act.domain)
        self._tell("dry-run" if dry_run else "acts", rule, alert, act.domain, act.uuid, operation=action.operation,
                   waited_s=round(self._clock() - received_s, 3), **({"approved_by": act.by} if act.by else {}))
        try:
            parameters = action.resolved(alert.labels)
            assert parameters is not None
            result = self._executor.run(action.declared, act.uuid, parameters, request)
        except ControlError as error:
            self._failed(rule, action, act, error, self._clock() - received_s)
            return
        if dry_run:
            plan = result.plan
            told = "; ".join(plan.steps) if plan is not None else ""
            self._store.set_state(act.id, "dry-run", self._clock(), told)
            self._tell("would", rule, alert, act.domain, act.uuid, outcome=told or "nothing to do")
            self.metrics.ran(rule.name, "dry-run", self._clock() - received_s)
            return
        outcome = ("undone" if act.phase == "undo" else "done") if result.changed else "unchanged"
        self._store.set_state(act.id, "done", self._clock(), outcome, more_attempts=1)
        self._store.count_outcome(rule.name, False, rule.failures_to_open)
        self.metrics.ran(rule.name, outcome, self._clock() - received_s)
        self._tell("acted", rule, alert, act.domain, act.uuid, outcome=outcome,
                   seconds=round(self._clock() - received_s, 3))  # fmt: skip

    def _failed(self, rule: Rule, action: Action, act: RuleAct, error: ControlError, seconds: float) -> None:
        now_s = self._clock()
        if isinstance(error, BusyError) and not error.outcome_unknown and now_s - act.made_s < rule.expires:
            self._store.set_state(act.id, "retry", now_s, error.cause, now_s + _BUSY_AGAIN_S)
            return
        retry = rule.retry
        if act.phase == "do" and retry is not None and act.attempts < retry.times and not error.outcome_unknown:
            self._store.set_state(act.id, "retry", now_s, error.cause, now_s + retry.every, more_attempts=1)
            self._tell("will-retry", rule, act.alert, act.domain, act.uuid, outcome=error.cause)
            return
        state = "unknown" if error.outcome_unknown else "failed"
        self._store.set_state(act.id, state, now_s, error.cause, more_attempts=1)
        opened = self._store.count_outcome(rule.name, True, rule.failures_to_open)
        self.metrics.ran(rule.name, state, seconds)
        self._tell("failed", rule, act.alert, act.domain, act.uuid, outcome=f"{state}: {error.cause}",
                   **({"breaker": "opened"} if opened else {}))  # fmt: skip

    def _end(self, act: RuleAct, state: str, why: str) -> None:
        self._store.set_state(act.id, state, self._clock(), why)
        self._tell(state, act.rule, act.alert, act.domain, act.uuid, outcome=why)

    def _skip(self, rule: Rule, alert: Alert, word: str, why: str, target: AlertedGuest | None = None) -> None:
        self.metrics.skipped(rule.name, word)
        name, uuid = (target.name, target.uuid) if target is not None else (alert.labels.get("domain", ""), "")
        self._tell("skipped", rule, alert, name, uuid, outcome=why, skipped=word)

    def _tell(self, what: str, rule: Rule | str, alert: Alert, domain: str, uuid: str, **facts: Any) -> None:
        name = rule if isinstance(rule, str) else rule.name
        subject: dict[str, JsonValue] = {"kind": "domain", "name": domain[:300]}
        if uuid:
            subject["uuid"] = uuid
        shown: dict[str, JsonValue] = {
            "rule": name, "alert": alert.name[:300], "fingerprint": alert.fingerprint, "starts_at": alert.starts_at,
            "subject": subject, "way": "webhook", **facts,
        }  # fmt: skip
        self._executor.trail.append(f"rule-{what}", shown)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock()).astimezone()
