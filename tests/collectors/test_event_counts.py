"""Tests of the event counters: names by libvirt's own constants, counts by real events of the test driver."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import libvirt
import pytest

from collectors import event_names
from collectors.connection import Opener, start_event_loop
from collectors.event_counts import EVENTS, FROM_ZERO, MOST_PAIRS, EventCounts
from collectors.event_names import COUNTED, LIFECYCLE, names_of
from collectors.events import Event, EventListener
from collectors.inventory import Inventory
from tests.samples import builder, series, snapshot


def constants(prefix: str) -> dict[str, int]:
    return {name.removeprefix(prefix): number for name, number in vars(libvirt).items() if name.startswith(prefix)}


@pytest.mark.parametrize(("number", "name", "details"), [(n, *pair) for n, pair in enumerate(LIFECYCLE)])
def test_lifecycle_names_are_libvirts(number: int, name: str, details: tuple[str, ...]) -> None:
    assert getattr(libvirt, f"VIR_DOMAIN_EVENT_{name.upper()}") == number
    for text, value in constants(f"VIR_DOMAIN_EVENT_{name.upper()}_").items():
        assert details[value].replace("_", "") == text.lower().replace("_", "")


@pytest.mark.parametrize(("prefix", "names"), [
    ("VIR_DOMAIN_EVENT_WATCHDOG_", event_names._WATCHDOG), ("VIR_DOMAIN_JOB_OPERATION_", event_names.JOB_OPERATIONS),
    ("VIR_DOMAIN_BLOCK_JOB_TYPE_", event_names._BLOCK_JOBS), ("VIR_DOMAIN_EVENT_TRAY_CHANGE_", event_names._TRAY),
    ("VIR_DOMAIN_EVENT_MEMORY_FAILURE_ACTION_", event_names._MEMORY_FAILURE_ACTIONS)])
def test_other_names_are_libvirts(prefix: str, names: tuple[str, ...]) -> None:
    for text, value in constants(prefix).items():
        assert names[value].replace("_", "") == text.lower().replace("_", "")


@pytest.mark.parametrize(("kind", "detail", "names"), [
    ("lifecycle", (5, 2), ("stopped", "crashed")), ("lifecycle", (5, 99), ("stopped", "unknown")),
    ("lifecycle", (99, 0), ("unknown", "")), ("lifecycle", (), ("unknown", "")), ("reboot", (), ("reboot", "")),
    ("watchdog", (2,), ("watchdog", "reset")), ("watchdog", (), ("watchdog", "unknown")),
    ("io_error_reason", ("/a", "virtio-disk0", 1, "enospc"), ("io_error", "enospc")),
    ("io_error_reason", ("/a", "virtio-disk0", 1, ""), ("io_error", "other")),
    ("io_error_reason", ("/a", "virtio-disk0", 1, "Text of\na user"), ("io_error", "other")),
    ("block_job_2", ("vda", 4, 3), ("block_job", "active_commit_ready")),
    ("job_completed", ((("operation", 5), ("time_elapsed", 3)),), ("job_completed", "migration_out")),
    ("block_threshold", ("vda", "/a", 1, 2), ("block_threshold", "vda")),
    ("agent_lifecycle", (1, 2), ("agent", "connected")), ("odd_new_kind", (1,), ("odd_new_kind", ""))])
def test_events_and_details_have_names(kind: str, detail: tuple[object, ...], names: tuple[str, str]) -> None:
    assert names_of(Event("u", "d", kind, detail)) == names


def test_counts_are_kept_while_the_domain_is_known_whatever_it_is_called() -> None:
    counts = EventCounts()
    for _ in range(2):
        counts.heard(Event("u", "old", "reboot", ()))
    made = builder([EVENTS])
    shown = series(made.batch(snapshot(*counts.records({"u": "new"}, 1.0))))
    assert shown['libvirt_domain_events_total{domain="new",event="reboot",detail="none"}'] == 2
    assert len(shown) == 1 + len(FROM_ZERO)
    assert list(counts.records({}, 2.0)) == []
    again = series(made.batch(snapshot(*counts.records({"u": "new"}, 3.0))))
    assert set(again.values()) == {0}
    assert len(again) == len(FROM_ZERO)


def test_a_sample_makes_anew_only_what_an_event_changed() -> None:
    counts = EventCounts()
    counts.heard(Event("u", "a", "reboot", ()))
    before = {record.subject.name: record for record in counts.records({"u": "a", "v": "b"}, 1.0)}
    counts.heard(Event("u", "a", "reboot", ()))
    after = {record.subject.name: record for record in counts.records({"u": "a", "v": "b"}, 2.0)}
    assert after["b"].stats is before["b"].stats
    assert after["b"].sampled_at_s == 2.0
    shown = series(builder([EVENTS]).batch(snapshot(*after.values())))
    assert shown['libvirt_domain_events_total{domain="a",event="reboot",detail="none"}'] == 2


def test_the_number_of_series_of_a_domain_is_bounded() -> None:
    counts = EventCounts()
    for number in range(3 * MOST_PAIRS):
        counts.heard(Event("u", "d", "block_threshold", (f"disk{number}",)))
    made = builder([EVENTS])
    assert len(series(made.batch(snapshot(*counts.records({"u": "d"}, 1.0))))) == MOST_PAIRS


@pytest.fixture
def writer() -> Iterator[Any]:
    start_event_loop()
    connection = libvirt.open("test:///default")
    yield connection
    connection.close()


def test_real_events_are_counted(writer: Any) -> None:
    counts = EventCounts()
    listener = EventListener(Opener("test:///default"), Inventory(), [counts.heard], COUNTED)
    listener.start()
    try:
        domain = writer.lookupByName("test")
        uuid = domain.UUIDString()
        deadline_s = time.monotonic() + 20
        wanted = 'libvirt_domain_events_total{domain="test",event="suspended",detail="paused"}'
        shown: dict[str, float] = {}
        while not shown.get(wanted):
            assert time.monotonic() < deadline_s, shown
            if listener.connected:
                domain.suspend()
                domain.resume()
            time.sleep(0.05)
            shown = series(builder([EVENTS]).batch(snapshot(*counts.records({uuid: "test"}, 1.0))))
        assert shown['libvirt_domain_events_total{domain="test",event="crashed",detail="panicked"}'] == 0
    finally:
        assert listener.stop()
