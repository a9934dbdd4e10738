"""Background: runs the periodic Sources beside the sampling and keeps what they gave; see ``periodic``."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from .lanes import Call, LanePool
from .periodic import LISTING, Part, Reading, Scope, Source, in_words
from .snapshot import Record

log = logging.getLogger(__name__)

_POLL_S = 0.05
HASTENED_S = 2.0
"""Least time between the beginnings of two reads of a source, however many events ask for one."""


@dataclass(slots=True)
class _State:
    """What is known of one source."""

    source: Source
    due_s: float = 0.0
    begun_s: float = float("-inf")  # of the last read
    started_s: float | None = None  # of the period's read in progress
    waiting: list[Reading] = field(default_factory=list)
    calls: dict[Call, Reading] = field(default_factory=dict)
    stuck: dict[Call, Part] = field(default_factory=dict)
    failed: bool = False
    kept: dict[Part, tuple[float, tuple[Record, ...]]] = field(default_factory=dict)
    success: bool | None = None
    duration_s: float = 0.0
    failures: int = 0


class Background:
    """Runs the Sources of one target in a thread of its own.

    ``saw`` and ``records`` are the sampler's; ``hasten`` may be called by any thread; ``stop`` ends the thread.
    The pool's lanes bound the calls at work; one call is left for each slot the pool still has.
    """

    def __init__(self, pool: LanePool, sources: Iterable[Source], most_stuck: int = 2,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self.pool = pool
        self._states = {source.collector: _State(source) for source in sources}
        self._most_stuck = most_stuck
        self._clock = clock
        self._condition = threading.Condition()
        self._scope: Scope | None = None
        self._stopping = False
        self._published: Mapping[str, tuple[tuple[float, tuple[Record, ...]], ...]] = {}
        self._thread = threading.Thread(target=self._run, name="background", daemon=True)

    @property
    def collectors(self) -> frozenset[str]:
        """Names of the collectors that are read here."""
        return frozenset(self._states)

    def start(self) -> None:
        """Start the thread; it reads nothing until the sampler has seen libvirt answer."""
        if self._states:
            self._thread.start()

    def stop(self) -> None:
        """End thread and idle lanes; waits for no call."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        if not self._states:
            self.pool.stop()

    def saw(self, scope: Scope | None) -> None:
        """Tell what a sample found; None where libvirt did not answer: then nothing is kept."""
        with self._condition:
            if (scope is None) != (self._scope is None):
                for state in self._states.values():
                    state.due_s = 0.0
                    state.kept.clear()
                    state.success = None
                self._publish()
                self._condition.notify_all()
            self._scope = scope

    def hasten(self, collector: str) -> None:
        """Read a collector's source as soon as a lane is free: an event told that something changed."""
        with self._condition:
            if collector in self._states:
                state = self._states[collector]
                # Many events at once are one read, at its end and a little later.
                state.due_s = min(state.due_s, max(self._clock(), state.begun_s + HASTENED_S))
                self._condition.notify_all()

    def records(self, subjects: Mapping[tuple[str | int, ...], object]) -> Iterable[Record]:
        """What may stand on the page now; of domains only those whose key is among ``subjects``."""
        return (r for r in self.kept() if r.subject.kind != "domain" or r.subject.key in subjects)

    def kept(self) -> Iterable[Record]:
        """What may stand on the page now, whatever it is of: the parts are their own subjects' roster."""
        now_s = self._clock()
        for name, parts in self._published.items():
            most_s = 2 * self._states[name].source.period_s + self._states[name].source.deadline_s
            for read_at_s, records in parts:
                if now_s - read_at_s <= most_s:
                    yield from records

    def status(self) -> dict[str, tuple[bool, float]]:
        """Success and seconds of each collector's last read; those not read yet are left out."""
        with self._condition:
            return {name: (state.success, state.duration_s)
                    for name, state in self._states.items() if state.success is not None}

    def _run(self) -> None:
        while True:
            with self._condition:
                if self._stopping:
                    break
                self._begin_due()
                self._start_waiting()
                busy = self.pool.in_flight > 0
                if not busy:
                    self._condition.wait(self._idle_s())
            done = self.pool.next_done(_POLL_S) if busy else None
            with self._condition:
                if done is not None:
                    self._take(done)
                self._leave_late()
                self._finish()
        self.pool.stop()

    def _idle_s(self) -> float:
        if self._scope is None or self.pool.stuck or any(state.waiting for state in self._states.values()):
            self.pool.collect_late()
            return 0.5
        due_s = min(state.due_s for state in self._states.values())
        return min(max(due_s - self._clock(), 0.0), 60.0)

    def _begin_due(self) -> None:
        """Begin the period's read of each source whose time has come and whose listing is not stuck."""
        now_s = self._clock()
        self._forget_returned()
        if self._scope is None:
            return
        for state in self._states.values():
            listing_stuck = any(part is LISTING for part in state.stuck.values())
            if state.started_s is None and now_s >= state.due_s:
                state.due_s = now_s + state.source.period_s
                if listing_stuck:
                    state.success = False
                    continue
                state.started_s = state.begun_s = now_s
                state.failed = False
                state.waiting = [Reading(state.source, self._scope, None, frozenset(state.stuck.values()))]

    def _forget_returned(self) -> None:
        stuck = self.pool.stuck_calls
        for state in self._states.values():
            state.stuck = {call: part for call, part in state.stuck.items() if call in stuck}

    def _start_waiting(self) -> None:
        for state in self._states.values():
            while state.waiting and self.pool.free():
                # The sampler's own calls come first: the last slot is never taken here.
                if self.pool.stuck >= self._most_stuck or not self.pool.slots.take(reserve=1):
                    break
                reading = state.waiting.pop(0)
                state.calls[self.pool.start(reading.work, state.source.collector, with_slot=True)] = reading
            if state.waiting and state.started_s is not None and (
                    self._clock() - state.started_s > state.source.period_s):
                state.waiting = []  # no room for a whole period: absent, and tried again
                state.failed = True
                state.kept = {}

    def _take(self, call: Call) -> None:
        for state in self._states.values():
            state.stuck.pop(call, None)
            reading = state.calls.pop(call, None)
            if reading is None:
                continue
            self._merge(state, reading)
            if call.error is not None:
                self._failed(state, str(call.error))
                state.kept = {}
                reading.leave()

    def _merge(self, state: _State, reading: Reading) -> None:
        if self._scope is None:
            return
        if reading.listed is not None:
            listed = set(reading.listed)
            state.kept = {part: kept for part, kept in state.kept.items() if part in listed - reading.skip}
            if listed & reading.skip:
                self._failed(state, "a part's last call has not come back")
        state.kept.update(reading.results)
        for part, why in reading.failed.items():
            state.kept.pop(part, None)
            self._failed(state, f"{in_words(part)}: {why}")

    def _leave_late(self) -> None:
        now_s = self._clock()
        for state in self._states.values():
            for call, reading in list(state.calls.items()):
                if not reading.late(now_s, call.started_s):
                    continue
                del state.calls[call]
                rest = reading.leave()
                self.pool.leave(call)
                state.stuck[call] = reading.part
                self._merge(state, reading)
                if reading.part is LISTING:
                    state.kept = {}
                    self._failed(state, "listing: no answer in time")
                else:
                    state.kept.pop(reading.part, None)
                    self._failed(state, f"{in_words(reading.part)}: no answer in time")
                if rest and self._scope is not None:
                    state.waiting.append(Reading(state.source, self._scope, rest, reading.skip))

    def _finish(self) -> None:
        """End the period's read of each source that has nothing more to wait for, and publish."""
        for state in self._states.values():
            if state.started_s is None or state.calls or state.waiting:
                continue
            state.duration_s = self._clock() - state.started_s
            state.started_s = None
            self.pool.end_round()
            if self._scope is not None:
                state.success = not state.failed
            if not state.failed and state.failures:
                log.info("%s: back after %d failures", state.source.collector, state.failures)
                state.failures = 0
        self._publish()

    def _publish(self) -> None:
        self._published = {name: tuple(state.kept.values()) for name, state in self._states.items()}

    def _failed(self, state: _State, why: str) -> None:
        state.failed = True
        state.failures += 1
        if state.failures in (1, 10, 100) or state.failures % 1000 == 0:
            log.warning("%s: %s (failure %d); what it would have given is absent", state.source.collector, why,
                        state.failures)
