"""A real server in a thread, on a free port of loopback, in front of any application."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

from exporter.listening import ListenAddress, bind_sockets, socket_address
from exporter.server import Front, serve_sockets


@contextlib.contextmanager
def serving(app, front: Front | None = None, sockets=None) -> Iterator[int]:
    """Serves until left; gives the port of the first socket."""
    sockets = sockets or bind_sockets([ListenAddress("127.0.0.1", 0)])
    port = socket_address(sockets[0]).port
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    main = serve_sockets(app, sockets, front=front, stop=stop, handle_signals=False)
    thread = threading.Thread(target=lambda: loop.run_until_complete(main))
    thread.start()
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        assert not thread.is_alive()
        loop.close()
