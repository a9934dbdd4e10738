"""Asking running domains for statistics: chunks over lanes, hedged, within a deadline and a number of slots.

A chunk whose call is late is left to itself and asked again on another connection: the stuck call holds the hung
domain's job, so the second one skips it and returns its neighbours in full and the hung one in part.  If that one is
late, too, more than one domain hangs and the chunk's domains are asked one by one.

Each call that may hang has a slot; there are six.  The last slot is kept for domains that are known to be healthy
(they answered in full since the last call got stuck) or show a sign of life, the latter singly: else six hung
guests would hide all healthy ones.  Domains that get no slot are asked only for what never touches QEMU.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from .bulk import SAFE_MASK, ChunkAnswer, DomainStats, read_chunk
from .connection import ConnectionDownError, Session
from .lanes import Call, LanePool
from .liveness import Sign, Signs

log = logging.getLogger(__name__)

HEDGE_AFTER_S = 0.5
"""How late a chunk may be before it is asked again elsewhere."""
SLICE_S = 0.1
"""Longest wait without a look at the deadline, which may come nearer meanwhile."""
_HUNG_AFTER_S = 0.4
_AGAIN_AFTER_S = (0.03, 0.1, 0.2)
_LOOK_S = 0.3

Key = tuple[str, int]
Deadline = Callable[[], float]


@dataclass(slots=True, eq=False)
class Chunk:
    """Domains for one call.  ``sure``: none of them is likely to hang, so that it may take the last slot."""

    uuids: tuple[str, ...]
    mask: int
    attempt: int = 1
    sure: bool = False
    safe_only: bool = False
    not_before_s: float = 0.0


@dataclass(slots=True)
class Answers:
    """What a round gave: by uuid, with the monotonic time before the call; and who gave nothing."""

    domains: dict[str, tuple[float, DomainStats]] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)

    def take(self, answer: ChunkAnswer) -> None:
        """Keep the fuller of two answers: a chunk hedged by mistake must not make its domains look incomplete."""
        for domain in answer.domains:
            before = self.domains.get(domain.uuid)
            if before is None or _fullness(before[1]) <= _fullness(domain):
                self.domains[domain.uuid] = (answer.sampled_at_s, domain)

    def hung(self) -> frozenset[str]:
        """Domains whose monitor is held up; nothing known of them before may stand any longer."""
        return frozenset(self.failed).union(
            uuid for uuid, (_, d) in self.domains.items() if d.stats.get("sample.reason") in ("monitor", "storage"))


def _fullness(domain: DomainStats) -> tuple[bool, int]:
    return domain.complete, len(domain.stats)


def _is_hung(domain: DomainStats) -> bool:
    """Whether somebody's monitor command has waited too long: then asking again would give the same."""
    busy_s = domain.stats.get("monitor.busy", 0)
    return domain.stats.get("sample.reason") == "monitor" and isinstance(busy_s, int | float) \
        and busy_s >= _HUNG_AFTER_S


class Asking:
    """Asks; keeps what is known of the domains' health from round to round.  All methods in the pool's thread."""

    def __init__(self, pool: LanePool, chunk: int, signs: Signs | None = None) -> None:
        self._pool = pool
        self._size = chunk
        self._signs = signs or Signs()
        self._full_s: dict[Key, float] = {}
        self._was_whole: set[Key] = set()
        self._held: set[str] = set()
        self.hedged = 0
        """Calls asked again on another connection because the first was late."""

    def ask(self, masks: Mapping[Key, int], deadline: Deadline) -> Answers:
        """Statistics of the running domains (uuid, id), each for its group bits, by ``deadline()`` at the latest."""
        round_ = _Round(self, masks, deadline)
        answers = round_.run()
        self._remember(masks, answers)
        return answers

    def _remember(self, masks: Mapping[Key, int], answers: Answers) -> None:
        keys = dict(masks)
        self._full_s = {key: full_s for key, full_s in self._full_s.items() if key in keys}
        whole = {(d.uuid, d.id) for _, d in answers.domains.values() if d.complete}
        for sampled_at_s, domain in answers.domains.values():
            if domain.complete:
                self._full_s[domain.uuid, domain.id] = sampled_at_s
        self._was_whole = whole
        self._held = {uuid for uuid, (_, d) in answers.domains.items() if _is_hung(d)}

    def known_healthy(self, key: Key) -> bool:
        """Whether the domain answered in full since the last call got stuck."""
        newest_s = max((call.started_s for call in self._pool.stuck_calls if isinstance(call.tag, Chunk)), default=0.0)
        return self._full_s.get(key, -1.0) > newest_s

    def held(self, uuid: str) -> bool:
        """Whether a stuck call held the domain's monitor when it was asked last: a further call skips it."""
        return uuid in self._held

    def was_whole(self, key: Key) -> bool:
        return key in self._was_whole

    def chunks(self, masks: Mapping[Key, int], keys: Iterable[Key], size: int = 0, sure: bool = False,
               attempt: int = 1) -> list[Chunk]:
        """The domains in chunks of one set of groups each, in the order of their uuids."""
        by_mask: dict[int, list[str]] = {}
        for key in sorted(keys):
            by_mask.setdefault(masks[key], []).append(key[0])
        size = size or self._size
        return [Chunk(tuple(uuids[at:at + size]), mask, attempt, sure)
                for mask, uuids in by_mask.items() for at in range(0, len(uuids), size)]


