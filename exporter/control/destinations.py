"""The hosts guests may be moved to: those the settings name, and no other.

A caller names a destination; where it is and which way the guest's memory takes is the administrator's to say. A caller
of the API could otherwise make this host connect anywhere, and send a guest's memory there.
"""

from __future__ import annotations

import contextlib
import difflib
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import libvirt
from pydantic import JsonValue

from collectors.connection import KEEPALIVE_COUNT, KEEPALIVE_INTERVAL_S, start_event_loop
from exporter.control.errors import NotFoundError, UnreachableError

OPEN_S = 15.0
"""A destination that has not answered by then is not reachable; libvirt itself would wait for minutes."""
# https://libvirt.org/uri.html: what protects the connection from others on the network.
_PROTECTED = ("tls", "ssh", "libssh", "libssh2", "unix")


@dataclass(frozen=True)
class Destination:
    """One line of `control.migration_destination`: `NAME=URI` or `NAME=URI STREAM_URI`."""

    name: str
    uri: str
    stream_uri: str | None = None
    """Where the destination's QEMU listens for the memory (`tcp://HOST`); None leaves it to libvirt's host name."""

    @classmethod
    def parse(cls, text: str) -> Destination:
        """From a setting's text, which `exporter.config` has checked."""
        name, _, rest = text.partition("=")
        uri, _, stream = rest.partition(" ")
        return cls(name.strip(), uri.strip(), stream.strip() or None)

    @property
    def transport(self) -> str:
        """How libvirt reaches it: `tls`, `ssh`, `tcp`, `unix`."""
        driver, _, rest = self.uri.partition(":")
        named = driver.partition("+")[2]
        return named or ("tls" if rest.startswith("//") and not rest.startswith("///") else "unix")

    @property
    def protected(self) -> bool:
        """Whether the connection to its libvirt can be read by others on the way."""
        return self.transport in _PROTECTED

    @contextlib.contextmanager
    def connection(self) -> Iterator[Any]:
        """An open read-write virConnect to it. Raises UnreachableError, after OPEN_S at the latest."""
        connection = self._opened()
        try:
            yield connection
        finally:
            with contextlib.suppress(libvirt.libvirtError):  # the destination died meanwhile
                connection.close()

    def _opened(self) -> Any:
        start_event_loop()
        outcome: list[Any] = []
        given_up = threading.Event()

        def open_it() -> None:
            try:
                outcome.append(libvirt.open(self.uri))
            except libvirt.libvirtError as error:
                outcome.append(error)
            if given_up.is_set() and not isinstance(outcome[0], libvirt.libvirtError):
                outcome[0].close()

        # libvirt's open knows no deadline: a host that swallows packets would hold this thread for minutes.
        opener = threading.Thread(target=open_it, name="control-destination", daemon=True)
        opener.start()
        opener.join(OPEN_S)
        if not outcome:
            given_up.set()
            raise self._unreachable(f"no answer within {OPEN_S:g} s")
        if isinstance(outcome[0], libvirt.libvirtError):
            raise self._unreachable("", outcome[0])
        with contextlib.suppress(libvirt.libvirtError):
            outcome[0].setKeepAlive(KEEPALIVE_INTERVAL_S, KEEPALIVE_COUNT)
        return outcome[0]

    def _unreachable(self, why: str, error: libvirt.libvirtError | None = None) -> UnreachableError:
        return UnreachableError(
            f"the destination {self.name} is not reachable{f': {why}' if why else ''}",
            next_step="check that its libvirtd runs and lets this account in (control.migration_destination)",
            libvirt_code=error.get_error_code() if error else None,
            libvirt_message=error.get_error_message() if error else None,
        )


def destinations(texts: Iterable[str]) -> tuple[Destination, ...]:
    """Those of the setting `control.migration_destination`."""
    return tuple(Destination.parse(text) for text in texts)


def destination_named(known: tuple[Destination, ...], name: str) -> Destination:
    """The destination of that name. Raises NotFoundError; an URI is never one."""
    for destination in known:
        if destination.name == name:
            return destination
    names = [destination.name for destination in known]
    raise NotFoundError(
        f"there is no migration destination {name[:60]!r}",
        nearest=difflib.get_close_matches(name, names, n=3, cutoff=0.3) or names[:3],
        next_step="" if names else "name it in the setting control.migration_destination (NAME=URI)",
    )


def destinations_listed(known: tuple[Destination, ...]) -> list[JsonValue]:
    """A row each; the URIs stay in the settings."""
    return [{"name": one.name, "transport": one.transport, "protected": one.protected} for one in known]
