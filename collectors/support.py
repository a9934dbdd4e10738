"""What a driver said it does not support is remembered, shown on the page and not asked again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

import libvirt

from .fields import Constant
from .snapshot import Record, Subject

log = logging.getLogger(__name__)

UNSUPPORTED_INFO = "virtgauge_unsupported_call_info"

Answer = TypeVar("Answer")


class Unsupported:
    """Names of the calls that a target's driver does not support; shared by all its lanes.  Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: frozenset[str] = frozenset()
        self._constants: tuple[Constant, ...] = ()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def add(self, *names: str) -> bool:
        """Remember names; whether one of them is new."""
        return self._set(self._names.union(names))

    def clear(self) -> None:
        """Forget all: the daemon was away, and may have come back as another version."""
        self._set(frozenset())

    def own_record(self, at_s: float) -> Record:
        """A series for each name."""
        return Record(Subject("exporter", ("exporter", "unsupported"), ()), "unsupported", {}, at_s, self._constants)

    def _set(self, names: frozenset[str]) -> bool:
        with self._lock:
            if names == self._names:
                return False
            self._names = names
            self._constants = tuple(Constant(UNSUPPORTED_INFO, (("call", name),)) for name in sorted(names))
            return True


class Support:
    """Makes libvirt calls by name; a name whose call is unsupported gives None from then on."""

    def __init__(self, unsupported: Unsupported | None = None) -> None:
        """``unsupported`` is shared with the target's other lanes."""
        self.unsupported = unsupported or Unsupported()

    def ask(self, name: str, call: Callable[[], Answer]) -> Answer | None:
        """The call's answer, None where the driver does not support it.  Raises libvirtError for anything else."""
        if name in self.unsupported:
            return None
        try:
            return call()
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
                raise
        except AttributeError:  # a binding built on an older libvirt has no such method
            log.debug("%s: the binding has no such call", name)
        if self.unsupported.add(name):
            log.info("%s: the driver does not support it; it is not asked again", name)
        return None
