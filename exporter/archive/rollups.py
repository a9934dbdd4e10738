"""Roll-ups: 5-minute points from the raw documents of an hour, 1-hour points from the 5-minute points of a day.

Made from what the database has, once an hour or day is complete, under an id that depends on object and time alone:
doing it again replaces the document by the same one, so a crash, late samples and repair are one case.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import numpy as np
from pymongo import ReplaceOne

from collectors import COLLECTORS
from collectors.batch import Booleans, Floats, Integers
from exporter.archive.connection import Database
from exporter.archive.documents import (
    FIVE_MINUTES,
    GROUPS,
    HOURLY,
    OBJECTS,
    RAW,
    SEEN_AGAIN_MS,
    VALUES,
    Document,
    Host,
    Object,
    Resolution,
    RollUp,
    binary_uuid,
    columns,
    milliseconds,
    moment,
)
from exporter.archive.partitions import prepare_partition
from exporter.archive.points import GAP_INTERVALS, usual_interval_s
from exporter.archive.raw_columns import lives_of, restarts

HOUR_MS, DAY_MS = 3_600_000, 86_400_000
LONGEST_WINDOW_MS = 300_000
"""By how much a raw document may begin before its last sample: the most that archive.window can be."""

Place = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class _Samples:
    """One object's samples: ``values[place, sample]`` in libvirt's units, NaN where unknown.

    In order within each of ``lives``, which changes where the clock was set back (`lives_of`).
    """

    subject: Object
    times_ms: Integers
    lives: Integers
    places: tuple[Place, ...]
    values: Floats


def roll_up_hour(database: Database, host: UUID, hour_ms: int, compress: bool = False) -> int:
    """Stores the 5-minute points of every object of a host in the hour that begins then; how many documents.

    ``compress`` is said of a server of others, which may be a sharded cluster.  Raises PyMongoError.
    """
    since, until = moment(hour_ms - 2 * LONGEST_WINDOW_MS), moment(hour_ms + HOUR_MS)
    names = RAW.collections(database.list_collection_names(), since, until)
    target = _Target(database, FIVE_MINUTES, hour_ms, compress)
    count = 0
    for uuid in _objects(database, host, hour_ms, hour_ms + HOUR_MS):
        found: dict[tuple[str, bytes], list[Document]] = {}
        for document in _find(database, names, host, uuid, since, until):
            found.setdefault((document["kind"], bytes(document["uuid"].bytes)), []).append(document)
        points = (_points(_samples(documents), hour_ms) for documents in found.values())
        count += target.store([each for each in points if each is not None])
    return count


def roll_up_day(database: Database, host: UUID, day_ms: int, compress: bool = False) -> int:
    """Stores the 1-hour points of every object of a host in the day that begins then; how many documents."""
    since, until = moment(day_ms), moment(day_ms + DAY_MS)
    names = FIVE_MINUTES.collections(database.list_collection_names(), since, until)
    target = _Target(database, HOURLY, day_ms, compress)
    count = 0
    for uuid in _objects(database, host, day_ms, day_ms + DAY_MS):
        found: dict[tuple[str, bytes], list[Document]] = {}
        for document in _find(database, names, host, uuid, since, until):
            found.setdefault((document["kind"], bytes(document["uuid"].bytes)), []).append(document)
        count += target.store([_combined(documents, day_ms) for documents in found.values()])
    return count


def _objects(database: Database, host: UUID, begin_ms: int, end_ms: int) -> list[Any]:
    """Those of the host that may have samples then: what is long gone must not cost a question each hour."""
    seen = {"first_seen": {"$lt": moment(end_ms + LONGEST_WINDOW_MS)},
            "last_seen": {"$gte": moment(begin_ms - SEEN_AGAIN_MS - LONGEST_WINDOW_MS)}}
    return [each["uuid"] for each in database[OBJECTS].find({"host": binary_uuid(host), **seen}, {"uuid": 1})]


def _find(database: Database, names: Iterable[str], host: UUID, uuid: Any, since: Any,
          until: Any) -> Iterator[Document]:
    """One object at a time: the embedded server uses both bounds of the index for equality only, not for $in.

    Nor does it where another field is asked for besides the index's, and a hint makes it walk the whole index: the
    host is compared here (a guest that migrated has documents of two).
    """
    for name in names:
        for document in database[name].find({"uuid": uuid, "start": {"$gte": since, "$lt": until}}):
            if document["host"] == host:
                yield document


class _Target:
    """The partition of one hour's or day's points, made with its index when the first of them come."""

    def __init__(self, database: Database, resolution: Resolution, start_ms: int, compress: bool) -> None:
        self._database = database
        self._name = resolution.collection(moment(start_ms))
        self._compress = compress
        self._ready = False

    def store(self, points: list[RollUp]) -> int:
        """Replaces or adds one object's documents; how many."""
        if not points:
            return 0
        if not self._ready:
            prepare_partition(self._database, self._name, self._compress)
            self._ready = True
        documents = [point.document() for point in points]
        # A sharded cluster takes an upsert only with its whole shard key; the embedded one finds by _id or walks.
        words = ("_id", "uuid", "start") if self._compress else ("_id",)
        replacements = [ReplaceOne({word: d[word] for word in words}, d, upsert=True) for d in documents]
        self._database[self._name].bulk_write(replacements, ordered=False)
        return len(documents)


