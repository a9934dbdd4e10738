"""Finds documents of the archive: the right partitions, the index, RawBSON, one schema version. Reads only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias
from uuid import UUID

from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from pymongo.database import Database as PyMongoDatabase

from exporter.archive.documents import (
    META,
    RAW,
    SCHEMA_VERSION,
    Column,
    Document,
    Resolution,
    binary_uuid,
    moment,
)
from exporter.archive.history_errors import HistoryError
from exporter.archive.raw_columns import wanted_projection
from exporter.archive.timespan import Span

QUERY_TIME_MS = 30_000
"""What the server gives one query."""
ANSWER_S = 50.0
"""What all queries of one question may take: the APIs end a request after 60 s, and a thread must not read on."""

_HEAD = ("schema", "start", "end", "host", "offsets_ms")
# A window is at most 300 s long (archive.window); the sample before the span is needed for its first rate.
_RAW_MARGIN_S = 330.0

Database: TypeAlias = PyMongoDatabase[Any]
"""A database as pymongo gives it, whatever its documents are decoded to."""


@dataclass(frozen=True, slots=True)
class Unsent:
    """Raw documents, oldest first, of samples that the database does not have, or may have; these columns only.

    `left_out_before_s`: there may be older ones in the span, which would have taken too long; 0 where there are not.
    """

    documents: Sequence[Document] = ()
    left_out_before_s: float = 0.0


Unsealed = Callable[[UUID, Span, Sequence[Column]], Unsent]
"""What of an object and a span is not in the database yet; any thread, blocks."""


class DocumentReader:
    """Answers one question from one database. Any thread; blocks, raises what pymongo raises, and HistoryError."""

    def __init__(self, database: Database, unsealed: Unsealed | None = None) -> None:
        options: CodecOptions[Any] = CodecOptions(document_class=RawBSONDocument, tz_aware=True)
        self.database = database
        self._raw_database = database.with_options(codec_options=options)
        self._unsealed = unsealed
        self._until_s = time.monotonic() + ANSWER_S

    def collection_names(self) -> list[str]:
        """Names of all collections."""
        return self.database.list_collection_names()

    def documents(
        self, names: Sequence[str], resolution: Resolution, uuid: UUID, span: Span,
        columns: Sequence[Column | tuple[Column, str]],
    ) -> Iterator[Mapping[str, Any]]:
        """The documents of these collections that may reach into the span, by start; with these columns only."""
        margin_s = _RAW_MARGIN_S if resolution is RAW else resolution.span_s
        since, until = moment(max(0, int((span.start_s - margin_s) * 1000))), moment(int(span.end_s * 1000))
        projection = wanted_projection(columns, (*_HEAD, "_id" if resolution is RAW else "samples"))
        for name in resolution.collections(names, since, until + timedelta(milliseconds=1)):
            # No hint: it makes the embedded server walk the whole index, and there is one index that fits anyway.
            cursor = self._raw_database[name].find(
                {"uuid": binary_uuid(uuid), "start": {"$gte": since, "$lt": until}},
                projection,
                sort=[("start", 1)],
                batch_size=500,
                max_time_ms=QUERY_TIME_MS,
            )
            for document in cursor:
                _check_version(document.get("schema"), name)
                yield document
            if time.monotonic() > self._until_s:
                raise HistoryError(f"the archive took longer than {ANSWER_S:g} s to read; ask for a shorter span")

    def unsealed(self, uuid: UUID, span: Span, columns: Sequence[Column]) -> Unsent:
        """What is not in the database yet.  To be asked before the database: what is sent meanwhile is in both."""
        if self._unsealed is None:
            return Unsent()
        return self._unsealed(uuid, Span(max(0.0, span.start_s - _RAW_MARGIN_S), span.end_s), columns)

    def check_schema(self) -> None:
        """Raises HistoryError where the database is of a newer schema than this program knows."""
        found = self.database[META].find_one({"_id": "schema"}, max_time_ms=QUERY_TIME_MS)
        if found is not None:
            _check_version(found.get("version"), META)


def _check_version(version: object, where: str) -> None:
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise HistoryError(
            f"the archive's {where} has schema version {version}, this virtgauge knows {SCHEMA_VERSION}; "
            "read it with the newer virtgauge that wrote it"
        )
