"""Domain events: what changed is read again, and whoever listens is told.  Nothing is polled.

libvirt runs the callbacks in its event loop's thread, where a libvirt call could wait for an answer that only this
thread can read.  They put what they were told on a queue; a thread of our own does the rest.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import libvirt

from .connection import ConnectionDownError, Opener

log = logging.getLogger(__name__)

INVALIDATING = ("lifecycle", "reboot", "device_added", "device_removed", "disk_change", "tray_change", "block_job_2",
                "metadata_change", "tunable", "balloon_change", "memory_device_size_change", "nic_mac_change",
                "vcpu_removed", "agent_lifecycle", "job_completed")
"""Events after which a domain's XML may read differently (VIR_DOMAIN_EVENT_ID_*, in lower case)."""

QUEUE_MOST_EVENTS = 10_000
RETRY_S = 0.25
CHECK_S = 5.0


@dataclass(frozen=True, slots=True)
class Event:
    """One domain event.  ``kind`` is libvirt's event id by name, ``detail`` what its callback was told besides."""

    uuid: str
    domain: str
    kind: str
    detail: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class _Closed:
    connection: int
    reason: int


Listener = Callable[[Event], None]


class Invalidated(Protocol):
    """What is told that things may have changed: the inventory.  Called in the listener's thread."""

    def invalidate(self, uuid: str) -> None: ...
    def invalidate_all(self) -> None: ...


_CLOSE_REASONS = ("error", "end of file", "keepalive timeout", "closed by the client")


class EventListener:
    """Keeps a connection of its own with the events registered, and invalidates the inventory by them.

    Events have no replay: after each opening everything is invalidated, once all events are registered.
    ``listeners`` are called one after the other in the listener's thread, with each event; they must not block.
    ``also`` are kinds to register besides INVALIDATING.  A kind that the driver or this libvirt does not know is
    left out.  ``start`` and ``stop`` are called by one thread, once each.
    """

    def __init__(self, opener: Opener, inventory: Invalidated, listeners: Iterable[Listener] = (),
                 also: Iterable[str] = (), missed: Callable[[], None] = lambda: None) -> None:
        """``missed`` is called when events may have been missed, in the listener's thread; it must not block."""
        self._opener = opener
        self._inventory = inventory
        self._listeners = tuple(listeners)
        self._missed = missed
        self._kinds = tuple(dict.fromkeys((*INVALIDATING, *also)))
        self._queue: queue.Queue[Event | _Closed | None] = queue.Queue(QUEUE_MOST_EVENTS)
        self._lost = threading.Event()
        self._stopping = threading.Event()
        self._connected = threading.Event()
        self._openings = 0
        self._warned = False
        self._thread = threading.Thread(target=self._run, name="domain-events", daemon=True)

    @property
    def connected(self) -> bool:
        """Whether events are registered on a connection that is alive as far as is known.  Any thread."""
        return self._connected.is_set()

    def start(self) -> None:
        """Start the thread; it opens the connection itself and never gives up."""
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> bool:
        """Deregister, close and end the thread; False if it is still held by a libvirt call after ``timeout_s``."""
        self._stopping.set()
        self._put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                connection = self._opener.open()
            except ConnectionDownError as error:
                self._warn(str(error))
                self._stopping.wait(RETRY_S)  # the Opener decides when the next attempt is due
                continue
            self._openings += 1
            try:
                self._serve(connection, self._openings)
            except libvirt.libvirtError as error:
                self._warn(str(error))
                self._stopping.wait(RETRY_S)

    def _warn(self, why: str) -> None:
        if not self._warned:
            log.warning("no domain events: %s; trying again until libvirt answers", why)
        self._warned = True

    def _serve(self, connection: Any, number: int) -> None:
        """Hand events on until the connection is lost or ``stop`` is called; leaves the connection closed."""
        registered: list[int] = []
        try:
            self._register(connection, number, registered)
            self._invalidate_all()
            self._connected.set()
            log.log(logging.INFO if self._warned else logging.DEBUG, "domain events registered: %d kinds",
                    len(registered))
            self._warned = False
            self._deliver(connection, number)
        finally:
            self._connected.clear()
            _close(connection, registered)

    def _register(self, connection: Any, number: int, registered: list[int]) -> None:
        try:
            connection.registerCloseCallback(self._closed, number)
        except libvirt.libvirtError as error:
            log.debug("no close callback: %s", error)  # drivers without a daemon
        for kind in self._kinds:
            event_id = getattr(libvirt, f"VIR_DOMAIN_EVENT_ID_{kind.upper()}", None)
            if event_id is None:
                continue
            try:
                registered.append(connection.domainEventRegisterAny(None, event_id, self._received, kind))
            except libvirt.libvirtError as error:
                if not connection.isAlive():
                    raise
                log.debug("no %s events: %s", kind, error)

    def _deliver(self, connection: Any, number: int) -> None:
        while not self._stopping.is_set():
            if self._lost.is_set():
                self._lost.clear()
                log.warning("more than %d domain events waited; some were lost", QUEUE_MOST_EVENTS)
                self._invalidate_all()
            try:
                told = self._queue.get(timeout=CHECK_S)
            except queue.Empty:
                if not connection.isAlive():
                    self._warn("the connection is dead")
                    return
                continue
            if isinstance(told, Event):
                self._tell(told)
            elif isinstance(told, _Closed) and told.connection == number:
                known = 0 <= told.reason < len(_CLOSE_REASONS)
                self._warn(f"connection lost: {_CLOSE_REASONS[told.reason] if known else told.reason}")
                return

    def _invalidate_all(self) -> None:
        self._inventory.invalidate_all()
        self._missed()

    def _tell(self, event: Event) -> None:
        if event.kind in INVALIDATING:
            self._inventory.invalidate(event.uuid)
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:  # one listener's bug must cost neither the others nor the inventory
                log.exception("listener for domain events failed at %s of %s", event.kind, event.domain)

    def _received(self, _connection: Any, domain: Any, *told: Any) -> None:
        """libvirt's callback: name and UUID are fields of the domain object, not calls to the daemon."""
        *detail, kind = told
        plain = tuple(tuple(sorted(d.items())) if isinstance(d, dict) else d for d in detail)
        self._put(Event(domain.UUIDString(), domain.name(), kind, plain))

    def _closed(self, _connection: Any, reason: int, number: int) -> None:
        """libvirt's callback when the connection is lost."""
        self._put(_Closed(number, reason))

    def _put(self, told: Event | _Closed | None) -> None:
        try:
            self._queue.put_nowait(told)
        except queue.Full:
            self._lost.set()  # a lost close is found by isAlive, a lost stop by its flag


def _close(connection: Any, registered: list[int]) -> None:
    """Deregister and close; on a dead connection each of the calls may fail, and none of them matters."""
    for callback_id in registered:
        with suppress(libvirt.libvirtError):
            connection.domainEventDeregisterAny(callback_id)
    with suppress(libvirt.libvirtError):
        connection.unregisterCloseCallback()
    with suppress(libvirt.libvirtError):
        connection.close()
