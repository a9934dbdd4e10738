"""An error's words and code, kept on their way from libvirt's call to its exception.

libvirt-python asks for the thread's last error only when it makes the exception (libvirtError.__init__). Whatever
resets that error in between costs the exception its code: a handle that Python frees just then, since each free is a
call to libvirt (shown on 9.0: tests/collectors/test_last_error.py). "Not there" would then be a defect of unknown kind.
libvirt tells its error handler of each error at once, in the thread that made the call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import libvirt

_heard = threading.local()


def keep_errors() -> None:
    """Lets no exception of libvirt lose its error, and nothing of it go to stderr. Once a process, any thread."""
    libvirt.registerErrorHandler(_hear, None)  # the default one prints each error to stderr
    libvirt.libvirtmod.virGetLastError = _kept(libvirt.libvirtmod.virGetLastError)


def _hear(_context: object, error: object) -> None:
    _heard.error = error


def _kept(last_error: Callable[[], Any]) -> Callable[[], Any]:
    """virGetLastError's answer, else what the handler heard in this thread since the last exception."""

    def asked() -> Any:
        error = last_error()
        heard = _heard.__dict__.pop("error", None)
        return heard if error is None else error

    return asked
