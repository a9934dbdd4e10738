"""The spool: frames on the local disk that are safe once ``sync`` returned, until the database has them.

A folder of segment files named by their first frame's number.  A segment begins with a magic and the spool's own
random name; spool_frames.py tells what a frame is.  After a damaged stretch, reading goes on at the next frame whose
CRC is right; the unreadable end that a crash leaves is cut off.
"""

from __future__ import annotations

import binascii
import contextlib
import errno
import json
import logging
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from exporter.archive.errors import SpoolError
from exporter.archive.spool_frames import (
    HEAD_BYTES,
    NAME_BYTES,
    SEGMENT_HEADER_BYTES,
    SEGMENT_MAGIC,
    Frame,
    frames_between,
    frames_in,
)

log = logging.getLogger(__name__)

_PROTECTED_SEGMENTS = 2  # may hold what is being sent; the oldest of the others is dropped when the spool is full
_SUFFIX = ".spool"


@dataclass(slots=True)
class _Segment:
    path: Path
    first: int
    size: int = 0
    samples: int = 0
    last: int = 0
    times: tuple[int, int] | None = None  # of its frames, from the oldest to the newest; of some more perhaps

    def note(self, wall_ms: int | None) -> None:
        if wall_ms is not None:
            first_ms, last_ms = self.times or (wall_ms, wall_ms)
            self.times = min(first_ms, wall_ms), max(last_ms, wall_ms)


@dataclass(frozen=True, slots=True)
class Stretch:
    """The safe frames of one segment; its file is opened when they are read.

    Their times lie from ``oldest_ms`` to ``newest_ms``, in whatever order: a clock may have been set back.
    """

    frames: Iterator[Frame]
    oldest_ms: int
    newest_ms: int


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
    ``newest``.  ``wall_ms_of`` gives a frame's time, None where it has none.
    """

    def __init__(self, folder: Path, limit_bytes: int = 8 << 30, drop: str = "oldest", segment_bytes: int = 8 << 20,
                 wall_ms_of: Callable[[Frame], int | None] = lambda _: None) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self.counts = SpoolCounts()
        self.name = b""
        self.acknowledged = 0
        self.notes: dict[str, object] = {}
        self.next_number = 1
        self.durable_number = 0
        self._drop = drop
        self._wall_ms_of = wall_ms_of
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
        plain = Frame(number, kind, samples, payload)
        frame = plain.packed()
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
            segment.note(self._wall_ms_of(plain))
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
            _write_all(file, SEGMENT_MAGIC + self.name)
            _sync_folder(self.folder)
        except OSError:
            os.close(file)
            path.unlink(missing_ok=True)
            raise
        if self._file >= 0:
            os.close(self._file)
        self._file, self._spoilt = file, False
        segment = _Segment(path, number, SEGMENT_HEADER_BYTES)
        with self._lock:
            self._segments.append(segment)
        self._synced = SEGMENT_HEADER_BYTES, 0, 0
        return segment

    # ---- reading

    def frames(self, after: int) -> Iterator[Frame]:
        """Frames with a number above ``after`` that are safe on the disk, in order.  Damage is stepped over."""
        for _, frames in self._safe(after):
            yield from frames

    def newest_first(self, after: int) -> list[Stretch]:
        """As ``frames``, segment by segment from the newest back, in order within each; of those that have times."""
        found = [(segment.times, frames) for segment, frames in self._safe(after)]
        return [Stretch(frames, *times) for times, frames in reversed(found) if times is not None]

    def _safe(self, after: int) -> list[tuple[_Segment, Iterator[Frame]]]:
        """The safe frames of each segment that may have some above ``after``; a file is opened when it is read."""
        durable = self.durable_number  # first: a number up to it is then nowhere but where these segments say
        with self._lock:
            segments = list(self._segments)
        found = []
        for place, segment in enumerate(segments):
            follower = segments[place + 1].first if place + 1 < len(segments) else durable + 1
            if follower - 1 > after and not 0 < segment.last <= after:
                found.append((segment, frames_between(segment.path, after, min(durable + 1, follower))))
        return found

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
                head = file.read(SEGMENT_HEADER_BYTES)
                if head.startswith(SEGMENT_MAGIC) and len(head) == SEGMENT_HEADER_BYTES:
                    self.name = self.name or head[len(SEGMENT_MAGIC):]
                self._recover_segment(path, file, follower)
        self.name = self.name or secrets.token_bytes(NAME_BYTES)
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
        end, covered = SEGMENT_HEADER_BYTES, SEGMENT_HEADER_BYTES
        for at, frame in frames_in(file):
            if follower is not None and frame.number >= follower:
                break  # its disk took it after all, when it had been appended again
            if at > end:
                self.counts.damaged_stretches += 1
            end = covered = at + HEAD_BYTES + len(frame.payload)
            segment.samples += frame.samples
            segment.last = frame.number
            segment.note(self._wall_ms_of(frame))
        # Where the follower goes on with the next number, no frame is missing: the rest is what could not be cut off.
        if covered < segment.size and (follower is None or segment.last + 1 < follower):
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

