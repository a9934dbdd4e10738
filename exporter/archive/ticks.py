"""A tick: what one recorded Batch gives the archive, as bytes for the spool and back.

A frame is readable by itself: a head (JSON, zstandard) names every object, its form and its devices, a body holds the
numbers. The head is made once a Plan. The body's values are put column by column and their bytes plane by plane, since
equal columns of many domains have alike high bytes: that and zstandard's level 1 halve the size.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import numpy as np
import numpy.typing as npt
import orjson
import zstandard

from collectors.batch import Batch, Floats, Integers, Plan
from collectors.fields import Field
from exporter.archive.documents import Host, Object, object_uuid
from exporter.archive.spool_frames import SAMPLES, Frame
from exporter.archive.tick_forms import FormBook, FormNumbers, Place, PlaceBook, forms_of, shaped

_HEAD = struct.Struct("<IIqqI")  # bytes of head and body, wall clock and monotonic clock in ms, window in s
_ABSENT = -(2**31)


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of a tick: ``run`` tells a restarted domain from its former self, ``places`` name its rows."""

    subject: Object
    run: str
    state: str | None
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Tick:
    """A decoded frame.  ``offsets_ms`` (one an entry) count from both clocks; entries without a sample are left out.

    ``values`` are float64 in libvirt's units, NaN where absent; ``starts[i]:starts[i + 1]`` are entry i's rows.
    """

    entries: Sequence[Entry]
    starts: Integers
    wall_ms: int
    monotonic_ms: int
    window_s: int
    offsets_ms: Integers
    values: Floats


class TickEncoder:
    """Batches to payloads.  One thread; keeps the head of the last Plan and the last times of each object."""

    def __init__(self, window_s: int) -> None:
        self._window_s = window_s
        self._plan: Plan | None = None
        self._host: Host | None = None
        self._head = b""
        self._rows = np.empty(0, dtype=np.int64)
        self._order = np.empty(0, dtype=np.int64)
        self._entry_of_row = np.empty(0, dtype=np.int64)
        self._entries: list[list[int]] = []
        self._times: dict[tuple[tuple[str | int, ...], str], float] = {}
        self._forms = FormBook()
        self._compressor = zstandard.ZstdCompressor(level=1)

    def encode(self, batch: Batch, host: Host) -> tuple[bytes, int]:
        """(payload, number of objects with a sample); (b"", 0) where nothing in the Batch is archived or fresh."""
        if batch.plan is not self._plan or host != self._host:
            self._compile(batch.plan, host)
        plan = batch.plan
        if not len(self._rows):
            return b"", 0
        begun_s = self._begun_s(batch)
        fresh = self._fresh(batch)
        values = batch.raw[self._rows]
        values[~fresh[plan.placement_of_row[self._rows]]] = np.nan
        known = np.zeros(len(self._entries), dtype=np.bool_)
        known[self._entry_of_row[~np.isnan(values)]] = True
        samples = int(known.sum())
        if not samples:
            return b"", 0
        offsets = np.full(len(self._entries), _ABSENT, dtype=np.int32)
        for entry in np.flatnonzero(known).tolist():
            times = [float(batch.times_s[place]) for place in self._entries[entry] if fresh[place]]
            offsets[entry] = round((min(times) - begun_s) * 1000)
        body = self._compressor.compress(offsets.tobytes() + _planes(values[self._order]))
        head = _HEAD.pack(len(self._head), len(body), round(batch.wall_time_s * 1000), round(begun_s * 1000),
                          self._window_s)
        return head + self._head + body, samples

    def _begun_s(self, batch: Batch) -> float:
        """Monotonic time of ``wall_time_s``: when the sampling began, which is the exporter's own record's time."""
        for place, placement in enumerate(batch.plan.placements):
            if placement.subject.kind == "exporter":
                return float(batch.times_s[place])
        return float(batch.times_s.min())

    def _fresh(self, batch: Batch) -> npt.NDArray[np.bool_]:
        """Whether each placement's time advanced: a carried value was archived when it was measured."""
        keys = [(p.subject.key, p.source) for p in batch.plan.placements]
        times = batch.times_s.tolist()
        fresh = np.array([time > self._times.get(key, -np.inf) for key, time in zip(keys, times, strict=True)])
        self._times = dict(zip(keys, times, strict=True))
        return fresh

    def _compile(self, plan: Plan, host: Host) -> None:
        by_object: dict[tuple[str, tuple[str | int, ...]], list[int]] = {}
        forms = [self._forms.of(placement.layout) for placement in plan.placements]
        for place, placement in enumerate(plan.placements):
            if forms[place].shapes:
                by_object.setdefault((placement.subject.kind, placement.subject.key), []).append(place)
        starts = plan.measured_start.tolist()
        numbers = FormNumbers()
        objects: list[object] = []
        taken: list[int] = []
        rows: list[Integers] = []
        for (kind, key), placed in by_object.items():
            placements = [(plan.placements[place], forms[place], starts[place]) for place in placed]
            shapes, devices, own_rows = shaped(placements)
            number = numbers.number(shapes)
            state = next((form.state for _, form, _ in placements if form.state is not None), None)
            objects.append((kind, str(key[0]) if key else "", "/".join(map(str, key[1:])),
                            placements[0][0].subject.name, state, number, devices))
            taken.append(number)
            rows.append(own_rows)
        head = {"host": host.uuid.hex, "name": host.name, **numbers.head(), "objects": objects}
        self._head = self._compressor.compress(orjson.dumps(head))
        self._plan, self._host, self._entries = plan, host, list(by_object.values())
        self._rows = np.concatenate(rows) if rows else np.empty(0, dtype=np.int64)
        self._entry_of_row = np.repeat(np.arange(len(taken)), numbers.lengths(taken))
        self._order = numbers.order(taken)
        self._forms.keep(plan.placements)


