"""The quarantine: a file of documents that the database refuses for good, each once, as ``bsondump`` reads it.

It is bounded: once it takes an eighth of what the spool may, a further document is not kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import bson
from bson.raw_bson import RawBSONDocument

from exporter.archive.documents import Document

FILE_NAME = "quarantine.bson"
"""In the spool's folder."""
_PART_OF_SPOOL = 8
_LENGTH_BYTES = 4  # with which each document begins


class Quarantine:
    """Used by one thread.  ``path`` need not be there: it is made with the first document."""

    def __init__(self, path: Path, limit_bytes: int) -> None:
        self.path = path
        self.limit_bytes = limit_bytes
        self._ids: set[bytes] | None = None
        self._size = 0

    def add(self, document: Document) -> bool:
        """Keeps a document, safe on the disk; False where it is there already: what is in doubt is sent again.

        Raises QuarantineFullError where it does not fit, OSError.
        """
        if self._ids is None:
            self._ids, self._size = self._stored()
        key = bytes(document["_id"])
        if key in self._ids:
            return False
        data = bson.encode(document)
        if self._size + len(data) > self.limit_bytes:
            raise QuarantineFullError(self.path)
        try:
            with open(self.path, "ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            self._ids = None  # a part of it may be there, which the next one must not follow
            raise
        self._ids.add(key)
        self._size += len(data)
        return True

    def _stored(self) -> tuple[set[bytes], int]:
        """(ids, bytes) of the file's whole documents; an end that a crash has torn is cut off."""
        ids: set[bytes] = set()
        end = 0
        for key, length in _documents_in(self.path):
            ids.add(key)
            end += length
        if self.path.exists() and self.path.stat().st_size > end:
            os.truncate(self.path, end)
        return ids, end


class QuarantineFullError(Exception):
    """The quarantine has no room for a document."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} has reached its limit")


def limit_of(spool_limit_bytes: int) -> int:
    """Bytes that the quarantine of a spool of this limit may take."""
    return spool_limit_bytes // _PART_OF_SPOOL


def kept_in(spool: Path) -> tuple[int, int]:
    """(documents, bytes) that are put aside in a spool's folder; no document is read for it."""
    try:
        with open(spool / FILE_NAME, "rb") as file:
            lengths = list(_lengths_in(file))
    except FileNotFoundError:
        return 0, 0
    return len(lengths), sum(lengths)


def _documents_in(path: Path) -> Iterator[tuple[bytes, int]]:
    """(id, length) of each whole document up to the first that is not; one at a time is in memory."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        at = 0
        for length in _lengths_in(file):
            file.seek(at)
            try:
                # Its columns stay bytes: to decode those of a full file would hold up every thread.
                key = bytes(RawBSONDocument(file.read(length))["_id"])
            except (bson.errors.BSONError, KeyError, TypeError):
                return
            at += length
            yield key, length


def _lengths_in(file: BinaryIO) -> Iterator[int]:
    """The length of each document that ends within the file; nothing else is read."""
    size, at = os.fstat(file.fileno()).st_size, 0
    while True:
        file.seek(at)
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if length <= _LENGTH_BYTES or at + length > size:
            return
        yield length
        at += length
