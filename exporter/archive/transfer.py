"""The archive as a file and back: NDJSON that can be imported into another database, CSV for everything else.

NDJSON: the first line says what the file is; each further one is {"collection": ..., "document": ...} with the
document in MongoDB's relaxed Extended JSON, whose re-reading gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from bson import json_util
from bson.codec_options import CodecOptions
from pymongo import UpdateOne
from pymongo.errors import BulkWriteError

from exporter.archive.connection import check_schema
from exporter.archive.document_reader import Database
from exporter.archive.documents import (
    HOSTS,
    OBJECTS,
    RAW,
    RESOLUTIONS,
    SCHEMA_VERSION,
    VALUES,
    Document,
    binary_uuid,
    milliseconds,
    moment,
    partition_span,
)
from exporter.archive.errors import ArchiveError
from exporter.archive.history_errors import telling_failures
from exporter.archive.partitions import prepare_partition
from exporter.archive.timespan import Span, iso

FORMAT = "virtgauge archive"
CSV_COLUMNS = ("time", "host", "kind", "name", "uuid", "group", "device", "column", "value")
_BATCH = 200
_DUPLICATE = 11000
_OPTIONS: CodecOptions[Any] = CodecOptions(tz_aware=True)
_JSON = json_util.RELAXED_JSON_OPTIONS.with_options(tz_aware=True)

Progress = Callable[[str, int], None]
"""Called with what is being done and how many more documents were done."""


@dataclass(slots=True)
class Imported:
    """What an import did: documents new and there already, objects and hosts brought up to date."""

    new: int = 0
    known: int = 0
    updated: int = 0


def exported_collections(database: Database, span: Span, raw_only: bool = False) -> list[str]:
    """The collections that may hold documents of the span, in the order of an export; raises HistoryError."""
    since, until = moment(int(span.start_s * 1000)), moment(int(span.end_s * 1000))
    with telling_failures(database):
        check_schema(database, create=False)
        names = database.list_collection_names()
    partitions = [name for resolution in ((RAW,) if raw_only else RESOLUTIONS)
                  for name in resolution.collections(names, since, until)]
    return partitions if raw_only else [OBJECTS, HOSTS, *partitions]


def exported_documents(
    database: Database, names: Iterable[str], span: Span, uuid: UUID | None, progress: Progress
) -> Iterator[tuple[str, Document]]:
    """(collection, document) of what starts in the span, of one object where `uuid` is given; raises HistoryError."""
    since, until = moment(int(span.start_s * 1000)), moment(int(span.end_s * 1000))
    with telling_failures(database):
        for name in names:
            for document in _documents(database, name, since, until, uuid):
                progress(name, 1)
                yield name, document


def _documents(
    database: Database, name: str, since: datetime, until: datetime, uuid: UUID | None
) -> Iterable[Document]:
    if name not in (OBJECTS, HOSTS):
        return _partition(database, name, since, until, uuid)
    condition = {"uuid": binary_uuid(uuid)} if uuid and name == OBJECTS else {}
    return database.get_collection(name, codec_options=_OPTIONS).find(condition)


def _partition(
    database: Database, name: str, since: datetime, until: datetime, uuid: UUID | None
) -> Iterator[Document]:
    collection = database.get_collection(name, codec_options=_OPTIONS)
    if uuid is not None:
        condition = {"uuid": binary_uuid(uuid), "start": {"$gte": since, "$lt": until}}
        yield from collection.find(condition, batch_size=_BATCH)
        return
    for document in collection.find({}, batch_size=_BATCH):  # all of it: an index would not help
        if since <= document["start"] < until:
            yield document


def ndjson_lines(documents: Iterable[tuple[str, Document]], now_s: float) -> Iterator[str]:
    """The file's lines, each with its end."""
    yield json.dumps({"format": FORMAT, "schema": SCHEMA_VERSION, "exported": iso(now_s)}) + "\n"
    for name, document in documents:
        text = json_util.dumps({"collection": name, "document": document}, json_options=_JSON)
        yield text + "\n"


def csv_rows(documents: Iterable[tuple[str, Document]]) -> Iterator[tuple[object, ...]]:
    """One row a value of raw documents, in CSV_COLUMNS' order; what is unknown is left out."""
    for _, document in documents:
        start_ms = milliseconds(document["start"])
        times = [iso((start_ms + offset) / 1000) for offset in document["offsets_ms"]]
        head = (document["host_name"], document["kind"], document["name"], document["uuid"].as_uuid())
        for group, device, column, values in _columns(document):
            for time, value in zip(times, values, strict=True):
                if value is not None:
                    yield (time, *head, group, device, column, value)


