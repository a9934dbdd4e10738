"""What the spool holds of one object in a span: the samples that the database does not have yet.

In an outage that may be hours of them, and a frame holds those of all objects.  So the newest are read first, within
a time and a number of values; what is older than that is said to be left out.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from uuid import UUID

from exporter.archive.document_reader import Unsent
from exporter.archive.documents import VALUES, Column, Document, milliseconds
from exporter.archive.raw_columns import only_columns
from exporter.archive.spool import Spool
from exporter.archive.spool_frames import SAMPLES, Frame
from exporter.archive.ticks import wall_ms_of
from exporter.archive.timespan import Span
from exporter.archive.windows import Group, Grouper

MOST_S = 10.0
"""After that no further segment of the spool is begun."""
MOST_VALUES = 1_000_000
"""In one answer; some 40 bytes each."""


def unsent(spool: Spool, uuid: UUID, span: Span, columns: Sequence[Column], *, most_s: float = MOST_S,
           most_values: int = MOST_VALUES) -> Unsent:
    """An object's samples of the span that are not acknowledged, in documents whose ids are not those to be stored.

    Some may be stored already: tell them apart by time.  Any thread; blocks.
    """
    begin_ms, end_ms = int(span.start_s * 1000), int(span.end_s * 1000)
    stop_s = time.monotonic() + most_s
    found: deque[Document] = deque()
    room, oldest_ms = most_values, end_ms
    for place, frames in enumerate(spool.frames_newest_first(spool.acknowledged)):
        if time.monotonic() > stop_s:
            return Unsent(tuple(found), oldest_ms / 1000)
        segment = _Segment(frames, begin_ms, end_ms, is_newest=place == 0)
        documents = (only_columns(document, columns) for group in segment.groups()
                     for document in group.documents(spool.name, uuid))
        kept, room = _newest(documents, room)
        found.extendleft(reversed(kept))
        if room < 0:
            return Unsent(tuple(found), milliseconds(found[0]["start"]) / 1000)
        if segment.newest_ms is not None and segment.newest_ms < begin_ms:
            break
        oldest_ms = min(oldest_ms, segment.oldest_ms)
    return Unsent(tuple(found))


def _newest(documents: Iterable[Document], room: int) -> tuple[deque[Document], int]:
    """The newest documents, at least one, that have so many values, and what room they leave; less than 0 if none."""
    kept: deque[Document] = deque()
    cut = False
    for document in documents:
        kept.append(document)
        room -= _size(document)
        while room < 0 and len(kept) > 1:
            room += _size(kept.popleft())
            cut = True
    return kept, -1 if cut else room


class _Segment:
    """The frames of one segment: only what is in the span is decoded.

    One that begins behind the span's end is not read on, so that a span of long ago takes no longer than others.
    The newest is: after a clock that was set back, the latest samples are earlier than its first.
    """

    def __init__(self, frames: Iterator[Frame], begin_ms: int, end_ms: int, *, is_newest: bool) -> None:
        self.newest_ms: int | None = None
        self.oldest_ms = end_ms
        self._frames = frames
        self._begin_ms = begin_ms
        self._end_ms = end_ms
        self._is_newest = is_newest

    def groups(self) -> Iterator[Group]:
        """Its windows in order; the first and the last may go on in its neighbours."""
        grouper = Grouper()
        for frame in self._frames:
            wall_ms = wall_ms_of(frame.payload) if frame.kind == SAMPLES else None
            if wall_ms is not None:
                if self.newest_ms is None and wall_ms >= self._end_ms and not self._is_newest:
                    return  # newer throughout: the rest would be read only to be left out
                self.newest_ms = max(wall_ms, self.newest_ms or wall_ms)
                self.oldest_ms = min(wall_ms, self.oldest_ms)
                if not self._begin_ms <= wall_ms < self._end_ms:
                    continue
            ended = grouper.add(frame)
            if ended is not None:
                yield ended
        if grouper.open is not None:
            yield grouper.open


def _size(document: Document) -> int:
    count: int = document["count"]
    devices = [device for group in document.values() if isinstance(group, list) for device in group
               if isinstance(device, dict)]
    return count * (1 + len(document.get(VALUES, ())) + sum(len(device) - 1 for device in devices))
