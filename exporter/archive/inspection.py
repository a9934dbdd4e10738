"""Looking at an archive: what it holds, whether its documents are whole, and making roll-ups again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from exporter.archive.connection import Database
from exporter.archive.documents import (
    HOSTS,
    META,
    OBJECTS,
    RAW,
    SCHEMA_VERSION,
    VALUES,
    Document,
    milliseconds,
    moment,
    partition_span,
)
from exporter.archive.quarantine import kept_in
from exporter.archive.rollups import DAY_MS, HOUR_MS, roll_up_day, roll_up_hour


@dataclass(frozen=True, slots=True)
class Status:
    """``partitions``: (name, begin, end) in order of name; ``spool_bytes`` None where there is no spool here.

    ``newest``: of the samples out of that spool that the database has.
    ``refused``: (documents, bytes) that are put aside beside the spool, since the database refuses them for good.
    """

    schema: int | None
    partitions: list[tuple[str, datetime, datetime]]
    hosts: list[Document]
    objects: int
    spool_bytes: int | None
    spool_acknowledged: int | None
    newest: datetime | None
    refused: tuple[int, int]


def status(database: Database, state: Path) -> Status:
    """What is there; reads names and small collections only, so it is quick on any server.  Raises PyMongoError."""
    meta = database[META].find_one({"_id": "schema"})
    names = sorted(database.list_collection_names())
    partitions = [(name, *span) for name in names if (span := partition_span(name)) is not None]
    folder = state / "archive" / "spool"
    size = sum(path.stat().st_size for path in folder.glob("*.spool")) if folder.is_dir() else None
    acknowledged, newest_ms = _acknowledged(folder)
    return Status(meta["version"] if meta else None, partitions, list(database[HOSTS].find()),
                  sum(1 for _ in database[OBJECTS].find({}, {"_id": 1})), size, acknowledged,
                  moment(newest_ms) if newest_ms else None, kept_in(folder))


def _acknowledged(folder: Path) -> tuple[int | None, int | None]:
    """(number of the last frame that the database has, time in ms of its sample), None where it is not known."""
    try:
        found = json.loads((folder / "acknowledged.json").read_text())
        return int(found["acknowledged"]), found["notes"].get("newest_ms")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None, None


def raw_partitions(database: Database) -> list[str]:
    """The collections of samples, in order of time."""
    return RAW.collections(database.list_collection_names(), datetime.min.replace(tzinfo=UTC),
                           datetime.max.replace(tzinfo=UTC))


def verify(database: Database, name: str) -> Iterator[list[str]]:
    """For each document of a partition what is wrong with it, in words; an empty list for a good one."""
    span = partition_span(name)
    assert span is not None
    for document in database[name].find():
        yield problems(document, span)


def problems(document: Document, span: tuple[datetime, datetime]) -> list[str]:
    """What is wrong with a raw document of a partition that covers ``span``."""
    try:
        return list(_problems(document, span))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        return [f"it is no document of this schema ({type(error).__name__}: {error})"]


def _problems(document: Document, span: tuple[datetime, datetime]) -> Iterator[str]:
    if document["schema"] != SCHEMA_VERSION:
        yield f"schema {document['schema']!r} is not {SCHEMA_VERSION}"
    start, offsets, count = document["start"], document["offsets_ms"], document["count"]
    if not span[0] <= start < span[1]:
        yield f"it starts at {start.isoformat()}, outside its partition"
    if int.from_bytes(bytes(document["_id"])[13:21], "big", signed=True) != milliseconds(start):
        yield "its id does not say when it starts"
    if len(offsets) != count or count < 1:
        yield f"it says {count} samples and has {len(offsets)}"
    if offsets != sorted(offsets) or milliseconds(document["end"]) - milliseconds(start) != offsets[-1]:
        yield "its offsets do not lead from start to end"
    for where, columns in _columns(document):
        for name, column in columns.items():
            if name != "device" and len(column) != count:
                yield f"{where}.{name} has {len(column)} places for {count} samples"


def _columns(document: Document) -> Iterator[tuple[str, dict[str, Any]]]:
    yield VALUES, document.get(VALUES, {})
    for group, devices in document.items():
        if isinstance(devices, list) and devices and isinstance(devices[0], dict):
            for device in devices:
                yield f"{group}.{device['device']}", device


def repair_rollups(database: Database, since: datetime, until: datetime,
                   compress: bool = False) -> Iterator[tuple[int, int]]:
    """Makes the points of every hour and day between again, of all hosts; yields (steps done, steps in all).

    Hours without raw partitions, past their retention, keep the points they have.  Raises PyMongoError.
    """
    hosts = [document["_id"] for document in database[HOSTS].find()]
    names = RAW.collections(database.list_collection_names(), since, until)
    spans = [span for name in names if (span := partition_span(name)) is not None]
    first, last = milliseconds(since) // HOUR_MS * HOUR_MS, milliseconds(until)
    hours = sorted({hour for begin, end in spans
                    for hour in range(max(first, milliseconds(begin)), min(last, milliseconds(end)), HOUR_MS)})
    days = sorted({hour // DAY_MS * DAY_MS for hour in hours})
    steps = [(roll_up_hour, hour) for hour in hours] + [(roll_up_day, day) for day in days]
    for done, (roll_up, start_ms) in enumerate(steps):
        yield done, len(steps)
        for host in hosts:
            roll_up(database, host, start_ms, compress)
    yield len(steps), len(steps)
