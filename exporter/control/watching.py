"""Waiting for what an act should cause: a domain's events, counted from before the act."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import libvirt


class RebootCount:
    """How often the domain has rebooted since the watch began. Filled by libvirt's event thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0

    @property
    def seen(self) -> bool:
        with self._lock:
            return self._count > 0

    def count(self, *_arguments: object) -> None:
        with self._lock:
            self._count += 1


@contextlib.contextmanager
def watch_reboots(handle: Any) -> Iterator[RebootCount | None]:
    """Counts the domain's REBOOT events while it is open; None where the driver has no such event."""
    reboots = RebootCount()
    connection = handle.connect()
    try:
        number = connection.domainEventRegisterAny(
            handle, libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, lambda *arguments: reboots.count(*arguments), None
        )
    except libvirt.libvirtError:
        yield None
        return
    try:
        yield reboots
    finally:
        with contextlib.suppress(libvirt.libvirtError):  # the connection died meanwhile
            connection.domainEventDeregisterAny(number)
