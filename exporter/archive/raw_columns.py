"""Raw documents of one object to columns over its whole time: numpy arrays, and where the counters began anew."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from exporter.archive.documents import ORIGIN_BYTES, VALUES, Column, Document, milliseconds
from exporter.archive.points import Floats, Integers

Key = tuple[str, str, str]
"""(group, device, column); the device is empty for the object's own values."""

_ORIGIN = slice(-ORIGIN_BYTES, None)
RESTART_COLUMNS = ("cpu_time_ns", "started_s")
"""The object's own columns that tell a restart: its CPU time steps back, or its process has another start time."""


@dataclass(frozen=True, slots=True, eq=False)
class RawColumns:
    """`times_s` (float64, seconds since the epoch) and columns of the same length in libvirt's units, NaN unknown.

    `lives` (int64) changes where every counter may have begun anew: restart, other host, clock set back.
    """

    times_s: Floats
    lives: Integers
    columns: Mapping[Key, Floats]

    def devices(self, group: str, name: str) -> list[str]:
        """Names of the devices that have the column, sorted with 10 behind 9; [''] for the object's own."""
        return sorted((d for g, d, n in self.columns if (g, n) == (group, name)), key=device_order)

    def column(self, group: str, device: str, name: str) -> Floats:
        """The column, all NaN where no document has it."""
        found = self.columns.get((group, device if group != VALUES else "", name))
        return found if found is not None else np.full(len(self.times_s), np.nan)


def device_order(device: str) -> tuple[int, int, str]:
    """vCPU 10 behind vCPU 9, and all else by its letters."""
    return (0, int(device), "") if device.isascii() and device.isdigit() else (1, 0, device)


def wanted_projection(columns: Iterable[Column | tuple[Column, str]], head: Sequence[str]) -> dict[str, int]:
    """The projection of a find that gives these columns and the fields of the head, and nothing else.

    (column, word) is one statistic of a column of a roll-up, like `avg`.
    """
    found = dict.fromkeys(head, 1)
    for wanted in columns:
        column, *words = wanted if isinstance(wanted, tuple) else (wanted,)
        found[".".join((column.group, column.name, *words))] = 1
        if column.group != VALUES:
            found[f"{column.group}.device"] = 1
    return {"_id": 0, **found}


def only_columns(document: Document, wanted: Iterable[Column]) -> Document:
    """What `wanted_projection` leaves of a raw document, but for the head, which is whole."""
    found = {name: value for name, value in document.items() if name != VALUES and not _is_group(value)}
    for group, names in _names_by_group(wanted).items():
        if group == VALUES:
            found[group] = {name: column for name, column in document.get(group, {}).items() if name in names}
        elif group in document:
            found[group] = [{name: column for name, column in device.items() if name == "device" or name in names}
                            for device in document[group]]
    return found


def _is_group(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def lives_of(documents: Sequence[Mapping[str, Any]]) -> list[int]:
    """One number for each raw document, in the order of their starts; it changes with the host, and at overlaps.

    Documents of different windows overlap where the clock was set back: neighbours by the clock are not neighbours in
    time then, so nothing is reckoned from one to the next. Those of one window (a change of state and back) may.
    """
    overlapping = [False] * len(documents)
    latest = 0  # the one that ends latest so far
    for place, document in enumerate(documents):
        other = documents[latest]
        if document["host"] != other["host"]:
            latest = place
            continue
        if document["start"] < other["end"] and document["_id"][_ORIGIN] != other["_id"][_ORIGIN]:
            overlapping[place] = overlapping[latest] = True
        if document["end"] >= other["end"]:
            latest = place
    found: list[int] = []
    for place, document in enumerate(documents):
        breaks = place > 0 and (overlapping[place - 1] or overlapping[place]
                                or document["host"] != documents[place - 1]["host"])
        found.append((found[-1] if found else 0) + breaks)
    return found


def raw_columns(documents: Sequence[Mapping[str, Any]], wanted: Iterable[Column]) -> RawColumns:
    """The columns of raw documents in the order of their starts."""
    names = _names_by_group(wanted)
    offsets: list[Floats] = []
    lives: list[Integers] = []
    pieces: dict[Key, list[tuple[int, Sequence[Any]]]] = {}
    rows = 0
    for document, life in zip(documents, lives_of(documents), strict=True):
        times = milliseconds(document["start"]) + np.asarray(document["offsets_ms"], dtype=np.float64)
        for key, column in _columns_of(document, names):
            if len(column) == len(times):
                pieces.setdefault(key, []).append((rows, column))
        offsets.append(times)
        lives.append(np.full(len(times), life, dtype=np.int64))
        rows += len(times)
    times_s = np.concatenate(offsets) / 1000 if offsets else np.empty(0)
    columns = {key: _filled(rows, parts) for key, parts in pieces.items()}
    joined = np.concatenate(lives) if lives else np.empty(0, dtype=np.int64)
    own = {name: column for (group, _, name), column in columns.items() if group == VALUES}
    return RawColumns(times_s, joined + np.cumsum(restarts(own, rows)), columns)


def _names_by_group(wanted: Iterable[Column]) -> dict[str, set[str]]:
    names: dict[str, set[str]] = {}
    for column in wanted:
        names.setdefault(column.group, set()).add(column.name)
    return names


def _columns_of(document: Mapping[str, Any], names: Mapping[str, set[str]]) -> Iterable[tuple[Key, Sequence[Any]]]:
    for group, wanted in names.items():
        found = document.get(group)
        if found is None:
            continue
        for entry in [found] if group == VALUES else found:
            device = "" if group == VALUES else str(entry["device"])
            for name in wanted:
                column = entry.get(name)
                if column is not None:
                    yield (group, device, name), column


def _filled(rows: int, pieces: Sequence[tuple[int, Sequence[Any]]]) -> Floats:
    values = np.full(rows, np.nan)
    for first, column in pieces:
        # None becomes NaN.
        values[first : first + len(column)] = np.array(column, dtype=np.float64)
    return values


def restarts(columns: Mapping[str, Floats], rows: int) -> npt.NDArray[np.bool_]:
    """Whether a domain began anew before each row, told by its RESTART_COLUMNS."""
    found = np.zeros(rows, dtype=np.bool_)
    for name in RESTART_COLUMNS:
        values = columns.get(name)
        if values is None:
            continue
        known = np.flatnonzero(~np.isnan(values))
        change = np.diff(values[known])
        # The start time is computed from clock ticks and the boot time; it may wander by a fraction of a second.
        found[known[1:][change < 0 if name == "cpu_time_ns" else np.abs(change) > 2]] = True
    return found
