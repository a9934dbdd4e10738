"""Control's own read-write libvirt connection, opened anew when it has died.

libvirt's event loop is one a process, so the one of `collectors.connection` is started, never a second.
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any
from urllib.parse import urlsplit

import libvirt

from collectors.connection import KEEPALIVE_COUNT, KEEPALIVE_INTERVAL_S, start_event_loop
from exporter.control.errors import UnreachableError
from exporter.setting_types import mask_passwords


class Session:
    """A read-write connection to one URI, shared by all threads (libvirt's connections are thread-safe).

    `uri` None is libvirt's own choice (LIBVIRT_DEFAULT_URI or the local driver). `read_only` is for tests and
    for reading operations of callers without the right to the read-write socket.
    """

    def __init__(self, uri: str | None = None, read_only: bool = False) -> None:
        self.uri = uri
        self._open = libvirt.openReadOnly if read_only else libvirt.open
        self._lock = threading.Lock()
        self._connection: Any = None
        self.abandoned = False

    def abandon(self) -> None:
        """For whoever leaves a thread in a call on it that may never come back: no pool hands it out again."""
        self.abandoned = True

    @property
    def connection(self) -> Any:
        """The open virConnect, opened now if there is none or it has died. Raises UnreachableError."""
        with self._lock:
            if self._connection is not None and not _alive(self._connection):
                self._close()
            if self._connection is None:
                self._connection = self._opened()
            return self._connection

    def _opened(self) -> Any:
        start_event_loop()
        try:
            connection = self._open(self.uri)
        except libvirt.libvirtError as error:
            raise UnreachableError(
                f"cannot open {mask_passwords(self.uri) if self.uri else 'libvirt'} for control",
                next_step="check that libvirtd runs, libvirt.uri, and the right to its read-write socket",
                libvirt_code=error.get_error_code(),
                libvirt_message=error.get_error_message(),
            ) from error
        with contextlib.suppress(libvirt.libvirtError):  # drivers without a daemon (test:///) have no keepalive
            connection.setKeepAlive(KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT)
        return connection

    def another(self) -> Session:
        """A new Session like this one; itself on the test driver, whose state is each connection's own."""
        if self.uri is not None and self.uri.startswith("test:"):
            return self
        return Session(self.uri, self._open is libvirt.openReadOnly)

    @property
    def driver(self) -> str:
        """libvirt's name of the hypervisor driver: `QEMU`, `TEST`, `Xen`."""
        return str(self.connection.getType())

    def close(self) -> None:
        """Closes the connection; the next use opens another."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(libvirt.libvirtError):  # it was dead already
                connection.close()


class SessionPool:
    """A Session for each run of an operation, used by one thread at a time. Any thread.

    Measured: while one thread waits in a call to a hung QEMU, calls of others on the same connection now and then
    stall until the next keepalive (5 s) or longer. So no two runs share a connection, and the model is left to those
    that only look.
    """

    def __init__(self, model: Session, keep: int = 4) -> None:
        self._model = model
        self._keep = keep
        self._lock = threading.Lock()
        self._idle: list[Session] = []

    def take(self) -> Session:
        with self._lock:
            return self._idle.pop() if self._idle else self._model.another()

    def give_back(self, session: Session) -> None:
        with self._lock:
            if session is self._model:  # of the test driver, which has but one
                return
            if len(self._idle) < self._keep and not session.abandoned:
                self._idle.append(session)
                return
        session.close()

    def close(self) -> None:
        """Closes the idle ones; those in use are closed by the process's end."""
        with self._lock:
            idle, self._idle = self._idle, []
        for session in idle:
            session.close()


class Lease:
    """A Session of the pool, given back by whoever ends last: the run, or the act's own thread."""

    def __init__(self, pool: SessionPool) -> None:
        self._pool = pool
        self._kept = False
        self.session = pool.take()

    def keep(self, kept: bool = True) -> None:
        """Whether the act's own thread is to give it back."""
        self._kept = kept

    def end(self) -> None:
        if not self._kept:
            self.give_back()

    def give_back(self) -> None:
        self._pool.give_back(self.session)


def is_remote(uri: str) -> bool:
    """Whether a libvirt URI leads to another host, as far as it says."""
    parts = urlsplit(uri)
    transport = parts.scheme.partition("+")[2]
    return bool(parts.netloc) or transport not in ("", "unix")


def _alive(connection: Any) -> bool:
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False
