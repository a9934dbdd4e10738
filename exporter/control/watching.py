"""What libvirt tells of a domain while an act is under way: its lifecycle events and reboots, from before the act."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import libvirt

from collectors.event_names import LIFECYCLE, named


class EventsHeard:
    """A domain's events since the watch began, in order. Filled by libvirt's event thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: list[str] = []

    @property
    def names(self) -> list[str]:
        """Like `suspended paused`, `stopped destroyed`, `reboot`."""
        with self._lock:
            return list(self._names)

    @property
    def reboot(self) -> bool:
        return "reboot" in self.names

    def add(self, name: str) -> None:
        with self._lock:
            self._names.append(name)

    def lifecycle(self, event: int, detail: int) -> None:
        """One by libvirt's numbers."""
        name, details = LIFECYCLE[event] if 0 <= event < len(LIFECYCLE) else ("unknown", ())
        self.add(f"{name} {named(details, detail)}")


@contextlib.contextmanager
def watch_events(handle: Any, heard: EventsHeard) -> Iterator[None]:
    """Hears the domain's lifecycle events and reboots while it is open; none where the driver has no events.

    They come in a thread of libvirt's own: one that it sends after its answer may come too late to be heard.
    """
    with contextlib.ExitStack() as watching:
        _watch(watching, handle, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE,
               lambda _connection, _domain, event, detail, _opaque: heard.lifecycle(event, detail))  # fmt: skip
        _watch(watching, handle, libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, lambda *_arguments: heard.add("reboot"))
        yield


def _watch(watching: contextlib.ExitStack, handle: Any, kind: int, heard: Any) -> None:
    connection = handle.connect()
    try:
        number = connection.domainEventRegisterAny(handle, kind, heard, None)
    except libvirt.libvirtError:
        return

    def end() -> None:
        with contextlib.suppress(libvirt.libvirtError):  # the connection died meanwhile
            connection.domainEventDeregisterAny(number)

    watching.callback(end)
