"""The sampler: roster, chunks over lanes, hedging, deadline.  A Snapshot comes out, never a hang.

A chunk whose call is late is left to itself and asked again on another connection: the stuck call holds the hung
domain's job, so the second one skips it and returns its neighbours in full and the hung one in part.  If that one
is late, too, more than one domain hangs and the chunk's domains are asked one by one.  Calls at work and stuck
together never exceed the pool's limit; past it, domains are asked only for what never touches QEMU.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from .background import Background
from .bulk import SAFE_GROUPS, ChunkAnswer, DomainStats, Roster, group_bits, read_chunk, read_roster
from .domain import STATES
from .domain_records import DomainRecords
from .fields import Collector, Constant
from .inventory import Inventory
from .lanes import Call, LanePool
from .periodic import RunningDomain, Scope
from .snapshot import Record, Snapshot, Subject, Value

log = logging.getLogger(__name__)

HEDGE_AFTER_S = 0.5
"""How late a chunk may be before it is asked again elsewhere."""
_ROSTER = "roster"
_FINDING = "finding"


@dataclass(slots=True)
class _Chunk:
    uuids: tuple[str, ...]
    mask: int
    attempt: int = 1
    safe_only: bool = False


@dataclass(slots=True)
class _Round:
    """What one sampling has gathered so far."""

    started_s: float
    deadline: Callable[[], float]
    roster: Roster | None = None
    waiting: list[_Chunk] = field(default_factory=list)
    answers: dict[str, tuple[float, DomainStats]] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    finished_s: float = 0.0

    def left_s(self) -> float:
        return self.deadline() - time.monotonic()


class Sampler:
    """Samples one target.  All methods in one thread."""

    def __init__(self, pool: LanePool, inventory: Inventory, collectors: Iterable[Collector],
                 records: DomainRecords, background: Background, chunk: int = 12, constants: tuple[Constant, ...] = (),
                 wall_clock: Callable[[], float] = time.time) -> None:
        self._pool = pool
        self._inventory = inventory
        self._background = background
        self._collectors = tuple(collectors)
        self._safe_mask = group_bits(SAFE_GROUPS)
        self._records = records
        self._chunk = chunk
        self._constants = constants
        self._wall_clock = wall_clock
        self._subjects: dict[tuple[str, int, str], Subject] = {}
        self._versions: tuple[Constant, ...] = ()
        self._inventory_read = True
        self._sequence = 0
        self._hedged = 0
        self.page_series = 0
        self.error = ""  # libvirt's words while it does not answer

    def sample(self, deadline: Callable[[], float]) -> Snapshot:
        """Sample all domains.  ``deadline`` gives the monotonic time by which to be done; it may come nearer."""
        wall_time_s = self._wall_clock()
        self._pool.collect_late()
        round_ = _Round(time.monotonic(), deadline)
        round_.roster = self._read_roster(round_)
        if round_.roster is not None:
            active = [entry for entry in round_.roster.entries if entry.id >= 0]
            self._ask(round_, sorted((entry.uuid, entry.id) for entry in active))
        round_.finished_s = time.monotonic()
        self._sequence += 1
        return self._snapshot(round_, wall_time_s)

    def _read_roster(self, round_: _Round) -> Roster | None:
        """The roster, or None where libvirt does not answer in time.

        A daemon that hangs gets one such call, not one a scrape: it would answer them all when it wakes up.
        """
        if any(call.tag == _ROSTER for call in self._pool.stuck_calls):
            self.error = "libvirt does not answer"
            return None
        call = self._pool.start(read_roster, _ROSTER)
        while True:
            done = self._pool.next_done(max(0.0, round_.left_s()))
            if done is None:
                self._pool.leave(call)
                self.error = "libvirt does not answer"
                return None
            if done is call:
                break
        if done.error is not None:
            self.error = str(done.error)
            return None
        self.error = ""
        found: Roster = done.result
        return found

    def _ask(self, round_: _Round, wanted: list[tuple[str, int]]) -> None:
        """Fetch statistics of the active domains chunk by chunk until all are there or time is up."""
        calls: dict[Call, _Chunk | None] = {}
        if self._records.stale(wanted) and not any(c.tag == _FINDING for c in self._pool.stuck_calls):
            call = self._pool.start(lambda session: self._records.find(session, wanted), _FINDING)
            calls[call] = None
            # First, and alone: which groups a new domain is asked for depends on what is found.
            done = self._pool.next_done(max(0.0, min(HEDGE_AFTER_S, round_.left_s())))
            if done is call:
                self._take(round_, calls.pop(call), call)
        round_.waiting = self._chunks(wanted)
        while True:
            self._start_waiting(round_, calls)
            if not calls:
                break
            next_late_s = min(call.started_s for call in calls) + HEDGE_AFTER_S
            limit_s = min(next_late_s, round_.deadline())
            done = self._pool.next_done(max(0.0, limit_s - time.monotonic()))
            if done is not None and not done.left:
                self._take(round_, calls.pop(done, None), done)
            elif round_.left_s() <= 0:
                break
            self._hedge_late(round_, calls)
        for call, chunk in calls.items():
            self._pool.leave(call)
            if chunk is not None:
                round_.failed.update(chunk.uuids)
        for chunk in round_.waiting:
            round_.failed.update(chunk.uuids)

    def _chunks(self, wanted: list[tuple[str, int]]) -> list[_Chunk]:
        """The domains in chunks of those that are asked for the same groups."""
        by_mask: dict[int, list[str]] = {}
        for key in wanted:
            by_mask.setdefault(self._records.mask(key), []).append(key[0])
        size = self._chunk
        return [_Chunk(tuple(uuids[at:at + size]), mask)
                for mask, uuids in by_mask.items() for at in range(0, len(uuids), size)]

    def _start_waiting(self, round_: _Round, calls: dict[Call, _Chunk | None]) -> None:
        while round_.waiting and self._pool.free():
            chunk = round_.waiting[0]
            mask = chunk.mask
            with_slot = self._pool.slots.take()
            if not with_slot:
                if self._pool.in_flight:
                    return  # its answer may make room
                mask, chunk.safe_only = chunk.mask & self._safe_mask, True
            round_.waiting.pop(0)
            uuids = chunk.uuids

            def work(session: object, uuids: tuple[str, ...] = uuids, mask: int = mask) -> ChunkAnswer:
                return read_chunk(session, uuids, mask)  # type: ignore[arg-type]

            calls[self._pool.start(work, "chunk", with_slot)] = chunk

    def _take(self, round_: _Round, chunk: _Chunk | None, call: Call) -> None:
        if chunk is None:
            self._inventory_read = call.error is None
            return
        if call.error is not None:
            log.debug("statistics call failed: %s", call.error)
            if len(chunk.uuids) > 1 and chunk.attempt < 3 and round_.left_s() > 0:
                # One domain can fail the whole call (libvirt 9.0): the others are asked one by one.
                round_.waiting.extend(_Chunk((uuid,), chunk.mask, 3) for uuid in chunk.uuids)
            else:
                round_.failed.update(chunk.uuids)
            return
        answer: ChunkAnswer = call.result
        for domain in answer.domains:
            before = round_.answers.get(domain.uuid)
            if before is None or len(before[1].stats) <= len(domain.stats):
                round_.answers[domain.uuid] = (answer.sampled_at_s, domain)

    def _hedge_late(self, round_: _Round, calls: dict[Call, _Chunk | None]) -> None:
        now_s = time.monotonic()
        for call in [call for call in calls if now_s - call.started_s >= HEDGE_AFTER_S]:
            chunk = calls.pop(call)
            self._pool.leave(call)
            if chunk is None:
                continue
            self._hedged += 1
            if chunk.attempt == 1 or len(chunk.uuids) == 1:
                again = [_Chunk(chunk.uuids, chunk.mask, chunk.attempt + 1)]
            else:
                again = [_Chunk((uuid,), chunk.mask, chunk.attempt + 1) for uuid in chunk.uuids]
            if chunk.attempt < 4:
                round_.waiting[:0] = again
            else:
                round_.failed.update(chunk.uuids)

    def _snapshot(self, round_: _Round, wall_time_s: float) -> Snapshot:
        records = [*self._domain_records(round_)]
        self._background.saw(self._scope(round_))
        if round_.roster is not None:
            hung = self._hung(round_)
            records += self._background.records({key: r for r in records if (key := r.subject.key)[0] not in hung})
        round_.failed -= round_.answers.keys()
        duration_s = round_.finished_s - round_.started_s
        complete = round_.roster is not None and not round_.failed and all(
            domain.complete for _, domain in round_.answers.values())
        success = {collector.name: self._succeeded(collector, round_, complete) for collector in self._collectors}
        durations = {collector.name: duration_s for collector in self._collectors}
        for name in self._background.collectors:
            del success[name], durations[name]
        for name, (succeeded, took_s) in self._background.status().items():
            success[name], durations[name] = succeeded and round_.roster is not None, took_s
        records.append(self._own_record(round_, success, durations))
        return Snapshot(self._sequence, round_.started_s, round_.finished_s, wall_time_s, round_.roster is not None,
                        tuple(records), success, durations)

    def _hung(self, round_: _Round) -> frozenset[str]:
        """Domains whose monitor is held up: what was known of them must not stand any longer."""
        partial = {uuid for uuid, (_, d) in round_.answers.items() if d.stats.get("sample.reason") == "monitor"}
        return frozenset(partial | round_.failed)

    def _scope(self, round_: _Round) -> Scope | None:
        if round_.roster is None:
            return None
        running = tuple(RunningDomain(e.uuid, e.id, e.name) for e in round_.roster.entries if e.id >= 0)
        return Scope(running, self._hung(round_))

    def _succeeded(self, collector: Collector, round_: _Round, complete: bool) -> bool:
        if round_.roster is None:
            return False
        if collector.name == "inventory":
            return self._inventory_read and not self._inventory.failures
        return complete or (set(collector.groups) <= SAFE_GROUPS and not round_.failed)

    def _domain_records(self, round_: _Round) -> Iterable[Record]:
        if round_.roster is None:
            return
        subjects: dict[tuple[str, int, str], Subject] = {}
        for entry in round_.roster.entries:
            sampled_at_s, stats, id_, name = round_.roster.sampled_at_s, entry.stats, entry.id, entry.name
            answer = round_.answers.get(entry.uuid)
            if answer is not None:
                sampled_at_s, stats, id_, name = answer[0], answer[1].stats, answer[1].id, answer[1].name
            elif entry.id >= 0:
                if entry.uuid not in round_.failed:
                    continue  # it ended between the roster and the call
                stats = {**stats, "sample.complete": False, "sample.reason": "monitor"}
            key = (entry.uuid, id_, name)
            subject = self._subjects.get(key) or Subject("domain", (entry.uuid, id_), (("domain", name),))
            subjects[key] = subject
            if id_ < 0:
                yield Record(subject, "bulk", stats, sampled_at_s)
                continue
            complete = answer is not None and answer[1].complete
            yield from self._records.records(subject, (entry.uuid, id_), dict(stats), sampled_at_s, complete)
        self._records.forget([(uuid, id_) for uuid, id_, _ in subjects if id_ >= 0])
        self._subjects = subjects

    def _own_record(self, round_: _Round, success: Mapping[str, bool], durations: Mapping[str, float]) -> Record:
        stats: dict[str, Value] = {
            "libvirt.up": round_.roster is not None,
            "sampler.in_flight": self._pool.in_flight + self._background.pool.in_flight,
            "sampler.stuck": self._pool.stuck + self._background.pool.stuck,
            "sampler.hedged": self._hedged, "sampler.late": self._pool.late + self._background.pool.late,
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
            stats.update({f"domains.{name}": count for name, count in zip(STATES, counts, strict=True)})
            if round_.roster.versions != self._versions:
                self._versions = round_.roster.versions
                self._constants = tuple(c for c in self._constants if c.name != "libvirt_versions_info")
                self._constants += self._versions
        return Record(Subject("exporter", ("exporter",), ()), "sampling", stats, round_.started_s, self._constants)
