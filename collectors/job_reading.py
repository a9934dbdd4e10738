"""Reads the jobs of domains and of their disks.

While one runs, it is read every two seconds.  Events tell of a domain's job and of a disk's job that ends; that one
has begun on a disk no event tells, so each domain is looked at once a minute, a quarter of them every fifteen seconds.
A job that ended with its domain (a save, a migration away) is kept by libvirt for as long as the domain is defined:
it is read once, when the domain's end is told.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import libvirt

from .connection import ConnectionDownError, Session
from .domain_groups import domain_subject
from .domain_lists import all_domains, lookup
from .event_names import JOB_OPERATIONS, named
from .fields import Constant
from .inventory import Inventory
from .jobs import BLOCK_JOB_INFO, JOB, JOB_INFO, JOB_TYPES, JOBS, LAST, LAST_INFO
from .owner_metadata import cut
from .periodic import RunningDomain, Scope, share
from .snapshot import Record, Value

TURN_S = 15.0
SWEEP_S = 60.0
"""Time between two looks at a domain that no event speaks of."""
FAST_S = 2.0
_BLOCK_JOBS = ("unknown", "pull", "copy", "commit", "active_commit", "backup")
_BANDWIDTH_IN_BYTES = 1
_COMPLETED, _KEEP = 1, 2
_REFUSALS = (libvirt.VIR_ERR_OPERATION_UNSUPPORTED, libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN,
             libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED)

Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class _Known:
    """What the last look at a domain gave, and when the next one is due without an event."""

    record: Record | None
    due_s: float


class JobSource:
    """Reads the jobs of running domains: of those that events speak of or that have one, else each SWEEP_S.

    Of those that do not run, only the last one, once after each event.
    """

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
        self._ended: dict[str, RunningDomain] = {}
        self._all_ended = True  # those that do not run are to be listed

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
            self._all_ended = True

    def parts(self, session: Session, scope: Scope) -> Sequence[RunningDomain]:
        self._find_ended(session, scope)
        keys = {(domain.uuid, domain.id) for domain in (*scope.running, *self._ended.values())}
        self._last = {key: last for key, last in self._last.items() if key in keys}
        self._busy &= {domain.uuid for domain in scope.running}
        with self._lock:
            self._known = {key: known for key, known in self._known.items() if key in keys}
        return (*scope.healthy, *self._ended.values())

    def _find_ended(self, session: Session, scope: Scope) -> None:
        """Those of the domains that do not run which may have a last job.

        All at first, and where events may have been missed; then those that ran before, or of which an event spoke.
        """
        running = {domain.uuid for domain in scope.running}
        with self._lock:
            every, self._all_ended = self._all_ended, False
            doubtful = self._touched | {uuid for uuid, id_ in self._known if id_ >= 0}
            without = {uuid for (uuid, id_), known in self._known.items() if id_ < 0 and known.record is None}
        try:
            if every:
                self._ended = {d.uuid: d for d in all_domains(session, scope) if d.id < 0}
            self._ended = {uuid: d for uuid, d in self._ended.items() if uuid not in running | without}
            for uuid in doubtful - running:
                self._look_whether_ended(session, scope, uuid)
        except (libvirt.libvirtError, ConnectionDownError):
            with self._lock:
                self._all_ended = True
            raise

    def _look_whether_ended(self, session: Session, scope: Scope, uuid: str) -> None:
        domain = lookup(session, uuid)
        name = cut(domain.name()) if domain is not None else ""
        if domain is None or not scope.wants(uuid, name):
            self._ended.pop(uuid, None)
            with self._lock:
                self._touched.discard(uuid)
        elif not domain.isActive():  # else it was started since the last sample
            self._ended[uuid] = RunningDomain(uuid, -1, name)  # where it was there: its name may be another one

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
            read_at_s = time.monotonic()
            record = self._record(session, part, read_at_s, touched) if part.id >= 0 else (
                self._last_record(session, part, read_at_s))
            span_s = SWEEP_S * share(part.uuid) if known is None else SWEEP_S - TURN_S / 2
            if part.id < 0:
                span_s = float("inf")
            elif self._inventory.details(*key) is None:
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
            stats |= {f"job.{name}": value for name, value in job.items() if name in JOB}
            constants.append(Constant(JOB_INFO, (("operation", named(JOB_OPERATIONS, job.get("operation"))),
                                                 ("type", named(JOB_TYPES, job.get("type"))))))
        elif touched or key not in self._last or part.uuid in self._busy:
            self._last[key] = self._completed(session, domain)
        _add_last(self._last.get(key, {}), stats, constants)
        disks = self._disks(session, domain, key, stats, constants)
        (self._busy.add if running or disks else self._busy.discard)(part.uuid)
        if not stats and not constants:
            return None
        return Record(domain_subject(part), self.collector, stats, now_s, tuple(constants))

    def _last_record(self, session: Session, part: RunningDomain, now_s: float) -> Record | None:
        """The last job of a domain that does not run."""
        domain = lookup(session, part.uuid)
        stats: dict[str, Value] = {}
        constants: list[Constant] = []
        if domain is not None:
            _add_last(self._completed(session, domain), stats, constants)
        return Record(domain_subject(part), self.collector, stats, now_s, tuple(constants)) if constants else None

    def _completed(self, session: Session, domain: Any) -> Mapping[str, Value]:
        name = "jobStats completed"
        try:
            return self._asked(session, lambda: session.support.ask(
                name, lambda: domain.jobStats(_COMPLETED | _KEEP))) or {}
        except libvirt.libvirtError as error:
            # So libvirt before 6.0 speaks of a flag it lacks; without it, it would forget the job for everybody.
            if error.get_error_code() != libvirt.VIR_ERR_INVALID_ARG:
                raise
            session.support.unsupported.add(name)
            return {}

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


def _add_last(last: Mapping[str, Value], stats: dict[str, Value], constants: list[Constant]) -> None:
    """Add what is served of a domain's last job."""
    if last.get("operation"):
        stats |= {f"last.{name}": value for name, value in last.items() if name in LAST}
        constants.append(Constant(LAST_INFO, (("operation", named(JOB_OPERATIONS, last.get("operation"))),
                                              ("result", named(JOB_TYPES, last.get("type"))))))
