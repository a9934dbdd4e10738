"""What one call tells of all domains at once: libvirt lists those that have something, and takes no job for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import libvirt

from .connection import Session
from .owner_metadata import cut
from .periodic import RunningDomain, Scope

Answer = TypeVar("Answer")
_GONE = (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT,
         getattr(libvirt, "VIR_ERR_NO_DOMAIN_CHECKPOINT", -1))  # the last one is of newer versions

HAVING: Mapping[str, int] = {"persistent": 1 << 2, "paused": 1 << 5, "managed-save": 1 << 8, "autostart": 1 << 10,
                             "snapshots": 1 << 12, "checkpoints": 1 << 14}
"""virConnectListAllDomainsFlags by what the listed domains have; numbers, since an older binding lacks some names."""


def all_domains(session: Session, scope: Scope) -> list[RunningDomain]:
    """All watched domains, also those that do not run (their id is -1), by one call."""
    return _domains(session, scope, 0)


def domains_having(session: Session, scope: Scope, what: str) -> list[RunningDomain] | None:
    """The watched domains that have it (a word of HAVING), by one call; None where libvirt cannot tell them apart."""
    name = f"listAllDomains({what})"
    try:
        return session.support.ask(name, lambda: _domains(session, scope, HAVING[what]))
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_INVALID_ARG:  # so an older libvirt speaks of a flag it lacks
            raise
        session.support.unsupported.add(name)
        return None


def _domains(session: Session, scope: Scope, flags: int) -> list[RunningDomain]:
    found = (RunningDomain(d.UUIDString(), d.ID(), cut(d.name())) for d in session.connection.listAllDomains(flags))
    return [domain for domain in found if scope.wants(domain.uuid, domain.name)]


def lookup(session: Session, uuid: str) -> Any:
    """The domain, None where it is gone."""
    return unless_gone(lambda: session.connection.lookupByUUIDString(uuid))


def unless_gone(call: Callable[[], Answer]) -> Answer | None:
    """The call's answer; None where what it asks of is gone meanwhile, or stopped."""
    try:
        return call()
    except libvirt.libvirtError as error:
        if error.get_error_code() not in _GONE:
            raise
        return None
