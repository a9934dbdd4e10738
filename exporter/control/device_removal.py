"""Taking a device out of a running guest: the guest must let go of it, and may not.

libvirt sends the request, waits 5 s for the guest and returns success either way (qemuDomainRemoveDeviceWaitTime); that
the device is gone is told by the event DEVICE_REMOVED, that the guest refused by DEVICE_REMOVAL_FAILED.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import libvirt

from exporter.control.errors import RefusedError, TimedOutError
from exporter.control.operation import Call, Progress


class Removals:
    """The aliases of devices that went or that the guest kept. Filled by libvirt's event thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._gone: set[str] = set()
        self._kept: set[str] = set()

    def gone(self, alias: str) -> bool:
        with self._lock:
            return alias in self._gone

    def kept(self, alias: str) -> bool:
        with self._lock:
            return alias in self._kept

    def on_gone(self, _connection: object, _domain: object, alias: str, _opaque: object) -> None:
        with self._lock:
            self._gone.add(alias)

    def on_kept(self, _connection: object, _domain: object, alias: str, _opaque: object) -> None:
        with self._lock:
            self._kept.add(alias)


@contextlib.contextmanager
def watch_removals(handle: Any) -> Iterator[Removals]:
    """The domain's removals while it is open; stays empty where the driver has no such events."""
    removals, connection, numbers = Removals(), handle.connect(), []
    for event, told in (
        (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, removals.on_gone),
        (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED, removals.on_kept),
    ):
        with contextlib.suppress(libvirt.libvirtError):
            numbers.append(connection.domainEventRegisterAny(handle, event, told, None))
    try:
        yield removals
    finally:
        for number in numbers:
            with contextlib.suppress(libvirt.libvirtError):  # the connection died meanwhile
                connection.domainEventDeregisterAny(number)


def remove_live(call: Call, xml: str, alias: str, what: str, there: Callable[[], bool], within_s: float) -> None:
    """Asks for the device of that XML, and waits until it is gone (`there` says whether libvirt still has it).

    Raises RefusedError where the guest refused, TimedOutError where it did not answer in time.
    """
    handle = call.subject.handle
    with watch_removals(handle) as removals:
        call.progress(Progress(f"asking the guest to let go of {what}"))
        handle.detachDeviceFlags(xml, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        over = call.deadline.within(within_s).wait_for(
            lambda: removals.gone(alias) or removals.kept(alias) or not there(), poll_s=0.1
        )
        if not there():
            return
        if removals.kept(alias):
            raise RefusedError(
                f"the guest in domain {call.subject.name} refuses to let go of {what}",
                next_step="stop its use inside the guest, or apply to persistent and let it go at the next boot",
            )
        if over and call.deadline.within(5).wait_for(lambda: not there()):
            return
    raise TimedOutError(
        f"domain {call.subject.name} still has {what} after {within_s:g} s: the guest was asked to let go of it and has"
        " not answered",
        next_step="a guest without a driver for it ignores the request; it may still let go, at its reboot too; "
        "apply to persistent and power it off and on otherwise",
    )
