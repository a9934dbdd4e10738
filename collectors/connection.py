"""libvirt connections, read-only ones unless asked otherwise: event loop, keepalive, opening with back-off.

One of the modules that may import libvirt.  libvirt's event implementation is process-wide by its own design
(virEventRegisterDefaultImpl cannot be undone), so its thread is started once and stopped at the process's end only.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit
from uuid import NAMESPACE_URL, uuid5
from xml.etree import ElementTree

import libvirt

from .last_error import keep_errors
from .support import Support, Unsupported

KEEPALIVE_INTERVAL_S = 5
KEEPALIVE_COUNT = 3
BACK_OFF_FIRST_S = 0.1
BACK_OFF_MOST_S = 2.0
_LOOP_END_S = 10.0
"""How long the process's end waits for a callback that is under way; usually none is."""

_loop_lock = threading.Lock()
_loop_threads: list[threading.Thread] = []


class ConnectionDownError(Exception):
    """libvirt did not answer; the text is libvirt's own or says that the next attempt is not due yet."""


def start_event_loop() -> None:
    """Start libvirt's event loop in a thread of its own, once a process; needed by keepalive and events.

    Must run before the first connection is opened (libvirt's rule).  Any thread.
    """
    with _loop_lock:
        if _loop_threads:
            return
        keep_errors()
        libvirt.virEventRegisterDefaultImpl()
        # libvirt polls only what is registered; a timer keeps the loop turning when there is nothing else.
        timer = libvirt.virEventAddTimeout(1000, _tick, None)
        ended = threading.Event()
        thread = threading.Thread(target=_run_event_loop, args=(ended,), name="libvirt-events", daemon=True)
        _loop_threads.append(thread)
        thread.start()
        atexit.register(_stop_event_loop, ended, timer, thread)


def _tick(_timer: int, _opaque: object) -> None:
    """Nothing: see start_event_loop."""


def _run_event_loop(ended: threading.Event) -> None:
    while not ended.is_set():
        libvirt.virEventRunDefaultImpl()


def _stop_event_loop(ended: threading.Event, timer: int, thread: threading.Thread) -> None:
    """At the interpreter's end: a callback in a thread that outlives it is a segmentation fault, after all was done."""
    ended.set()
    with contextlib.suppress(libvirt.libvirtError):
        libvirt.virEventUpdateTimeout(timer, 0)  # the loop turns at once
    thread.join(_LOOP_END_S)


def _is_alive(connection: Any) -> bool:
    """Whether the socket is open as far as the client knows; no call to the daemon."""
    try:
        return bool(connection.isAlive())
    except libvirt.libvirtError:
        return False


def is_local(uri: str | None, default_uri: str | None = None) -> bool:
    """Whether a URI is of QEMU on this host: over a Unix socket, thus without a host name.

    ``default_uri`` is what libvirt takes where ``uri`` is None; None is the local driver.
    """
    parts = urlsplit(uri or default_uri or "qemu:///system")
    return parts.scheme in ("qemu", "qemu+unix") and not parts.netloc


class Opener:
    """Opens connections to one URI; after a failure the next attempt waits (0.1 s, doubled to 2 s).

    Shared by all lanes of a target, so that a dead daemon is knocked at by one of them at a time.  Any thread.
    ``uri`` None is libvirt's own choice (LIBVIRT_DEFAULT_URI or the local driver).  ``read_only`` is false for the
    agent's collector alone, which runs in the control service.
    """

    def __init__(self, uri: str | None, clock: Callable[[], float] = time.monotonic, *,
                 read_only: bool = True) -> None:
        self.uri = uri
        self._open = libvirt.openReadOnly if read_only else libvirt.open
        self._clock = clock
        self._lock = threading.Lock()
        self._back_off_s = 0.0
        self._next_attempt_s = 0.0
        self._last_error = ""
        self.unsupported = Unsupported()
        """What the driver said it does not support, to any lane."""

    def open(self) -> Any:
        """A new virConnect.  Raises ConnectionDownError; may block for as long as the daemon does."""
        with self._lock:
            if self._clock() < self._next_attempt_s:
                raise ConnectionDownError(self._last_error)
        start_event_loop()
        try:
            connection = self._open(self.uri)
        except libvirt.libvirtError as error:
            with self._lock:
                self._back_off_s = min(max(2 * self._back_off_s, BACK_OFF_FIRST_S), BACK_OFF_MOST_S)
                self._next_attempt_s = self._clock() + self._back_off_s
                self._last_error = str(error)
            raise ConnectionDownError(str(error)) from error
        with self._lock:
            was_away = self._back_off_s > 0
            self._back_off_s = self._next_attempt_s = 0.0
        if was_away:
            self.unsupported.clear()
        with contextlib.suppress(libvirt.libvirtError):  # drivers without a daemon (test:///) have no keepalive
            connection.setKeepAlive(KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT)
        return connection


def host_identity(opener: Opener) -> tuple[str, str]:
    """libvirt's UUID and name of the host, over a connection of its own.  Raises ConnectionDownError; may block.

    Where the driver names no UUID (test:///, ESX), it is made from its URI and the host's name: the same each time.
    """
    connection = opener.open()
    try:
        uuid = ElementTree.fromstring(connection.getCapabilities()).findtext("host/uuid")
        name = connection.getHostname()
        uri = connection.getURI()
    except (libvirt.libvirtError, ElementTree.ParseError) as error:
        raise ConnectionDownError(f"the host's UUID cannot be read: {error}") from error
    finally:
        with contextlib.suppress(libvirt.libvirtError):
            connection.close()
    return uuid or str(uuid5(NAMESPACE_URL, f"{uri} {name}")), name


class Session:
    """One lane's connection with the domain objects found on it.  Used by the lane's thread only."""

    def __init__(self, opener: Opener) -> None:
        self._opener = opener
        self._connection: Any = None
        self._domains: dict[str, Any] = {}
        self._driver = ""
        self.support = Support(opener.unsupported)
        """Asks what the driver may not support."""

    @property
    def has_bulk_statistics(self) -> bool:
        """Whether the driver's bulk call gives all there is (QEMU's does).  Raises ConnectionDownError."""
        connection = self.connection
        if not self._driver:
            self._driver = str(connection.getType())
        return self._driver == "QEMU"

    @property
    def connection(self) -> Any:
        """The open virConnect, opened now if there is none or it died.  Raises ConnectionDownError."""
        if self._connection is not None and not _is_alive(self._connection):
            self.close()
        if self._connection is None:
            self._connection = self._opener.open()
        return self._connection

    def open(self) -> None:
        """Open the connection if there is none or it died.  Raises ConnectionDownError."""
        _ = self.connection

    def lost(self, error: libvirt.libvirtError) -> bool:
        """Whether an error means that the connection is gone; the next use opens another.  Never blocks."""
        if self._connection is None:
            return True
        return error.get_error_domain() == libvirt.VIR_FROM_RPC or not _is_alive(self._connection)

    def domains(self, uuids: Iterable[str]) -> list[Any]:
        """This connection's virDomain objects of the uuids; those that are gone are left out.

        libvirt's list calls take objects of one connection only; one listing finds all that are not known yet.
        """
        wanted = list(uuids)
        if any(uuid not in self._domains for uuid in wanted):
            flags = libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE
            self._domains = {domain.UUIDString(): domain for domain in self.connection.listAllDomains(flags)}
        return [self._domains[uuid] for uuid in wanted if uuid in self._domains]

    def close(self) -> None:
        """Close the connection; its domain objects go with it."""
        self._domains = {}
        self._driver = ""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(libvirt.libvirtError):  # it was dead already
                connection.close()
