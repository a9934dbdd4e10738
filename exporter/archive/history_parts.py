"""Which resolution covers which part of a span, and the points of all parts together."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt

from exporter.archive.document_reader import DocumentReader
from exporter.archive.documents import (
    RAW,
    RESOLUTIONS,
    VALUES,
    Column,
    Document,
    Resolution,
    milliseconds,
    moment,
    partition_span,
)
from exporter.archive.field_points import columns_of, raw_points, rollup_paths, rollup_points
from exporter.archive.history_fields import HistoryField
from exporter.archive.points import Floats, Points, join
from exporter.archive.raw_columns import RESTART_COLUMNS, RawColumns, raw_columns
from exporter.archive.rollup_columns import rollup_columns
from exporter.archive.timespan import Span

_SAME_S = 0.2
"""Samples of an object that are nearer and equal are one: a window that is read from its middle on counts from another
sample's clock. After a clock that was set back others may be as near, but their CPU time is not the same."""


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of the span and what it was read from: `raw`, `five_minutes` or `hourly`."""

    resolution: str
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class FoundParts:
    """Points of each (field, device), ascending in time, and what they were read from.

    `unsealed`: samples that the database does not have are among them; `left_out_before_s`: older such ones may not be.
    """

    parts: list[Part]
    points: dict[tuple[HistoryField, str], Points]
    unsealed: bool
    left_out_before_s: float


class PartReader:
    """One question: which resolution covers which part of the span."""

    def __init__(
        self, documents: DocumentReader, uuid: UUID, fields: Sequence[HistoryField]
    ) -> None:
        self._documents = documents
        self._names = documents.collection_names()
        self._uuid = uuid
        self._fields = tuple(fields)
        self._columns = tuple(dict.fromkeys(column for field in fields for column in columns_of(field)))
        self._paths = tuple(dict.fromkeys(path for field in fields for path in rollup_paths(field)))
        self._parts: list[Part] = []
        self._pieces: dict[tuple[HistoryField, str], list[Points]] = {}
        self._live = False
        self._left_out_before_s = 0.0

    def read(self, span: Span, resolution: Resolution) -> FoundParts:
        """Every point of the span at that resolution, and at others where it does not reach. Once an object."""
        order = RESOLUTIONS.index(resolution)
        while order and self._begin_s(RESOLUTIONS[order]) == float("inf"):
            order -= 1  # no roll-up is made yet: the archive's first hour, or day
        begins_s = self._begin_s(RESOLUTIONS[order])
        if begins_s > span.start_s and order + 1 < len(RESOLUTIONS):
            # Older than the oldest partition: dropped at this resolution, perhaps kept at a coarser one.
            self._read_coarser(Span(span.start_s, min(begins_s, span.end_s)), order + 1)
            if RESOLUTIONS[order] is RAW:
                read_s = self._parts[-1].end_s if self._parts else span.start_s
                begins_s = self._oldest_unsent_s(Span(read_s, min(begins_s, span.end_s)), begins_s)
        if begins_s < span.end_s:
            self._read_down(Span(max(span.start_s, begins_s), span.end_s), order)
        points = {(f, device): _joined(f, pieces) for (f, device), pieces in self._pieces.items()}
        return FoundParts(self._parts, points, self._live, self._left_out_before_s)

    def _begin_s(self, resolution: Resolution) -> float:
        """Where the oldest partition begins; infinite where there is none, except that raw may be unsent yet.

        In an archive that holds nothing all of it may be, for hours.
        """
        spans = [partition_span(name) for name in self._names if name.startswith(resolution.name + "_")]
        begins = [span[0].timestamp() for span in spans if span is not None]
        if begins or resolution is not RAW:
            return min(begins, default=float("inf"))
        return time.time() - 3600 if any(map(partition_span, self._names)) else 0.0

    def _oldest_unsent_s(self, span: Span, begins_s: float) -> float:
        """Where raw begins: the first unsent sample of the span, which nothing stored covers, or else `begins_s`.

        Such samples are older than all that is stored where the clock was set back over midnight on the first day.
        """
        if span.start_s >= span.end_s:
            return begins_s
        unsent = self._documents.unsealed(self._uuid, span, ())
        if unsent.left_out_before_s > span.start_s:
            self._left_out_before_s = unsent.left_out_before_s
        starts: list[float] = [document["start"].timestamp() for document in unsent.documents]
        return max(span.start_s, min([begins_s, *starts]))

    def _read_coarser(self, span: Span, order: int) -> None:
        """The coarser resolutions, the finest first, for what is older than the finer ones reach."""
        begins_s = self._begin_s(RESOLUTIONS[order])
        if begins_s > span.start_s and order + 1 < len(RESOLUTIONS):
            self._read_coarser(Span(span.start_s, min(begins_s, span.end_s)), order + 1)
        if begins_s < span.end_s:
            self._read_rollups(Span(max(span.start_s, begins_s), span.end_s), RESOLUTIONS[order])

    def _read_down(self, span: Span, order: int) -> None:
        """This resolution up to where it ends, then the finer ones."""
        if order == 0:
            self._read_raw(span)
            return
        end_s = self._read_rollups(span, RESOLUTIONS[order])
        if end_s < span.end_s:
            self._read_down(Span(max(span.start_s, end_s), span.end_s), order - 1)

    def _read_rollups(self, span: Span, resolution: Resolution) -> float:
        documents = self._documents.documents(self._names, resolution, self._uuid, span, self._paths)
        rolled = rollup_columns(documents, self._columns)
        end_s = min(max(rolled.end_s, span.start_s), span.end_s)
        if end_s > span.start_s:
            self._parts.append(Part(resolution.name, span.start_s, end_s))
        for field in self._fields:
            for device, points in rollup_points(field, rolled).items():
                # The point in whose middle the span begins belongs to it.
                inside = points.between(span.start_s - resolution.step_s + 0.001, end_s)
                self._pieces.setdefault((field, device), []).append(inside)
        return end_s

    def _read_raw(self, span: Span) -> None:
        columns = [*self._columns, *(Column(VALUES, name, False, 1.0, "") for name in RESTART_COLUMNS)]
        unsent = self._documents.unsealed(self._uuid, span, columns)
        # Listed once the spool is read: what was sent meanwhile may be in a partition that was made for it.
        names = self._documents.collection_names()
        stored = list(self._documents.documents(names, RAW, self._uuid, span, columns))
        live = [d for d in unsent.documents if d["start"].timestamp() < span.end_s]
        self._live = bool(live)
        if unsent.left_out_before_s > span.start_s:
            self._left_out_before_s = max(self._left_out_before_s, unsent.left_out_before_s)
        raw = raw_columns(_merged(stored, live, columns), columns)
        self._parts.append(Part(RAW.name, span.start_s, span.end_s))
        for field in self._fields:
            for device, points in raw_points(field, raw).items():
                inside = points.between(span.start_s, span.end_s)
                self._pieces.setdefault((field, device), []).append(inside)


def _merged(
    stored: list[Mapping[str, Any]], live: Sequence[Document], columns: Sequence[Column]
) -> list[Mapping[str, Any]]:
    """Stored documents and what the unsealed ones have beyond them, by start; a sample that is in both counts once.

    Told apart by time and values, and not by where the stored ones end: after a clock that was set back new ones are
    earlier, or stand beside stored ones.
    """
    begins_ms = min((milliseconds(document["start"]) for document in live), default=0)
    found = list(stored)
    for host in {bytes(document["host"]) for document in live}:
        near = [document for document in stored if bytes(document["host"]) == host
                and milliseconds(document["end"]) >= begins_ms - _SAME_S * 1000]
        found += _beyond([document for document in live if bytes(document["host"]) == host], near, columns)
    return sorted(found, key=lambda document: document["start"])


def _beyond(
    live: Sequence[Document], stored: Sequence[Mapping[str, Any]], columns: Sequence[Column]
) -> list[Document]:
    """One host's raw documents without the samples that are stored, without those that are left with none."""
    new = ~_in_both(raw_columns(live, columns), raw_columns(stored, columns))
    ends = np.cumsum([len(document["offsets_ms"]) for document in live])
    parts = zip(live, np.split(new, ends[:-1]), strict=True)
    return [_rows(document, np.flatnonzero(part).tolist()) for document, part in parts if part.any()]


