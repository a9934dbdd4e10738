"""What stands in front of a rule's act: each guard gives a reason not to act, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from typing import NamedTuple

import libvirt

from exporter.control.alert_store import AlertStore, RuleAct
from exporter.control.alerted_guest import AlertedGuest
from exporter.control.asking_back import why_not_firing
from exporter.control.connection import Session
from exporter.control.errors import from_libvirt
from exporter.control.kill_switch import KillSwitch
from exporter.control.rules import Rule, RuleFile
from exporter.control.webhook import Alert

_HOUR_S = 3600.0
IN_VAIN_BUDGETS = 10
"""So many times its budget a rule begins or asks for what comes to nothing: an alert that flaps has a record each time.
"""


Reason = tuple[str, str]
"""A word for metrics and the trail, and what it means here."""
Check = Callable[[], Reason | None]


@dataclass(frozen=True)
class Case:
    """What is judged: an alert that a rule answers, the guest as it is now, and since when it waits.

    `undo` is the way back of an act; `again` is the act that is taken up again, already counted or approved.
    """

    file: RuleFile
    rule: Rule
    alert: Alert
    target: AlertedGuest
    received_s: float
    now: datetime
    undo: bool = False
    again: RuleAct | None = None


class Guards:
    """Asks them in order, what costs nothing first. One thread."""

    def __init__(self, store: AlertStore, switch: KillSwitch, session: Session) -> None:
        self._store = store
        self._switch = switch
        self._session = session

    def reason_against(self, case: Case) -> Reason | None:
        """Of the first guard that forbids it; None where none does. Raises ControlError.

        What a rule did is undone whatever the state, the budgets and the alert's age are, but not against the kill
        switch, nor in a protected guest.
        """
        return next((found for found in (check() for check in self._checks(case)) if found is not None), None)

    def all_against(self, case: Case) -> list[Reason]:
        """All that forbid it. Raises ControlError."""
        return list(dict.fromkeys(found for found in (check() for check in self._checks(case)) if found is not None))

    def _checks(self, case: Case) -> Iterator[Check]:
        yield from self._always(case)
        if not case.undo:
            yield from self._of_action(case)
        yield self._stopped

    def _always(self, case: Case) -> Iterator[Check]:
        target = case.target
        yield self._stopped
        yield lambda: ("protected", f"{target.name} is protected by the rule file") \
            if case.file.protected.holds(target.name) else None
        yield lambda: ("protected", f"{target.name} is marked by its owner") if target.marked else None

    def _stopped(self) -> Reason | None:
        """First, and last once more: asking Prometheus may have taken seconds."""
        return ("stopped", "the kill switch is on") if self._switch.is_on() else None

    def _of_action(self, case: Case) -> Iterator[Check]:
        rule, waited_s = case.rule, case.now.timestamp() - case.received_s
        yield lambda: ("stale", f"the alert waited for {waited_s:.0f} s") if waited_s > rule.expires else None
        yield lambda: ("quiet", "a maintenance window is open") if any(w.holds(case.now) for w in rule.quiet) else None
        yield lambda: _unexpected(rule, case.target)
        yield lambda: self._short_of_memory(rule)
        yield lambda: self._broken(rule)
        if case.again is None or case.again.state == "approved":  # what is tried again was counted already
            yield lambda: self._used_up(case)
        yield lambda: why_not_firing(case.file, case.alert, wanted=rule.on == "firing")

    def _short_of_memory(self, rule: Rule) -> tuple[str, str] | None:
        wanted_mib = rule.expect.host_available_mib
        if wanted_mib is None:
            return None
        try:
            memory = self._session.connection.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
                raise from_libvirt(error, "asking for the host's memory") from error
            return "host-memory", "how much memory the host has to give is unknown"
        available_mib = sum(memory.get(name, 0) for name in ("free", "buffers", "cached")) // 1024
        if available_mib >= wanted_mib:
            return None
        return "host-memory", f"the host has {available_mib} MiB to give, and the rule wants {wanted_mib} MiB"

    def _broken(self, rule: Rule) -> Reason | None:
        if not self._store.failures().get(rule.name, (0, False))[1]:
            return None
        return "breaker", "the circuit breaker is open after failures in a row; 'control rules reset' closes it"

    def _used_up(self, case: Case) -> Reason | None:
        rule, target, now_s = case.rule, case.target, case.now.timestamp()
        acts = [act for act in self._store.since(now_s - max(_HOUR_S, rule.cooldown)) if self._counts(act, case)]
        of_rule = [act for act in acts if act.rule == rule.name]
        of_target = [act for act in of_rule if act.uuid == target.uuid]
        if any(act.state == "pending" for act in of_target):
            return "pending", f"an act of this rule on {target.name} waits for approval already"
        if rule.cooldown and any(now_s - act.changed_s < rule.cooldown for act in of_target):
            return "cooldown", f"{target.name} was acted upon by this rule less than {rule.cooldown:g} s ago"
        within_hour = [act for act in acts if now_s - act.changed_s < _HOUR_S]
        if sum(act.rule == rule.name for act in within_hour) >= rule.budget_per_hour:
            return "budget", f"the rule acted {rule.budget_per_hour} times within an hour"
        most_in_vain = IN_VAIN_BUDGETS * rule.budget_per_hour
        if case.again is None and self._store.in_vain(rule.name, now_s - _HOUR_S) >= most_in_vain:
            return "budget", f"{most_in_vain} acts of this rule came to nothing within an hour"
        if len(within_hour) >= case.file.budget_per_hour:
            return "budget", f"all rules together acted {case.file.budget_per_hour} times within an hour"
        return self._share(case, {act.uuid for act in within_hour})

    @staticmethod
    def _counts(act: RuleAct, case: Case) -> bool:
        """What was begun counts. What waits for approval does, too, where another is to be asked for, so that nobody
        gets a list that the budget would refuse; and in a dry run what would have been done, as if it had been.
        """
        if act.phase != "do" or (case.again is not None and act.id == case.again.id):
            return False
        if act.state in ("pending", "approved"):
            return case.again is None
        return act.state != "dry-run" or case.rule.mode == "dry-run"

    def _share(self, case: Case, acted_on: set[str]) -> Reason | None:
        most_of = case.rule.most_of
        if most_of is None or not fnmatchcase(case.target.name, most_of.domains):
            return None
        group = {domain.uuid for domain in self._guests() if fnmatchcase(domain.name, most_of.domains)}
        touched = acted_on & group
        if len(touched | {case.target.uuid}) <= max(1, int(round(len(group) * most_of.ratio, 6))):
            return None
        return "share", f"{len(touched)} of {len(group)} guests {most_of.domains} were acted upon already"

    def _guests(self) -> list[_Guest]:
        try:
            return [_Guest(domain.name(), domain.UUIDString()) for domain in self._session.connection.listAllDomains()]
        except libvirt.libvirtError as error:
            raise from_libvirt(error, "listing the domains") from error


class _Guest(NamedTuple):
    name: str
    uuid: str


def _unexpected(rule: Rule, target: AlertedGuest) -> tuple[str, str] | None:
    wanted = rule.expect
    if (wanted.state and target.state not in wanted.state) or (wanted.reason and target.reason not in wanted.reason):
        return "state", f"{target.name} is {target.state} ({target.reason}), which the rule does not expect"
    return None
