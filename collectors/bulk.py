"""libvirt's bulk statistics: which groups, one call for a few domains, what an answer in part looks like."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import libvirt

from .connection import Session
from .fields import Constant
from .owner_metadata import cut
from .per_domain import add_missing, state_stats
from .snapshot import Value

# Numbers instead of the binding's constants: a binding built on an older library lacks the newer names.
GROUP_BITS: Mapping[str, int] = {
    "state": 1, "cpu-total": 2, "balloon": 4, "vcpu": 8, "interface": 16, "block": 32, "perf": 64, "iothread": 128,
    "memory": 256, "dirtyrate": 512, "vm": 1024,
}
"""virDomainStatsTypes by libvirt's names."""
SAFE_GROUPS = frozenset({"state", "interface", "perf", "memory"})
"""Groups that never touch QEMU and take no job."""

SAFE_MASK = 1 | 16 | 64 | 256
"""The bits of SAFE_GROUPS."""

_NOWAIT = 1 << 29
_CONTROL_JOB, _CONTROL_OCCUPIED, _CONTROL_ERROR = 1, 2, 3


def group_bits(groups: Iterable[str]) -> int:
    """The bulk call's mask of the named groups."""
    mask = 0
    for group in groups:
        mask |= GROUP_BITS[group]
    return mask


@dataclass(frozen=True, slots=True)
class RosterEntry:
    """A domain as the roster call saw it; ``id`` is -1 for an inactive one."""

    uuid: str
    id: int
    name: str
    stats: dict[str, Value]


@dataclass(frozen=True, slots=True)
class Roster:
    """All domains with their state, active and inactive, and the versions in play."""

    sampled_at_s: float
    entries: tuple[RosterEntry, ...]
    versions: tuple[Constant, ...]


@dataclass(frozen=True, slots=True)
class DomainStats:
    """One domain's part of a bulk answer."""

    uuid: str
    id: int
    name: str
    stats: dict[str, Value]
    complete: bool


@dataclass(frozen=True, slots=True)
class ChunkAnswer:
    """A bulk answer for some domains; ``sampled_at_s`` was taken before the call."""

    sampled_at_s: float
    domains: tuple[DomainStats, ...]


def read_roster(session: Session) -> Roster:
    """Every domain's state, by one call that takes no job and never touches QEMU.

    Only the state of inactive domains is asked for: their CPU times would be the daemon's own.
    """
    sampled_at_s = time.monotonic()
    connection = session.connection
    rows = session.support.ask("getAllDomainStats", lambda: connection.getAllDomainStats(GROUP_BITS["state"], 0))
    if rows is None:
        rows = [(domain, state_stats(domain)) for domain in connection.listAllDomains(0)]
    entries = tuple(RosterEntry(d.UUIDString(), d.ID(), cut(d.name()), stats) for d, stats in rows)
    return Roster(sampled_at_s, entries, _versions(session))


def _versions(session: Session) -> tuple[Constant, ...]:
    connection = session.connection
    try:
        running, daemon = connection.getVersion(), connection.getLibVersion()
    except libvirt.libvirtError:
        return ()
    return (Constant("libvirt_versions_info", (
        ("hypervisor_running", _version(running)), ("libvirtd_running", _version(daemon)),
        ("libvirt_library", _version(libvirt.getVersion())))),)


def _version(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def read_chunk(session: Session, uuids: Iterable[str], mask: int, whole: bool = True, flags: int = 0) -> ChunkAnswer:
    """Bulk statistics of active domains, without waiting for jobs that others hold.  ``flags`` are further ones.

    NOWAIT does not bound the call: it waits for as long as a QEMU hangs whose job is free (see ``asking``).
    ``whole`` False says that ``mask`` is not all that is wanted, so that no answer is complete.
    """
    domains = session.domains(uuids)
    sampled_at_s = time.monotonic()
    if not domains:
        return ChunkAnswer(sampled_at_s, ())
    if not session.has_bulk_statistics:
        return ChunkAnswer(sampled_at_s, tuple(_by_domain(session, domains, mask)))
    rows = session.connection.domainListGetStats(domains, mask, _NOWAIT | flags)
    return ChunkAnswer(sampled_at_s, tuple(_domain_stats(domain, stats, mask, whole) for domain, stats in rows))


def _by_domain(session: Session, domains: list[Any], mask: int) -> Iterable[DomainStats]:
    """Answers of a driver whose bulk call gives little or nothing: what it gives, and the domain's own calls."""
    rows = session.support.ask("domainListGetStats",
                               lambda: session.connection.domainListGetStats(domains, mask, _NOWAIT))
    groups = [group for group, bit in GROUP_BITS.items() if mask & bit]
    for domain, stats in rows if rows is not None else [(domain, {}) for domain in domains]:
        try:
            add_missing(domain, stats, groups, session.support)
        except libvirt.libvirtError as error:
            if session.lost(error):
                raise
            continue  # it ended
        stats |= {"sample.complete": True, "monitor.busy": 0}
        yield DomainStats(domain.UUIDString(), domain.ID(), cut(domain.name()), stats, True)


def _domain_stats(domain: libvirt.virDomain, stats: dict[str, Value], mask: int, whole: bool) -> DomainStats:
    complete = is_complete(stats, mask) if whole else False
    if complete:
        stats["monitor.busy"] = 0
    else:
        reason, busy_s = _reason(domain)
        if complete is None:  # the keys do not tell
            complete = reason == "none"
        if not complete:
            # Nobody holds it now: a job that has ended meanwhile, or, where it was not asked, a hang without a call.
            stats["sample.reason"] = reason if reason != "none" else "job" if whole else "monitor"
        if busy_s is not None and (whole or busy_s):
            stats["monitor.busy"] = busy_s
    stats["sample.complete"] = complete
    return DomainStats(domain.UUIDString(), domain.ID(), cut(domain.name()), stats, complete)


def is_complete(stats: Mapping[str, Value], mask: int) -> bool | None:
    """Whether libvirt got the domain's job, told by the keys it can only give with it; None where none tells."""
    if mask & GROUP_BITS["balloon"]:
        return "balloon.rss" in stats
    if mask & GROUP_BITS["block"] and stats.get("block.count"):
        return "block.0.rd.reqs" in stats or any(key.endswith(".rd.reqs") for key in stats)  # the first may lack them
    return None if mask & ~SAFE_MASK else True


def _reason(domain: libvirt.virDomain) -> tuple[str, float | None]:
    """Why a domain answers in part, and the seconds its monitor has been busy; never waits (control info).

    ``none`` where nobody holds the domain now; seconds are None where libvirt does not know them.
    """
    try:
        state, _details, since_ms = domain.controlInfo()
    except libvirt.libvirtError:
        return "job", None
    if state == _CONTROL_OCCUPIED:
        return "monitor", since_ms / 1000
    if state == _CONTROL_ERROR:
        return "monitor", None
    return ("job" if state == _CONTROL_JOB else "none"), 0.0


def build_info(version: str) -> tuple[Constant, ...]:
    """virtgauge_build_info's only series."""
    labels = (("version", version), ("python_version", platform.python_version()))
    return (Constant("virtgauge_build_info", labels),)
