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
from collections.abc import Callable, Generator, Iterator, MutableMapping, Sequence
from typing import TYPE_CHECKING, cast

import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from exporter.config import WebSettings
from exporter.connections import Acceptor, BoundedProtocol, Crowd
from exporter.framing import PlainFraming
from exporter.listening import activated_sockets, bind_sockets, socket_address
from exporter.pacing import MostRequests, PacedAnswers
from exporter.refusals import Refusals

if TYPE_CHECKING:
    from exporter.webconfig_file import WebConfigFile

_log = logging.getLogger(__name__)

# Longer than the usual scrape intervals (15 s to 60 s), so that a scraper keeps its connection.
KEEP_ALIVE_S = 75
# What is kept of a head that is not whole yet; a scrape's has less than 1 KiB.
MOST_HEADER_BYTES = 16 * 1024
# What running requests get after a signal; with the server's own waits the end comes within a second.
GRACE_S = 0.4
TICK_S = 1.0
# Cheap, and asked for when the rest is overloaded.
HEALTH_PATHS = ("/-/healthy", "/-/ready")


class Front:
    """What stands between sockets and an application: TLS, passwords, limits, and the count of what they refuse."""

    def __init__(
        self,
        config: WebConfigFile | None = None,
        refusals: Refusals | None = None,
        max_requests: int = 0,
        token_paths: Sequence[str] = (),
    ) -> None:
        """`token_paths` are path prefixes whose own middleware asks for a bearer token instead of a password."""
        self.config = config
        self.refusals = refusals or Refusals()
        self.max_requests = max_requests
        self.token_paths = tuple(token_paths)

    def around(self, app: ASGIApp) -> ASGIApp:
        """The application behind the front, in the order of the exporters' toolkit."""
        app = MostRequests(app, self.max_requests, self.refusals, HEALTH_PATHS)
        if self.config:
            from exporter.webconfig_app import WebConfigured

            app = WebConfigured(app, self.config, self.refusals, token_paths=self.token_paths)
        return PacedAnswers(PlainFraming(app, self.refusals))


def front_of(web: WebSettings, refusals: Refusals | None = None, token_paths: Sequence[str] = ()) -> Front:
    """The front that settings ask for. Raises WebConfigError where the web configuration file is wrong."""
    config = None
    if web.config.file:
        # With it come bcrypt and models of the file: some 2 MiB that are not served without one.
        from exporter.webconfig_file import WebConfigFile

        config = WebConfigFile(web.config.file)
    return Front(config, refusals, web.max_requests, token_paths)


def listening_sockets(web: WebSettings, environ: MutableMapping[str, str]) -> list[socket.socket]:
    """Bound sockets, or systemd's, as settings ask. Raises VirtgaugeError where they cannot be had."""
    return activated_sockets(environ) if web.systemd_socket else bind_sockets(web.listen_address)


async def serve_sockets(
    app: ASGIApp,
    sockets: Sequence[socket.socket],
    *,
    front: Front | None = None,
    stop: asyncio.Event | None = None,
    handle_signals: bool = True,
) -> None:
    """Answers requests on `sockets` (from `listening_sockets`) until `stop` is set, SIGINT or SIGTERM come.

    Closes the sockets. Open connections do not delay the end; a request still running after 0.4 s gets a 503.
    Signals are handled only in the main thread, and a second one changes nothing. Returns normally in every case.
    """
    front = front or Front()
    server = _Server(_config(front.around(_answering_when_cut_off(app))), front)
    stopping = stop or asyncio.Event()
    scheme = "https" if front.config and front.config.tls else "http"
    for sock in sockets:
        _log.info("listening", extra={"address": str(socket_address(sock)), "scheme": scheme})
    watcher = asyncio.create_task(_stop_when_set(server, stopping))
    try:
        with _signals(stopping.set) if handle_signals else contextlib.nullcontext():
            await server.serve(sockets=list(sockets))
    finally:
        watcher.cancel()
        for sock in sockets:
            sock.close()


def _config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        # uvicorn declares whole seconds, but hands it to asyncio, which takes fractions.
        timeout_graceful_shutdown=cast("int", GRACE_S),
        h11_max_incomplete_event_size=MOST_HEADER_BYTES,
    )


class _Server(uvicorn.Server):
    """uvicorn's server with its own way of taking connections: bounded, and TLS read again for each."""

    def __init__(self, config: uvicorn.Config, front: Front) -> None:
        super().__init__(config)
        logging.getLogger("uvicorn.error").addFilter(_not_the_clients_doing)
        self._front = front
        self._ending = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.servers = []
        file = self._front.config
        acceptor = Acceptor(
            self._protocol,
            Crowd(self._front.refusals),
            file.context if file else lambda: None,
            file.allowed_names if file else tuple,
        )
        self._acceptor = acceptor
        for sock in sockets or ():
            acceptor.start(sock)
        self.started = True

    async def main_loop(self) -> None:
        # uvicorn's own looks ten times a second whether it is to end; this one is woken for that, and once a second
        # for the date in the answers' heads.
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), TICK_S)

    def end(self) -> None:
        """Begin to shut down. In the loop's thread."""
        self.should_exit = True
        self._ending.set()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for sock in sockets or ():
            self._acceptor.stop(sock)
        for task in tuple(self._acceptor.crowd.handshakes):
            task.cancel()
        # Those who do not read would not read the end either.
        for connection in tuple(self._acceptor.crowd.stalled):
            connection.abort()
        await super().shutdown(sockets)

    def _protocol(self) -> BoundedProtocol:
        return BoundedProtocol(config=self.config, server_state=self.server_state, app_state={})

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        # uvicorn would raise the signal again at its end, which cuts off the caller's own clean-up.
        yield


def _not_the_clients_doing(record: logging.LogRecord) -> bool:
    """Leaves out uvicorn's warnings, all of which are about what a client sent: anybody could fill a disk with them.

    Bad requests are counted; an upgrade that is asked for and not offered is no event.
    """
    return record.levelno != logging.WARNING


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


async def _stop_when_set(server: _Server, stop: asyncio.Event) -> None:
    await stop.wait()
    _log.info("stopping")
    server.end()


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
