"""The archived audit trail, read back: the records of one host or all, as they were written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from exporter.archive.connection import Database
from exporter.archive.documents import binary_uuid
from exporter.archive.trail_documents import AUDIT


def audit_collections(database: Database, since: datetime | None = None) -> list[str]:
    """Names of the collections that may hold records from ``since`` on, in order of time.  Raises PyMongoError."""
    first = f"{since.astimezone(UTC).year:04d}" if since is not None else ""
    years = [(name.rpartition("_")[2], name) for name in database.list_collection_names()
             if name.startswith(f"{AUDIT.name}_")]
    return [name for year, name in sorted(years) if year.isdigit() and year >= first]


def archived_records(database: Database, *, host: UUID | None = None, domain: str | None = None,
                     since: datetime | None = None) -> Iterator[dict[str, Any]]:
    """Records in order of time, each as it stands in its trail, with ``host_name`` added.

    ``domain`` is a name or a UUID.  Raises PyMongoError as it comes.
    """
    condition: dict[str, Any] = {}
    if host is not None:
        condition["host"] = binary_uuid(host)
    if since is not None:
        condition["start"] = {"$gte": since}
    if domain is not None:
        condition |= _of_domain(domain)
    for name in audit_collections(database, since):
        for document in database[name].find(condition).sort([("start", 1), ("sequence", 1)]):
            yield {**json.loads(document["line"]), "host_name": document["host_name"]}


def _of_domain(domain: str) -> dict[str, Any]:
    try:
        return {"uuid": binary_uuid(UUID(domain))}
    except ValueError:
        return {"kind": "domain", "name": domain}
