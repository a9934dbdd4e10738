"""Refuses requests that two programs on the way may take for different ones.

h11 is strict about the rest; what it lets pass by the letter of HTTP is what request smuggling lives on: a proxy that
goes by Content-Length and a server that goes by Transfer-Encoding see different requests in the same bytes.
"""

from __future__ import annotations

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from exporter.refusals import Refusals

_VERSIONS = ("1.0", "1.1")


class PlainFraming:
    """Answers 400 to a request of unclear length, 505 to one of another HTTP, and ends the connection."""

    def __init__(self, app: ASGIApp, refusals: Refusals) -> None:
        self._app = app
        self._refusals = refusals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = _refused(scope) if scope["type"] == "http" else None
        if refused is None:
            await self._app(scope, receive, send)
            return
        self._refusals.count("bad_request")
        status, text = refused
        # With this header the server takes nothing more from the connection, whatever was sent behind.
        answer = PlainTextResponse(text + "\n", status_code=status, headers={"Connection": "close"})
        await answer(scope, receive, send)


def _refused(scope: Scope) -> tuple[int, str] | None:
    version = scope["http_version"]
    if version not in _VERSIONS:
        return 505, "Only versions 1.0 and 1.1 of HTTP are served."
    names = {name for name, _value in scope["headers"]}
    if b"transfer-encoding" not in names:
        return None
    if version == "1.0":
        return 400, "Transfer-Encoding is not of HTTP/1.0."
    # RFC 9112, 6.3: such a request may be refused, and must end its connection.
    return (400, "Content-Length and Transfer-Encoding exclude each other.") if b"content-length" in names else None
