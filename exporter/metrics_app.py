"""The exporter's HTTP pages: metrics, landing, health. An ASGI application; `exporter.server` serves it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from starlette.applications import Starlette
from starlette.datastructures import QueryParams
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from exporter.compression import SMALLEST_BYTES, CompressedPages, fastest_gzip
from exporter.config import Settings
from exporter.errors import UsageError
from exporter.landing import landing_page
from exporter.negotiation import Format, accepts_gzip, negotiate_format
from exporter.version import VERSION

_log = logging.getLogger(__name__)

TIMEOUT_HEADER = "X-Prometheus-Scrape-Timeout-Seconds"
# Prometheus's own default scrape timeout.
DEFAULT_TIMEOUT_S = 10.0
# What the answer's way back may take.
TIMEOUT_OFFSET_S = 0.5
SHORTEST_TIMEOUT_S = 0.1
LONGEST_TIMEOUT_S = 600.0

_DESCRIPTION = "Performance of the virtual machines of a libvirt host, for Prometheus."
# The landing page runs no script and loads nothing.
_LANDING_HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}


class PageSource(Protocol):
    """Where the metrics page comes from. Called in the event loop's thread."""

    async def page(self, format: Format, timeout_s: float, collect: frozenset[str] | None) -> bytes | memoryview:
        """The whole body, uncompressed, within `timeout_s` seconds, whatever libvirt does.

        `collect` limits it to these collectors; None means all that are enabled. The same unchanged page should
        be the same bytes object, which is then compressed once.
        """

    def ready(self) -> bool:
        """True once libvirt has answered for the first time."""


def exporter_application(
    source: PageSource, settings: Settings, *, middleware: Sequence[Middleware] = (), more: Sequence[Route] = ()
) -> Starlette:
    """The application: metrics at web.telemetry_path, landing page, health, and `more`. Starts nothing."""
    telemetry_path = settings.web.telemetry_path
    pages = _Pages(source, telemetry_path, settings.collector.known, CompressedPages(fastest_gzip()))
    routes = [
        Route(telemetry_path, pages.metrics, methods=["GET"]),
        Route("/-/healthy", pages.healthy, methods=["GET"]),
        Route("/-/ready", pages.ready, methods=["GET"]),
    ]
    # As node_exporter does: metrics at / leave no room for the landing page.
    if telemetry_path != "/":
        routes.append(Route("/", pages.landing, methods=["GET"]))
    app = Starlette(routes=[*routes, *more], middleware=list(middleware))
    app.router.redirect_slashes = False
    return app


def page_timeout_s(header: str | None) -> float:
    """Seconds the page may take: the scraper's timeout less the way back; 10 s for an absent or garbage header."""
    try:
        asked_s = float(header) if header is not None else 0.0
    except ValueError:
        return DEFAULT_TIMEOUT_S
    if not math.isfinite(asked_s) or asked_s <= 0:
        return DEFAULT_TIMEOUT_S
    return min(max(asked_s - TIMEOUT_OFFSET_S, SHORTEST_TIMEOUT_S), LONGEST_TIMEOUT_S)


def chosen_collectors(query: QueryParams, collectors: Mapping[str, bool]) -> frozenset[str] | None:
    """The collectors that `collect[]` and `exclude[]` leave; None where neither is given.

    `collectors` maps every known collector's name to whether it is enabled.
    Raises UsageError where both are given, or a name is unknown or not enabled.
    """
    wanted, unwanted = query.getlist("collect[]"), query.getlist("exclude[]")
    if wanted and unwanted:
        raise UsageError("collect[] and exclude[] are both given; use one of them")
    enabled = frozenset(name for name, on in collectors.items() if on)
    for name in (*wanted, *unwanted):
        if name not in enabled:
            cause = "is not enabled" if name in collectors else "is unknown"
            # Only the first characters: what the URL says is echoed, so it is kept short.
            raise UsageError(f"collector {name[:60]!r} {cause}; enabled are: {', '.join(sorted(enabled)) or 'none'}")
    if wanted:
        return frozenset(wanted)
    return enabled - frozenset(unwanted) if unwanted else None


@dataclass(frozen=True, slots=True)
class _Pages:
    source: PageSource
    telemetry_path: str
    collectors: Mapping[str, bool]
    compressed: CompressedPages

    async def metrics(self, request: Request) -> Response:
        try:
            collect = chosen_collectors(request.query_params, self.collectors)
        except UsageError as error:
            return _text(400, str(error))
        format = negotiate_format(_joined(request, "accept"))
        timeout_s = page_timeout_s(request.headers.get(TIMEOUT_HEADER))
        try:
            page = await self.source.page(format, timeout_s, collect)
            return self._response(page, format, accepts_gzip(_joined(request, "accept-encoding")))
        except Exception:  # noqa: BLE001  # a bug must cost this scrape only, and leave its traceback
            _log.exception("the metrics page failed", extra={"format": format.name})
            return _text(500, "virtgauge has a bug: the metrics page failed; its log holds the traceback")

    def _response(self, page: bytes | memoryview, format: Format, gzip: bool) -> Response:
        headers = {"Content-Type": format.content_type, "Vary": "Accept, Accept-Encoding"}
        if gzip and len(page) >= SMALLEST_BYTES:
            page = self.compressed.compressed(format.name, page)
            headers["Content-Encoding"] = "gzip"
        return Response(page, headers=headers)

    async def landing(self, request: Request) -> Response:
        links = (
            (self.telemetry_path, "Metrics"),
            ("/-/healthy", "Health: the exporter runs"),
            ("/-/ready", "Readiness: libvirt has answered"),
        )
        return HTMLResponse(landing_page("virtgauge", VERSION, _DESCRIPTION, links), headers=_LANDING_HEADERS)

    async def healthy(self, request: Request) -> Response:
        return _text(200, "virtgauge is healthy.")

    async def ready(self, request: Request) -> Response:
        if self.source.ready():
            return _text(200, "virtgauge is ready.")
        return _text(503, "virtgauge is not ready: libvirt has not answered yet; its log names the cause.")


def _joined(request: Request, name: str) -> str | None:
    """A header sent in several lines means the same as one with commas."""
    return ", ".join(request.headers.getlist(name)) or None


def _text(status: int, line: str) -> Response:
    return PlainTextResponse(line + "\n", status_code=status)
