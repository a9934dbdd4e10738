"""What libvirt keeps of each domain besides its XML: autostart, persistence, a saved image, its warnings.

The switches are read by one call each for all domains.  The warnings need a call for each domain (0.1 ms of libvirtd
and here together): at each reading for those that run.  One that is off gets none without an event: it is asked every
ten minutes, spread over them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from .connection import Session
from .domain_groups import domain_subject
from .domain_lists import all_domains, domains_having, lookup, unless_gone
from .fields import Collector, Declaration, Field, Kind
from .inventory import Inventory
from .periodic import RunningDomain, Scope, share
from .snapshot import Record, Value

MESSAGES_S = 55.0
"""Time between two readings of a running domain's warnings, but for events: less than the period, whose readings are
not quite even, and more than the time between two readings that events ask for."""
OFF_S = 600.0
"""The same of a domain that is off."""
_MOST_TEXTS = 1000
_DEPRECATION = 1  # virDomainMessageType
_SWITCHES = ("autostart", "persistent", "managed-save")

Key = tuple[str, int]


def _switch(source: str, name: str, text: str) -> Declaration:
    return Field(f"settings.{source}", f"libvirt_domain_{name}", Kind.GAUGE,
                 f"1 if {text}, 0 if not (virConnectListAllDomains, settings.{source}, boolean).", since="0.9.13")


SETTINGS = Collector(
    name="settings",
    help="Autostart, persistence, saved image and libvirt's warnings of each domain.",
    declarations=(
        _switch("autostart", "autostart", "the domain starts with the host"),
        _switch("persistent", "persistent", "the domain is defined for good"),
        _switch("managed-save", "managed_save", "a saved image waits for the domain's next start"),
        *(Field(f"settings.messages.{kind}", "libvirt_domain_messages", Kind.GAUGE,
                "Number of libvirt's warnings about the domain by kind, read every minute and after its events; "
                "absent without any (virDomainGetMessages, "
                "settings.messages.deprecation, settings.messages.tainting, count).", fixed=(("kind", kind),),
                since="7.1.0", zero_is_unknown=True) for kind in ("deprecation", "tainting")),
    ),
)


class SettingsSource:
    """Reads the switches of all domains at once, the warnings of one.  None of the calls touches QEMU."""

    collector = SETTINGS.name
    period_s = 60.0
    deadline_s = 10.0

    def __init__(self, _inventory: Inventory, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._read_at_s = 0.0
        self._on: dict[str, frozenset[str]] = {}  # by switch, the domains that have it
        self._messages: dict[Key, Record] = {}
        self._due_s: dict[Key, float] = {}
        self._touched: set[str] = set()
        self._kinds: dict[tuple[str, ...], Mapping[str, int]] = {}  # by the texts, the same for many domains

    def invalidate(self, uuid: str) -> None:
        """Read a domain's warnings at the next reading.  Any thread."""
        with self._lock:
            self._touched.add(uuid)

    def invalidate_all(self) -> None:
        """Read all domains' warnings at the next reading: events may have been missed.  Any thread."""
        with self._lock:
            self._touched.update(uuid for uuid, _ in self._due_s)

    def parts(self, session: Session, scope: Scope) -> Sequence[RunningDomain]:
        self._read_at_s = time.monotonic()
        listed = {switch: domains_having(session, scope, switch) for switch in _SWITCHES}
        self._on = {switch: frozenset(d.uuid for d in on) for switch, on in listed.items() if on is not None}
        domains = all_domains(session, scope)
        keys = {(domain.uuid, domain.id) for domain in domains}
        with self._lock:
            self._touched &= {uuid for uuid, _ in keys}
            self._due_s = {key: due_s for key, due_s in self._due_s.items() if key in keys}
            self._messages = {key: record for key, record in self._messages.items() if key in keys}
        return domains

    def read(self, session: Session, part: object) -> Iterable[Record]:
        assert isinstance(part, RunningDomain)
        if self._on:
            stats: dict[str, Value] = {f"settings.{switch}": part.uuid in on for switch, on in self._on.items()}
            yield Record(domain_subject(part), self.collector, stats, self._read_at_s)
        if self._is_due(part):
            self._read_messages(session, part)
        messages = self._messages.get((part.uuid, part.id))
        if messages is not None:
            yield messages

    def _is_due(self, part: RunningDomain) -> bool:
        """Whether the domain's warnings are to be read now; what an event says of it from now on counts anew."""
        with self._lock:
            due_s = self._due_s.get((part.uuid, part.id))
            due = part.uuid in self._touched or due_s is None or self._clock() >= due_s
            self._touched.discard(part.uuid)
            return due

    def _read_messages(self, session: Session, part: RunningDomain) -> None:
        key, read_at_s = (part.uuid, part.id), time.monotonic()
        with self._lock:
            before_s = self._due_s.pop(key, None)  # where reading fails, the next one tries again
        self._messages.pop(key, None)
        domain = _running(session, part.uuid) if part.id >= 0 else lookup(session, part.uuid)
        found = unless_gone(lambda: self._counts(session, domain)) if domain is not None else None
        if found is None:
            return
        counts = {f"settings.messages.{kind}": count for kind, count in found.items() if count}
        if counts:
            self._messages[key] = Record(domain_subject(part), "messages", counts, read_at_s)
        with self._lock:
            wait_s = MESSAGES_S if part.id >= 0 else OFF_S * (share(part.uuid) if before_s is None else 1.0)
            self._due_s[key] = self._clock() + wait_s

    def _counts(self, session: Session, domain: Any) -> Mapping[str, int]:
        """How many warnings of each kind; mostly there are none, or those of before, which one call tells."""
        every = tuple(session.support.ask("messages", lambda: domain.messages(0)) or ())
        counts = self._kinds.get(every) if every else {}
        if counts is None:
            deprecation = len(domain.messages(_DEPRECATION))
            counts = {"deprecation": deprecation, "tainting": max(0, len(every) - deprecation)}
            if len(self._kinds) >= _MOST_TEXTS:
                self._kinds = {}
            self._kinds[every] = counts
        return counts


def _running(session: Session, uuid: str) -> Any:
    """A running domain without a call of its own for finding it; None where it has ended."""
    return next(iter(session.domains([uuid])), None)
