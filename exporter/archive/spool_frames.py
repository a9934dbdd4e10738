"""Frames of the spool, as they stand in a segment's file.

A frame is ``magic | payload length | CRC-32 | kind | number | samples`` and the payload.  The CRC covers everything
behind it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

SAMPLES, SEAL = 1, 2
"""Kinds of frames: a tick's samples; the end of a window before its time (no payload)."""

SEGMENT_MAGIC = b"VGSPOOL1"
NAME_BYTES = 16
SEGMENT_HEADER_BYTES = len(SEGMENT_MAGIC) + NAME_BYTES
_FRAME_MAGIC = b"VGf\xf1"
_FRAME = struct.Struct("<4sIIBQI")
_CHECKED_FROM = 12  # kind, number, samples and payload are under the CRC
_LONGEST_FRAME = 1 << 30
HEAD_BYTES = _FRAME.size


@dataclass(frozen=True, slots=True)
class Frame:
    """``number`` counts frames from 1 on over the spool's life; ``samples`` is how many objects' samples it has."""

    number: int
    kind: int
    samples: int
    payload: bytes

    def packed(self) -> bytes:
        """As it stands in a segment."""
        size = len(self.payload)
        head = _FRAME.pack(_FRAME_MAGIC, size, 0, self.kind, self.number, self.samples)
        crc = zlib.crc32(self.payload, zlib.crc32(head[_CHECKED_FROM:]))
        return _FRAME.pack(_FRAME_MAGIC, size, crc, self.kind, self.number, self.samples) + self.payload


def frames_between(path: Path, after: int, below: int) -> Iterator[Frame]:
    """The frames of a segment's file with a number above ``after`` and below ``below``; none where it is gone."""
    try:
        file = path.open("rb")
    except FileNotFoundError:  # dropped meanwhile
        return
    with file:
        for _, frame in frames_in(file):
            if after < frame.number < below:
                yield frame


def frames_in(file: BinaryIO) -> Iterator[tuple[int, Frame]]:
    """(place, frame) of each frame whose CRC is right, with numbers that rise; looks on behind damage.

    One frame is in memory at a time, unless there is damage: then what is left of the segment.
    """
    at, last = SEGMENT_HEADER_BYTES, 0
    while True:
        file.seek(at)
        head = file.read(HEAD_BYTES)
        frame = _frame_at(head + file.read(_length_in(head)), 0)
        if frame is None or frame.number <= last:
            break
        yield at, frame
        last = frame.number
        at += HEAD_BYTES + len(frame.payload)
    file.seek(at)
    for place, frame in _scan(file.read(), last):
        yield at + place, frame


def _length_in(head: bytes) -> int:
    """How long a frame's payload is; 0 where its head is none."""
    if len(head) < HEAD_BYTES or not head.startswith(_FRAME_MAGIC):
        return 0
    length: int = _FRAME.unpack(head)[1]
    return length if length <= _LONGEST_FRAME else 0


def _scan(data: bytes, last: int) -> Iterator[tuple[int, Frame]]:
    """As `frames_in`, of bytes that begin anywhere."""
    at = 0
    while (at := data.find(_FRAME_MAGIC, at)) >= 0:
        frame = _frame_at(data, at)
        if frame is None or frame.number <= last:
            at += 1
            continue
        yield at, frame
        last = frame.number
        at += HEAD_BYTES + len(frame.payload)


def _frame_at(data: bytes, at: int) -> Frame | None:
    if at + HEAD_BYTES > len(data):
        return None
    _, length, crc, kind, number, samples = _FRAME.unpack_from(data, at)
    end = at + HEAD_BYTES + length
    if length > _LONGEST_FRAME or end > len(data) or zlib.crc32(memoryview(data)[at + _CHECKED_FROM:end]) != crc:
        return None
    return Frame(number, kind, samples, data[at + HEAD_BYTES:end])
