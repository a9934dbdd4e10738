"""Jobs of domains (migration, save, dump, backup) and of their disks (copy, commit, pull): progress and last result.

While one runs, it is read every two seconds.  Events tell of a domain's job and of a disk's job that ends; that one
has begun on a disk no event tells, so each domain is looked at once a minute, a quarter of them every fifteen seconds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import libvirt

from .connection import Session
from .domain_groups import domain_subject
from .event_names import JOB_OPERATIONS, named
from .fields import MILLISECOND, Collector, Constant, Declaration, Field, Info, Kind
from .inventory import Inventory
from .periodic import RunningDomain, Scope, share
from .snapshot import Record, Value

JOB_INFO = "libvirt_domain_job_info"
LAST_INFO = "libvirt_domain_job_last_info"
BLOCK_JOB_INFO = "libvirt_domain_block_job_info"
TURN_S = 15.0
SWEEP_S = 60.0
"""Time between two looks at a domain that no event speaks of."""
FAST_S = 2.0
JOB_TYPES = ("none", "bounded", "unbounded", "completed", "failed", "cancelled")
_BLOCK_JOBS = ("unknown", "pull", "copy", "commit", "active_commit", "backup")
_BANDWIDTH_IN_BYTES = 1
_COMPLETED, _KEEP = 1, 2
_REFUSALS = (libvirt.VIR_ERR_OPERATION_UNSUPPORTED, libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN,
             libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED)

Key = tuple[str, int]

# libvirt's key to (name, text, unit as HELP says it, kind, scale).
_Row = tuple[str, str, str, Kind, float]
_JOB: Mapping[str, _Row] = {
    "time_elapsed": ("elapsed_seconds", "Seconds since the job began", "milliseconds", Kind.GAUGE, MILLISECOND),
    "time_remaining": ("remaining_seconds", "Seconds the job is expected to take still", "milliseconds", Kind.GAUGE,
                       MILLISECOND),
    "downtime": ("downtime_seconds", "Seconds the guest stood still, or is expected to, for the job", "milliseconds",
                 Kind.GAUGE, MILLISECOND),
    "setup_time": ("setup_seconds", "Seconds the job's set-up took", "milliseconds", Kind.GAUGE, MILLISECOND),
    **{f"{what}_{word}": (f"{what}_{word}_bytes", f"Bytes of {text} {verb}", "bytes", Kind.GAUGE, 1.0)
       for what, text in (("data", "all data"), ("memory", "memory"), ("disk", "disks"))
       for word, verb in (("total", "to move"), ("processed", "moved"), ("remaining", "still to move"))},
    "memory_normal_bytes": ("memory_normal_bytes", "Bytes of memory moved as whole pages", "bytes", Kind.GAUGE, 1.0),
    "memory_bps": ("memory_bytes_per_second", "Bytes of memory a second the job moves", "bytes a second", Kind.GAUGE,
                   1.0),
    "disk_bps": ("disk_bytes_per_second", "Bytes of disks a second the job moves", "bytes a second", Kind.GAUGE, 1.0),
    "memory_dirty_rate": ("memory_dirty_pages_per_second", "Pages a second that the guest writes to anew", "pages a "
                          "second", Kind.GAUGE, 1.0),
    "memory_page_size": ("memory_page_bytes", "Bytes of a page of memory", "bytes", Kind.GAUGE, 1.0),
    "memory_iteration": ("memory_iterations", "Times the job went over the memory", "count", Kind.GAUGE, 1.0),
    "memory_postcopy_requests": ("memory_postcopy_requests", "Pages that the destination asked for by itself", "count",
                                 Kind.GAUGE, 1.0),
    "compression_bytes": ("compression_bytes", "Bytes of memory that were sent compressed", "bytes", Kind.GAUGE, 1.0),
    "disk_temp_used": ("disk_temporary_used_bytes", "Bytes of temporary disk space in use", "bytes", Kind.GAUGE, 1.0),
    "disk_temp_total": ("disk_temporary_total_bytes", "Bytes of temporary disk space", "bytes", Kind.GAUGE, 1.0),
}
_LAST = ("time_elapsed", "downtime", "setup_time", "data_total", "data_processed", "memory_total", "memory_processed",
         "memory_bps", "memory_iteration", "memory_postcopy_requests", "disk_total", "disk_processed")


def _field(stem: str, prefix: str, key: str, before: str = "") -> Declaration:
    name, text, unit, kind, scale = _JOB[key]
    return Field(f"{stem}.{key}", f"libvirt_domain_{prefix}_{name}", kind,
                 f"{before}{text} (virDomainGetJobStats, {stem}.{key}, {unit}).", scale, since="1.0.3")


def _block(word: str, name: str, text: str, unit: str) -> Declaration:
    return Field(f"blockjob.<n>.{word}", f"libvirt_domain_block_job_{name}", Kind.GAUGE,
                 f"{text} (virDomainGetBlockJobInfo, blockjob.<n>.{word}, {unit}).", 1.0, "target_device",
                 "blockjob.<n>.name", since="0.9.4")


JOBS = Collector(
    name="jobs",
    help="Jobs of domains and of their disks: progress while they run, and the domain's last one; a job whose "
         "beginning no event tells is found within a minute.",
    declarations=(
        Info(JOB_INFO, "Always 1 while the domain has a job; what it does (virDomainGetJobStats, text).",
             ("domain", "operation", "type"), source="job", since="3.3.0"),
        *(_field("job", "job", key) for key in _JOB),
        Info(LAST_INFO, "Always 1; the domain's last job and how it ended (virDomainGetJobStats, text).",
             ("domain", "operation", "result"), source="last", since="3.3.0"),
        *(_field("last", "job_last", key, "Last job: ") for key in _LAST),
        Info(BLOCK_JOB_INFO, "Always 1 while the disk has a job; what it does (virDomainGetBlockJobInfo, text).",
             ("domain", "target_device", "type"), source="blockjob", since="0.9.4"),
        _block("cur", "current_bytes", "Bytes up to which the disk's job has come", "bytes"),
        _block("end", "end_bytes", "Bytes at which the disk's job is done", "bytes"),
        _block("bandwidth", "limit_bytes_per_second", "Most bytes a second the disk's job may move, absent without a "
               "limit", "bytes a second"),
    ),
)


@dataclass(frozen=True, slots=True)
class _Known:
    """What the last look at a domain gave, and when the next one is due without an event."""

    record: Record | None
    due_s: float


class JobSource:
    """Reads the jobs of running domains: of those that events speak of or that have one, else each SWEEP_S."""

    collector = JOBS.name
    deadline_s = 10.0

    def __init__(self, inventory: Inventory, clock: Callable[[], float] = time.monotonic) -> None:
        self._inventory = inventory
        self._clock = clock
        self._lock = threading.Lock()
        self._busy: set[str] = set()
        self._last: dict[Key, Mapping[str, Value]] = {}
        self._known: dict[Key, _Known] = {}
        self._touched: set[str] = set()

    @property
    def period_s(self) -> float:
        """Time between two reads: short while a job runs."""
        return FAST_S if self._busy else TURN_S

    def invalidate(self, uuid: str) -> None:
        """Look at a domain at the next read: an event is about its job.  Any thread."""
        with self._lock:
            self._touched.add(uuid)

    def invalidate_all(self) -> None:
        """Look at all domains at the next read: events may have been missed.  Any thread."""
        with self._lock:
            self._touched.update(uuid for uuid, _ in self._known)

    def parts(self, session: Session, scope: Scope) -> Sequence[RunningDomain]:
        keys = {(domain.uuid, domain.id) for domain in scope.running}
        self._last = {key: last for key, last in self._last.items() if key in keys}
        self._busy &= {uuid for uuid, _ in keys}
        with self._lock:
            self._known = {key: known for key, known in self._known.items() if key in keys}
        return scope.healthy

    def read(self, session: Session, part: object) -> Iterable[Record]:
        assert isinstance(part, RunningDomain)
        key, now_s = (part.uuid, part.id), self._clock()
        with self._lock:
            touched = part.uuid in self._touched
            self._touched.discard(part.uuid)
        known = self._known.get(key)
        if known is None or touched or part.uuid in self._busy or now_s >= known.due_s:
            with self._lock:
                self._known.pop(key, None)  # where looking fails, the next read tries again
            record = self._record(session, part, time.monotonic(), touched)
            span_s = SWEEP_S * share(part.uuid) if known is None else SWEEP_S - TURN_S / 2
            if self._inventory.details(*key) is None:
                span_s = 0.0  # its disks are not known yet
            known = _Known(record, now_s + span_s)
            with self._lock:
                self._known[key] = known
        return [] if known.record is None else [known.record]

    def _record(self, session: Session, part: RunningDomain, now_s: float, touched: bool) -> Record | None:
        found = session.domains((part.uuid,))
        if not found:
            return None
        domain = found[0]
        key = (part.uuid, part.id)
        job = self._asked(session, lambda: session.support.ask("jobStats", lambda: domain.jobStats(0))) or {}
        stats: dict[str, Value] = {}
        constants: list[Constant] = []
        running = job.get("type", 0) in (1, 2)
        if running:
            stats |= {f"job.{name}": value for name, value in job.items() if name in _JOB}
            constants.append(Constant(JOB_INFO, (("operation", named(JOB_OPERATIONS, job.get("operation"))),
                                                 ("type", named(JOB_TYPES, job.get("type"))))))
        elif touched or key not in self._last or part.uuid in self._busy:
            flags = _COMPLETED | _KEEP
            done = self._asked(session, lambda: session.support.ask(
                "jobStats completed", lambda: domain.jobStats(flags)))
            self._last[key] = done or {}
        last = self._last.get(key, {})
        if last.get("operation"):
            stats |= {f"last.{name}": value for name, value in last.items() if name in _LAST}
            constants.append(Constant(LAST_INFO, (("operation", named(JOB_OPERATIONS, last.get("operation"))),
                                                  ("result", named(JOB_TYPES, last.get("type"))))))
        disks = self._disks(session, domain, key, stats, constants)
        (self._busy.add if running or disks else self._busy.discard)(part.uuid)
        if not stats and not constants:
            return None
        return Record(domain_subject(part), self.collector, stats, now_s, tuple(constants))

    def _disks(self, session: Session, domain: Any, key: tuple[str, int], stats: dict[str, Value],
               constants: list[Constant]) -> int:
        definition = self._inventory.details(*key)
        found = 0
        for disk in definition.disks if definition is not None else ():
            if not disk.source_file or disk.device != "disk":
                continue
            name = disk.target_device
            info = self._asked(session, lambda name=name: session.support.ask(
                "blockJobInfo", lambda: domain.blockJobInfo(name, _BANDWIDTH_IN_BYTES)))
            if not info:
                continue
            stats |= {f"blockjob.{found}.name": name, f"blockjob.{found}.cur": info["cur"],
                      f"blockjob.{found}.end": info["end"]}
            if info.get("bandwidth"):
                stats[f"blockjob.{found}.bandwidth"] = info["bandwidth"]
            constants.append(Constant(BLOCK_JOB_INFO, (("target_device", name),
                                                       ("type", named(_BLOCK_JOBS, info.get("type"))))))
            found += 1
        return found

    @staticmethod
    def _asked(session: Session, call: Any) -> dict[str, Any] | None:
        """The answer, None where the domain's state does not allow the question (a migration's destination)."""
        try:
            answer: dict[str, Any] | None = call()
            return answer
        except libvirt.libvirtError as error:
            if session.lost(error) or error.get_error_code() not in _REFUSALS:
                raise
            return None
