"""The archive over HTTP: flat JSON for Grafana's Infinity data source, and Prometheus's remote-read protocol.

    GET  /api/v1/history/query?domain=web1&field=cpu.usage&since=24h    rows, see `Answer.rows`
    GET  /api/v1/history/domains, /api/v1/history/fields                what there is
    POST /api/v1/read                                                   remote read
    GET  /api/v1/openapi.json                                           what all that means

Routes for a Starlette application; the database is read in worker threads, at most four at a time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from threading import Thread
from typing import Any, TypeVar
from urllib.parse import urlencode
from uuid import UUID

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from exporter.access import PRINCIPAL, Forbidden, request_id_of, require_domain, require_role
from exporter.archive.document_reader import Database, Unsealed
from exporter.archive.domain_lookup import all_domains
from exporter.archive.history import MOST_ASKED_POINTS
from exporter.archive.history_fields import HistoryFields
from exporter.archive.history_question import Question, absolute, ask
from exporter.archive.remote_answers import RemoteAnswers
from exporter.archive.timespan import iso
from exporter.errors import UsageError, VirtgaugeError
from exporter.history_openapi import history_document
from exporter.nearest import nearest
from exporter.openapi import OPENAPI_PATH
from exporter.remote_read import MOST_REQUEST_BYTES, read_request, response
from exporter.tokens import Principal, Role

_log = logging.getLogger(__name__)

QUERY_PATH = "/api/v1/history/query"
READ_PATH = "/api/v1/read"
RESOLUTION_HEADER = "X-Virtgauge-Resolution"
UNSEALED_HEADER = "X-Virtgauge-Unsealed"
ROWS_HEADER = "X-Virtgauge-Rows"
MOST_AT_ONCE = 4
MOST_ROWS = 100_000
"""Of one answer, some 17 MB; the header Link says where the next ones are."""
_PAGE = ("limit", "offset")
_PARAMETERS = ("domain", "field", "since", "until", "step", "points", "host", *_PAGE)

T = TypeVar("T")


class HistoryApi:
    """`database` gives the archive's database, or raises VirtgaugeError while there is none; any thread may call it."""

    def __init__(
        self,
        database: Callable[[], Database],
        fields: HistoryFields,
        unsealed: Unsealed | None = None,
        clock: Callable[[], float] = time.time,
        waiting_since_s: Callable[[], float] = lambda: float("inf"),
    ) -> None:
        self._waiting_since_s = waiting_since_s
        self._database = database
        self._fields = fields
        self._unsealed = unsealed
        self._clock = clock
        self._places: asyncio.Semaphore | None = None

    def routes(self) -> list[Route]:
        """The routes, for the exporter's application."""
        return [
            Route(QUERY_PATH, self._answered(self._query), methods=["GET"]),
            Route("/api/v1/history/domains", self._answered(self._domains), methods=["GET"]),
            Route("/api/v1/history/fields", self._answered(self._list_fields), methods=["GET"]),
            Route(READ_PATH, self._answered(self._read), methods=["POST"]),
            Route(OPENAPI_PATH, _document(), methods=["GET"]),
        ]

    def _answered(self, endpoint: Callable[[Request], Any]) -> Callable[[Request], Any]:
        """The endpoint with every error as a JSON answer."""

        async def answer(request: Request) -> Response:
            if isinstance(request.scope.get(PRINCIPAL), Principal):
                require_role(request, Role.READER)
            try:
                result: Response = await endpoint(request)
                return result
            except UsageError as error:
                return _error(request, 400, str(error))
            except VirtgaugeError as error:
                return _error(request, 503, str(error))
            except Forbidden:
                raise  # the access layer counts it and answers 403
            except ClientDisconnect:
                return _error(request, 400, "the request's body did not arrive")
            except Exception:  # noqa: BLE001  # a bug must cost this answer only, and leave its traceback
                told = {"path": request.url.path, "request_id": request_id_of(request)}
                _log.exception("a history answer failed", extra=told)
                text = "virtgauge has a bug: the history answer failed; its log holds the traceback"
                return _error(request, 500, text)

        return answer

    async def _query(self, request: Request) -> Response:
        question = _question(request)
        if not _is_uuid(question.domain):
            # Before the look-up, whose error would name the nearest domain, which may be out of scope.
            _require_scope(request, question.domain)

        page = _page(request)

        def work() -> tuple[bytes, dict[str, str]]:
            # As times, so that the next page is of the same span.
            asked = absolute(question, self._clock())
            answer = ask(
                self._database(), self._fields, asked, self._clock(), self._unsealed, _in_scope(request)
            )
            if not _in_scope(request)(answer.domain.name):
                # In the caller's own words: by a UUID it shall not learn a name.
                require_domain(request, asked.domain)
            headers = {
                RESOLUTION_HEADER: answer.resolution,
                UNSEALED_HEADER: "true" if answer.reading.unsealed else "false",
            }
            rows = list(islice(answer.rows(), page.offset, page.offset + page.limit))
            following = {"domain": asked.domain, "field": list(asked.fields), "since": asked.since,
                         "until": asked.until, "step": asked.step, "points": asked.points, "host": asked.host}
            return orjson.dumps(rows), headers | page.headers(request, answer.row_count, following)

        body, headers = await self._in_thread(work)
        return Response(body, media_type="application/json", headers=headers)

    async def _domains(self, request: Request) -> Response:
        _check_names(request, ("host", *_PAGE))
        page, host = _page(request), request.query_params.get("host", "")

        def work() -> tuple[bytes, int]:
            rows = [
                {
                    "domain": domain.name,
                    "uuid": str(domain.uuid),
                    "host": domain.host_name,
                    "first_seen": iso(domain.first_seen_s),
                    "last_seen": iso(domain.last_seen_s),
                }
                for domain in all_domains(self._database())
                if _in_scope(request)(domain.name) and host in ("", domain.host_name)
            ]
            return orjson.dumps(rows[page.offset : page.offset + page.limit]), len(rows)

        body, count = await self._in_thread(work)
        headers = page.headers(request, count, {"host": host})
        return Response(body, media_type="application/json", headers=headers)

    async def _list_fields(self, request: Request) -> Response:
        _check_names(request, ())
        rows = [
            {
                "field": field.name,
                "metric": field.metric,
                "unit": field.unit,
                "device": field.device_label,
                "help": field.declaration.help,
            }
            for field in self._fields
        ]
        return Response(orjson.dumps(rows), media_type="application/json")

    async def _read(self, request: Request) -> Response:
        body = await _body(request)
        labels = dict(request.query_params)

        def work() -> bytes:
            answers = RemoteAnswers(self._database(), self._fields, self._unsealed, _in_scope(request),
                                    self._waiting_since_s())
            return response(answers.answer(read_request(body), labels))

        answer = await self._in_thread(work)
        return Response(answer, media_type="application/x-protobuf", headers={"Content-Encoding": "snappy"})

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """In a thread of its own, at most MOST_AT_ONCE at a time. No read of a database can be cut off: where the
        caller is, the thread goes on, and keeps its place until it ends."""
        # Made in the loop that serves; made anew in each test's loop with its own HistoryApi.
        places = self._places = self._places or asyncio.Semaphore(MOST_AT_ONCE)
        await places.acquire()
        loop = asyncio.get_running_loop()
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()

        def leave(_future: Future[T]) -> None:
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(places.release)

        def run() -> None:
            try:
                future.set_result(work())
            except BaseException as error:  # noqa: BLE001  # the waiting request answers it
                future.set_exception(error)

        future.add_done_callback(leave)
        try:
            Thread(target=run, name="history", daemon=True).start()
        except RuntimeError as error:  # the machine gives no more threads
            future.set_exception(error)
        return await asyncio.wrap_future(future)


