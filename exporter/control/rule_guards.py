"""What stands in front of a rule's act: each guard gives a reason not to act, or nothing."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import libvirt

from exporter.control.alert_store import AlertStore
from exporter.control.connection import Session
from exporter.control.domain import domain_state
from exporter.control.errors import NotFoundError, from_libvirt
from exporter.control.rules import Rule, RuleFile
from exporter.control.webhook import Alert

MARK_URI = "https://virtgauge.github.io/protect/1"
"""Namespace of the element by which a guest's owner forbids rules to touch it."""
_HOUR_S = 3600.0
_ASK_S = 5.0


@dataclass(frozen=True)
class AlertedGuest:
    """The guest an alert is about, as libvirt has it now."""

    name: str
    uuid: str
    state: str
    reason: str
    marked: bool


class KillSwitch:
    """A file: while it is there no rule acts. Any process, any thread."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "rules-stopped"

    def is_on(self) -> bool:
        return self.path.exists()

    def turn(self, on: bool, by: str) -> None:
        """Raises OSError where the folder cannot be written."""
        if on:
            self.path.write_text(f"{by}\n")
        else:
            self.path.unlink(missing_ok=True)


def find_target(session: Session, alert: Alert) -> AlertedGuest:
    """By the label `uuid`, else `domain`. Raises NotFoundError, UnreachableError."""
    name, uuid = alert.labels.get("domain", ""), alert.labels.get("uuid", "")
    if not name and not uuid:
        raise NotFoundError("the alert has neither a label domain nor uuid", next_step="match other alerts")
    try:
        connection = session.connection
        handle = connection.lookupByUUIDString(uuid) if uuid else connection.lookupByName(name)
        found = domain_state(handle)
        if found["state"] == "gone" or (name and name != found["name"]):
            raise NotFoundError(f"there is no domain {name} with this UUID", next_step="list the domains")
        return AlertedGuest(str(found["name"]), str(found["uuid"]), str(found["state"]), str(found.get("reason") or ""),
                      _is_marked(handle))  # fmt: skip
    except ValueError:  # no name can hold a null or what is no character
        raise NotFoundError(f"there is no domain {name[:100]!r}", next_step="list the domains") from None
    except libvirt.libvirtError as error:
        raise from_libvirt(error, f"looking for the domain {(uuid or name)[:100]!r}") from error


def _is_marked(handle: Any) -> bool:
    try:
        return bool(handle.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, MARK_URI, 0))
    except libvirt.libvirtError as error:
        if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN_METADATA, libvirt.VIR_ERR_NO_SUPPORT):
            return False
        raise


class Guards:
    """Asks them in order. One thread."""

    def __init__(self, store: AlertStore, switch: KillSwitch, session: Session) -> None:
        self._store = store
        self._switch = switch
        self._session = session

    def reason_against(self, file: RuleFile, rule: Rule, alert: Alert, target: AlertedGuest, received_s: float,
                       now: datetime, *, resolved: bool = False) -> tuple[str, str] | None:  # fmt: skip
        """(word, text) of the first guard that forbids it; None where none does. Raises ControlError.

        `resolved`: the act belongs to the alert's end, so neither that it fires nor the state are asked for.
        """
        checks = [*self._always(file, rule, target, now, received_s)]
        if not resolved:
            checks += self._of_firing(file, rule, alert, target, now)
        return next((found for found in (check() for check in checks) if found is not None), None)

    def _always(
        self, file: RuleFile, rule: Rule, target: AlertedGuest, now: datetime, received_s: float
    ) -> Iterator[Any]:
        now_s = now.timestamp()
        yield lambda: ("stopped", "the kill switch is on") if self._switch.is_on() else None
        yield lambda: ("protected", f"{target.name} is protected by the rule file") \
            if file.protected.holds(target.name) else None
        yield lambda: ("protected", f"{target.name} is marked by its owner") if target.marked else None
        yield lambda: ("stale", f"the alert waited for {now_s - received_s:.0f} s") \
            if now_s - received_s > rule.expires else None

    def _of_firing(self, file: RuleFile, rule: Rule, alert: Alert, target: AlertedGuest, now: datetime) -> list[Any]:
        return [
            lambda: ("quiet", "a maintenance window is open") if any(w.holds(now) for w in rule.quiet) else None,
            lambda: _unexpected(rule, target),
            lambda: self._short_of_memory(rule),
            lambda: ("breaker", "the circuit breaker is open after failures in a row; 'control rules reset' closes it")
            if self._store.failures().get(rule.name, (0, False))[1] else None,
            lambda: self._used_up(file, rule, target, now.timestamp()),
            lambda: self._no_longer_fires(file, alert) if rule.on == "firing" else None,
        ]  # fmt: skip

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

    def _used_up(self, file: RuleFile, rule: Rule, target: AlertedGuest, now_s: float) -> tuple[str, str] | None:
        acts = [act for act in self._store.since(now_s - max(_HOUR_S, rule.cooldown)) if act.phase == "do"]
        of_rule = [act for act in acts if act.rule == rule.name]
        recent = [act for act in of_rule if now_s - act.changed_s < rule.cooldown]
        if rule.cooldown and any(act.uuid == target.uuid for act in recent):
            return "cooldown", f"{target.name} was acted upon by this rule less than {rule.cooldown:g} s ago"
        within_hour = [act for act in acts if now_s - act.changed_s < _HOUR_S]
        if sum(act.rule == rule.name for act in within_hour) >= rule.budget_per_hour:
            return "budget", f"the rule acted {rule.budget_per_hour} times within an hour"
        if len(within_hour) >= file.budget_per_hour:
            return "budget", f"all rules together acted {file.budget_per_hour} times within an hour"
        if rule.most_of is not None and fnmatchcase(target.name, rule.most_of.domains):
            group = [name for name in self._names() if fnmatchcase(name, rule.most_of.domains)]
            touched = {act.uuid for act in within_hour if fnmatchcase(act.domain, rule.most_of.domains)}
            most = max(1, int(len(group) * rule.most_of.ratio))
            if len(touched | {target.uuid}) > most:
                return "share", f"{len(touched)} of {len(group)} guests {rule.most_of.domains} were acted upon already"
        return None

    def _names(self) -> list[str]:
        try:
            return [domain.name() for domain in self._session.connection.listAllDomains()]
        except libvirt.libvirtError as error:
            raise from_libvirt(error, "listing the domains") from error

    def _no_longer_fires(self, file: RuleFile, alert: Alert) -> tuple[str, str] | None:
        if file.prometheus is None:
            return None
        fires = still_fires(file.prometheus, alert)
        if fires is None:
            return "unconfirmed", "Prometheus was asked whether the alert still fires, and did not answer"
        return None if fires else ("resolved", "Prometheus says that the alert no longer fires")


def _unexpected(rule: Rule, target: AlertedGuest) -> tuple[str, str] | None:
    wanted = rule.expect
    if (wanted.state and target.state not in wanted.state) or (wanted.reason and target.reason not in wanted.reason):
        return "state", f"{target.name} is {target.state} ({target.reason}), which the rule does not expect"
    return None


def still_fires(prometheus: str, alert: Alert) -> bool | None:
    """Asks Prometheus for ALERTS with the alert's labels; None where it does not answer. Labels are quoted."""
    kept = {"alertname", "instance", "job", "domain", "uuid", "target_device", "reason"}
    labels = {name: value for name, value in alert.labels.items() if name in kept}
    matchers = ",".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in sorted(labels.items()))
    url = f"{prometheus.rstrip('/')}/api/v1/query?" + urlencode(
        {"query": f'ALERTS{{alertstate="firing",{matchers}}}'})  # fmt: skip
    try:
        with urllib.request.urlopen(url, timeout=_ASK_S) as answer:
            return bool(json.load(answer)["data"]["result"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


