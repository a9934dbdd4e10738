"""Domains that the archive knows: by name or UUID, and all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions

from exporter.archive.document_reader import QUERY_TIME_MS, Database
from exporter.archive.documents import OBJECTS, SEEN_AGAIN_MS, binary_uuid
from exporter.archive.history_errors import telling_failures
from exporter.archive.timespan import Span, iso
from exporter.errors import UsageError
from exporter.nearest import nearest

_FIELDS = {"_id": 0, "kind": 1, "name": 1, "uuid": 1, "host": 1, "host_name": 1, "first_seen": 1, "last_seen": 1}

NOTED_EVERY_S = SEEN_AGAIN_MS / 1000 + 300.0
"""`last_seen` is at most so old while the domain runs: the writer's hour and what a window takes."""


@dataclass(frozen=True, slots=True)
class ArchivedDomain:
    """A domain on one host as it was last seen there; times are seconds since the epoch."""

    name: str
    uuid: UUID
    host_name: str
    first_seen_s: float
    last_seen_s: float

    def seen_in(self, span: Span) -> bool:
        """Whether it was there in some part of the span, as far as is known: it is noted once an hour."""
        return self.first_seen_s < span.end_s + 60 and self.last_seen_s > span.start_s - NOTED_EVERY_S

    def may_wait(self, span: Span, since_s: float) -> bool:
        """Whether samples of the span may wait to be sent, where some do that are as old as `since_s`."""
        return since_s < span.end_s and self.last_seen_s > since_s - NOTED_EVERY_S


def find_domain(
    database: Database,
    wanted: str,
    span: Span,
    host: str | None = None,
    may_be_named: Callable[[str], bool] = lambda _: True,
) -> ArchivedDomain:
    """The domain of that name or UUID, on that host where one is given.

    Of several with one name the one that was seen in the span; a domain that moved between hosts is one domain.
    Raises UsageError where there is none (naming the nearest of those that may be named) or several, HistoryError
    where the database fails.
    """
    domains = [d for d in _found(database, _condition(wanted)) if host is None or d.host_name == host]
    if not domains:
        raise UsageError(_unknown(wanted, host, [d for d in all_domains(database) if may_be_named(d.name)]))
    in_span = [domain for domain in domains if domain.seen_in(span)] or domains
    if len({domain.uuid for domain in in_span}) > 1:
        choice = "; ".join(f"{d.uuid} on {d.host_name}, last seen {iso(d.last_seen_s)}" for d in in_span[:8])
        raise UsageError(f"several domains are called {wanted[:80]!r} ({choice}); give one's UUID or --host")
    return max(in_span, key=lambda domain: domain.last_seen_s)


def all_domains(database: Database) -> list[ArchivedDomain]:
    """Every domain of every host, by name; raises HistoryError."""
    return sorted(_found(database, {}), key=lambda domain: (domain.name, domain.host_name, domain.last_seen_s))


def _condition(wanted: str) -> dict[str, Any]:
    try:
        return {"uuid": binary_uuid(UUID(wanted))}
    except ValueError:
        return {"name": wanted}


def _found(database: Database, condition: Mapping[str, Any]) -> list[ArchivedDomain]:
    options: CodecOptions[Any] = CodecOptions(tz_aware=True, uuid_representation=UuidRepresentation.STANDARD)
    objects = database.get_collection(OBJECTS, codec_options=options)
    with telling_failures(database):
        found = list(objects.find(condition, _FIELDS, max_time_ms=QUERY_TIME_MS))
    return [_domain(document) for document in found if document.get("kind") == "domain"]


def _domain(document: Mapping[str, Any]) -> ArchivedDomain:
    return ArchivedDomain(
        document["name"],
        document["uuid"],
        document.get("host_name", ""),
        document["first_seen"].timestamp(),
        document["last_seen"].timestamp(),
    )


def _unknown(wanted: str, host: str | None, known: list[ArchivedDomain]) -> str:
    where = f" on host {host[:80]!r}" if host else ""
    if not known:
        return f"the archive holds no domain yet, so none called {wanted[:80]!r}{where}; see 'virtgauge archive status'"
    hosts = {domain.host_name for domain in known}
    if host and host not in hosts:
        return f"the archive knows no host {host[:80]!r}; the nearest is {nearest(host, hosts)}"
    names = {domain.name for domain in known if not host or domain.host_name == host}
    return f"the archive knows no domain {wanted[:80]!r}{where}; the nearest is {nearest(wanted, names)}"
