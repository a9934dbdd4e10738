"""The audit trail: who asked for what, why, and what came of it. JSON lines, append-only, chained by hash.

Each line holds the SHA-256 of itself without its `hash` field, and of the line before it, so that a changed,
removed or inserted line shows (`verify`). Appending holds a file lock; command line and service write one trail.
A line torn by a crash is ended and told of by the next record, never removed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from pydantic import JsonValue

from exporter.control.errors import ControlError, UnreachableError

GENESIS = "0" * 64
_TAIL_BYTES = 64 * 1024
_LINE_MOST_BYTES = 32 * 1024
_FACT_MOST_BYTES = 2 * 1024
_UUID_CHARACTERS = 36


class TrailDamagedError(ControlError):
    """The trail is not as it was written; the message names the line."""

    kind = "audit-damaged"


class Trail:
    """Appends to and reads one trail file. Any thread, any process."""

    def __init__(self, path: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.path = path
        self._now = now

    def append(self, event: str, facts: Mapping[str, JsonValue]) -> int:
        """Writes one record, on the disk before this returns; its sequence number. Raises UnreachableError."""
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                return self._append(fd, event, facts)
            finally:
                os.close(fd)
        except OSError as error:
            raise UnreachableError(
                f"the audit trail {self.path} cannot be written ({error.strerror}), so nothing is done",
                next_step="make room, or run as the account that owns the state folder",
            ) from error

    def _append(self, fd: int, event: str, facts: Mapping[str, JsonValue]) -> int:
        last, unfinished = _last_record(fd)
        torn = 0 if _parsed(unfinished) else len(unfinished)
        sequence = _number(last.get("sequence")) + 1
        record: dict[str, JsonValue] = {
            "sequence": sequence,
            "time": self._now().isoformat(timespec="milliseconds"),
            "event": event,
            **facts,
            "previous": last.get("hash", GENESIS),
        }
        if torn:
            record["torn_bytes_before"] = torn
        line = _line(record)
        if len(line) > _LINE_MOST_BYTES:
            record = {name: value for name, value in record.items() if name not in ("parameters", "before", "after")}
            line = _line(record | {"cut": True})
        if len(line) > _LINE_MOST_BYTES:  # the next one would not find this one, and begin a chain of its own
            record = {name: value for name, value in record.items() if len(json.dumps(value)) <= _FACT_MOST_BYTES}
            line = _line(record | {"cut": True})
        # One write: another process sees the whole line or none; the kill -9 case is the torn line.
        os.write(fd, (b"\n" if unfinished else b"") + line)
        os.fdatasync(fd)
        return sequence

    def records(self, newest: int | None = None) -> list[dict[str, JsonValue]]:
        """The records, oldest first; the `newest` only where given. Torn lines are left out."""
        return list(islice(self.backwards(), newest))[::-1]

    def backwards(self) -> Iterator[dict[str, JsonValue]]:
        """The records, newest first, read from the file's end as far as they are asked for."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        with file:
            end, rest = file.seek(0, os.SEEK_END), b""
            while end > 0:
                start = max(0, end - _TAIL_BYTES)
                file.seek(start)
                first, *lines = (file.read(end - start) + rest).split(b"\n")
                end, rest = start, first
                yield from filter(None, map(_parsed, reversed(lines)))
            if (oldest := _parsed(rest)) is not None:
                yield oldest

    def verify(self) -> int:
        """The number of records, each checked. Raises TrailDamagedError that names the first bad line."""
        count, previous = 0, GENESIS
        for number, record, torn_before in self._numbered():
            claimed = record.pop("hash", None)
            whole = claimed == _hash(record) and record.get("previous") == previous
            if not whole or record.get("sequence") != count + 1 or bool(record.get("torn_bytes_before")) != torn_before:
                raise TrailDamagedError(
                    f"line {number} of the audit trail {self.path} was changed, or a line before it removed",
                    next_step="compare it with a copy; go on by moving it away",
                )
            count, previous = count + 1, str(claimed)
        return count

    def _numbered(self) -> Iterator[tuple[int, dict[str, JsonValue], bool]]:
        if not self.path.exists():
            return
        torn = False
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                record = _parsed(line)
                if record is None:
                    torn = True
                    continue
                yield number, record, torn
                torn = False


def is_intact(record: Mapping[str, JsonValue]) -> bool:
    """Whether a record's hash is that of what it says; of its neighbours this tells nothing."""
    return record.get("hash") == _hash({name: value for name, value in record.items() if name != "hash"})


def record_time(record: Mapping[str, JsonValue]) -> datetime:
    """When it was written; the beginning of time where it does not say."""
    try:
        return datetime.fromisoformat(str(record.get("time"))).astimezone(UTC)
    except ValueError:
        return datetime.min.replace(tzinfo=UTC)


def tells_of(record: Mapping[str, JsonValue], domain: str) -> bool:
    """Whether a record concerns this domain, by name or UUID; a saved image concerns the domain it is of."""
    subject = record.get("subject")
    if not isinstance(subject, dict):
        return False
    if subject.get("kind") == "saved image":
        before = record.get("before")
        then = before if isinstance(before, dict) else {}
        image_of = str(subject.get("name"))[:_UUID_CHARACTERS]
        return domain in (image_of, then.get("domain"), record.get("domain"))
    return subject.get("kind") == "domain" and domain in (subject.get("name"), subject.get("uuid"))


def _last_record(fd: int) -> tuple[dict[str, JsonValue], bytes]:
    """The last whole record ({} in a new trail), and the line after it that lacks its end."""
    size = os.fstat(fd).st_size
    start = max(0, size - _TAIL_BYTES)
    *whole, rest = os.pread(fd, size - start, start).split(b"\n")
    for line in (rest, *reversed(whole)):
        record = _parsed(line)
        if record is not None:
            return record, rest
    return {}, rest


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _parsed(line: bytes) -> dict[str, JsonValue] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "sequence" in record else None


def _hash(record: Mapping[str, JsonValue]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _line(record: dict[str, JsonValue]) -> bytes:
    # json escapes every control character and non-ASCII one: a name with a newline cannot forge a line.
    return json.dumps({**record, "hash": _hash(record)}, separators=(",", ":")).encode() + b"\n"
