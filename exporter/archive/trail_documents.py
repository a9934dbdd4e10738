"""The audit trail's records in the archive: frames of its spool to documents of the collections ``audit_YYYY``.

A document is one record of the trail: its line as written, whose hash can be computed again, and beside it what one
searches for.  Its id is the host and the record's own hash, so a line sent twice is there once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from bson.binary import Binary

from exporter.archive.documents import SCHEMA_VERSION, Document, Host, Resolution, binary_uuid, object_uuid
from exporter.archive.spool_frames import Frame
from exporter.archive.windows import Group, Grouper

AUDIT = Resolution("audit", 0, 0, "%Y")
"""Where the documents are.  It is none of the resolutions of samples, so no retention drops it."""
_NOT_COPIED = ("time", "previous")
_LONGEST_TEXT = 4096


def payload_of(host: Host, lines: Iterable[bytes]) -> bytes:
    """A frame's payload: the host, then lines of the trail, without their ends."""
    return b"\n".join((json.dumps({"host": str(host.uuid), "name": host.name}).encode(), *lines))


@dataclass(slots=True)
class TrailGroup(Group):
    """The records of one frame.  It has no ticks: nothing is rolled up of it."""

    host: Host | None = None
    lines: list[bytes] = field(default_factory=list)

    def documents(self, spool: bytes, uuid: UUID | None = None) -> Iterator[Document]:
        """One a record; what is no record of a trail is left out."""
        for line in self.lines:
            document = _document(self.host, line) if self.host is not None else None
            if document is not None:
                yield document


class TrailGrouper(Grouper):
    """Each frame is a group of its own, so nothing stays open."""

    def add(self, frame: Frame) -> Group | None:
        """The group of this frame; one without records where the frame is of another version."""
        head, *lines = frame.payload.split(b"\n")
        try:
            about = json.loads(head)
            host = Host(UUID(about["host"]), str(about["name"]))
        except (ValueError, KeyError, TypeError):
            return TrailGroup(frame.number, frame.number)
        return TrailGroup(frame.number, frame.number, samples=frame.samples, host=host, lines=lines)


def _document(host: Host, line: bytes) -> Document | None:
    try:
        record = json.loads(line)
        start = datetime.fromisoformat(record["time"]).astimezone(UTC)
        claimed = bytes.fromhex(record["hash"])
    except (ValueError, KeyError, TypeError):
        return None
    # The hash of the line itself is in the id too: a forged line that claims another's hash displaces nothing.
    key = host.uuid.bytes + hashlib.blake2b(claimed + line, digest_size=24).digest()
    subject = record.get("subject")
    subject = subject if isinstance(subject, dict) else {}
    name = _text(str(subject.get("name") or ""))
    kind = str(subject.get("kind") or "audit")
    return {
        "_id": Binary(key),
        "schema": SCHEMA_VERSION,
        "kind": _text(kind),
        "name": name,
        "uuid": binary_uuid(object_uuid(host.uuid, kind, str(subject.get("uuid") or name))),
        "host": binary_uuid(host.uuid),
        "host_name": host.name,
        "start": start,
        **_plain(record),
        "line": line.decode("ascii", "replace"),
    }


def _plain(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record's own plain facts (operation, actor, rule, outcome and so on), for searching."""
    taken = {"_id", "schema", "kind", "name", "uuid", "host", "host_name", "start", "line", "subject", *_NOT_COPIED}
    found: dict[str, Any] = {}
    for key, value in record.items():
        if key in taken or not key.isidentifier():
            continue
        if isinstance(value, str):
            found[key] = _text(value)
        elif isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 2**63):
            found[key] = value
    error = record.get("error")
    if isinstance(error, dict):
        found["error"] = _text(str(error.get("kind")))
        found["error_cause"] = _text(str(error.get("cause")))
    return found


def _text(text: str) -> str:
    """Text as BSON takes it: JSON may hold half a surrogate pair."""
    return text[:_LONGEST_TEXT].encode("utf-8", "replace").decode()
