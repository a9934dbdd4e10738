"""The sampler: roster, statistics, inventory, deadline.  A Snapshot comes out, never a hang; see ``asking``."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from .asking import SLICE_S, Answers, Asking, Deadline
from .background import Background
from .bulk import SAFE_GROUPS, Roster, read_roster
from .configuration import CONFIGURATION
from .domain import STATES
from .domain_records import DomainRecords
from .fields import Collector, Constant
from .inventory import INVENTORY, Inventory
from .kernel import KERNEL_GROUPS
from .lanes import Call, LanePool, Work
from .limits import LIMITS
from .periodic import RunningDomain, Scope
from .snapshot import Record, Snapshot, Subject, Value

log = logging.getLogger(__name__)

Key = tuple[str, int]
_OF_PROCESSES = KERNEL_GROUPS | {"balloon"}
"""Groups of which some is read from the processes' files."""
INVENTORY_WAIT_S = 0.5
"""How long a sample waits for domain XML that is to be read again; what comes later is on the next one."""


class Heard(Protocol):
    """A collector that libvirt tells by itself; ``domains`` are the roster's, uuid to name."""

    @property
    def collector(self) -> str: ...
    def succeeded(self) -> bool: ...
    def records(self, domains: Mapping[str, str], at_s: float) -> Iterable[Record]: ...


@dataclass(slots=True)
class _Round:
    """What one sampling has gathered so far."""

    started_s: float
    roster: Roster | None = None
    answers: Answers = field(default_factory=Answers)
    finished_s: float = 0.0


