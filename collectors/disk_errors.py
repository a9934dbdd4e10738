"""Which disk holds a guest up, and why: asked only of guests that an I/O error paused, of whom libvirt lists few.

Events count errors as they come; this says what is so now, also to an exporter that was started afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

from .connection import Session
from .domain import reason_name, state_name
from .domain_groups import domain_subject
from .domain_lists import domains_having, lookup, unless_gone
from .event_names import named
from .fields import Collector, Constant, Info
from .inventory import Inventory
from .periodic import RunningDomain, Scope
from .snapshot import Record

ERROR_INFO = "libvirt_domain_block_error_info"
_ERRORS = ("none", "unspecified", "no_space")  # virDomainDiskErrorCode
_MOST_DISKS = 1024

DISK_ERRORS = Collector(
    name="disk_errors",
    help="The disks that hold up guests which an I/O error paused.",
    declarations=(
        Info(ERROR_INFO,
             "Always 1 while the disk's error holds the guest up; no_space, or unspecified for any other "
             "(virDomainGetDiskErrors, text).", ("domain", "target_device", "error"), source="disk errors",
             since="0.9.10"),
    ),
)


class DiskErrorSource:
    """Lists the paused domains by one call, and asks for the disks of those whom an I/O error paused."""

    collector = DISK_ERRORS.name
    period_s = 60.0
    deadline_s = 10.0

    def __init__(self, _inventory: Inventory) -> None:
        pass

    def parts(self, session: Session, scope: Scope) -> Sequence[RunningDomain]:
        paused = [d for d in domains_having(session, scope, "paused") or [] if d.uuid not in scope.hung]
        return [domain for domain in paused if _by_error(lookup(session, domain.uuid))]

    def read(self, session: Session, part: object) -> Iterable[Record]:
        assert isinstance(part, RunningDomain)
        read_at_s = time.monotonic()
        domain = lookup(session, part.uuid)
        if domain is None or not _by_error(domain):
            return
        errors = unless_gone(lambda: session.support.ask("diskErrors", domain.diskErrors)) or {}
        constants = tuple(Constant(ERROR_INFO, (("target_device", disk), ("error", named(_ERRORS, code))))
                          for disk, code in sorted(errors.items())[:_MOST_DISKS] if code)
        if constants:
            yield Record(domain_subject(part), self.collector, {}, read_at_s, constants)


def _by_error(domain: Any) -> bool:
    """Whether an I/O error paused it; a call that never waits."""
    found = unless_gone(domain.state) if domain is not None else None
    if found is None:
        return False
    state, reason = found
    return (state_name(state), reason_name(state, reason)) == ("paused", "io_error")
