"""The spool: frames on the local disk that are safe once ``sync`` returned, until the database has them.

A folder of segment files named by their first frame's number.  A segment begins with a magic and the spool's own
random name; a frame is ``magic | payload length | CRC-32 | kind | number | samples`` and the payload.  The CRC
covers everything behind it.  After a damaged stretch, reading goes on at the next frame whose CRC is right; the
unreadable end that a crash leaves is cut off.
"""

from __future__ import annotations

import binascii
import contextlib
import errno
import json
import logging
import os
import secrets
import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from exporter.archive.errors import SpoolError

log = logging.getLogger(__name__)

SAMPLES, SEAL = 1, 2
"""Kinds of frames: a tick's samples; the end of a window before its time (no payload)."""

_SEGMENT_MAGIC = b"VGSPOOL1"
_NAME_BYTES = 16
_SEGMENT_HEADER_BYTES = len(_SEGMENT_MAGIC) + _NAME_BYTES
_FRAME_MAGIC = b"VGf\xf1"
_FRAME = struct.Struct("<4sIIBQI")
_CHECKED_FROM = 12  # kind, number, samples and payload are under the CRC
_LONGEST_FRAME = 1 << 30
_PROTECTED_SEGMENTS = 2  # may hold what is being sent; the oldest of the others is dropped when the spool is full
_SUFFIX = ".spool"


@dataclass(frozen=True, slots=True)
class Frame:
    """``number`` counts frames from 1 on over the spool's life; ``samples`` is how many objects' samples it has."""

    number: int
    kind: int
    samples: int
    payload: bytes


@dataclass(slots=True)
class _Segment:
    path: Path
    first: int
    size: int = 0
    samples: int = 0
    last: int = 0


@dataclass(slots=True)
class SpoolCounts:
    """What happened so far; plain numbers, read without a lock."""

    spooled_samples: int = 0
    damaged_stretches: int = 0
    dropped_samples: dict[str, int] = field(default_factory=lambda: {"spool_full": 0, "disk_full": 0, "late": 0})


