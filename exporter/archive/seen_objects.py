"""Keeps the collections ``objects`` and ``hosts`` current."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bson import Binary
from pymongo import UpdateOne

from exporter.archive.connection import Database
from exporter.archive.documents import HOSTS, OBJECTS, SEEN_AGAIN_MS, binary_uuid, moment
from exporter.archive.windows import Group
from exporter.version import VERSION


class SeenObjects:
    """What is new or renamed is noted at once, the time of the rest hourly.  One thread."""

    def __init__(self) -> None:
        self._seen: dict[bytes, tuple[str, int]] = {}

    def note(self, database: Callable[[], Database], group: Group) -> None:
        """Notes the objects of a group's samples; ``database`` is asked for only where there is something to write.

        Raises what ``database`` raises, and PyMongoError.
        """
        if not group.ticks:
            return
        at_ms = group.ticks[-1].wall_ms
        writes: list[UpdateOne] = []
        seen: dict[bytes, tuple[str, int]] = {}
        hosts = {}
        for subject in {entry.subject for tick in group.ticks for entry in tick.entries}:
            key = subject.key()
            name, noted_ms = self._seen.get(key, ("", 0))
            if name == subject.name and 0 <= at_ms - noted_ms < SEEN_AGAIN_MS:
                continue
            seen[key] = (subject.name, at_ms)
            hosts[subject.host.uuid] = subject.host
            about = {"kind": subject.kind, "name": subject.name, "uuid": binary_uuid(subject.uuid),
                     "host": binary_uuid(subject.host.uuid), "host_name": subject.host.name}
            writes.append(UpdateOne({"_id": Binary(key)}, {"$set": about, **_times(at_ms)}, upsert=True))
        if not writes:
            return
        opened = database()
        opened[OBJECTS].bulk_write(writes, ordered=False)
        for host in hosts.values():
            update: dict[str, Any] = {"$set": {"name": host.name, "version": VERSION}, **_times(at_ms)}
            opened[HOSTS].update_one({"_id": binary_uuid(host.uuid)}, update, upsert=True)
        # What was noted longer ago is noted anew where it is there still: the gone need not be remembered.
        self._seen = {key: noted for key, noted in (self._seen | seen).items() if 0 <= at_ms - noted[1] < SEEN_AGAIN_MS}


def _times(at_ms: int) -> dict[str, Any]:
    return {"$min": {"first_seen": moment(at_ms)}, "$max": {"last_seen": moment(at_ms)}}
