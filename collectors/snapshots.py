"""Snapshots and checkpoints of all domains, running or not: how many, the oldest and the newest."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from .connection import Session
from .domain_groups import domain_subject
from .domain_lists import all_domains, domains_having, lookup, unless_gone
from .fields import Collector, Declaration, Field, Kind
from .inventory import Inventory
from .periodic import RunningDomain, Scope
from .snapshot import Record, Value

_KINDS = (("snapshots", "snapshot", "virDomainListAllSnapshots", "0.9.13"),
          ("checkpoints", "checkpoint", "virDomainListAllCheckpoints", "5.6.0"))
_LISTING = {"snapshots": "listAllSnapshots", "checkpoints": "listAllCheckpoints"}
_CREATED = re.compile(r"<creationTime>([0-9]{1,15})</creationTime>")


def _declarations() -> tuple[Declaration, ...]:
    found: list[Declaration] = []
    for many, one, call, since in _KINDS:
        found.append(Field(f"{many}.count", f"libvirt_domain_{many}", Kind.GAUGE,
                           f"Number of the domain's {many}; absent without any ({call}, {many}.count, count).",
                           since=since))
        found += [Field(f"{many}.{which}", f"libvirt_domain_{one}_{which}_timestamp_seconds", Kind.GAUGE,
                        f"Time the domain's {which} {one} was made ({one} XML <creationTime>, {many}.{which}, "
                        "seconds since the epoch).", since=since) for which in ("oldest", "newest")]
    return tuple(found)


SNAPSHOTS = Collector(name="snapshots", help="Snapshots and checkpoints of each domain: count, oldest, newest.",
                      declarations=_declarations())


_ANEW = 4
"""Of so many known ones the time is read again at each reading, the longest known first: nothing but its XML tells that
one was deleted and made anew under its name. Who has no more of them is always right."""


class SnapshotSource:
    """Reads the lists of the domains that have any, which two calls for all domains tell; of few snapshots the XML."""

    collector = SNAPSHOTS.name
    period_s = 60.0
    deadline_s = 10.0

    def __init__(self, _inventory: Inventory) -> None:
        self._created: dict[tuple[str, str], dict[str, int]] = {}
        self._having: dict[str, frozenset[str]] = {}

    def parts(self, session: Session, scope: Scope) -> Sequence[RunningDomain]:
        found: dict[str, RunningDomain] = {}
        for many, *_ in _KINDS:
            domains = domains_having(session, scope, many)
            if domains is None:  # libvirt cannot tell: each is asked
                domains = all_domains(session, scope)
            self._having[many] = frozenset(domain.uuid for domain in domains)
            found |= {domain.uuid: domain for domain in domains}
        self._created = {key: times for key, times in self._created.items() if key[0] in self._having[key[1]]}
        return list(found.values())

    def read(self, session: Session, part: object) -> Iterable[Record]:
        assert isinstance(part, RunningDomain)
        read_at_s = time.monotonic()
        domain = lookup(session, part.uuid)
        if domain is None:
            return
        stats: dict[str, Value] = {}
        for many, *_ in _KINDS:
            if part.uuid not in self._having[many]:
                continue
            listing = getattr(domain, _LISTING[many], None)
            found = unless_gone(partial(session.support.ask, _LISTING[many], partial(listing, 0))) if (
                listing is not None) else None
            if not found:
                continue
            stats[f"{many}.count"] = len(found)
            times = self._times((part.uuid, many), found)
            if times:
                stats |= {f"{many}.oldest": min(times), f"{many}.newest": max(times)}
        if stats:
            yield Record(domain_subject(part), self.collector, stats, read_at_s)

    def _times(self, key: tuple[str, str], found: Sequence[Any]) -> list[int]:
        """When each was made; `_created` has them in the order in which they were read, the latest last."""
        known = self._created.get(key, {})
        by_name = {str(one.getName()): one for one in found}
        kept = [name for name in known if name in by_name][_ANEW:]
        times = {name: known[name] for name in kept}
        for name, one in by_name.items():
            if name not in times:
                match = _CREATED.search(unless_gone(partial(one.getXMLDesc, 0)) or "")
                times[name] = int(match.group(1)) if match else 0
        self._created[key] = times
        return [created for created in times.values() if created]
