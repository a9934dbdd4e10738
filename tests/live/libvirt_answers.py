"""Asking libvirt itself: what it refuses, with which code, and which events it tells of."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import libvirt
import pytest

from collectors.connection import start_event_loop
from exporter.control.errors import from_libvirt
from exporter.demonstration.private_hypervisor import PrivateHypervisor
from tests.live.operating import eventually
from tests.live.sector_guests import SectorGuest, define, pattern

RUNNING, PAUSED, SHUTOFF = libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_SHUTOFF


def opened(hypervisor: PrivateHypervisor) -> Iterator[Any]:
    """A connection whose events are heard."""
    start_event_loop()
    connection = libvirt.open(hypervisor.uri)
    yield connection
    connection.close()


def known_guest(hypervisor: PrivateHypervisor, connection: Any) -> Iterator[tuple[Any, SectorGuest]]:
    """A defined guest that keeps a pattern in its memory, deaf to the power button; not started.

    In the end it goes, and with it all whose name begins like its own.
    """
    known = define(hypervisor, "known", pattern())
    yield connection.lookupByUUIDString(known.uuid), known
    for left in connection.listAllDomains(0):
        if left.name().startswith("known"):
            for ended in (left.destroy, lambda left=left: left.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)):
                with contextlib.suppress(libvirt.libvirtError):  # it was off, or is gone with its QEMU
                    ended()


class Heard:
    """A domain's lifecycle and reboot events in order, as (event, detail); a reboot is "reboot"."""

    def __init__(self, connection: Any, domain: Any) -> None:
        self.events: list[Any] = []
        self._connection = connection
        self._lock = threading.Lock()
        kinds = (
            (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, lambda _c, _d, event, detail, _o: self._add((event, detail))),
            (libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, lambda *_: self._add("reboot")),
        )
        self._numbers = [connection.domainEventRegisterAny(domain, kind, heard, None) for kind, heard in kinds]

    def _add(self, event: Any) -> None:
        with self._lock:
            self.events.append(event)

    def until(self, *wanted: Any) -> None:
        """Waits until these came, in this order, others between them or not."""

        def came() -> bool:
            with self._lock:
                rest = iter(self.events)
            return all(event in rest for event in wanted)

        eventually(came, f"{wanted} in {self.events}")

    def __enter__(self) -> Heard:
        return self

    def __exit__(self, *_error: object) -> None:
        for number in self._numbers:
            self._connection.domainEventDeregisterAny(number)


BOOTED = (libvirt.VIR_DOMAIN_EVENT_STARTED, libvirt.VIR_DOMAIN_EVENT_STARTED_BOOTED)
RESTORED = (libvirt.VIR_DOMAIN_EVENT_STARTED, libvirt.VIR_DOMAIN_EVENT_STARTED_RESTORED)
SUSPENDED = (libvirt.VIR_DOMAIN_EVENT_SUSPENDED, libvirt.VIR_DOMAIN_EVENT_SUSPENDED_PAUSED)
UNPAUSED = (libvirt.VIR_DOMAIN_EVENT_RESUMED, libvirt.VIR_DOMAIN_EVENT_RESUMED_UNPAUSED)
FROM_SNAPSHOT = (libvirt.VIR_DOMAIN_EVENT_RESUMED, libvirt.VIR_DOMAIN_EVENT_RESUMED_FROM_SNAPSHOT)
SAVED = (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_SAVED)
DESTROYED = (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED)
CRASHED = (libvirt.VIR_DOMAIN_EVENT_CRASHED, libvirt.VIR_DOMAIN_EVENT_CRASHED_PANICKED)
UPDATED = (libvirt.VIR_DOMAIN_EVENT_DEFINED, libvirt.VIR_DOMAIN_EVENT_DEFINED_UPDATED)
REMOVED = (libvirt.VIR_DOMAIN_EVENT_UNDEFINED, libvirt.VIR_DOMAIN_EVENT_UNDEFINED_REMOVED)


def refusal(call: Callable[[], object]) -> libvirt.libvirtError:
    with pytest.raises(libvirt.libvirtError) as caught:
        call()
    return caught.value


def code(call: Callable[[], object]) -> int:
    return int(refusal(call).get_error_code())


def kind(call: Callable[[], object]) -> str:
    """What control calls it."""
    return from_libvirt(refusal(call), "doing it").kind
