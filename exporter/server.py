"""Serves an ASGI application over HTTP/1.1 on bound sockets, until it is told to stop.

The application is built elsewhere (`exporter.metrics_app`), so that the control API can be served the same way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import cast

import h11
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from exporter.listening import BACKLOG, ListenAddress, bind_sockets, socket_address

_log = logging.getLogger(__name__)

# Longer than the usual scrape intervals (15 s to 60 s), so that a scraper keeps its connection.
KEEP_ALIVE_S = 75
# A connection that has not sent its request by then is closed: no client may hold sockets for nothing.
REQUEST_HEAD_S = 10.0
# What is kept of a head that is not whole yet; a scrape's has less than 1 KiB.
MOST_HEADER_BYTES = 16 * 1024
# What running requests get after a signal; with the server's own waits the end comes within a second.
GRACE_S = 0.4


def serve(app: ASGIApp, addresses: Iterable[ListenAddress]) -> None:
    """Binds `addresses` and answers requests there until SIGINT or SIGTERM; from the main thread.

    Raises VirtgaugeError naming the first address that cannot be had.
    """
    asyncio.run(serve_sockets(app, bind_sockets(addresses)))


async def serve_sockets(
    app: ASGIApp,
    sockets: Sequence[socket.socket],
    *,
    stop: asyncio.Event | None = None,
    handle_signals: bool = True,
) -> None:
    """Answers requests on `sockets` (from `bind_sockets`) until `stop` is set, SIGINT or SIGTERM come.

    Closes the sockets. Open connections do not delay the end; a request still running after 0.4 s gets a 503.
    Signals are handled only in the main thread, and a second one changes nothing. Returns normally in every case.
    """
    server = _Server(
        uvicorn.Config(
            _answering_when_cut_off(app),
            http=_BoundedProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            # uvicorn declares whole seconds, but hands it to asyncio, which takes fractions.
            timeout_graceful_shutdown=cast("int", GRACE_S),
            h11_max_incomplete_event_size=MOST_HEADER_BYTES,
        )
    )
    stopping = stop or asyncio.Event()
    for sock in sockets:
        _log.info("listening", extra={"address": str(socket_address(sock))})
    watcher = asyncio.create_task(_stop_when_set(server, stopping))
    try:
        with _signals(stopping.set) if handle_signals else contextlib.nullcontext():
            await server.serve(sockets=list(sockets))
    finally:
        watcher.cancel()
        for sock in sockets:
            sock.close()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        # uvicorn would raise the signal again at its end, which cuts off the caller's own clean-up.
        yield


class _BoundedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with a limit on the time a client may take to send a request's head."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(REQUEST_HEAD_S, self._head_is_late)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # Still idle after data came: the head is not whole. A kept connection's next request has the same time.
        if self.conn.their_state is not h11.IDLE:
            self._cancel_head_timer()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(REQUEST_HEAD_S, self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_head_timer()
        super().connection_lost(exc)

    def _head_is_late(self) -> None:
        _log.debug("closing a connection that sent no request", extra={"client": str(self.client)})
        self.transport.close()

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def _answering_when_cut_off(app: ASGIApp) -> ASGIApp:
    """A request cut off at the end gets a 503, not a closed connection and a traceback in the log."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def noting_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await app(scope, receive, noting_send)
        except asyncio.CancelledError:
            if started:
                raise
            await PlainTextResponse("stopping\n", status_code=503)(scope, receive, send)

    return application


async def _stop_when_set(server: uvicorn.Server, stop: asyncio.Event) -> None:
    await stop.wait()
    _log.info("stopping")
    server.should_exit = True


@contextlib.contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """SIGINT and SIGTERM call `stop` in the loop; what was there before comes back at the end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    handled = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in handled}
    for number in handled:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
