"""Watching a migration from beside it: progress, the time it may take, and the caller's wish to stop."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import libvirt
from pydantic import JsonValue

from exporter.control.migration_parameters import MigrateParameters
from exporter.control.operation import Call, Deadline, Progress, State

POLL_S = 0.25
_RUNNING = (libvirt.VIR_DOMAIN_JOB_BOUNDED, libvirt.VIR_DOMAIN_JOB_UNBOUNDED)
_MILLISECOND = 1e-3
# libvirt's key: our name, and the factor to its unit.
_TOLD: dict[str, tuple[str, float]] = {
    "time_elapsed": ("elapsed_s", _MILLISECOND),
    "downtime": ("downtime_s", _MILLISECOND),
    "data_total": ("data_total_bytes", 1),
    "data_processed": ("data_processed_bytes", 1),
    "data_remaining": ("data_remaining_bytes", 1),
    "memory_total": ("memory_total_bytes", 1),
    "memory_processed": ("memory_processed_bytes", 1),
    "memory_remaining": ("memory_remaining_bytes", 1),
    "memory_bps": ("memory_bytes_per_second", 1),
    "memory_iteration": ("passes", 1),
    "memory_dirty_rate": ("dirty_pages_per_second", 1),
    "memory_page_size": ("page_bytes", 1),
    "memory_postcopy_requests": ("post_copy_requests", 1),
    "disk_total": ("disk_total_bytes", 1),
    "disk_remaining": ("disk_remaining_bytes", 1),
    "auto_converge_throttle": ("cpu_throttle_percent", 1),
}


def job_facts(stats: dict[str, Any]) -> dict[str, JsonValue]:
    """libvirt's job statistics under readable names with units; what it does not tell is absent."""
    return {
        name: round(stats[key] * scale, 3) if scale != 1 else stats[key]
        for key, (name, scale) in _TOLD.items()
        if key in stats
    }


def outgoing_job(handle: Any) -> dict[str, Any] | None:
    """The statistics of the guest's migration to elsewhere; None where none runs."""
    try:
        stats: dict[str, Any] = handle.jobStats(0)
    except libvirt.libvirtError as error:
        if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_OPERATION_INVALID):
            return None
        raise
    running = stats.get("type") in _RUNNING
    return stats if running and stats.get("operation") == libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT else None


def progress_of(stats: dict[str, Any]) -> Progress:
    """What a person wants to see: which pass, how much is left, how fast it goes and how fast the guest writes."""
    left, rate = stats.get("memory_remaining", 0) >> 20, stats.get("memory_bps", 0) >> 20
    words = [f"pass {stats.get('memory_iteration', 0)}", f"{left} MiB of memory left", f"{rate} MiB/s"]
    if stats.get("memory_dirty_rate"):
        words.append(f"the guest dirties {stats['memory_dirty_rate']} pages/s")
    if stats.get("disk_remaining"):
        words.append(f"{stats['disk_remaining'] >> 20} MiB of disks left")
    total = stats.get("data_total", 0)
    fraction = max(0.0, min(1.0, 1 - stats.get("data_remaining", 0) / total)) if total else None
    return Progress(", ".join(words), fraction)


class Watch:
    """Beside the thread that waits for the migration. `stopped` says why the watch ended it, None if it did not."""

    def __init__(self, call: Call, parameters: MigrateParameters, there: Any) -> None:
        """`there` is the destination's virConnect, whose end is the migration's."""
        self._call = call
        self._there = there
        self._parameters = parameters
        self._session = call.session.another()
        self._over = threading.Event()
        self._soft = call.deadline.within(parameters.within_s)
        # Before the caller's own deadline, so that the abort and the look at both hosts come within it.
        self._hard = call.deadline.within(min(parameters.longest_s, max(1.0, call.deadline.remaining_s() - 10)))
        self._late = False
        self.stopped: str | None = None
        self.destination_lost = False
        self.paused = False
        self.post_copy = False
        self.most_dirty_pages_per_second = 0
        self.seen: State = {}

    @contextlib.contextmanager
    def watching(self) -> Iterator[Watch]:
        thread = threading.Thread(target=self._run, name="control-migration-watch", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._over.set()
            thread.join(10)
            if self._session is not self._call.session:
                self._session.close()

    def _run(self) -> None:
        while not self._over.wait(POLL_S):
            # Whatever fails here (a connection that broke) must not end the watch: it is what keeps the deadline.
            with contextlib.suppress(Exception):
                self._look(self._session.connection.lookupByUUIDString(str(self._call.subject.uuid)))

    def _look(self, handle: Any) -> None:
        stats = outgoing_job(handle)
        if stats is None:
            return
        self.seen = job_facts(stats)
        self.most_dirty_pages_per_second = max(self.most_dirty_pages_per_second, stats.get("memory_dirty_rate", 0))
        self._call.progress(progress_of(stats))
        after_first_pass = self._parameters.post_copy == "after-first-pass" and stats.get("memory_iteration", 0) > 1
        if after_first_pass and not self.post_copy:
            self._switch(handle)
        if self._call.deadline.cancelled.is_set():
            self._abort(handle, "cancelled by the caller")
        elif not self._there.isAlive():
            # The memory would go on flowing to its QEMU, for nothing: nobody there can let the guest run.
            self.destination_lost = True
            self._abort(handle, "the destination's libvirt is gone")
        elif _passed(self._hard):
            self._abort(handle, f"not done within {self._parameters.longest_s:g} s")
        elif _passed(self._soft) and not self._late:
            self._late = True
            self._act_on_timeout(handle)

    def _act_on_timeout(self, handle: Any) -> None:
        if self._parameters.on_timeout == "pause":
            if handle.state()[0] == libvirt.VIR_DOMAIN_PAUSED:  # by somebody else, who lets it run again
                return
            handle.suspend()
            self.paused = True
            self._call.warnings.append("it was paused for the rest of the way, since it was not done in time")
        elif self._parameters.on_timeout == "post-copy" and not self.post_copy:
            self._switch(handle)
        elif self._parameters.on_timeout == "abort":
            self._abort(handle, f"not done within {self._parameters.within_s:g} s")

    def _switch(self, handle: Any) -> None:
        handle.migrateStartPostCopy(0)
        self.post_copy = True

    def _abort(self, handle: Any, why: str) -> None:
        # In post-copy the guest is in two halves; to abort would lose it, and libvirt refuses.
        if not self.post_copy:
            handle.abortJob()
            self.stopped = self.stopped or why


def _passed(deadline: Deadline) -> bool:
    return deadline.remaining_s() <= 0