def _in_scope(request: Request) -> Callable[[str], bool]:
    """Whether a domain's name is within the caller's scope; all are where the API is served without tokens."""
    principal = request.scope.get(PRINCIPAL)
    return principal.allows_domain if isinstance(principal, Principal) else lambda _: True


def _require_scope(request: Request, name: str) -> None:
    if not _in_scope(request)(name):
        require_domain(request, name)


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class _Page:
    """Which rows of an answer are asked for."""

    limit: int
    offset: int

    def headers(self, request: Request, rows: int, question: dict[str, Any]) -> dict[str, str]:
        """How many rows there are in all, and where the next ones are: the same `question`, further on."""
        found = {ROWS_HEADER: str(rows)}
        after = self.offset + self.limit
        if after < rows:
            given = {name: value for name, value in question.items() if value}
            query = urlencode({**given, "limit": self.limit, "offset": after}, doseq=True)
            found["Link"] = f'<{request.url.path}?{query}>; rel="next"'
        return found


def _page(request: Request) -> _Page:
    return _Page(_whole(request, "limit", MOST_ROWS, 1, MOST_ROWS), _whole(request, "offset", 0, 0, 10**9))


def _whole(request: Request, name: str, default: int, least: int, most: int) -> int:
    text = request.query_params.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(most)) and least <= int(text) <= most):
        raise UsageError(f"{name} {text[:60]!r} is not a number from {least} to {most}")
    return int(text)


def _check_names(request: Request, known: tuple[str, ...]) -> None:
    for name in request.query_params:
        if name not in known:
            near = f"the nearest is {nearest(name, known)}" if known else "this takes none"
            raise UsageError(f"unknown parameter {name[:60]!r}; {near}")


def _question(request: Request) -> Question:
    query = request.query_params
    _check_names(request, _PARAMETERS)
    if not query.get("domain"):
        raise UsageError("the parameter domain is missing; give a name or UUID, like domain=web1")
    fields = tuple(word for text in query.getlist("field") for word in text.split(",") if word.strip())
    rest = {name: query.get(name, "") for name in ("domain", "since", "until", "step", "points", "host")}
    return Question(fields=fields, **rest)


def _document() -> Callable[[Request], Any]:
    """Serves the OpenAPI document, made at the first request."""
    made: list[bytes] = []

    async def endpoint(_request: Request) -> Response:
        if not made:
            made.append(orjson.dumps(history_document(MOST_ROWS, MOST_ASKED_POINTS)))
        return Response(made[0], media_type="application/json")

    return endpoint


async def _body(request: Request) -> bytes:
    """The body; raises UsageError where it is larger than any remote-read request."""
    found = bytearray()
    async for piece in request.stream():
        found += piece
        if len(found) > MOST_REQUEST_BYTES:
            raise UsageError(f"the body is larger than {MOST_REQUEST_BYTES} bytes; ask for fewer series")
    return bytes(found)


def _error(request: Request, status: int, text: str) -> Response:
    content = orjson.dumps({"error": text, "request_id": request_id_of(request)})
    return Response(content, status_code=status, media_type="application/json")
