"""What libvirt tells of a domain while an act is under way: its lifecycle events and reboots, from before the act."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import libvirt

from collectors.event_names import LIFECYCLE, named

_MOST_NAMES = 100
"""A guest may reboot as often as it likes while an act goes on for hours; a record of the trail is one line."""


class EventsHeard:
    """A domain's events since the watch began, in order. Filled by libvirt's event thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: list[str] = []
        self._unnamed = 0
        self._rebooted = False

    @property
    def names(self) -> list[str]:
        """Like `suspended paused`, `stopped destroyed`, `reboot`; of many the first, and how many more there were."""
        with self._lock:
            return [*self._names, *([f"{self._unnamed} more"] if self._unnamed else [])]

    @property
    def reboot(self) -> bool:
        """Whether it has rebooted, or was reset."""
        with self._lock:
            return self._rebooted

    def add(self, name: str) -> None:
        with self._lock:
            self._rebooted = self._rebooted or name == "reboot"
            if len(self._names) < _MOST_NAMES:
                self._names.append(name)
            else:
                self._unnamed += 1

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
