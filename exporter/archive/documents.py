"""The schema: what a document of the archive looks like, what it is called and which collection it is in.

One raw document is one object (a domain, the host, a pool) over one window of some 60 s; its values are columns,
one place a sample, in libvirt's units, null where a sample did not hold the value.  One roll-up document is one
object over an hour (5-minute points) or a day (1-hour points).  docs/archive.md draws both.  Pure: no connection,
no clock.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid5

from bson.binary import Binary, UuidRepresentation

from collectors.fields import Collector, Field, Kind

SCHEMA_VERSION = 1
"""Version in each document's ``schema`` and in the collection ``meta``; a higher one is refused, not guessed at."""

Document = dict[str, Any]
"""A document as pymongo takes it."""

GROUPS = {"vcpu": "vcpus", "block": "disks", "net": "interfaces", "iothread": "iothreads"}
"""First word of libvirt's key to the document's array of devices."""
VALUES = "values"
"""The sub-document with the columns of the object itself."""

OBJECTS, HOSTS, META = "objects", "hosts", "meta"
"""Collections that are not partitioned: what was ever seen, the hosts that write, the schema's version."""
SEEN_AGAIN_MS = 3_600_000
"""How often ``last_seen`` of an object is written while it is there."""
SERIES_INDEX = (("uuid", 1), ("start", 1))
"""The one secondary index of each partition; its name is ``uuid_1_start_1``."""
SERIES_INDEX_NAME = "uuid_1_start_1"


@dataclass(frozen=True, slots=True)
class Resolution:
    """One of the three resolutions.  ``step_s`` is a point's length (0: raw samples), ``span_s`` a document's."""

    name: str
    step_s: int
    span_s: int
    partition: str  # strftime of the partition's beginning, behind the name

    def collection(self, start: datetime, partition: str = "") -> str:
        """Name of the collection for a document that starts then; ``partition`` where not the usual."""
        return f"{self.name}_{start.astimezone(UTC).strftime(partition or self.partition)}"

    def collections(self, names: Iterable[str], since: datetime, until: datetime) -> list[str]:
        """Those of ``names`` that may hold documents with since <= start < until, in order of time."""
        found = [(span[0], name) for name in names if (span := partition_span(name)) and name.startswith(self.name)
                 and span[0] < until and span[1] > since]
        return [name for _, name in sorted(found)]


RAW = Resolution("raw", 0, 60, "%Y%m%d")
FIVE_MINUTES = Resolution("five_minutes", 300, 3600, "%Y%m")
HOURLY = Resolution("hourly", 3600, 86400, "%Y")
RESOLUTIONS = (RAW, FIVE_MINUTES, HOURLY)
RAW_PARTITIONS = {"day": "%Y%m%d", "hour": "%Y%m%d%H"}
"""Setting archive.partition to the raw collections' strftime."""

_FORMATS = {4: "%Y", 6: "%Y%m", 8: "%Y%m%d", 10: "%Y%m%d%H"}


def partition_span(name: str) -> tuple[datetime, datetime] | None:
    """(beginning, end) of the time whose documents a partition holds; None for any other collection.

    ``raw_20261122`` is a day, ``raw_2026112207`` an hour, ``five_minutes_202611`` a month, ``hourly_2026`` a year.
    """
    prefix, _, digits = name.rpartition("_")
    if prefix not in {resolution.name for resolution in RESOLUTIONS} or not (digits.isascii() and digits.isdigit()):
        return None
    try:
        begin = datetime.strptime(digits, _FORMATS[len(digits)]).replace(tzinfo=UTC)
        if len(digits) == 4:
            return begin, begin.replace(year=begin.year + 1)
        if len(digits) == 6:
            return begin, (begin + timedelta(days=32)).replace(day=1)
        return begin, begin + (timedelta(days=1) if len(digits) == 8 else timedelta(hours=1))
    except (KeyError, ValueError, OverflowError):
        return None


@dataclass(frozen=True, slots=True)
class Column:
    """One column: ``group`` is ``values`` or an array of devices (``disks``), ``name`` its key there."""

    group: str
    name: str
    counter: bool
    scale: float  # libvirt's unit times this is the metric's base unit
    metric: str  # the family on the page


def column_of(declared: Field) -> Column | None:
    """Where a Field stands in a document; None where it is not archived."""
    if not declared.archive:
        return None
    head, index, _ = declared.source.partition(".<n>")
    group = GROUPS.get(head, head.replace(".", "_") + "s") if index else VALUES
    return Column(group, declared.archive, declared.kind is Kind.COUNTER, declared.scale, declared.name)


def columns(collectors: Iterable[Collector]) -> dict[tuple[str, str], Column]:
    """Every archived column of these collectors by (group, name)."""
    found = (column_of(declared) for collector in collectors for declared in collector.fields())
    return {(column.group, column.name): column for column in found if column is not None}


@dataclass(frozen=True, slots=True)
class Host:
    """Who writes: libvirt's host UUID is its identity, ``name`` is for people."""

    uuid: UUID
    name: str


