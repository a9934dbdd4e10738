"""What the spool holds of one object in a span: the samples that the database does not have yet.

In an outage that may be hours of them, and a frame holds those of all objects.  So only segments that reach into the
span are read, the newest first, within a time and a number of values; what is older is said to be left out.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from uuid import UUID

from exporter.archive.document_reader import Unsent
from exporter.archive.documents import VALUES, Column, Document, milliseconds
from exporter.archive.raw_columns import only_columns
from exporter.archive.spool import Spool, Stretch
from exporter.archive.spool_frames import Frame
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
    left = deque(stretch for stretch in spool.newest_first(spool.acknowledged)
                 if stretch.newest_ms >= begin_ms and stretch.oldest_ms < end_ms)
    while left:
        if time.monotonic() > stop_s:
            return Unsent(tuple(found), _left_out_before_s(oldest_ms, left, end_ms))
        stretch = left.popleft()
        documents = (only_columns(document, columns) for group in _groups(stretch.frames, begin_ms, end_ms)
                     for document in group.documents(spool.name, uuid))
        kept, room = _newest(documents, room)
        found.extendleft(reversed(kept))
        if room < 0:
            return Unsent(tuple(found), _left_out_before_s(milliseconds(found[0]["start"]), left, end_ms))
        oldest_ms = min(oldest_ms, stretch.oldest_ms)
    return Unsent(tuple(found))


def _left_out_before_s(read_ms: int, left: Iterable[Stretch], end_ms: int) -> float:
    """Where what was read begins; later, where the clock was set back and what is left goes on beyond that."""
    return min(end_ms, max([read_ms, *(stretch.newest_ms + 1 for stretch in left)])) / 1000


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


def _groups(frames: Iterable[Frame], begin_ms: int, end_ms: int) -> Iterator[Group]:
    """The windows of a segment in order, of frames in the span only; the first and the last may go on in others."""
    grouper = Grouper()
    for frame in frames:
        wall_ms = wall_ms_of(frame)
        if wall_ms is not None and not begin_ms <= wall_ms < end_ms:
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
