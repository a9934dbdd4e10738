"""Connections: accepted up to a bound, with a time for everything a client may be slow at. No thread a connection.

What holds here, per process: at most MOST_CONNECTIONS connections, TLS handshakes among them; a newcomer above that
closes the one that has been idle longest, first of all one that never asked for anything; where all are at work it
waits in the kernel's queue. A handshake, a request's head, its body and the reading of an answer each have their time.
At most MOST_STALLED answers wait for their readers, and what one of them holds is bounded by the pieces of
`exporter.pacing`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from exporter.client_names import has_allowed_name
from exporter.refusals import Refusals

_log = logging.getLogger(__name__)

# A host has a handful of scrapers; below the 1024 files a process may usually have open.
MOST_CONNECTIONS = 512
MOST_STALLED = 40
# A client that has not sent its request's head by then is closed: no client may hold sockets for nothing.
REQUEST_HEAD_S = 10.0
REQUEST_BODY_S = 60.0
HANDSHAKE_S = 10.0
# A client that takes none of the answer for this long is cut off.
STALLED_S = 30.0
# One that takes a little now and then, after this: a scraper has given up long before.
SENDING_S = 120.0
_TAKEN_AT_ONCE = 16
# Who waits for a place looks again after this.
_PAUSE_S = 0.1
# A newcomer is not closed for another before this: its request is on its way.
_SETTLING_S = 1.0
_AT_THE_LIMIT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@dataclass
class Crowd:
    """All connections of a server, told apart by what they do. For the event loop's thread."""

    refusals: Refusals
    # Ordered: the first is the one that has been there longest. The values of the first two are when they began (s).
    handshakes: dict[asyncio.Task[None], float] = field(default_factory=dict)
    silent: dict[BoundedProtocol, float] = field(default_factory=dict)
    kept: dict[BoundedProtocol, float] = field(default_factory=dict)
    busy: dict[BoundedProtocol, float] = field(default_factory=dict)
    stalled: dict[BoundedProtocol, None] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.handshakes) + len(self.silent) + len(self.kept) + len(self.busy)

    def has_room(self) -> bool:
        """Whether `make_room` can: False where as many as may be are at work, or have only just come."""
        return len(self) < MOST_CONNECTIONS or self._longest_idle() is not None

    def make_room(self) -> None:
        """Below the limit, closing the longest idle connections if need be."""
        while len(self) >= MOST_CONNECTIONS and self.close_longest_idle():
            self.refusals.count("connections")

    def close_longest_idle(self) -> bool:
        """False where none may be closed."""
        idle = self._longest_idle()
        if isinstance(idle, BoundedProtocol):
            idle.abort()
        elif idle is not None:
            del self.handshakes[idle]
            idle.cancel()
        return idle is not None

    def _longest_idle(self) -> asyncio.Task[None] | BoundedProtocol | None:
        """Those that never asked for anything go first, in a handshake or after it, whichever began earlier.

        Not before their first bytes had the time to be read: many that come at once would close each other. Then one
        that was answered goes first.
        """
        handshake = next(iter(self.handshakes.items()), (None, math.inf))
        silent = next(iter(self.silent.items()), (None, math.inf))
        first, began_s = handshake if handshake[1] <= silent[1] else silent
        if first is not None and asyncio.get_running_loop().time() - began_s >= _SETTLING_S:
            return first
        return next(iter(self.kept), None)

    def forget(self, connection: BoundedProtocol) -> None:
        for group in (self.silent, self.kept, self.busy):
            group.pop(connection, None)
        self.stalled.pop(connection, None)


class BoundedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with a limit on the time a client may take, and a place in the crowd."""

    crowd: Crowd
    handshake: asyncio.Task[None]
    _timer: asyncio.TimerHandle | None = None
    _awaited: str = ""
    _stalled_timer: asyncio.TimerHandle | None = None
    _sending_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Not one byte may wait without pause_writing: what waits is what a client does not read.
        transport.set_write_buffer_limits(high=1)
        # From here on it is counted as what it is, whenever its task gets to end.
        self.crowd.silent[self] = self.crowd.handshakes.pop(self.handshake, self.loop.time())
        self._wait_for("head", REQUEST_HEAD_S)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._look_at_state()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.flow.write_paused:
            self._end_stall(whole=True)
        self._look_at_state()

    def _look_at_state(self) -> None:
        """Which part of a request is missing, and whether this connection is idle or at work."""
        theirs, ours = self.conn.their_state, self.conn.our_state
        # Still idle after data came: the head is not whole. A kept connection's next request has the same time.
        if theirs is h11.IDLE:
            if self.conn.trailing_data[0]:
                self._wait_for("head", REQUEST_HEAD_S)
            elif self.cycle is not None:
                self._wait_for("", 0)
        elif theirs is h11.SEND_BODY:
            self._wait_for("body", REQUEST_BODY_S)
        else:
            self._wait_for("", 0)
        at_work = theirs is not h11.IDLE and ours not in (h11.DONE, h11.MUST_CLOSE, h11.CLOSED, h11.ERROR)
        self._join(self.crowd.busy if at_work else self.crowd.kept if self.cycle else self.crowd.silent)

    def _join(self, group: dict[BoundedProtocol, float]) -> None:
        if self.transport.is_closing():
            return
        # One that has sent a part of its first request has not become younger by it.
        began_s = self.crowd.silent.get(self, self.loop.time())
        if group is self.crowd.silent and self in group:
            return
        for other in (self.crowd.silent, self.crowd.kept, self.crowd.busy):
            other.pop(self, None)
        group[self] = began_s

    def _wait_for(self, part: str, within_s: float) -> None:
        """Starts the clock for `part`, unless it runs for that part already; none for an empty one."""
        if part == self._awaited:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._awaited = part
        self._timer = self.loop.call_later(within_s, self._is_late) if part else None

    def _is_late(self) -> None:
        _log.debug("closing a connection that sent no whole request", extra={"client": str(self.client)})
        self.crowd.refusals.count("slow")
        self.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.crowd.stalled[self] = None
        self._stalled_timer = self._stalled_timer or self.loop.call_later(STALLED_S, self._does_not_read)
        self._sending_timer = self._sending_timer or self.loop.call_later(SENDING_S, self._does_not_read)
        if len(self.crowd.stalled) > MOST_STALLED:
            next(iter(self.crowd.stalled))._does_not_read()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.crowd.stalled.pop(self, None)
        self._end_stall()

    def _does_not_read(self) -> None:
        _log.debug("closing a connection that does not read its answer", extra={"client": str(self.client)})
        self.crowd.refusals.count("slow")
        self.abort()

    def _end_stall(self, *, whole: bool = False) -> None:
        if self._stalled_timer is not None:
            self._stalled_timer.cancel()
            self._stalled_timer = None
        # The time for the whole answer goes on between its pieces.
        if self._sending_timer is not None and (whole or self.cycle is None or self.cycle.response_complete):
            self._sending_timer.cancel()
            self._sending_timer = None

    def send_400_response(self, msg: str) -> None:
        _log.debug("closing a connection that does not speak HTTP", extra={"client": str(self.client)})
        self.crowd.refusals.count("bad_request")
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
            if self.cycle is not None:
                # The application may still be at work on it: this was its answer.
                self.cycle.disconnected = True
                self.cycle.message_event.set()
        else:
            # A body that went wrong behind its request, which has its answer already, or a part of it.
            self.transport.close()

    def abort(self) -> None:
        """Ends the connection at once; what waits to be sent is dropped."""
        self.crowd.forget(self)
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_for("", 0)
        self._end_stall(whole=True)
        self.crowd.forget(self)
        super().connection_lost(exc)


@dataclass(frozen=True)
class Acceptor:
    """Takes connections from listening sockets. `context` gives the TLS context for one that begins now, or None."""

    make_protocol: Callable[[], BoundedProtocol]
    crowd: Crowd
    context: Callable[[], ssl.SSLContext | None]
    allowed_names: Callable[[], tuple[str, ...]]
    paused: dict[socket.socket, asyncio.TimerHandle] = field(default_factory=dict)

    def start(self, listener: socket.socket) -> None:
        """Takes connections from now on. In the loop's thread."""
        self.paused.pop(listener, None)
        asyncio.get_running_loop().add_reader(listener, self._take, listener)

    def stop(self, listener: socket.socket) -> None:
        """Takes no more, before the socket is closed."""
        asyncio.get_running_loop().remove_reader(listener)
        if timer := self.paused.pop(listener, None):
            timer.cancel()

    def _take(self, listener: socket.socket) -> None:
        """The connections that wait, a few at a time: a flood must not keep the loop from what it has."""
        for _ in range(_TAKEN_AT_ONCE):
            if not self.crowd.has_room():
                self._pause(listener)
                return
            try:
                connection, _address = listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _AT_THE_LIMIT:
                    _log.warning("cannot take a connection", extra={"cause": error.strerror})
                    self.crowd.close_longest_idle()
                    self._pause(listener)
                return
            self._welcome(connection)

    def _pause(self, listener: socket.socket) -> None:
        """Without a free place, file or memory the socket stays readable: asked again a little later."""
        self.stop(listener)
        self.paused[listener] = asyncio.get_running_loop().call_later(_PAUSE_S, self.start, listener)

    def _welcome(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.crowd.make_room()
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._begin(connection))
        self.crowd.handshakes[task] = loop.time()
        task.add_done_callback(partial(self._begun, connection))

    def _begun(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        self.crowd.handshakes.pop(task, None)
        if task.cancelled():
            # Before it could run even once, so nothing else closes it.
            connection.close()

    def _protocol(self) -> BoundedProtocol:
        protocol = self.make_protocol()
        protocol.crowd = self.crowd
        task = asyncio.current_task()
        assert task is not None
        protocol.handshake = task
        return protocol

    async def _begin(self, connection: socket.socket) -> None:
        context = self.context()
        _set_options(connection)
        within: dict[str, Any] = (
            {"ssl_handshake_timeout": HANDSHAKE_S, "ssl_shutdown_timeout": HANDSHAKE_S} if context else {}
        )
        try:
            transport, protocol = await asyncio.get_running_loop().connect_accepted_socket(
                self._protocol, connection, ssl=context, **within
            )
        except OSError as error:
            # The client's doing, or a scanner's: counted, and told at debug level only.
            self.crowd.refusals.count("tls")
            _log.debug("the TLS handshake failed", extra={"cause": str(error)})
            return
        except asyncio.CancelledError:
            return
        if context and not has_allowed_name(transport.get_extra_info("peercert"), self.allowed_names()):
            self.crowd.refusals.count("client_certificate")
            protocol.abort()


def _set_options(connection: socket.socket) -> None:
    if connection.family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            # Half-open connections and readers that stopped are ended by the kernel too, whatever is buffered.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(2000 * STALLED_S))