class Sampler:
    """Samples one target.  All methods in one thread."""

    def __init__(self, pool: LanePool, inventory: Inventory, collectors: Iterable[Collector],
                 records: DomainRecords, background: Background, chunk: int = 16, constants: tuple[Constant, ...] = (),
                 wall_clock: Callable[[], float] = time.time,
                 own_records: Iterable[Callable[[float], Record]] = (), heard: Iterable[Heard] = (),
                 wants: Callable[[str, str], bool] = lambda uuid, name: True) -> None:
        """``own_records`` give other parts' series about themselves, with the monotonic time of the sampling.

        ``heard`` are the collectors that ask libvirt nothing, since they are told.  ``wants`` says by uuid
        and name which domains are watched at all.
        """
        self._wants = wants
        self._heard = tuple(heard)
        self._pool = pool
        self._own_records = tuple(own_records)
        self._inventory = inventory
        self._background = background
        self._collectors = tuple(collectors)
        self._records = records
        self._asking = Asking(pool, chunk)
        self._constants = constants
        self._wall_clock = wall_clock
        self._subjects: dict[tuple[str, int, str], Subject] = {}
        self._versions: tuple[Constant, ...] = ()
        self._inventory_read = True
        self._sequence = 0
        self.page_series = 0
        self.error = ""  # libvirt's words while it does not answer

    def sample(self, deadline: Deadline) -> Snapshot:
        """Sample all domains.  ``deadline`` gives the monotonic time by which to be done; it may come nearer."""
        wall_time_s = self._wall_clock()
        self._pool.collect_late()
        round_ = _Round(time.monotonic())
        round_.roster = self._read_roster(deadline)
        if round_.roster is not None:
            running = sorted((entry.uuid, entry.id) for entry in round_.roster.entries if entry.id >= 0)
            stopped = [(entry.uuid, -1) for entry in round_.roster.entries if entry.id < 0 and self._inventory.inactive]
            self._find(running, stopped, deadline)
            round_.answers = self._asking.ask({key: self._records.mask(key) for key in running}, deadline)
        self._pool.end_round()
        round_.finished_s = time.monotonic()
        self._sequence += 1
        return self._snapshot(round_, wall_time_s)

    def _read_roster(self, deadline: Deadline) -> Roster | None:
        """The roster, or None where libvirt does not answer in time.

        A daemon that hangs gets one such call, not one a scrape: it would answer them all when it wakes up.
        """
        call = self._call("roster", read_roster, deadline)
        if call is None:
            self.error = "libvirt does not answer"
            return None
        if call.error is not None:
            self.error = str(call.error)
            return None
        self.error = ""
        found: Roster = call.result
        return replace(found, entries=tuple(e for e in found.entries if self._wants(e.uuid, e.name)))

    def _find(self, running: list[Key], stopped: list[Key], deadline: Deadline) -> None:
        """Read what is new of the domains, first: which groups one is asked for depends on what is found.

        What takes longer than INVENTORY_WAIT_S goes on by itself; the next samples profit from it.
        """
        if not self._records.stale(running, stopped):
            return
        until_s = time.monotonic() + INVENTORY_WAIT_S
        call = self._call("find", lambda session: self._records.find(session, running, stopped),
                          lambda: min(until_s, deadline()))
        if call is not None:
            self._inventory_read = call.error is None

    def _call(self, tag: str, work: Work, deadline: Deadline) -> Call | None:
        """One call with nothing else under way; None where it is late, or one of its kind has not come back."""
        if any(call.tag == tag for call in self._pool.stuck_calls):
            return None
        asked = self._pool.start(work, tag)
        while (left_s := deadline() - time.monotonic()) > 0:
            if self._pool.next_done(min(left_s, SLICE_S)) is asked:
                return asked
        self._pool.leave(asked)
        return None

    def _snapshot(self, round_: _Round, wall_time_s: float) -> Snapshot:
        records = [*self._domain_records(round_)]
        self._background.saw(self._scope(round_))
        if round_.roster is not None:
            hung = round_.answers.hung()
            records += self._background.records({key: r for r in records if (key := r.subject.key)[0] not in hung})
            names = {entry.uuid: entry.name for entry in round_.roster.entries}
            for heard in self._heard:
                records += heard.records(names, round_.started_s)
        duration_s = round_.finished_s - round_.started_s
        complete = round_.roster is not None and not round_.answers.failed and all(
            domain.complete for _, domain in round_.answers.domains.values())
        success = {collector.name: self._succeeded(collector, round_, complete) for collector in self._collectors}
        durations = {collector.name: duration_s for collector in self._collectors}
        for name in self._background.collectors:
            del success[name], durations[name]
        for name, (succeeded, took_s) in self._background.status().items():
            success[name], durations[name] = succeeded and round_.roster is not None, took_s
        success |= {heard.collector: round_.roster is not None and heard.succeeded() for heard in self._heard}
        durations |= {heard.collector: 0.0 for heard in self._heard}
        records.append(self._own_record(round_, success, durations))
        records.extend(record(round_.started_s) for record in self._own_records)
        return Snapshot(self._sequence, round_.started_s, round_.finished_s, wall_time_s, round_.roster is not None,
                        tuple(records), success, durations)

    def _scope(self, round_: _Round) -> Scope | None:
        if round_.roster is None:
            return None
        running = tuple(RunningDomain(e.uuid, e.id, e.name) for e in round_.roster.entries if e.id >= 0)
        return Scope(running, round_.answers.hung(), self._wants)

    def _succeeded(self, collector: Collector, round_: _Round, complete: bool) -> bool:
        if round_.roster is None:
            return False
        if collector is INVENTORY:
            return self._inventory_read and not self._inventory.failures
        if collector in (LIMITS, CONFIGURATION):
            return self._inventory_read and not self._inventory.unread
        if self._records.failing and not _OF_PROCESSES.isdisjoint(collector.groups):
            return False
        return complete or (set(collector.groups) <= SAFE_GROUPS and not round_.answers.failed)

    def _domain_records(self, round_: _Round) -> Iterable[Record]:
        if round_.roster is None:
            return
        subjects: dict[tuple[str, int, str], Subject] = {}
        for entry in round_.roster.entries:
            sampled_at_s, stats, id_, name = round_.roster.sampled_at_s, entry.stats, entry.id, entry.name
            answer = round_.answers.domains.get(entry.uuid)
            if answer is not None:
                sampled_at_s, stats, id_, name = answer[0], answer[1].stats, answer[1].id, answer[1].name
            elif entry.id >= 0:
                if entry.uuid not in round_.answers.failed:
                    continue  # it ended between the roster and the call
                stats = {**stats, "sample.complete": False, "sample.reason": "monitor"}
            key = (entry.uuid, id_, name)
            subject = self._subjects.get(key) or Subject("domain", (entry.uuid, id_), (("domain", name),))
            subjects[key] = subject
            if id_ < 0:
                yield Record(subject, "bulk", stats, sampled_at_s)
                constants = self._inventory.constants(entry.uuid, id_)
                if constants:
                    yield Record(subject, "inventory", {}, sampled_at_s, constants)
                continue
            complete = answer is not None and answer[1].complete
            yield from self._records.records(subject, (entry.uuid, id_), dict(stats), sampled_at_s, complete)
        # One that libvirt still lists may have given no answer as its QEMU ended; what serves it stays decided.
        self._records.forget({*((uuid, id_) for uuid, id_, _ in subjects if id_ >= 0),
                              *((entry.uuid, entry.id) for entry in round_.roster.entries if entry.id >= 0)})
        self._subjects = subjects

    def _own_record(self, round_: _Round, success: Mapping[str, bool], durations: Mapping[str, float]) -> Record:
        stats: dict[str, Value] = {
            "libvirt.up": round_.roster is not None,
            "sampler.in_flight": self._pool.in_flight + self._background.pool.in_flight,
            "sampler.stuck": self._pool.stuck + self._background.pool.stuck,
            "sampler.hedged": self._asking.hedged, "sampler.late": self._pool.late + self._background.pool.late,
            "sampler.samples": self._sequence,
            "page.series": self.page_series}
        for name in success:
            stats[f"collector.{name}.success"] = success[name]
            stats[f"collector.{name}.duration_seconds"] = round(durations[name], 6)
        if round_.roster is not None:
            counts = [0] * len(STATES)
            for entry in round_.roster.entries:
                state = entry.stats.get("state.state")
                if isinstance(state, int) and 0 <= state < len(STATES):
                    counts[state] += 1
            stats["domains.active"] = sum(1 for entry in round_.roster.entries if entry.id >= 0)
            stats.update({f"domains.{name}": count for name, count in zip(STATES, counts, strict=True)})
            if round_.roster.versions != self._versions:
                self._versions = round_.roster.versions
                self._constants = tuple(c for c in self._constants if c.name != "libvirt_versions_info")
                self._constants += self._versions
        return Record(Subject("exporter", ("exporter",), ()), "sampling", stats, round_.started_s, self._constants)
