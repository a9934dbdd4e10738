"""How much work and memory requests may take at the same time: a bound on requests, answers sent in pieces."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from exporter.refusals import Refusals

PIECE_BYTES = 64 * 1024


class MostRequests:
    """Refuses requests above `most` at the same time with 503; 0 lets all in. Paths of `exempt` are not counted.

    A request counts until its answer begins: one who reads slowly takes nobody's place.
    """

    def __init__(self, app: ASGIApp, most: int, refusals: Refusals, exempt: Iterable[str] = ()) -> None:
        self._app = app
        self._most = most
        self._refusals = refusals
        self._exempt = frozenset(exempt)
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._most or scope["path"] in self._exempt:
            await self._app(scope, receive, send)
            return
        if self._running >= self._most:
            self._refusals.count("busy")
            text = f"Limit of concurrent requests reached ({self._most}), try again later.\n"
            await PlainTextResponse(text, status_code=503)(scope, receive, send)
            return
        self._running += 1
        counted = True

        def leave() -> None:
            nonlocal counted
            if counted:
                counted = False
                self._running -= 1

        async def send_and_leave(message: Message) -> None:
            leave()
            await send(message)

        try:
            await self._app(scope, receive, send_and_leave)
        finally:
            leave()


class PacedAnswers:
    """Hands answers to the server in pieces, each when the client has taken the one before.

    So a connection holds a piece or two, however large the page and slow the client.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_pieces(message: Message) -> None:
            body = message.get("body", b"")
            if message["type"] != "http.response.body" or len(body) <= PIECE_BYTES:
                await send(message)
                return
            view = memoryview(body)
            for start in range(0, len(view), PIECE_BYTES):
                piece = view[start : start + PIECE_BYTES]
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            # The server takes it only when the last piece has gone: then the answer is over.
            await send({"type": "http.response.body", "body": b"", "more_body": message.get("more_body", False)})

        await self._app(scope, receive, send_in_pieces if scope["type"] == "http" else send)
