"""The audit trail over the control API: its records, and each act as an annotation for Grafana's graphs.

    GET /api/v1/audit?domain=web1&since=24h&newest=100
    GET /api/v1/annotations?from=${__from}&to=${__to}&domain=web1

An annotation is a flat row, as the Infinity data source reads it: `time`, `timeEnd`, `title`, `text`, `tags`, `id`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from pydantic import JsonValue
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from exporter.access import require_role
from exporter.archive.timespan import parse_moment
from exporter.control.audit import Trail, record_time, tells_of
from exporter.control.errors import InvalidError
from exporter.errors import UsageError
from exporter.tokens import Principal, Role

MOST_RECORDS = 1000
# Not shown as annotations: nobody acted on a guest, or the act is there with records of its own. A burst of alerts that
# a guard held would push the acts out.
_NO_ACTS = frozenset({"access-refused", "rule-skipped", "rule-resolved", "rule-acts", "rule-acted", "rule-dry-run"})
Record = dict[str, JsonValue]


def audit_routes(trail: Trail) -> list[Route]:
    """Both routes. A reader sees the records of the domains in its scope; the rest needs the scope `*`."""

    async def audit(request: Request) -> Response:
        principal = require_role(request, Role.READER)
        query = request.query_params
        begin = _moment(query.get("since", "24h"), "since")
        chosen = _chosen(trail, principal, query.get("domain"), begin)
        found = await asyncio.to_thread(lambda: list(islice(chosen, _newest(query.get("newest", "100")))))
        return JSONResponse({"records": found[::-1]})

    async def annotations(request: Request) -> Response:
        principal = require_role(request, Role.READER)
        query = request.query_params
        begin, end = _moment(query.get("from", "24h"), "from"), _moment(query.get("to", "now"), "to")
        chosen = (r for r in _chosen(trail, principal, query.get("domain"), begin)
                  if r.get("event") not in _NO_ACTS and record_time(r) <= end)  # fmt: skip
        found = await asyncio.to_thread(lambda: list(islice(chosen, MOST_RECORDS)))
        return JSONResponse(list(annotations_of(reversed(found))))

    return [
        Route("/api/v1/audit", audit, methods=["GET"]),
        Route("/api/v1/annotations", annotations, methods=["GET"]),
    ]


def annotations_of(records: Iterable[Record]) -> Iterator[dict[str, Any]]:
    """One row an act, from its first record to its last; one for each other record. Records oldest first."""
    acts: dict[object, list[Record]] = {}
    for record in records:
        acts.setdefault(record.get("act") or record.get("sequence"), []).append(record)
    for told in acts.values():
        yield _annotation(told)


def _annotation(told: list[Record]) -> dict[str, Any]:
    first, last = told[0], told[-1]
    subject = first.get("subject")
    name = str(subject.get("name") or "") if isinstance(subject, dict) else ""
    outcome = str(last.get("outcome") or _OUTCOMES.get(str(last.get("event")), last.get("event")))
    doing = str(first.get("operation") or first.get("event"))
    if "error" in last:
        outcome = "failed"
    said = (str(last[key]) for key in ("actor", "way", "rule", "reason") if last.get(key))
    error = last.get("error")
    cause = [str(error["cause"])] if isinstance(error, dict) and error.get("cause") else []
    return {
        "id": last.get("sequence"),
        "time": _iso(first),
        "timeEnd": _iso(last),
        "title": f"{doing} {name}".strip(),
        "text": ", ".join((outcome, *said, *cause)),
        "tags": [tag for tag in ("virtgauge", doing, name, str(last.get("event"))) if tag],
    }


# What the last record of an act means.
_OUTCOMES = {"begin": "running", "end": "done", "late": "done late", "unchanged": "nothing to change",
             "unanswered": "unknown", "interrupted": "unknown"}  # fmt: skip


def _chosen(trail: Trail, principal: Principal, domain: str | None, begin: datetime) -> Iterator[Record]:
    for record in trail.backwards():
        if record_time(record) < begin:
            return
        if _may_see(record, principal) and (domain is None or tells_of(record, domain)):
            yield record


def _may_see(record: Record, principal: Principal) -> bool:
    subject = record.get("subject")
    if isinstance(subject, dict) and subject.get("kind") == "domain":
        return principal.allows_domain(str(subject.get("name")))
    return principal.allows_every_domain


def _iso(record: Record) -> str:
    return record_time(record).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _moment(text: str, name: str) -> datetime:
    try:
        return datetime.fromtimestamp(parse_moment(text, time.time(), UTC), UTC)
    except UsageError as error:
        raise InvalidError(f"{name}: {error}", next_step="correct the query") from error


def _newest(text: str) -> int:
    if text.isascii() and text.isdigit() and 1 <= int(text[:6]) <= MOST_RECORDS:
        return int(text[:6])
    raise InvalidError(f"newest {text[:20]!r} is no number from 1 to {MOST_RECORDS}", next_step="correct the query")


def audit_paths(errors: dict[str, Any]) -> dict[str, Any]:
    """Their part of the OpenAPI document; `errors` by status."""
    domain = _query("domain", "Only what concerns this domain, by name or UUID.")
    rows = {"type": "array", "items": {"type": "object", "properties": {
        "id": {"type": "integer"}, "time": {"type": "string", "format": "date-time"},
        "timeEnd": {"type": "string", "format": "date-time"}, "title": {"type": "string"},
        "text": {"type": "string"}, "tags": {"type": "array", "items": {"type": "string"}}}}}  # fmt: skip
    records = {"type": "object", "required": ["records"],
               "properties": {"records": {"type": "array", "items": {"type": "object"}}}}  # fmt: skip
    newest = {"name": "newest", "in": "query", "description": "How many at most.",
              "schema": {"type": "integer", "minimum": 1, "maximum": MOST_RECORDS, "default": 100}}  # fmt: skip
    return {
        "/api/v1/audit": {"get": {
            "operationId": "audit.list", "summary": "List records of the audit trail.", "tags": ["audit"],
            "parameters": [domain, _query("since", "From here on: 24h, a time, seconds since the epoch."), newest],
            "responses": {"200": _content("Oldest first.", records), **errors},
        }},
        "/api/v1/annotations": {"get": {
            "operationId": "audit.annotations", "summary": "Acts as annotations for Grafana.", "tags": ["audit"],
            "parameters": [domain, _query("from", "From here on."), _query("to", "Up to here.")],
            "responses": {"200": _content("Oldest first.", rows), **errors},
        }},
    }  # fmt: skip


def _query(name: str, text: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": {"type": "string"}, "description": text}


def _content(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema}}}