def _subject(document: Document) -> Object:
    return Object(Host(document["host"], document["host_name"]), document["kind"], document["uuid"], document["name"])


def _entries(document: Document) -> Iterator[tuple[Place, Any]]:
    """Every column of a document with its place."""
    for name, column in document.get(VALUES, {}).items():
        yield (VALUES, "", name), column
    for group, devices in document.items():
        if isinstance(devices, list) and devices and isinstance(devices[0], dict):
            for device in devices:
                for name, column in device.items():
                    if name != "device":
                        yield (group, device["device"], name), column


def _samples(documents: list[Document]) -> _Samples:
    documents.sort(key=lambda d: (d["start"], bytes(d["_id"])))
    places: dict[Place, int] = {}
    parts, starts, total = [], [], 0
    for document in documents:
        part = [(places.setdefault(place, len(places)), column) for place, column in _entries(document)]
        parts.append((total, document["count"], part))
        starts.append(milliseconds(document["start"]) + np.array(document["offsets_ms"], dtype=np.int64))
        total += document["count"]
    values = np.full((len(places), total), np.nan)
    for at, count, part in parts:
        for row, column in part:
            values[row, at:at + count] = np.array(column, dtype=np.float64)  # None becomes NaN
    times = np.concatenate(starts)
    lives = np.repeat(lives_of(documents), [document["count"] for document in documents])
    order = np.lexsort((times, lives))  # a domain that was paused in a window has two documents of it
    return _Samples(_subject(documents[-1]), times[order], lives[order], tuple(places), values[:, order])


