"""Roll-up documents of one object to columns of points: numpy arrays of minimum, average, maximum and increase."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from exporter.archive.documents import VALUES, Column, milliseconds
from exporter.archive.points import Floats
from exporter.archive.raw_columns import Key, device_order

_STATISTICS = ("min", "avg", "max", "increase")


@dataclass(frozen=True, slots=True, eq=False)
class Statistics:
    """Of one column, in libvirt's unit: of a gauge's values, or of a counter's rate a second; NaN where unknown.

    `increase` is what a counter grew by within the point; all NaN for a gauge.
    """

    minimum: Floats
    average: Floats
    maximum: Floats
    increase: Floats


@dataclass(frozen=True, slots=True, eq=False)
class RollUpColumns:
    """`times_s` (each point's beginning, seconds since the epoch), `samples` in each point, and the columns.

    `end_s` is where the last document ends; 0 where there is none.
    """

    times_s: Floats
    samples: Floats
    columns: Mapping[Key, Statistics]
    end_s: float

    def devices(self, group: str, name: str) -> list[str]:
        """Names of the devices that have the column, sorted with 10 behind 9; [''] for the object's own."""
        return sorted((d for g, d, n in self.columns if (g, n) == (group, name)), key=device_order)

    def column(self, group: str, device: str, name: str) -> Statistics:
        """The column, all NaN where no document has it."""
        found = self.columns.get((group, device if group != VALUES else "", name))
        nothing = np.full(len(self.times_s), np.nan)
        return found if found is not None else Statistics(nothing, nothing, nothing, nothing)


def rollup_columns(documents: Iterable[Mapping[str, Any]], wanted: Iterable[Column]) -> RollUpColumns:
    """The columns of roll-up documents of one resolution, in the order of their starts."""
    names: dict[str, set[str]] = {}
    for column in wanted:
        names.setdefault(column.group, set()).add(column.name)
    times: list[Floats] = []
    samples: list[Floats] = []
    pieces: dict[Key, list[tuple[int, Mapping[str, Any]]]] = {}
    rows, end_ms = 0, 0
    for document in documents:
        offsets = np.asarray(document["offsets_ms"], dtype=np.float64)
        for group, wanted_names in names.items():
            found = document.get(group)
            for entry in [] if found is None else [found] if group == VALUES else found:
                device = "" if group == VALUES else str(entry["device"])
                for name in wanted_names:
                    if (statistics := entry.get(name)) is not None:
                        pieces.setdefault((group, device, name), []).append((rows, statistics))
        times.append((milliseconds(document["start"]) + offsets) / 1000)
        samples.append(np.asarray(document["samples"], dtype=np.float64))
        rows += len(offsets)
        end_ms = max(end_ms, milliseconds(document["end"]))
    joined = np.concatenate(times) if times else np.empty(0)
    counts = np.concatenate(samples) if samples else np.empty(0)
    columns = {key: _filled(rows, parts) for key, parts in pieces.items()}
    return RollUpColumns(joined, counts, columns, end_ms / 1000)


def _filled(rows: int, pieces: list[tuple[int, Mapping[str, Any]]]) -> Statistics:
    found = [np.full(rows, np.nan) for _ in _STATISTICS]
    for first, statistics in pieces:
        for values, name in zip(found, _STATISTICS, strict=True):
            column = statistics.get(name)
            if column is not None:
                values[first : first + len(column)] = np.array(column, dtype=np.float64)
    return Statistics(*found)