class Spool:
    """Appends in one thread, reads and acknowledges in another.

    Frames are safe, and read, up to ``durable_number``.  Opening recovers: cuts the torn end of the last segment.
    Raises SpoolError where the folder cannot be used.
    ``limit_bytes`` bounds the segment files together; ``drop`` says what goes when it is reached: ``oldest`` or
    ``newest``.
    """

    def __init__(self, folder: Path, limit_bytes: int = 8 << 30, drop: str = "oldest",
                 segment_bytes: int = 8 << 20) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self.counts = SpoolCounts()
        self.name = b""
        self.acknowledged = 0
        self.notes: dict[str, object] = {}
        self.next_number = 1
        self.durable_number = 0
        self._drop = drop
        self._segment_bytes = min(segment_bytes, max(limit_bytes // 8, 4096))
        self._lock = threading.Lock()
        self._file = -1
        self._spoilt = False  # the last segment's file holds what does not count and could not be cut off
        self._segments: list[_Segment] = []
        self._synced = (0, 0, 0)  # size, samples and last number of the last segment when it was synced
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._read_checkpoint()
            self._recover()
        except OSError as error:
            raise SpoolError(f"archive spool {folder}: {error.strerror or error}; check the folder's rights and "
                             "space, or choose another with state.directory") from error

    # ---- appending

    def append(self, kind: int, payload: bytes, samples: int) -> int:
        """Writes a frame and returns its number; not safe before ``sync``.

        Raises OSError where the disk refuses (nothing of the frame is left), and SpoolFullError by policy.
        """
        number = self.next_number
        head = _FRAME.pack(_FRAME_MAGIC, len(payload), 0, kind, number, samples)
        crc = zlib.crc32(payload, zlib.crc32(head[_CHECKED_FROM:]))
        frame = b"".join((_FRAME.pack(_FRAME_MAGIC, len(payload), crc, kind, number, samples), payload))
        self._make_room(len(frame), samples)
        segment = self._segments[-1] if self._file >= 0 else None
        if segment is not None and self._spoilt and not segment.last:
            self._give_up(segment)
            segment = None
        # One without frames takes a frame of any length: the next one would have its name.
        if segment is None or self._spoilt or (segment.last and segment.size + len(frame) > self._segment_bytes):
            segment = self._new_segment(number)
        try:
            _write_all(self._file, frame)
        except OSError:
            self._cut(segment.size)
            raise
        with self._lock:
            segment.size += len(frame)
            segment.samples += samples
            segment.last = number
            self.next_number = number + 1
        return number

    def sync(self) -> None:
        """One fdatasync: everything appended so far is safe.

        Raises OSError where the disk fails; then what was appended since the last sync is gone and must be appended
        again: the kernel forgets what it could not write and would call the next sync a success.
        """
        if self._file < 0:
            return
        segment = self._segments[-1]
        try:
            os.fdatasync(self._file)
        except OSError:
            self._forget_unsynced(segment)
            raise
        self.durable_number = self.next_number - 1
        self._synced = segment.size, segment.samples, segment.last

    def _forget_unsynced(self, segment: _Segment) -> None:
        self._cut(self._synced[0])
        with self._lock:
            segment.size, segment.samples, segment.last = self._synced
            self.next_number = self.durable_number + 1

    def _cut(self, size: int) -> None:
        """Cuts the last segment's file back; where that fails, the next frame begins another segment.

        Its name is that frame's number, and what stands in an earlier file from that number on is never read.
        """
        try:
            os.ftruncate(self._file, size)
            os.lseek(self._file, size, os.SEEK_SET)
        except OSError as error:
            self._spoilt = True
            log.warning("a spool segment cannot be cut back to what is safe; another one is begun",
                        extra={"file": str(self._segments[-1].path), "error": error.strerror or str(error)})

    def _give_up(self, segment: _Segment) -> None:
        """Removes a segment without frames, whose name the next one needs."""
        segment.path.unlink(missing_ok=True)
        with self._lock:
            self._segments.remove(segment)
        os.close(self._file)
        self._file, self._spoilt = -1, False

    def _make_room(self, more: int, samples: int) -> None:
        while self.size_bytes + more > self.limit_bytes:
            with self._lock:
                droppable = self._segments[_PROTECTED_SEGMENTS:-1]
                if self._drop == "newest" or not droppable:
                    raise SpoolFullError(samples)
                victim = droppable[0]
                self._segments.remove(victim)
            self.counts.dropped_samples["spool_full"] += victim.samples
            victim.path.unlink(missing_ok=True)

    def _new_segment(self, number: int) -> _Segment:
        path = self.folder / f"{number:016d}{_SUFFIX}"
        self.sync()
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _write_all(file, _SEGMENT_MAGIC + self.name)
            _sync_folder(self.folder)
        except OSError:
            os.close(file)
            path.unlink(missing_ok=True)
            raise
        if self._file >= 0:
            os.close(self._file)
        self._file, self._spoilt = file, False
        segment = _Segment(path, number, _SEGMENT_HEADER_BYTES)
        with self._lock:
            self._segments.append(segment)
        self._synced = _SEGMENT_HEADER_BYTES, 0, 0
        return segment

    # ---- reading

    def frames(self, after: int) -> Iterator[Frame]:
        """Frames with a number above ``after`` that are safe on the disk, in order.  Damage is stepped over."""
        durable = self.durable_number  # first: a number up to it is then nowhere but where these segments say
        with self._lock:
            segments = list(self._segments)
        for place, segment in enumerate(segments):
            follower = segments[place + 1].first if place + 1 < len(segments) else durable + 1
            if follower - 1 <= after or (segment.last and segment.last <= after):
                continue
            try:
                file = segment.path.open("rb")
            except FileNotFoundError:  # dropped meanwhile
                continue
            with file:
                for _, frame in _frames_in(file):
                    if after < frame.number <= durable and frame.number < follower:
                        yield frame

    # ---- acknowledging

    def acknowledge(self, number: int, notes: dict[str, object]) -> None:
        """Frames up to ``number`` are in the database: remembers it (atomically, synced) and deletes segments.

        ``notes`` are kept with the position, for whoever sends.  Raises OSError.
        """
        text = json.dumps({"spool": self.name.hex(), "acknowledged": number, "notes": notes})
        path = self.folder / "acknowledged.json"
        temporary = path.with_suffix(".new")
        with open(temporary, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(self.folder)
        with self._lock:
            self.acknowledged, self.notes = number, notes
            done = [s for s in self._segments[:-1] if s.last <= number]
            self._segments = [s for s in self._segments if s not in done]
        for segment in done:
            segment.path.unlink(missing_ok=True)

    @property
    def size_bytes(self) -> int:
        """Size of the segment files together."""
        with self._lock:
            return sum(segment.size for segment in self._segments)

    @property
    def pending_samples(self) -> int:
        """Samples in segments that are not wholly acknowledged; an upper bound of what is still to be sent."""
        with self._lock:
            return sum(s.samples for s in self._segments if s.last > self.acknowledged)

    def close(self) -> None:
        """Syncs and closes; the spool must not be appended to afterwards."""
        if self._file >= 0:
            with contextlib.suppress(OSError):
                self.sync()
            os.close(self._file)
            self._file = -1

    # ---- opening

    def _read_checkpoint(self) -> None:
        path = self.folder / "acknowledged.json"
        try:
            found = json.loads(path.read_text(encoding="ascii"))
            name, number, notes = found["spool"], int(found["acknowledged"]), dict(found["notes"])
            self.name = binascii.unhexlify(name)
        except FileNotFoundError:
            pass
        except (ValueError, KeyError, TypeError) as error:
            # Sending everything again is safe: ids are the same, so nothing is stored twice.
            log.warning("the spool's position is unreadable; everything in it is sent again",
                        extra={"file": str(path), "error": str(error)})
        else:
            self.acknowledged, self.notes = number, notes

    def _recover(self) -> None:
        paths = sorted(path for path in self.folder.iterdir() if path.suffix == _SUFFIX and path.stem.isdigit())
        for place, path in enumerate(paths):
            follower = int(paths[place + 1].stem) if place + 1 < len(paths) else None
            with path.open("rb") as file:
                head = file.read(_SEGMENT_HEADER_BYTES)
                if head.startswith(_SEGMENT_MAGIC) and len(head) == _SEGMENT_HEADER_BYTES:
                    self.name = self.name or head[len(_SEGMENT_MAGIC):]
                self._recover_segment(path, file, follower)
        self.name = self.name or secrets.token_bytes(_NAME_BYTES)
        numbers = [segment.last for segment in self._segments] + [self.acknowledged]
        if paths:
            # Beyond any number that may have been used in a lost tail: an id must never come twice.
            numbers.append(int(paths[-1].stem))
        self.next_number = max(numbers) + 1
        self.durable_number = self.next_number - 1

    def _recover_segment(self, path: Path, file: BinaryIO, follower: int | None) -> None:
        """``follower`` is the next segment's first number, None of the last one."""
        is_last = follower is None
        if is_last:
            _sync_file(path)  # what a killed process wrote and did not sync is read below, so it must be safe
        segment = _Segment(path, int(path.stem), os.fstat(file.fileno()).st_size)
        end, covered = _SEGMENT_HEADER_BYTES, _SEGMENT_HEADER_BYTES
        for at, frame in _frames_in(file):
            if follower is not None and frame.number >= follower:
                break  # its disk took it after all, when it had been appended again
            if at > end:
                self.counts.damaged_stretches += 1
            end = covered = at + _FRAME.size + len(frame.payload)
            segment.samples += frame.samples
            segment.last = frame.number
        if covered < segment.size:
            self.counts.damaged_stretches += 1
            log.warning("the end of a spool segment is torn; what was safe is kept",
                        extra={"file": str(path), "unreadable_bytes": segment.size - covered})
            if is_last:
                os.truncate(path, covered)
                segment.size = covered
        if segment.last == 0 or segment.last <= self.acknowledged:
            path.unlink(missing_ok=True)
        else:
            self._segments.append(segment)


class SpoolFullError(OSError):
    """The spool has reached its limit and its policy keeps what is there."""

    def __init__(self, samples: int) -> None:
        super().__init__(errno.EDQUOT, "the archive spool has reached archive.spool.limit")
        self.samples = samples


def _frames_in(file: BinaryIO) -> Iterator[tuple[int, Frame]]:
    """(place, frame) of each frame whose CRC is right, with numbers that rise; looks on behind damage.

    One frame is in memory at a time, unless there is damage: then what is left of the segment.
    """
    at, last = _SEGMENT_HEADER_BYTES, 0
    while True:
        file.seek(at)
        head = file.read(_FRAME.size)
        frame = _frame_at(head + file.read(_length_in(head)), 0)
        if frame is None or frame.number <= last:
            break
        yield at, frame
        last = frame.number
        at += _FRAME.size + len(frame.payload)
    file.seek(at)
    for place, frame in _scan(file.read(), last):
        yield at + place, frame


def _length_in(head: bytes) -> int:
    """How long a frame's payload is; 0 where its head is none."""
    if len(head) < _FRAME.size or not head.startswith(_FRAME_MAGIC):
        return 0
    length: int = _FRAME.unpack(head)[1]
    return length if length <= _LONGEST_FRAME else 0


def _scan(data: bytes, last: int) -> Iterator[tuple[int, Frame]]:
    """As `_frames_in`, of bytes that begin anywhere."""
    at = 0
    while (at := data.find(_FRAME_MAGIC, at)) >= 0:
        frame = _frame_at(data, at)
        if frame is None or frame.number <= last:
            at += 1
            continue
        yield at, frame
        last = frame.number
        at += _FRAME.size + len(frame.payload)


def _frame_at(data: bytes, at: int) -> Frame | None:
    if at + _FRAME.size > len(data):
        return None
    _, length, crc, kind, number, samples = _FRAME.unpack_from(data, at)
    end = at + _FRAME.size + length
    if length > _LONGEST_FRAME or end > len(data) or zlib.crc32(memoryview(data)[at + _CHECKED_FROM:end]) != crc:
        return None
    return Frame(number, kind, samples, data[at + _FRAME.size:end])


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view):]


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