class _Round:
    """One round of asking."""

    def __init__(self, asking: Asking, masks: Mapping[Key, int], deadline: Deadline) -> None:
        self._asking = asking
        self._pool = asking._pool
        self._masks = masks
        self._key = {uuid: (uuid, id_) for uuid, id_ in masks}
        self._deadline = deadline
        self._answers = Answers()
        self._pending = set(self._key)
        self._waiting = asking.chunks(masks, masks)
        self._calls: dict[Call, Chunk] = {}
        self._left: dict[Call, Chunk] = {}  # of this round: an answer that comes in time still counts
        self._tries: dict[str, int] = {}
        self._signs: dict[str, Sign] | None = None

    def run(self) -> Answers:
        while True:
            self._start_waiting()
            if not self._calls and not self._waiting:
                break
            if self._time_left_s() <= 0:
                break
            self._wait()
            self._hedge_late()
        for call in self._calls:
            self._pool.leave(call)
        self._answers.failed = self._pending - self._answers.domains.keys()
        self._name_storage()
        return self._answers

    def _time_left_s(self) -> float:
        return self._deadline() - time.monotonic()

    def _start_waiting(self) -> None:
        """Start what may start now; a chunk that may not have a slot is split, and what comes of it looked at."""
        now_s = time.monotonic()
        at = 0
        while at < len(self._waiting) and self._pool.free():
            chunk = self._waiting[at]
            risky = bool(chunk.mask & ~SAFE_MASK) and not chunk.safe_only
            if chunk.not_before_s > now_s:
                at += 1
            elif not risky or self._pool.slots.take(reserve=0 if chunk.sure else 1):
                del self._waiting[at]
                self._start(chunk, risky)
            elif any(call.slots is not None for call in self._calls):
                at += 1  # the slot may come back with one of these
            else:
                del self._waiting[at]
                self._without_slot(chunk)
                at = 0

    def _start(self, chunk: Chunk, with_slot: bool) -> None:
        uuids, mask, whole = chunk.uuids, chunk.mask, not chunk.safe_only

        def work(session: Session) -> ChunkAnswer:
            return read_chunk(session, uuids, mask if whole else mask & SAFE_MASK, whole)

        self._calls[self._pool.start(work, chunk, with_slot)] = chunk

    def _without_slot(self, chunk: Chunk) -> None:
        """Split what may not have a slot: the healthy by themselves, the hopeful singly, the rest asked safely."""
        if chunk.sure:
            chunk.safe_only = True
            self._waiting.append(chunk)
            return
        signs = self._look()
        known: list[Key] = []
        hopeful: list[Key] = []
        rest: list[Key] = []
        for key in (self._key[uuid] for uuid in chunk.uuids):
            sign = signs.get(key[0], Sign.NONE)
            if self._asking.held(key[0]):
                known.append(key)  # skipped by libvirt, as its job is taken
            elif sign in (Sign.STOPPED, Sign.STORAGE):
                rest.append(key)
            elif self._asking.known_healthy(key):
                known.append(key)
            elif sign is Sign.ALIVE:
                hopeful.append(key)
            else:
                rest.append(key)
        chunks = self._asking.chunks
        safe = chunks(self._masks, rest)
        for other in safe:
            other.safe_only = True
        self._waiting = [*chunks(self._masks, known, sure=True, attempt=3),
                         *self._waiting, *chunks(self._masks, hopeful, 1, sure=True, attempt=3), *safe]

    def _look(self) -> dict[str, Sign]:
        """Signs of life of all domains, once a round; nothing where they do not come in time."""
        if self._signs is None:
            self._signs = self._signs_of(list(self._key.values()))
        return self._signs

    def _signs_of(self, keys: list[Key]) -> dict[str, Sign]:
        if any(call.tag == "signs" for call in self._pool.stuck_calls):
            return {}
        asked = self._pool.start(lambda session: self._asking._signs.look(session, keys), "signs")
        until_s = time.monotonic() + _LOOK_S
        while (left_s := min(until_s - time.monotonic(), self._time_left_s())) > 0:
            done = self._pool.next_done(min(left_s, SLICE_S))
            if done is asked:
                return dict(done.result) if done.error is None else {}
            if done is not None:
                self._take(done)
        self._pool.leave(asked)
        return {}

    def _wait(self) -> None:
        """Until something happens: a call returns or is late, a chunk's time comes, or the deadline may have moved."""
        now_s = time.monotonic()
        times_s = [call.started_s + HEDGE_AFTER_S for call in self._calls]
        if self._pool.free():
            times_s += [chunk.not_before_s for chunk in self._waiting if chunk.not_before_s > now_s]
        wait_s = min([SLICE_S, self._time_left_s(), *(at_s - now_s for at_s in times_s)])
        done = self._pool.next_done(max(0.0, wait_s))
        if done is not None:
            self._take(done)

    def _take(self, call: Call) -> None:
        chunk = self._calls.pop(call, None) or self._left.pop(call, None)
        if chunk is None:
            return  # of an earlier round: too old
        if call.error is not None:
            if not call.left:
                self._take_error(chunk, call.error)
            return
        answer: ChunkAnswer = call.result
        self._answers.take(answer)
        self._pending.difference_update(chunk.uuids)  # a domain that did not answer has ended
        if not chunk.safe_only:
            self._ask_again(answer, chunk)

    def _take_error(self, chunk: Chunk, error: Exception) -> None:
        """One domain can fail the whole call (libvirt 9.0), and a connection may have died since it was used last."""
        log.debug("statistics call failed: %s", error)
        if isinstance(error, ConnectionDownError) or chunk.attempt >= 4:
            return
        if chunk.attempt == 1 or len(chunk.uuids) == 1:
            self._waiting.append(Chunk(chunk.uuids, chunk.mask, chunk.attempt + 1, chunk.sure))
        else:
            self._waiting += [Chunk((uuid,), chunk.mask, 4, chunk.sure) for uuid in chunk.uuids]

    def _ask_again(self, answer: ChunkAnswer, chunk: Chunk) -> None:
        """Another client's call may hold a job for a moment; only what lasts makes a domain incomplete."""
        again: dict[int, list[str]] = {}
        for domain in answer.domains:
            best = self._answers.domains[domain.uuid][1]
            if best.complete or _is_hung(domain) or domain.uuid not in self._key:
                continue
            tried = self._tries.get(domain.uuid, 0)
            key = self._key[domain.uuid]
            if tried < (len(_AGAIN_AFTER_S) if self._asking.was_whole(key) else 1):
                self._tries[domain.uuid] = tried + 1
                again.setdefault(tried, []).append(domain.uuid)
        now_s = time.monotonic()
        for tried, uuids in again.items():
            self._waiting.append(Chunk(tuple(uuids), chunk.mask, 3, chunk.sure, False, now_s + _AGAIN_AFTER_S[tried]))

    def _hedge_late(self) -> None:
        now_s = time.monotonic()
        for call in [call for call in self._calls if now_s - call.started_s >= HEDGE_AFTER_S]:
            chunk = self._calls.pop(call)
            self._pool.leave(call)
            self._left[call] = chunk
            self._asking.hedged += 1
            if chunk.attempt >= 4 or chunk.safe_only:
                continue
            missing = tuple(uuid for uuid in chunk.uuids if uuid in self._pending or len(chunk.uuids) == 1)
            if chunk.attempt == 1 or len(missing) == 1:
                again = [Chunk(missing, chunk.mask, chunk.attempt + 1)] if missing else []
            else:
                again = [Chunk((uuid,), chunk.mask, chunk.attempt + 1) for uuid in missing]
            self._waiting[:0] = again

    def _name_storage(self) -> None:
        """Say ``storage`` where a hung domain's process waits for it."""
        hung = [self._key[uuid] for uuid in self._answers.hung() if uuid in self._key]
        if not hung or self._time_left_s() < 2 * SLICE_S or not self._pool.free():
            return
        signs = self._signs if self._signs is not None else self._signs_of(hung)
        for uuid, sign in signs.items():
            answer = self._answers.domains.get(uuid)
            if sign is Sign.STORAGE and answer is not None and not answer[1].complete:
                answer[1].stats["sample.reason"] = "storage"
