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

from exporter.control.alert_store import AlertStore, RuleAct
from exporter.control.alerted_guest import AlertedGuest, find_target
from exporter.control.errors import BusyError, ControlError, UnreachableError
from exporter.control.executor import Executor
from exporter.control.kill_switch import KillSwitch
from exporter.control.locks import Locks, SubjectLock
from exporter.control.rule_acting import BUSY_AGAIN_S, Acting
from exporter.control.rule_guards import Case, Guards
from exporter.control.rule_metrics import RuleMetrics
from exporter.control.rule_skips import Skip
from exporter.control.rule_trail import RuleTrail
from exporter.control.rule_turns import Turns
from exporter.control.rules import Rule, RuleFile
from exporter.control.webhook import Alert

_log = logging.getLogger(__name__)
_LOOK_EVERY_S = 0.5
_TURN_AGAIN_S = 0.5
_PREDECESSOR_S = 5.0
"""How long a service that is ending may keep the rules of the folder from its successor."""
_FORGET_EVERY_S = 6 * 3600.0


class RuleEngine:
    """`start` and `stop` from one thread; `receive` and `wake` from any. `file` gives the rules now, `file_ok` whether
    they are those of the file as it is now.
    """

    def __init__(self, file: Callable[[], RuleFile], store: AlertStore, executor: Executor,
                 clock: Callable[[], float] = time.time,
                 file_ok: Callable[[], bool] = lambda: True) -> None:  # fmt: skip
        self._file = file
        self._store = store
        self._executor = executor
        self._clock = clock
        self.switch = KillSwitch(executor.folders.private(executor.folders.state))
        self.switch.prepare()
        self.metrics = RuleMetrics(store, file, self.switch.is_on, file_ok)
        self._trail = RuleTrail(executor.trail, clock)
        self._guards = Guards(store, self.switch, executor.session)
        self._acting = Acting(store, executor, self._trail, self.metrics, clock)
        self._turns = Turns()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._forget_at_s = 0.0
        self._at: RuleAct | None = None
        """The act that is looked at."""
        self._sole: SubjectLock | None = None
        self._thread = threading.Thread(target=self._run, name="rules", daemon=True)

    def start(self) -> None:
        """Tells the trail of acts that a dead process left, and begins. Raises BusyError where another service does."""
        try:
            self._sole = Locks(self._executor.folders).acquire("rules", "the rules", _PREDECESSOR_S)
        except BusyError as error:
            raise BusyError(f"another control service works on the rules of {self._executor.folders.state}",
                            next_step="stop it, or set another --state.directory") from error  # fmt: skip
        for act in self._store.interrupt(self._clock()):
            self._trail.tell_of(act, "interrupted",
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
        try:
            self._trail.tell_counted(all_of_it=True)
        except ControlError as error:
            _log.error("what the rules skipped could not be told", extra={"cause": str(error)})
        if self._sole is not None:
            self._sole.release()

    def receive(self, alerts: list[Alert]) -> None:
        """Keeps them on the disk; they are judged later. Raises UnreachableError."""
        self._store.put(alerts, self._clock())
        for alert in alerts:
            self.metrics.received(alert.status)
        self._wake.set()

    def wake(self) -> None:
        """There may be something to do: a person decided."""
        self._wake.set()

    def stop_by_signal(self, _number: int, _frame: object) -> None:
        """The kill switch as a signal's handler: the file at once, the audit trail's record from a thread."""
        def tell() -> None:
            try:
                self.switch.turn(True, "SIGUSR1")
                self._executor.trail.append("rule-stopped", {"actor": "SIGUSR1", "way": "signal"})
            except ControlError as error:
                _log.error("the kill switch holds only until the service ends", extra={"cause": str(error)})

        self.switch.hold()
        threading.Thread(target=tell, name="kill-switch", daemon=True).start()

    def _run(self) -> None:
        while not self._stopping.is_set():
            busy = self._try(self._one_alert, self._drop_oldest) or self._try(self._one_act, self._drop_act)
            self._try(self._trail.tell_counted, lambda: None)
            if self._clock() >= self._forget_at_s:
                self._try(self._forget_old, lambda: None)
            if not busy:
                self._wake.wait(_LOOK_EVERY_S)
                self._wake.clear()

    def _try(self, work: Callable[[], bool], drop: Callable[[], None]) -> bool:
        """Whether there was something to do. What fails for want of libvirt or room is tried again; a defect is not."""
        try:
            return work()
        except ControlError as error:
            _log.error("a rule could not go on; it is tried again", extra={"cause": str(error)})
        except Exception:  # noqa: BLE001 - a defect in one alert must not end the rules
            _log.exception("an alert or an act could not be judged; it is left out")
            try:
                drop()
            except ControlError as error:
                _log.error("nor could it be left out", extra={"cause": str(error)})
        self._stopping.wait(1.0)
        return False

    def _forget_old(self) -> bool:
        self._forget_at_s = self._clock() + _FORGET_EVERY_S
        self._store.forget_old(self._clock())
        return False

    def _drop_oldest(self) -> None:
        waiting = self._store.oldest()
        if waiting is not None:
            self.metrics.skipped("", "defect")
            if not waiting[2].is_firing:
                self._store.end(waiting[2], self._clock())
            self._store.taken(waiting[0])

    def _drop_act(self) -> None:
        if self._at is not None:
            self._end(self._at, "failed", "a defect in virtgauge; see the log")
            self.metrics.ran(self._at.rule, "failed")

    # ---- alerts

    def _one_alert(self) -> bool:
        waiting = self._store.oldest()
        if waiting is None:
            return False
        number, received_s, alert = waiting
        file = self._file()
        rules = [rule for rule in file.rules if rule.matches(alert.labels)]
        if rules and all(matcher.matches(alert.labels) for matcher in file.here):
            for rule in rules:
                if rule.mode != "off":
                    self._judge(file, rule, alert, received_s)
                    self.metrics.matched(rule.name)
                elif not alert.is_firing:
                    self._left_as_it_is(rule, alert)
            if not alert.is_firing:
                self._store.end(alert, self._clock())
        self._store.taken(number)
        return True

    def _judge(self, file: RuleFile, rule: Rule, alert: Alert, received_s: float) -> None:
        if rule.on == "firing" and not alert.is_firing:
            self._resolved(file, rule, alert, received_s)
            return
        if alert.status != rule.on:
            return
        if self._store.find(rule.name, alert) is not None:
            self.metrics.skipped(rule.name, "duplicate")
            return
        if alert.is_firing and self._store.has_ended(alert):
            self._skip(rule, alert, "ended", "the alert has resolved already: it came late, or is played again")
            return
        self._turns.wait(file.concurrency)  # first, so that the guards see what is when it is its turn
        target = self._target(rule, alert)
        if target is None:
            return
        against = self._guards.reason_against(Case(file, rule, alert, target, received_s, self._now()))
        if against is not None:
            self._skip(rule, alert, *against, target=target)
        elif rule.mode == "approve":
            self._ask_for_approval(rule, alert, target)
        else:
            has_turn = self._turns.of_rule(rule.name) < rule.concurrency
            state = "acting" if has_turn else "retry"
            number = self._store.add(rule.name, alert, "do", target.name, target.uuid, state, self._clock())
            if number is not None and has_turn:
                self._begin(file, rule, self._store.get(number), received_s, dry_run=rule.mode == "dry-run")

    def _ask_for_approval(self, rule: Rule, alert: Alert, target: AlertedGuest) -> None:
        foreseen, now_s = self._acting.foreseen(rule, alert, target.uuid), self._clock()
        number = self._store.add(rule.name, alert, "do", target.name, target.uuid, "pending", now_s, foreseen,
                                 now_s + rule.approval_expires)  # fmt: skip
        if number is not None:
            self._trail.tell("pending", rule.name, alert, target.name, target.uuid, action=number,
                             outcome=f"action {number} waits for approval: {foreseen}")  # fmt: skip

    def _resolved(self, file: RuleFile, rule: Rule, alert: Alert, received_s: float) -> None:
        act = self._store.find(rule.name, alert)
        if act is not None:
            self._turns.wait_for_end(act.id)  # its outcome says whether there is something to undo
            act = self._store.find(rule.name, alert)
        if act is None or self._store.find(rule.name, alert, "undo") is not None:
            return
        if act.state in ("pending", "approved", "retry"):
            self._end(act, "cancelled", "the alert resolved first")
        elif rule.undo is None or act.told == "unchanged" or act.state not in ("done", "dry-run"):
            if not self._store.has_ended(alert):  # a second Alertmanager tells it, too, and who plays it again
                self._trail.tell_of(act, "resolved")
        else:
            number = self._store.add(rule.name, alert, "undo", act.domain, act.uuid, "retry", self._clock())
            if number is not None:
                self._undo(file, rule, self._store.get(number), received_s)

    def _left_as_it_is(self, rule: Rule, alert: Alert) -> None:
        """A rule that was switched off meanwhile undoes nothing; whoever did that is to know what stays."""
        act = self._store.find(rule.name, alert)
        if act is not None and act.state == "done" and act.told == "done" and rule.undo is not None:
            self._skip(rule, alert, "off", "the rule is off: what it did stays; undo it by hand")

    # ---- acts that wait

    def _one_act(self) -> bool:
        """One that is due: approved, to be tried again, or to be undone; pending ones that are too old expire."""
        self._at = None
        now_s, file = self._clock(), self._file()
        rules = {rule.name: rule for rule in file.rules}
        for act in self._store.refusals():
            self.metrics.ran(act.rule, "refused")  # the command line says no to the store, and not to this process
        for act in self._store.in_state("pending", "approved", "retry"):
            self._at = act
            rule = rules.get(act.rule)
            if rule is None or rule.mode == "off":
                self._end(act, "cancelled", "the rule is gone or off")
            elif act.state == "pending":
                if now_s > act.due_s:
                    self._end(act, "expired", "nobody approved it in time")
                    self.metrics.ran(rule.name, "expired")
            elif act.due_s <= now_s:
                if act.phase == "undo":
                    self._undo(file, rule, act, act.made_s)
                else:
                    self._again(file, rule, act)
                return True
        return False

    def _again(self, file: RuleFile, rule: Rule, act: RuleAct) -> None:
        """All guards once more: much may have changed since."""
        if self._clock() > act.made_s + _time_to_act_s(rule, act):
            self._end(act, "expired", "it could not be done in time")
            self.metrics.ran(rule.name, "expired")
            return
        self._turns.wait(file.concurrency)
        if self._turns.of_rule(rule.name) >= rule.concurrency:
            self._wait(act, "waits for its turn", _TURN_AGAIN_S)
            return
        target = self._target(rule, act.alert)
        if target is None:
            self._end(act, "cancelled", "there is no such guest any more")
            return
        against = self._guards.reason_against(
            Case(file, rule, act.alert, target, self._clock(), self._now(), again=act))  # fmt: skip
        if against is None and rule.mode == "approve" and not act.by:
            self._end(act, "cancelled", "the rule asks for approval now")
        elif against is None:
            self._store.set_state(act.id, "acting", self._clock())
            since_s = act.changed_s if act.by else self._clock()
            self._begin(file, rule, act, since_s, dry_run=rule.mode == "dry-run")
        elif against[0] in ("stopped", "unconfirmed", "quiet"):
            self._wait(act, against[1], BUSY_AGAIN_S)
        else:
            self.metrics.skipped(rule.name, against[0])
            self._end(act, "cancelled", against[1])

    def _undo(self, file: RuleFile, rule: Rule, act: RuleAct, received_s: float) -> None:
        """What the kill switch holds up is undone when it is off again: a limit must not stay for want of a message."""
        self._turns.wait(file.concurrency)
        target = self._target(rule, act.alert)
        if target is None:
            self._end(act, "cancelled", "there is no such guest any more")
            return
        against = self._guards.reason_against(
            Case(file, rule, act.alert, target, received_s, self._now(), undo=True))  # fmt: skip
        if against is None and target.state == "shutoff" and self._acting.is_of_running_guest(rule, act):
            self._end(act, "cancelled", f"{target.name} is off, and what was changed in it is gone")
        elif against is None:
            self._store.set_state(act.id, "acting", self._clock())
            done = self._store.find(rule.name, act.alert)
            dry_run = done is not None and done.state == "dry-run"
            self._begin(file, rule, act, received_s, dry_run=dry_run)
        elif against[0] == "stopped":
            if act.told != against[1]:
                self._skip(rule, act.alert, *against, target=target)
            self._wait(act, against[1], BUSY_AGAIN_S)
        else:
            self._skip(rule, act.alert, *against, target=target)
            self._end(act, "cancelled", against[1])

    # ---- what both need

    def _target(self, rule: Rule, alert: Alert) -> AlertedGuest | None:
        """The guest; None, and told, where there is none. Raises UnreachableError where libvirt does not answer."""
        try:
            return find_target(self._executor.session, alert)
        except UnreachableError:
            raise
        except ControlError as error:
            self._skip(rule, alert, "no-domain", error.cause)
            return None

    def _begin(self, file: RuleFile, rule: Rule, act: RuleAct, received_s: float, *, dry_run: bool) -> None:
        def work() -> None:
            self._acting.run(rule, act, received_s, dry_run=dry_run)
            self._wake.set()

        self._turns.run(act.id, rule.name, work, file.concurrency)

    def _wait(self, act: RuleAct, why: str, seconds: float) -> None:
        self._store.set_state(act.id, act.state, self._clock(), why, self._clock() + seconds)

    def _end(self, act: RuleAct, state: str, why: str) -> None:
        self._store.set_state(act.id, state, self._clock(), why)
        self._trail.tell_of(act, state, outcome=why)

    def _skip(self, rule: Rule, alert: Alert, word: str, why: str, target: AlertedGuest | None = None) -> None:
        self.metrics.skipped(rule.name, word)
        name, uuid = (target.name, target.uuid) if target is not None else (alert.labels.get("domain", ""), "")
        self._trail.skipped(Skip(rule.name, alert, name, uuid, word, why))

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock()).astimezone()


def _time_to_act_s(rule: Rule, act: RuleAct) -> float:
    """From the act's making on; later than that it is not begun, whatever held it up."""
    if act.state == "approved":
        return rule.approval_expires + rule.expires
    retries_s = rule.retry.times * rule.retry.every if rule.retry is not None and act.attempts else 0.0
    return retries_s + rule.expires