@dataclass(frozen=True, slots=True)
class Object:
    """What a document is about.  ``kind`` is domain, host or pool; ``uuid`` that of libvirt."""

    host: Host
    kind: str
    uuid: UUID
    name: str

    def key(self) -> bytes:
        """12 bytes that are the same for the same object of the same host, always."""
        text = self.host.uuid.bytes + self.uuid.bytes + self.kind.encode()
        return hashlib.blake2b(text, digest_size=12).digest()


def object_uuid(host: UUID, kind: str, identity: str) -> UUID:
    """libvirt's UUID where ``identity`` is one, else one made of it that is the same each time."""
    try:
        return UUID(identity)
    except ValueError:
        return uuid5(host, f"{kind}/{identity}")


def document_id(subject: Object, resolution: Resolution, start_ms: int, origin: bytes) -> Binary:
    """25 bytes: object (12), resolution (1), start in ms since the epoch (8, big-endian), origin (4).

    Byte order is series, then time.  ``origin`` tells apart two windows that begin in the same millisecond because
    the clock was set back: for raw documents it comes from the spool and the first frame's number, so the same
    spool gives the same id however often it is sent; roll-ups have zeros.
    """
    place = bytes([RESOLUTIONS.index(resolution)])
    return Binary(subject.key() + place + start_ms.to_bytes(8, "big", signed=True) + origin)


ORIGIN_BYTES = 4
"""The end of an id: alike in the documents of one window of one spool."""
NO_ORIGIN = bytes(ORIGIN_BYTES)
"""Origin of a roll-up's id: there is one for each hour or day."""


def window_origin(spool: bytes, sequence: int) -> bytes:
    """Origin of a raw document: the spool's own random name and the number of the window's first frame."""
    return hashlib.blake2b(spool + sequence.to_bytes(8, "big"), digest_size=ORIGIN_BYTES).digest()


Devices = Mapping[str, Mapping[str, Any]]
"""Device name to its columns by name."""


@dataclass(frozen=True, slots=True)
class Window:
    """One object's samples of one window.

    ``offsets_ms`` are counted from ``start_ms`` (wall clock of the first sample) on the monotonic clock, so they
    never step back.  Each column has as many places as ``offsets_ms``; None is unknown.
    """

    subject: Object
    start_ms: int
    offsets_ms: Sequence[int]
    values: Mapping[str, Sequence[int | float | None]]
    devices: Mapping[str, Devices] = field(default_factory=dict)
    state: str | None = None

    def document(self, origin: bytes) -> Document:
        """The raw document; the same Window and origin give the same bytes."""
        found = _head(self.subject, RAW, self.start_ms, self.start_ms + self.offsets_ms[-1], origin)
        found["count"] = len(self.offsets_ms)
        found["offsets_ms"] = list(self.offsets_ms)
        if self.state is not None:
            found["state"] = self.state
        return _with_columns(found, self.values, self.devices)


@dataclass(frozen=True, slots=True)
class RollUp:
    """One object's points of one hour or day.

    ``offsets_ms`` are the points' beginnings from ``start_ms``; points without samples are left out.  ``samples``
    is how many samples each is made of.  A column is ``{"min": [...], "max": [...], "avg": [...]}``: of the values
    of a gauge; of the rates a second of a counter, which has ``increase`` besides, resets left out.
    """

    subject: Object
    resolution: Resolution
    start_ms: int
    offsets_ms: Sequence[int]
    samples: Sequence[int]
    values: Mapping[str, Mapping[str, Any]]
    devices: Mapping[str, Devices] = field(default_factory=dict)

    def document(self) -> Document:
        """The roll-up document, whose id depends on object, resolution and start alone."""
        end_ms = self.start_ms + self.resolution.span_s * 1000
        found = _head(self.subject, self.resolution, self.start_ms, end_ms, NO_ORIGIN)
        found |= {"step_s": self.resolution.step_s, "count": len(self.offsets_ms),
                  "offsets_ms": list(self.offsets_ms), "samples": list(self.samples)}
        return _with_columns(found, self.values, self.devices)


def _head(subject: Object, resolution: Resolution, start_ms: int, end_ms: int, origin: bytes) -> Document:
    return {
        "_id": document_id(subject, resolution, start_ms, origin),
        "schema": SCHEMA_VERSION,
        "kind": subject.kind,
        "name": subject.name,
        "uuid": binary_uuid(subject.uuid),
        "host": binary_uuid(subject.host.uuid),
        "host_name": subject.host.name,
        "start": moment(start_ms),
        "end": moment(end_ms),
    }


def _with_columns(found: Document, values: Mapping[str, Any], devices: Mapping[str, Devices]) -> Document:
    if values:
        found[VALUES] = dict(values)
    for group, by_name in devices.items():
        found[group] = [{"device": name, **by_column} for name, by_column in by_name.items()]
    return found


def binary_uuid(value: UUID) -> Binary:
    """A UUID as the documents hold it: binary subtype 4."""
    return Binary.from_uuid(value, UuidRepresentation.STANDARD)


def moment(time_ms: int) -> datetime:
    """A BSON date from milliseconds since the epoch."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=time_ms)


def milliseconds(time: datetime) -> int:
    """Milliseconds since the epoch of an aware datetime."""
    return (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
