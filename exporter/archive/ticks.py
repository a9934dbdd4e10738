"""A tick: what one recorded Batch gives the archive, as bytes for the spool and back.

A frame is readable by itself: a head (JSON, zstandard) names every object and column, a body holds the numbers. The
head is made once a Plan. The body's values are put column by column and their bytes plane by plane, since equal
columns of many domains have alike high bytes: that and zstandard's level 1 halve the size.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

import numpy as np
import numpy.typing as npt
import zstandard

from collectors.batch import Batch, Floats, Integers, Placement, Plan
from collectors.fields import Field, StateSet
from collectors.layout import Layout, Row
from exporter.archive.documents import VALUES, Host, Object, column_of, object_uuid

Place = tuple[str, str, str]
"""(group, device, column) of a row; the device is empty in the group ``values``."""

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
        self._chosen: dict[int, tuple[Layout, list[tuple[int, Row]]]] = {}
        self._placed: dict[Placement, tuple[list[str], list[int]]] = {}
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
        for place, placement in enumerate(plan.placements):
            if self._archived(placement):
                by_object.setdefault((placement.subject.kind, placement.subject.key), []).append(place)
        placed_before, self._placed = self._placed, {}
        columns: dict[str, int] = {}
        objects: list[object] = []
        rows: list[int] = []
        kinds: list[int] = []
        entry_of_row: list[int] = []
        for entry, ((kind, key), placed) in enumerate(by_object.items()):
            found: dict[str, int] = {}
            for place in placed:
                placement = plan.placements[place]
                kept = placed_before.get(placement) or self._places(placement)
                self._placed[placement] = kept
                start = int(plan.measured_start[place])
                found.update(zip(kept[0], [start + row for row in kept[1]], strict=True))
            numbers = [columns.setdefault(text, len(columns)) for text in found]
            objects.append([kind, str(key[0]) if key else "", "/".join(map(str, key[1:])),
                            plan.placements[placed[0]].subject.name,
                            _state([plan.placements[place] for place in placed]), numbers])
            rows += found.values()
            kinds += numbers
            entry_of_row += [entry] * len(numbers)
        head = {"host": host.uuid.hex, "name": host.name, "columns": list(columns), "objects": objects}
        self._head = self._compressor.compress(json.dumps(head, separators=(",", ":")).encode())
        self._plan, self._host, self._entries = plan, host, list(by_object.values())
        self._rows = np.array(rows, dtype=np.int64)
        self._entry_of_row = np.array(entry_of_row, dtype=np.int64)
        self._order = np.argsort(np.array(kinds, dtype=np.int64), kind="stable")
        self._chosen = {id(p.layout): self._chosen[id(p.layout)] for p in plan.placements
                        if id(p.layout) in self._chosen}

    def _archived(self, placement: Placement) -> list[tuple[int, Row]]:
        """The (number, Row) of the layout's archived rows; looked up once a layout."""
        kept = self._chosen.get(id(placement.layout))
        if kept is None:
            rows = [(number, row) for number, row in enumerate(placement.layout.measured)
                    if isinstance(row.declaration, Field) and row.declaration.archive]
            kept = self._chosen[id(placement.layout)] = (placement.layout, rows)
        return kept[1]

    def _places(self, placement: Placement) -> tuple[list[str], list[int]]:
        """(group, device and column with tabs between, number of the row) of each archived row of a placement."""
        texts, numbers = [], []
        for number, row in self._archived(placement):
            assert isinstance(row.declaration, Field)
            column = column_of(row.declaration)
            assert column is not None
            device = ""
            if column.group != VALUES:
                device = str(placement.names[row.slots[0]]) if row.slots else row.texts[0].split('"')[1]
            texts.append("\t".join((column.group, device.replace("\t", " "), column.name)))
            numbers.append(number)
        return texts, numbers


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
        found = json.loads(self._decompressor.decompress(compressed))
        host = Host(UUID(hex=found["host"]), found["name"])
        columns: list[Place] = []
        for text in found["columns"]:
            group, device, name = text.split("\t")
            columns.append((group, device, name))
        known: dict[tuple[int, ...], tuple[Place, ...]] = {}
        entries, kinds, starts = [], [], [0]
        for kind, identity, run, name, state, numbers in found["objects"]:
            places = known.setdefault(tuple(numbers), tuple(columns[number] for number in numbers))
            subject = Object(host, kind, object_uuid(host.uuid, kind, identity), name)
            entries.append(Entry(subject, run, state, places))
            kinds += numbers
            starts.append(len(kinds))
        self._head = compressed
        self._entries = tuple(entries)
        self._starts = np.array(starts, dtype=np.int64)
        self._order = np.argsort(np.array(kinds, dtype=np.int64), kind="stable")


def present(tick: Tick) -> list[int]:
    """Numbers of the entries that have a sample in the tick."""
    found: list[int] = np.flatnonzero(tick.offsets_ms != _ABSENT).tolist()
    return found


def _state(placements: list[Placement]) -> str | None:
    """The name of the object's state, where a layout has one."""
    for placement in placements:
        for row, value in placement.layout.constants:
            if isinstance(row.declaration, StateSet) and row.declaration.archive and value == 1.0:
                return row.texts[0].split('"')[1]
    return None


def _planes(values: Floats) -> bytes:
    """The bytes of float64s, first bytes first."""
    return np.ascontiguousarray(values.view(np.uint8).reshape(-1, 8).T).tobytes()


def _unplaned(data: bytes) -> Floats:
    if len(data) % 8:
        raise ValueError("a spool frame's body is too short")
    planes = np.frombuffer(data, dtype=np.uint8).reshape(8, -1)
    return np.ascontiguousarray(planes.T).view(np.float64).reshape(-1)