class TickDecoder:
    """Payloads back to Ticks; keeps the last head, which seldom changes.  One thread."""

    def __init__(self) -> None:
        self._head = b""
        self._entries: tuple[Entry, ...] = ()
        self._starts = np.zeros(1, dtype=np.int64)
        self._order = np.empty(0, dtype=np.int64)
        self._decompressor = zstandard.ZstdDecompressor()

    def decode(self, payload: bytes) -> Tick:
        """Raises ValueError for bytes that no encoder wrote."""
        try:
            head_bytes, body_bytes, wall_ms, monotonic_ms, window_s = _HEAD.unpack_from(payload)
            head = payload[_HEAD.size:_HEAD.size + head_bytes]
            if head != self._head:
                self._read_head(head)
            body = self._decompressor.decompress(payload[_HEAD.size + head_bytes:][:body_bytes])
            count = len(self._entries)
            offsets = np.frombuffer(body, dtype=np.int32, count=count).astype(np.int64)
            ordered = _unplaned(body[count * 4:])
            values = np.empty(len(self._order))
            values[self._order] = ordered
        except (struct.error, zstandard.ZstdError, KeyError, TypeError, IndexError) as error:
            raise ValueError(f"a spool frame is not readable: {error}") from error
        return Tick(self._entries, self._starts, wall_ms, monotonic_ms, window_s, offsets, values)

    def _read_head(self, compressed: bytes) -> None:
        found = orjson.loads(self._decompressor.decompress(compressed))
        host = Host(UUID(hex=found["host"]), found["name"])
        forms, numbers, places = forms_of(found), FormNumbers(), PlaceBook()
        entries, taken = [], []
        for kind, identity, run, name, state, form, devices in found["objects"]:
            subject = Object(host, kind, object_uuid(host.uuid, kind, identity), name)
            entries.append(Entry(subject, run, state, places.of(forms[form], devices)))
            taken.append(numbers.number(forms[form]))
        self._head = compressed
        self._entries = tuple(entries)
        self._starts = np.concatenate(([0], np.cumsum(numbers.lengths(taken))))
        self._order = numbers.order(taken)


def samples_of(plan: Plan) -> int:
    """How many objects of a Batch of this Plan would have a sample in the archive, if all of them answered."""
    return len({(p.subject.kind, p.subject.key) for p in plan.placements
                if any(isinstance(row.declaration, Field) and row.declaration.archive for row in p.layout.measured)})


def wall_ms_of(frame: Frame) -> int | None:
    """The wall clock of a frame of samples, which is not decoded; None for others, and bytes that no encoder wrote."""
    if frame.kind != SAMPLES or len(frame.payload) < _HEAD.size:
        return None
    wall_ms: int = _HEAD.unpack_from(frame.payload)[2]
    return wall_ms


def present(tick: Tick) -> list[int]:
    """Numbers of the entries that have a sample in the tick."""
    found: list[int] = np.flatnonzero(tick.offsets_ms != _ABSENT).tolist()
    return found


def _planes(values: Floats) -> bytes:
    """The bytes of float64s, first bytes first."""
    return np.ascontiguousarray(values.view(np.uint8).reshape(-1, 8).T).tobytes()


def _unplaned(data: bytes) -> Floats:
    if len(data) % 8:
        raise ValueError("a spool frame's body is too short")
    planes = np.frombuffer(data, dtype=np.uint8).reshape(8, -1)
    return np.ascontiguousarray(planes.T).view(np.float64).reshape(-1)
