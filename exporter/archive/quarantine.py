"""The quarantine: a file of documents that the database refuses for good, each once, as ``bsondump`` reads it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import bson

from exporter.archive.documents import Document


class Quarantine:
    """Used by one thread.  ``path`` need not be there: it is made with the first document."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ids: set[bytes] | None = None

    def add(self, document: Document) -> bool:
        """Keeps a document, safe on the disk; False where it is there already: what is in doubt is sent again.

        Raises OSError.
        """
        if self._ids is None:
            self._ids = set(self._stored())
        key = bytes(document["_id"])
        if key in self._ids:
            return False
        try:
            with open(self.path, "ab") as file:
                file.write(bson.encode(document))
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            self._ids = None  # a part of it may be there, which the next one must not follow
            raise
        self._ids.add(key)
        return True

    def _stored(self) -> Iterator[bytes]:
        """The ids of the file's whole documents; an end that a crash has torn is cut off."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return
        at = 0
        while at + 4 <= len(data):
            end = at + int.from_bytes(data[at:at + 4], "little")
            try:
                yield bytes(bson.decode(data[at:end])["_id"])
            except (bson.errors.BSONError, KeyError):
                break
            at = end
        if at < len(data):
            os.truncate(self.path, at)
