"""What a reader is told when the archive does not answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pymongo.database import Database
from pymongo.errors import AutoReconnect, ExecutionTimeout, OperationFailure, PyMongoError

from exporter.archive.errors import ArchiveError


class HistoryError(ArchiveError):
    """The archive cannot be read: not reachable, not allowed, or of a newer schema."""


@contextmanager
def telling_failures(database: Database[Any]) -> Iterator[None]:
    """Turns pymongo's errors into HistoryError, with the database's name, the cause and the next step."""
    try:
        yield
    except PyMongoError as error:
        raise HistoryError(f"archive database {database.name!r}: {_cause(error)}") from error


def _cause(error: PyMongoError) -> str:
    # pymongo's texts hold hosts, ports and codes, never credentials; topology descriptions are cut off.
    text = str(error).partition(", Topology Description")[0].partition(", full error")[0][:300]
    if isinstance(error, ExecutionTimeout):
        return f"the query took too long ({text}); ask for a shorter span"
    if isinstance(error, AutoReconnect):
        return f"not reachable ({text}); see that the server runs and archive.uri names it"
    if isinstance(error, OperationFailure) and error.code in (13, 18):
        return f"not allowed ({text}); check user and password, and that the user may read this database"
    return text