def _columns(document: Mapping[str, Any]) -> Iterator[tuple[str, str, str, list[Any]]]:
    for group, found in document.items():
        if group == VALUES:
            yield from ((group, "", name, values) for name, values in found.items())
        elif isinstance(found, list) and group != "offsets_ms":
            for entry in found:
                yield from ((group, entry["device"], name, v) for name, v in entry.items() if name != "device")


def parsed_lines(lines: Iterable[bytes]) -> Iterator[tuple[str, Document]]:
    """(collection, document) of an exported file's lines; raises ArchiveError naming the first that is wrong."""
    number = 0
    for number, line in enumerate(lines, 1):
        if number == 1:
            _check_header(line)
        elif line.strip():
            yield _parsed(line, number)
    if not number:
        raise ArchiveError("the file is empty; give one that 'virtgauge archive export --format ndjson' wrote")


def _check_header(line: bytes) -> None:
    try:
        header = json.loads(line)
        form, schema = header["format"], header["schema"]
    except (ValueError, KeyError, TypeError):
        form, schema = None, None
    if form != FORMAT or not isinstance(schema, int):
        raise ArchiveError(
            "line 1 does not say that this is a virtgauge archive; "
            "give a file that 'virtgauge archive export --format ndjson' wrote"
        )
    if schema > SCHEMA_VERSION:
        raise ArchiveError(
            f"the file has schema version {schema}, this virtgauge knows {SCHEMA_VERSION}; "
            "import it with the newer virtgauge that wrote it"
        )


def _parsed(line: bytes, number: int) -> tuple[str, Document]:
    try:
        found = json_util.loads(line, json_options=_JSON)
        name, document = found["collection"], found["document"]
        _check(name, document)
    except ArchiveError as error:
        raise ArchiveError(f"line {number}: {error}") from None
    except Exception as error:  # noqa: BLE001  # json_util raises what its parts raise
        raise ArchiveError(
            f"line {number} holds no document ({type(error).__name__}: {str(error)[:100]}); export the file again"
        ) from None
    return name, document


def _check(name: object, document: object) -> None:
    if not isinstance(name, str) or not isinstance(document, dict) or "_id" not in document:
        raise ArchiveError("no collection or document; export the file again")
    if name in (OBJECTS, HOSTS):
        return
    span = partition_span(name)
    if span is None:
        raise ArchiveError(f"collection {name[:60]!r} is none of the archive; export the file again")
    schema = document.get("schema")
    if not isinstance(schema, int) or schema > SCHEMA_VERSION:
        raise ArchiveError(f"schema version {schema!r}, this virtgauge knows {SCHEMA_VERSION}; use a newer one")
    if not isinstance(document.get("start"), datetime) or not span[0] <= document["start"] < span[1]:
        raise ArchiveError(f"start is not within {name}; export the file again")


@dataclass(slots=True)
class Importer:
    """Writes parsed lines into a database; a document that is there already is left as it is."""

    database: Database
    compress: bool
    result: Imported = field(default_factory=Imported)
    _prepared: set[str] = field(default_factory=set)

    def run(self, documents: Iterable[tuple[str, Document]], progress: Progress) -> Imported:
        """Writes them all. Raises HistoryError where the database fails; what is written by then stays, and the
        same import may be run again.
        """
        with telling_failures(self.database):
            check_schema(self.database, create=True)
            batch: list[Document] = []
            current = ""
            for name, document in documents:
                if batch and (name != current or len(batch) >= _BATCH):
                    self._write(current, batch)
                    progress(current, len(batch))
                    batch = []
                current = name
                batch.append(document)
            if batch:
                self._write(current, batch)
                progress(current, len(batch))
        return self.result

    def _write(self, name: str, batch: list[Document]) -> None:
        if name in (OBJECTS, HOSTS):
            self.database[name].bulk_write([_merge(document) for document in batch], ordered=False)
            self.result.updated += len(batch)
            return
        if name not in self._prepared:
            prepare_partition(self.database, name, self.compress)
            self._prepared.add(name)
        try:
            self.database[name].insert_many(batch, ordered=False)
            self.result.new += len(batch)
        except BulkWriteError as error:
            errors = error.details.get("writeErrors", [])
            if error.details.get("writeConcernErrors") or any(e.get("code") != _DUPLICATE for e in errors):
                raise
            self.result.known += len(errors)
            self.result.new += len(batch) - len(errors)


def _merge(document: Document) -> UpdateOne:
    """Names as the file has them where they are new; the first and last time of both."""
    about = {key: value for key, value in document.items() if key not in ("_id", "first_seen", "last_seen")}
    update: dict[str, Any] = {"$setOnInsert": about} if about else {}
    for operator, key in (("$min", "first_seen"), ("$max", "last_seen")):
        if key in document:
            update[operator] = {key: document[key]}
    return UpdateOne({"_id": document["_id"]}, update, upsert=True)
