"""EventListener on libvirt's test driver: real callbacks, real event loop; a fake connection only to lose it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import libvirt
import pytest

from collectors import events
from collectors.connection import ConnectionDownError, Opener, Session, start_event_loop
from collectors.events import INVALIDATING, Event, EventListener
from collectors.inventory import Inventory

URI = "test:///default"


def wait_until(true: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline_s, f"waited in vain for: {what}"
        time.sleep(0.01)


@pytest.fixture
def writer() -> Iterator[Any]:
    start_event_loop()
    connection = libvirt.open(URI)
    yield connection
    connection.close()


@pytest.fixture
def started() -> Iterator[Callable[[EventListener], EventListener]]:
    listeners: list[EventListener] = []

    def start(listener: EventListener) -> EventListener:
        listeners.append(listener)
        listener.start()
        return listener

    yield start
    for listener in listeners:
        assert listener.stop()


class FakeConnection:
    """A connection that a test can lose.  ``refuse`` names kinds of events it does not know."""

    def __init__(self, refuse: tuple[int, ...] = ()) -> None:
        self.refuse = refuse
        self.alive = True
        self.callbacks: dict[int, Any] = {}
        self.close_callback: Any = None
        self.closed = False

    def registerCloseCallback(self, callback: Any, opaque: Any) -> None:  # noqa: N802
        self.close_callback = lambda reason: callback(self, reason, opaque)

    def unregisterCloseCallback(self) -> None:  # noqa: N802
        self.close_callback = None

    def domainEventRegisterAny(self, domain: None, event_id: int, callback: Any, opaque: str) -> int:  # noqa: N802
        if event_id in self.refuse:
            raise libvirt.libvirtError("this function is not supported by the connection driver")
        self.callbacks[event_id] = lambda domain, *told: callback(self, domain, *told, opaque)
        return event_id

    def domainEventDeregisterAny(self, callback_id: int) -> None:  # noqa: N802
        if not self.alive:
            raise libvirt.libvirtError("client socket is closed")
        del self.callbacks[callback_id]

    def isAlive(self) -> int:  # noqa: N802
        return int(self.alive)

    def close(self) -> None:
        self.closed = True


class FakeOpener(Opener):
    def __init__(self, *connections: FakeConnection | None) -> None:
        super().__init__("fake:///")
        self.attempts = 0
        self._connections = list(connections)

    def open(self) -> Any:
        self.attempts += 1
        connection = self._connections.pop(0) if self._connections else None
        if connection is None:
            raise ConnectionDownError("down")
        return connection


class FakeDomain:
    def UUIDString(self) -> str:  # noqa: N802
        return "u"

    def name(self) -> str:
        return "n"


class RecordingInventory(Inventory):
    def __init__(self) -> None:
        super().__init__()
        self.calls: queue.SimpleQueue[str] = queue.SimpleQueue()

    def invalidate(self, uuid: str) -> None:
        self.calls.put(uuid)

    def invalidate_all(self) -> None:
        self.calls.put("all")


def test_live_change_reaches_the_inventory(writer: Any, started: Callable[[EventListener], EventListener]) -> None:
    inventory, opener = Inventory(), Opener(URI)
    heard: queue.SimpleQueue[Event] = queue.SimpleQueue()
    listener = started(EventListener(opener, inventory, [heard.put]))
    wait_until(lambda: listener.connected, "events registered")
    session = Session(opener)
    domain = writer.listAllDomains(1)[0]
    wanted = [(domain.UUIDString(), domain.ID())]
    inventory.refresh(session, wanted)
    assert not inventory.stale(wanted)
    domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_TITLE, "by event", None, None, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    try:
        event = heard.get(timeout=10)
        assert event == Event(domain.UUIDString(), "test", "metadata_change",
                              (libvirt.VIR_DOMAIN_METADATA_TITLE, None))
        assert inventory.stale(wanted)
        inventory.refresh(session, wanted)
        series = inventory.constants(*wanted[0])
        assert series is not None
        assert ("title", "by event") in series[0].labels
    finally:
        domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_TITLE, None, None, None, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        session.close()


def test_live_lifecycle(writer: Any, started: Callable[[EventListener], EventListener]) -> None:
    heard: queue.SimpleQueue[Event] = queue.SimpleQueue()
    listener = started(EventListener(Opener(URI), Inventory(), [heard.put]))
    wait_until(lambda: listener.connected, "events registered")
    domain = writer.listAllDomains(1)[0]
    domain.suspend()
    domain.resume()
    assert [heard.get(timeout=10).detail[0] for _ in range(2)] == [
        libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_RESUMED]


def test_stop_leaves_nothing() -> None:
    connection = FakeConnection()
    listener = EventListener(FakeOpener(connection), Inventory())
    listener.start()
    wait_until(lambda: listener.connected, "events registered")
    assert connection.callbacks
    assert listener.stop()
    assert (connection.callbacks, connection.close_callback, connection.closed) == ({}, None, True)
    assert not listener.connected
    assert not any(t.name == "domain-events" for t in threading.enumerate())


def test_stop_while_libvirt_is_down() -> None:
    opener = FakeOpener()
    listener = EventListener(opener, Inventory())
    listener.start()
    wait_until(lambda: opener.attempts > 0, "an attempt")
    assert listener.stop()


def test_loss_reopens_and_invalidates_all(started: Callable[[EventListener], EventListener],
                                          caplog: pytest.LogCaptureFixture) -> None:
    first, second = FakeConnection(), FakeConnection()
    inventory = RecordingInventory()
    listener = started(EventListener(FakeOpener(first, None, None, second), inventory))
    assert inventory.calls.get(timeout=10) == "all"
    wait_until(lambda: listener.connected, "events registered")
    first.alive = False
    first.close_callback(1)
    assert inventory.calls.get(timeout=10) == "all"
    wait_until(lambda: listener.connected and second.close_callback is not None, "registered anew")
    assert first.closed
    second.callbacks[libvirt.VIR_DOMAIN_EVENT_ID_REBOOT](FakeDomain())
    assert inventory.calls.get(timeout=10) == "u"
    assert sum(record.levelname == "WARNING" for record in caplog.records) == 1
    assert "end of file" in caplog.text


def test_death_without_a_close_callback_is_found(monkeypatch: pytest.MonkeyPatch,
                                                 started: Callable[[EventListener], EventListener]) -> None:
    monkeypatch.setattr(events, "CHECK_S", 0.05)
    first, second = FakeConnection(), FakeConnection()
    listener = started(EventListener(FakeOpener(first, second), Inventory()))
    wait_until(lambda: listener.connected, "events registered")
    first.alive = False
    wait_until(lambda: first.closed and listener.connected, "reopened")


def test_unsupported_kinds_are_skipped(started: Callable[[EventListener], EventListener]) -> None:
    connection = FakeConnection(refuse=(libvirt.VIR_DOMAIN_EVENT_ID_TUNABLE,))
    listener = started(EventListener(FakeOpener(connection), Inventory(), also=("watchdog", "of_the_future")))
    wait_until(lambda: listener.connected, "events registered")
    assert libvirt.VIR_DOMAIN_EVENT_ID_TUNABLE not in connection.callbacks
    assert {libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, libvirt.VIR_DOMAIN_EVENT_ID_WATCHDOG} <= set(connection.callbacks)


def test_a_failing_listener_costs_nobody_else(started: Callable[[EventListener], EventListener],
                                              caplog: pytest.LogCaptureFixture) -> None:
    connection, inventory = FakeConnection(), RecordingInventory()
    heard: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def fail(event: Event) -> None:
        raise ValueError(event.kind)

    listener = started(EventListener(FakeOpener(connection), inventory, [fail, heard.put], also=("watchdog",)))
    wait_until(lambda: listener.connected, "events registered")
    connection.callbacks[libvirt.VIR_DOMAIN_EVENT_ID_WATCHDOG](FakeDomain(), 2)
    connection.callbacks[libvirt.VIR_DOMAIN_EVENT_ID_TUNABLE](FakeDomain(), {"b": 2, "a": 1})
    assert heard.get(timeout=10) == Event("u", "n", "watchdog", (2,))
    assert heard.get(timeout=10) == Event("u", "n", "tunable", ((("a", 1), ("b", 2)),))
    assert [inventory.calls.get(timeout=10) for _ in range(2)] == ["all", "u"]  # a watchdog changes no XML
    assert "listener for domain events failed" in caplog.text


def test_flood_is_bounded_and_invalidates_all(monkeypatch: pytest.MonkeyPatch,
                                              started: Callable[[EventListener], EventListener]) -> None:
    monkeypatch.setattr(events, "QUEUE_MOST_EVENTS", 10)
    connection, inventory = FakeConnection(), RecordingInventory()
    go_on = threading.Event()
    listener = started(EventListener(FakeOpener(connection), inventory, [lambda event: bool(go_on.wait(10))]))
    wait_until(lambda: listener.connected, "events registered")
    for _ in range(50):
        connection.callbacks[libvirt.VIR_DOMAIN_EVENT_ID_REBOOT](FakeDomain())
    go_on.set()
    assert inventory.calls.get(timeout=10) == "all"
    told = [inventory.calls.get(timeout=10) for _ in range(11)]
    assert "all" in told


def test_the_list_holds_all_that_change_the_xml() -> None:
    assert {"lifecycle", "device_added", "device_removed", "disk_change", "metadata_change", "tunable",
            "balloon_change"} <= set(INVALIDATING)
