"""What a driver said it does not support is remembered and not asked again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import libvirt

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")


class Support:
    """Makes libvirt calls by name; a name whose call is unsupported gives None from then on.  One thread at a time."""

    def __init__(self) -> None:
        self.unsupported: set[str] = set()

    def ask(self, name: str, call: Callable[[], Answer]) -> Answer | None:
        """The call's answer, None where the driver does not support it.  Raises libvirtError for anything else."""
        if name in self.unsupported:
            return None
        try:
            return call()
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
                raise
            log.info("%s: the driver does not support it; it is not asked again", name)
            self.unsupported.add(name)
            return None
        except AttributeError:  # a binding built on an older libvirt has no such method
            self.unsupported.add(name)
            return None
