"""Names of domain events and their details, from libvirt's enumerations (include/libvirt/libvirt-domain.h)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from .events import Event

LIFECYCLE: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("defined", ("added", "updated", "renamed", "from_snapshot")),
    ("undefined", ("removed", "renamed")),
    ("started", ("booted", "migrated", "restored", "from_snapshot", "wakeup", "recovered")),
    ("suspended", ("paused", "migrated", "io_error", "watchdog", "restored", "from_snapshot", "api_error", "postcopy",
                   "postcopy_failed")),
    ("resumed", ("unpaused", "migrated", "from_snapshot", "postcopy", "postcopy_failed")),
    ("stopped", ("shutdown", "destroyed", "crashed", "migrated", "saved", "failed", "from_snapshot", "recreated")),
    ("shutdown", ("finished", "guest", "host")),
    ("pmsuspended", ("memory", "disk")),
    ("crashed", ("panicked", "crashloaded")),
)
"""virDomainEventType and its virDomainEvent*DetailType, both by number."""

COUNTED = ("reboot", "watchdog", "io_error_reason", "control_error", "disk_change", "tray_change", "pmwakeup",
           "pmsuspend", "pmsuspend_disk", "balloon_change", "block_job_2", "device_added", "device_removed",
           "device_removal_failed", "tunable", "agent_lifecycle", "migration_iteration", "job_completed",
           "metadata_change", "block_threshold", "memory_failure", "memory_device_size_change", "nic_mac_change",
           "vcpu_removed", "channel_lifecycle", "lifecycle")
"""Events that are counted (VIR_DOMAIN_EVENT_ID_*, in lower case); the others are console clients, clocks, doubles."""

_WATCHDOG = ("none", "pause", "reset", "poweroff", "shutdown", "debug", "inject_nmi")
_DISK_CHANGE = ("missing_on_start", "dropped_on_start")
_TRAY = ("open", "close")
_AGENT = ("unknown", "connected", "disconnected")
_BLOCK_JOBS = ("unknown", "pull", "copy", "commit", "active_commit", "backup")
_BLOCK_JOB_ENDS = ("completed", "failed", "canceled", "ready")
JOB_OPERATIONS = ("unknown", "start", "save", "restore", "migration_in", "migration_out", "snapshot", "snapshot_revert",
                  "dump", "backup", "snapshot_delete")
"""virDomainJobOperation by number."""
_MEMORY_FAILURE_ACTIONS = ("ignore", "inject", "fatal", "reset")
_ERROR = re.compile(r"[a-z]{3,20}")


def named(names: tuple[str, ...], number: object) -> str:
    """The name of an enumeration's number; ``unknown`` for one this version does not know."""
    return names[number] if isinstance(number, int) and 0 <= number < len(names) else "unknown"


def names_of(event: Event) -> tuple[str, str]:
    """An event and its detail by name; the detail is empty where there is none.  Never raises.

    What a guest or a user chooses (paths, aliases, nicknames) never becomes a detail, device targets apart: the
    number of series stays bounded.
    """
    detail = event.detail
    if event.kind == "lifecycle":
        number = detail[0] if detail else None
        if isinstance(number, int) and 0 <= number < len(LIFECYCLE):
            name, details = LIFECYCLE[number]
            return name, named(details, detail[1] if len(detail) > 1 else None)
        return "unknown", ""
    name = _NAMES.get(event.kind, event.kind)
    describe = _DETAILS.get(event.kind)
    try:
        return name, describe(detail) if describe is not None else ""
    except (IndexError, TypeError, ValueError):
        return name, "unknown"


def _io_error(detail: tuple[object, ...]) -> str:
    """QEMU's reason is ``enospc`` or empty; some drivers give the error's text."""
    reason = str(detail[3])
    return reason if _ERROR.fullmatch(reason) else "other"


def _job(detail: tuple[object, ...]) -> str:
    statistics = detail[0]
    assert isinstance(statistics, tuple)
    return named(JOB_OPERATIONS, dict(statistics).get("operation"))


def _block_job(detail: tuple[object, ...]) -> str:
    return f"{named(_BLOCK_JOBS, detail[1])}_{named(_BLOCK_JOB_ENDS, detail[2])}"


_NAMES: Mapping[str, str] = {"io_error_reason": "io_error", "block_job_2": "block_job",
                             "agent_lifecycle": "agent", "channel_lifecycle": "channel"}
_DETAILS: Mapping[str, Callable[[tuple[object, ...]], str]] = {
    "watchdog": lambda detail: named(_WATCHDOG, detail[0]),
    "io_error_reason": _io_error,
    "disk_change": lambda detail: named(_DISK_CHANGE, detail[3]),
    "tray_change": lambda detail: named(_TRAY, detail[1]),
    "agent_lifecycle": lambda detail: named(_AGENT, detail[0]),
    "block_job_2": _block_job,
    "job_completed": _job,
    "block_threshold": lambda detail: str(detail[0])[:32],
    "memory_failure": lambda detail: named(_MEMORY_FAILURE_ACTIONS, detail[1]),
}
