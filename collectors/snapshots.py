"""Snapshots and checkpoints of all domains, running or not: how many, the oldest and the newest."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import libvirt

from .connection import Session
from .domain_groups import domain_subject
from .fields import Collector, Declaration, Field, Kind
from .inventory import Inventory
from .periodic import RunningDomain, Scope
from .snapshot import Record, Value

_KINDS = (("snapshots", "snapshot", "virDomainListAllSnapshots", "0.9.13"),
          ("checkpoints", "checkpoint", "virDomainListAllCheckpoints", "5.6.0"))
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


def all_domains(session: Session) -> list[RunningDomain]:
    """All domains, also those that do not run (their id is -1)."""
    return [RunningDomain(d.UUIDString(), d.ID(), d.name()) for d in session.connection.listAllDomains(0)]


def lookup(session: Session, uuid: str) -> Any:
    """The domain, None where it is gone."""
    try:
        return session.connection.lookupByUUIDString(uuid)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


class SnapshotSource:
    """Reads the lists domain by domain; the XML of a snapshot, for its time, once."""

    collector = SNAPSHOTS.name
    period_s = 60.0
    deadline_s = 10.0

    def __init__(self, _inventory: Inventory) -> None:
        self._created: dict[tuple[str, str], dict[str, int]] = {}

    def parts(self, session: Session, scope: Scope) -> Sequence[RunningDomain]:
        domains = all_domains(session)
        kept = {domain.uuid for domain in domains}
        self._created = {key: times for key, times in self._created.items() if key[0] in kept}
        return domains

    def read(self, session: Session, part: object) -> Iterable[Record]:
        assert isinstance(part, RunningDomain)
        read_at_s = time.monotonic()
        domain = lookup(session, part.uuid)
        if domain is None:
            return
        stats: dict[str, Value] = {}
        lists = (("snapshots", domain.listAllSnapshots),
                 ("checkpoints", getattr(domain, "listAllCheckpoints", None)))
        for many, listing in lists:
            found = session.support.ask(listing.__name__, partial(listing, 0)) if listing is not None else None
            if not found:
                self._created.pop((part.uuid, many), None)
                continue
            stats[f"{many}.count"] = len(found)
            times = self._times((part.uuid, many), found)
            if times:
                stats |= {f"{many}.oldest": min(times), f"{many}.newest": max(times)}
        if stats:
            yield Record(domain_subject(part), self.collector, stats, read_at_s)

    def _times(self, key: tuple[str, str], found: Sequence[Any]) -> list[int]:
        known = self._created.get(key, {})
        times: dict[str, int] = {}
        for one in found:
            name = str(one.getName())
            created = known.get(name)
            if created is None:
                match = _CREATED.search(one.getXMLDesc(0))
                created = int(match.group(1)) if match else 0
            times[name] = created
        self._created[key] = times
        return [created for created in times.values() if created]
