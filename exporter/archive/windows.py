"""Ticks to windows: which frames make one window, and each object's columns over them.

Boundaries follow from the frames alone, so the same spool gives the same windows, ids and bytes after any crash.
All objects of a host share them: a window ends at a whole multiple of its length, at a seal frame, or where the
wall clock stepped against the monotonic one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from uuid import UUID

import numpy as np

from collectors.batch import Booleans, Floats
from exporter.archive.documents import VALUES, Document, Window, window_origin
from exporter.archive.spool_frames import SEAL, Frame
from exporter.archive.tick_forms import Place
from exporter.archive.ticks import Entry, Tick, TickDecoder, present

CLOCK_STEP_MS = 1000
"""By how much the wall clock may leave the monotonic one within a window."""
_MOST_TICKS = 400

Column = list[int | float | None]


@dataclass(slots=True)
class Group:
    """The ticks of one window of a host.  ``first`` and ``last`` are the numbers of their frames."""

    first: int
    last: int
    ticks: list[Tick] = field(default_factory=list)
    damaged: int = 0
    samples: int = 0

    def windows(self, uuid: UUID | None = None) -> Iterator[Window]:
        """One Window an object, run and state, in the order in which they came up; only of ``uuid`` if given."""
        found: dict[tuple[object, ...], list[tuple[Tick, int]]] = {}
        for tick in self.ticks:
            for number in present(tick):
                entry = tick.entries[number]
                if uuid is not None and entry.subject.uuid != uuid:
                    continue
                key = (entry.subject, entry.run, entry.state)
                found.setdefault(key, []).append((tick, number))
        for samples in found.values():
            yield _window(samples)

    def documents(self, spool: bytes, uuid: UUID | None = None) -> Iterator[Document]:
        """The raw documents; the same group and spool name always give the same."""
        origin = window_origin(spool, self.first)
        return (window.document(origin) for window in self.windows(uuid))


class Grouper:
    """Frames in order in, whole Groups out; ``open`` is the one that may still grow.  One thread."""

    def __init__(self) -> None:
        self.open: Group | None = None
        self._decoder = TickDecoder()

    def add(self, frame: Frame) -> Group | None:
        """The group that this frame ended, if it did."""
        if frame.kind == SEAL:
            ended, self.open = self.open, None
            if ended is not None:
                ended.last = frame.number
            return ended
        try:
            tick = self._decoder.decode(frame.payload)
        except ValueError:
            # Its CRC was right, so it is of another version or a bug: stepping over it loses one tick, not all.
            if self.open is not None:
                self.open.damaged += 1
                self.open.last = frame.number
            return None
        ended = None
        if self.open is not None and _ends(self.open.ticks, tick):
            ended, self.open = self.open, None
        if self.open is None:
            self.open = Group(frame.number, frame.number)
        self.open.ticks.append(tick)
        self.open.last = frame.number
        self.open.samples += frame.samples
        return ended


def groups(frames: Iterable[Frame]) -> Iterator[Group]:
    """The whole groups of these frames, in order."""
    grouper = Grouper()
    for frame in frames:
        ended = grouper.add(frame)
        if ended is not None:
            yield ended


def _ends(ticks: list[Tick], tick: Tick) -> bool:
    first, last = ticks[0], ticks[-1]
    window_ms = first.window_s * 1000
    drift_ms = (tick.wall_ms - tick.monotonic_ms) - (first.wall_ms - first.monotonic_ms)
    return (tick.wall_ms // window_ms != first.wall_ms // window_ms or tick.window_s != first.window_s
            or abs(drift_ms) > CLOCK_STEP_MS or tick.monotonic_ms < last.monotonic_ms
            or len(ticks) >= _MOST_TICKS)


def _window(samples: list[tuple[Tick, int]]) -> Window:
    first, number = samples[0]
    entry = first.entries[number]
    start_ms = first.wall_ms + int(first.offsets_ms[number])
    begun_ms = first.monotonic_ms + int(first.offsets_ms[number])
    offsets: list[int] = []
    rows: list[Floats] = []
    for tick, at in samples:
        offsets.append(max(tick.monotonic_ms + int(tick.offsets_ms[at]) - begun_ms, offsets[-1] if offsets else 0))
        rows.append(tick.values[int(tick.starts[at]):int(tick.starts[at + 1])])
    entries = [tick.entries[at] for tick, at in samples]
    places: tuple[Place, ...] = entry.places
    if any(other.places is not places and other.places != places for other in entries):
        places, rows = _united(entries, rows)
    values: dict[str, Column] = {}
    devices: dict[str, dict[str, dict[str, Column]]] = {}
    for (group, device, name), column in zip(places, _columns(np.array(rows)), strict=True):
        if column is None:
            continue
        if group == VALUES:
            values[name] = column
        else:
            devices.setdefault(group, {}).setdefault(device, {})[name] = column
    return Window(entry.subject, start_ms, offsets, values, devices, entry.state)


def _united(entries: list[Entry], rows: list[Floats]) -> tuple[tuple[Place, ...], list[Floats]]:
    """The union of all places, with every sample's values at them: a device came or went, or an answer was partial."""
    united = tuple(dict.fromkeys(place for entry in entries for place in entry.places))
    index = {place: number for number, place in enumerate(united)}
    moved = []
    for entry, values in zip(entries, rows, strict=True):
        row = np.full(len(united), np.nan)
        row[[index[place] for place in entry.places]] = values
        moved.append(row)
    return united, moved


def _columns(matrix: Floats) -> list[Column | None]:
    """The columns of a matrix of samples as numbers for BSON: whole ones as int, NaN as None; all NaN is None."""
    unknown = np.isnan(matrix)
    whole = (matrix == np.floor(matrix)) & (np.abs(matrix) < 2.0**53)
    if not unknown.any() and whole.all():
        found: list[Column | None] = matrix.T.astype(np.int64).tolist()
        return found
    return [_column(matrix[:, number], unknown[:, number], whole[:, number]) for number in range(matrix.shape[1])]


def _column(values: Floats, unknown: Booleans, whole: Booleans) -> Column | None:
    if unknown.all():
        return None
    as_int = bool((whole | unknown).all())
    return [None if absent else int(value) if as_int else value
            for value, absent in zip(values.tolist(), unknown.tolist(), strict=True)]