def _points(samples: _Samples, hour_ms: int) -> RollUp | None:
    order = np.argsort(samples.times_ms, kind="stable")
    times = samples.times_ms[order]
    inside = order[(times >= hour_ms) & (times < hour_ms + HOUR_MS)]
    if not len(inside):
        return None
    table = columns(COLLECTORS)
    counter = np.array([(group, name) in table and table[group, name].counter for group, _, name in samples.places])
    changes, elapsed_s = _changes(samples, counter)
    with np.errstate(divide="ignore", invalid="ignore"):
        shown = np.where(counter[:, None], changes / elapsed_s, samples.values)[:, inside]
    bins = (samples.times_ms[inside] - hour_ms) // (FIVE_MINUTES.step_s * 1000)
    numbers, firsts, counts = np.unique(bins, return_index=True, return_counts=True)
    changes, elapsed_s = changes[:, inside], elapsed_s[:, inside]
    sums = np.add.reduceat(np.where(counter[:, None], np.nan_to_num(changes), np.nan_to_num(shown)), firsts, axis=1)
    weights = np.where(np.isnan(shown), 0.0, np.where(counter[:, None], elapsed_s, 1.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        average = sums / np.add.reduceat(weights, firsts, axis=1)
    least = np.fmin.reduceat(shown, firsts, axis=1)
    most = np.fmax.reduceat(shown, firsts, axis=1)
    offsets = (numbers * FIVE_MINUTES.step_s * 1000).tolist()
    figures = {"min": least, "max": most, "avg": average}
    return _roll_up(samples.subject, FIVE_MINUTES, hour_ms, offsets, counts.tolist(), samples.places, figures,
                    sums, counter)


def _changes(samples: _Samples, counter: Booleans) -> tuple[Floats, Floats]:
    """(change since the last known value, seconds since then) of each value, NaN where one is unknown or began anew."""
    values = samples.values
    own = {place[2]: values[row] for row, place in enumerate(samples.places) if place[0] == VALUES}
    lives = samples.lives + np.cumsum(restarts(own, values.shape[1]))
    changes, elapsed_s = np.full(values.shape, np.nan), np.full(values.shape, np.nan)
    for rows, known in _alike(np.isnan(values), counter):
        places = np.ix_(rows, known[1:])
        changes[places], elapsed_s[places] = _steps(values[np.ix_(rows, known)], samples.times_ms, lives, known)
    fell = (changes < 0) & counter[:, None]
    if fell.any():
        for device in {samples.places[row][:2] for row in np.flatnonzero(fell.any(axis=1)).tolist()}:
            rows = np.array([place[:2] == device for place in samples.places])
            if device[0] == VALUES:  # the domain goes on, so each value speaks for itself
                changes[fell & rows[:, None]] = np.nan
            else:
                changes[np.ix_(rows, fell[rows].any(axis=0))] = np.nan
    return changes, elapsed_s


def _alike(unknown: Booleans, counter: Booleans) -> Iterator[tuple[Integers, Integers]]:
    """(counters' rows, their known samples): rows that are known at the same samples are reckoned at once.

    Some are known once a minute only, like a guest's own counters, and all of a domain's lack what it did not answer.
    """
    found: dict[bytes, list[int]] = {}
    for row in np.flatnonzero(counter).tolist():
        found.setdefault(unknown[row].tobytes(), []).append(row)
    return ((np.array(rows), np.flatnonzero(~unknown[rows[0]])) for rows in found.values())


def _steps(values: Floats, times_ms: Integers, lives: Integers, known: Integers) -> tuple[Floats, Floats]:
    """(change, seconds) from each known sample to the next; no change where lives or a gap part them.

    ``values`` has the known samples only, the others all.
    """
    elapsed_s, changes = np.diff(times_ms[known]) / 1000, np.diff(values, axis=1)
    longest_s = GAP_INTERVALS * max(usual_interval_s(elapsed_s, times_ms / 1000), 1.0)
    near = (np.diff(lives[known]) == 0) & (elapsed_s > 0) & (elapsed_s <= longest_s)
    changes[:, ~near] = np.nan
    return changes, elapsed_s


def _combined(documents: list[Document], day_ms: int) -> RollUp:
    """The day's 1-hour points from its hours' 5-minute points."""
    documents.sort(key=lambda d: d["start"])
    table = columns(COLLECTORS)
    places = list(dict.fromkeys(place for document in documents for place, _ in _entries(document)))
    index = {place: row for row, place in enumerate(places)}
    shape = (len(places), len(documents))
    figures = {"min": np.full(shape, np.nan), "max": np.full(shape, np.nan), "avg": np.full(shape, np.nan)}
    increases = np.zeros(shape)
    for at, document in enumerate(documents):
        weight = np.array(document["samples"], dtype=np.float64)
        for place, column in _entries(document):
            row = index[place]
            parts = {word: np.array(column[word], dtype=np.float64) for word in figures}
            known = ~np.isnan(parts["avg"])
            if known.any():
                figures["min"][row, at] = np.nanmin(parts["min"])
                figures["max"][row, at] = np.nanmax(parts["max"])
                figures["avg"][row, at] = np.average(parts["avg"][known], weights=weight[known])
            increases[row, at] = np.nansum(np.array(column.get("increase", [0]), dtype=np.float64))
    counter = np.array([(group, name) in table and table[group, name].counter for group, _, name in places])
    offsets = [milliseconds(document["start"]) - day_ms for document in documents]
    samples = [sum(document["samples"]) for document in documents]
    return _roll_up(_subject(documents[-1]), HOURLY, day_ms, offsets, samples, places, figures, increases, counter)


def _roll_up(subject: Object, resolution: Resolution, start_ms: int, offsets: list[int], samples: list[int],
             places: Iterable[Place], figures: Mapping[str, Floats], increases: Floats, counter: Booleans) -> RollUp:
    values: dict[str, Any] = {}
    devices: dict[str, dict[str, dict[str, Any]]] = {}
    for row, (group, device, name) in enumerate(places):
        unknown = np.isnan(figures["avg"][row])
        if unknown.all():
            continue
        column: dict[str, list[float | None]] = {word: _numbers(array[row], unknown)
                                                 for word, array in figures.items()}
        if counter[row]:
            column["increase"] = _numbers(increases[row], unknown)
        if group == VALUES:
            values[name] = column
        else:
            devices.setdefault(group, {}).setdefault(device, {})[name] = column
    ordered = {group: devices[group] for group in (*GROUPS.values(), *devices) if group in devices}
    return RollUp(subject, resolution, start_ms, offsets, samples, values, ordered)


def _numbers(values: Floats, unknown: Booleans) -> list[float | None]:
    return [None if absent else int(value) if value.is_integer() and abs(value) < 2.0**53 else value
            for value, absent in zip(values.tolist(), unknown.tolist(), strict=True)]