def _in_both(mine: RawColumns, others: RawColumns) -> npt.NDArray[np.bool_]:
    """Which of these samples the others have, too: at the same time, with the same values."""
    order = np.argsort(others.times_s, kind="stable")
    first = np.searchsorted(others.times_s[order], mine.times_s - _SAME_S, side="left")
    end = np.searchsorted(others.times_s[order], mine.times_s + _SAME_S, side="right")
    found = np.zeros(len(mine.times_s), dtype=np.bool_)
    for step in range(int((end - first).max(initial=0))):
        rows = np.flatnonzero(first + step < end)
        places = order[first[rows] + step]
        alike = np.ones(len(rows), dtype=np.bool_)
        for key in mine.columns.keys() | others.columns.keys():
            alike &= _equal(mine.column(*key)[rows], others.column(*key)[places])
        found[rows] |= alike
    return found


def _equal(one: Floats, other: Floats) -> npt.NDArray[np.bool_]:
    equal: npt.NDArray[np.bool_] = (one == other) | (np.isnan(one) & np.isnan(other))
    return equal


def _rows(document: Document, rows: list[int]) -> Document:
    """These samples of a raw document, as a document."""
    if len(rows) == len(document["offsets_ms"]):
        return document
    shift = document["offsets_ms"][rows[0]] if rows else 0
    found: Document = {**document, "start": moment(milliseconds(document["start"]) + shift)}
    found["offsets_ms"] = [document["offsets_ms"][row] - shift for row in rows]
    for group, columns in document.items():
        if group == VALUES:
            found[group] = {name: [column[row] for row in rows] for name, column in columns.items()}
        elif isinstance(columns, list) and group != "offsets_ms":
            found[group] = [
                {name: column if name == "device" else [column[row] for row in rows]
                 for name, column in device.items()}
                for device in columns
            ]
    return found


def _joined(field: HistoryField, pieces: Sequence[Points]) -> Points:
    """One after the other. A counter's growth out of roll-ups is moved to end where the next piece begins."""
    if not field.is_counter:
        return join(list(pieces))
    found: list[Points] = []
    for piece in reversed(pieces):
        mine, following = piece.known(), found[-1].known() if found else piece.known()
        if found and len(mine) and len(following):
            shift = float(following.average[0] - mine.average[-1])
            piece = replace(
                piece, minimum=piece.minimum + shift, average=piece.average + shift, maximum=piece.maximum + shift
            )
        found.append(piece)
    return join(found[::-1])
