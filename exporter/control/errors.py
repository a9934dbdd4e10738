"""What a control operation can answer instead of a result.

    ControlError                  exit 1, HTTP 500: the rest
    ├── InvalidError              exit 2, HTTP 422: the request's own words are wrong
    ├── ForbiddenError            exit 1, HTTP 403: libvirt or the caller's role does not allow it
    ├── RefusedError              exit 3, HTTP 409: the state does not allow it; nothing was changed
    │   └── UnconfirmedError      exit 3, HTTP 428: it cannot be undone and the name was not repeated
    ├── NotFoundError             exit 4, HTTP 404: with the nearest names
    ├── BusyError                 exit 5, HTTP 423: another operation holds the domain; ask again
    ├── TimedOutError             exit 5, HTTP 504: not done, or not seen, within its time
    ├── UnsupportedError          exit 6, HTTP 501: this host's libvirt, driver or backend cannot
    └── UnreachableError          exit 1, HTTP 503: libvirt or the state folder cannot be reached

Each holds libvirt's own code and message where there is one, and a next step. The text never holds a secret.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from typing import ClassVar

import libvirt

from exporter.errors import VirtgaugeError


class ControlError(VirtgaugeError):
    """An operation failed. `str()` is one line: the cause, libvirt's words, the next step."""

    exit_status = 1
    http_status: ClassVar[int] = 500
    kind: ClassVar[str] = "failed"
    """A stable word for machines: the tail of the problem type, the audit trail's `error.kind`."""

    def __init__(
        self,
        cause: str,
        *,
        next_step: str = "",
        libvirt_code: int | None = None,
        libvirt_message: str | None = None,
        outcome_unknown: bool = False,
    ) -> None:
        self.cause = cause
        self.next_step = next_step
        self.libvirt_code = libvirt_code
        self.libvirt_message = libvirt_message
        self.outcome_unknown = outcome_unknown
        """True where the act may still have been, or may yet be, carried out."""
        super().__init__(self._line())

    def _line(self) -> str:
        said = f" (libvirt error {self.libvirt_code}: {self.libvirt_message})" if self.libvirt_code is not None else ""
        step = f"; {self.next_step}" if self.next_step else ""
        return f"{self.cause}{said}{step}"

    def as_json(self) -> dict[str, object]:
        """What the audit trail and a problem document hold of it; absent where there is nothing to say."""
        fields: dict[str, object] = {
            "kind": self.kind,
            "cause": self.cause,
            "next_step": self.next_step,
            "libvirt_code": self.libvirt_code,
            "libvirt_message": self.libvirt_message,
            "outcome_unknown": self.outcome_unknown,
        }
        return {name: value for name, value in fields.items() if value not in ("", None, False)}


class InvalidError(ControlError):
    exit_status = 2
    http_status = 422
    kind = "invalid"


class ForbiddenError(ControlError):
    http_status = 403
    kind = "forbidden"


class RefusedError(ControlError):
    exit_status = 3
    http_status = 409
    kind = "refused"


class UnconfirmedError(RefusedError):
    http_status = 428
    kind = "unconfirmed"


class NotFoundError(ControlError):
    """`nearest`: the known names most like the one asked for, best first."""

    exit_status = 4
    http_status = 404
    kind = "not-found"

    def __init__(
        self,
        cause: str,
        *,
        nearest: Iterable[str] = (),
        next_step: str = "",
        libvirt_code: int | None = None,
        libvirt_message: str | None = None,
        outcome_unknown: bool = False,
    ) -> None:
        self.nearest = tuple(nearest)
        if self.nearest and not next_step:
            next_step = f"the nearest: {', '.join(self.nearest)}"
        super().__init__(
            cause, next_step=next_step, libvirt_code=libvirt_code, libvirt_message=libvirt_message,
            outcome_unknown=outcome_unknown,
        )  # fmt: skip

    def as_json(self) -> dict[str, object]:
        return super().as_json() | ({"nearest": list(self.nearest)} if self.nearest else {})


class BusyError(ControlError):
    exit_status = 5
    http_status = 423
    kind = "busy"


class TimedOutError(ControlError):
    exit_status = 5
    http_status = 504
    kind = "timed-out"


class UnsupportedError(ControlError):
    exit_status = 6
    http_status = 501
    kind = "unsupported"


class UnreachableError(ControlError):
    http_status = 503
    kind = "unreachable"


_ASK_AGAIN = "wait until the other operation is over ('domain show' tells its job) and ask again"
_KINDS: dict[int, tuple[type[ControlError], str]] = {
    libvirt.VIR_ERR_NO_SUPPORT: (UnsupportedError, "this host's libvirt driver or backend has no such function"),
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED: (UnsupportedError, "change the configuration to what this host supports"),
    libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED: (UnsupportedError, "leave out what this host does not support"),
    libvirt.VIR_ERR_OPERATION_UNSUPPORTED: (UnsupportedError, "this guest or host does not support it"),
    libvirt.VIR_ERR_INVALID_ARG: (InvalidError, "correct the value named"),
    libvirt.VIR_ERR_XML_ERROR: (InvalidError, "correct the XML"),
    libvirt.VIR_ERR_XML_DETAIL: (InvalidError, "correct the XML"),
    libvirt.VIR_ERR_XML_INVALID_SCHEMA: (InvalidError, "correct the XML"),
    libvirt.VIR_ERR_NO_NAME: (InvalidError, "give it a name"),
    libvirt.VIR_ERR_OS_TYPE: (InvalidError, "choose a type this host offers"),
    libvirt.VIR_ERR_OPERATION_DENIED: (ForbiddenError, "use a read-write connection and an account with the right"),
    libvirt.VIR_ERR_AUTH_FAILED: (ForbiddenError, "check the account's rights on libvirt's socket"),
    libvirt.VIR_ERR_AUTH_CANCELLED: (ForbiddenError, "check the account's rights on libvirt's socket"),
    libvirt.VIR_ERR_AUTH_UNAVAILABLE: (ForbiddenError, "check the account's rights on libvirt's socket"),
    libvirt.VIR_ERR_ACCESS_DENIED: (ForbiddenError, "check libvirt's access rules"),
    libvirt.VIR_ERR_OPERATION_INVALID: (RefusedError, "look at its state with 'domain show'"),
    libvirt.VIR_ERR_MIGRATE_UNSAFE: (RefusedError, "use shared storage"),
    libvirt.VIR_ERR_AGENT_UNRESPONSIVE: (RefusedError, "use ACPI, or start the agent in the guest"),
    libvirt.VIR_ERR_AGENT_UNSYNCED: (RefusedError, "use ACPI, or start the agent in the guest"),
    libvirt.VIR_ERR_DOM_EXIST: (RefusedError, "choose another name"),
    libvirt.VIR_ERR_NETWORK_EXIST: (RefusedError, "choose another name"),
    libvirt.VIR_ERR_MULTIPLE_INTERFACES: (RefusedError, "use the interface's name"),
    libvirt.VIR_ERR_NO_DOMAIN: (NotFoundError, "list what there is with 'domain list'"),
    libvirt.VIR_ERR_NO_NETWORK: (NotFoundError, "define the network first"),
    libvirt.VIR_ERR_NO_STORAGE_POOL: (NotFoundError, "define the pool first"),
    libvirt.VIR_ERR_NO_STORAGE_VOL: (NotFoundError, "create the volume first"),
    libvirt.VIR_ERR_NO_NODE_DEVICE: (NotFoundError, "list the node devices"),
    libvirt.VIR_ERR_NO_INTERFACE: (NotFoundError, "list what there is with 'interface list'"),
    libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT: (NotFoundError, "list the domain's snapshots"),
    libvirt.VIR_ERR_DEVICE_MISSING: (NotFoundError, "look at the domain's devices with 'domain show'"),
    libvirt.VIR_ERR_OPERATION_TIMEOUT: (BusyError, _ASK_AGAIN),
    libvirt.VIR_ERR_RESOURCE_BUSY: (BusyError, _ASK_AGAIN),
    libvirt.VIR_ERR_NO_CONNECT: (UnreachableError, "check libvirt.uri"),
    libvirt.VIR_ERR_INVALID_CONN: (UnreachableError, "check that libvirtd runs"),
}
"""libvirt's codes as measured on libvirt 9.0; what is not here is a plain ControlError."""
_NEXT_STEPS: dict[tuple[int, int], str] = {
    (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_FROM_NETWORK): "start the network with 'network start'",
    (libvirt.VIR_ERR_SYSTEM_ERROR, libvirt.VIR_FROM_STORAGE): "bring the file back, or change the definition",
}
"""By code and the part of libvirt that it comes from, where that tells more than the code."""
_OF_FILES = (libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_ERR_OPERATION_FAILED, libvirt.VIR_ERR_SYSTEM_ERROR)
"""With these comes what QEMU or the kernel says of a file."""


def from_libvirt(error: libvirt.libvirtError, doing: str, more: str = "") -> ControlError:
    """The ControlError for what libvirt answered; `doing` says what was attempted ("shutting down web1").

    `more` is put behind the next step.
    A closed connection (domain RPC) is UnreachableError with `outcome_unknown`: the daemon may have acted.
    """
    code, message = error.get_error_code(), " ".join((error.get_error_message() or str(error)).split())
    if error.get_error_domain() == libvirt.VIR_FROM_RPC:
        return UnreachableError(
            f"{doing}: the connection to libvirt broke",
            next_step="check that libvirtd runs, then look at the state before asking again" + more,
            libvirt_code=code,
            libvirt_message=message,
            outcome_unknown=code != libvirt.VIR_ERR_SYSTEM_ERROR,
        )
    kind, next_step = _KINDS.get(code or 0, (ControlError, "see libvirt's message, and the log of libvirtd"))
    next_step = _NEXT_STEPS.get((code or 0, error.get_error_domain() or 0), next_step)
    if code == libvirt.VIR_ERR_INVALID_ARG and message.startswith("unsupported flags"):
        kind, next_step = _KINDS[libvirt.VIR_ERR_NO_SUPPORT]  # no value of the caller's: a driver that lacks the way
    if os.strerror(errno.ENOSPC) in message:
        next_step = "make room, and ask again"
    elif code in _OF_FILES and os.strerror(errno.EACCES) in message:
        next_step = "give the account that QEMU runs as the right to the file named, and to the folders above it"
    return kind(f"{doing} failed", next_step=next_step + more, libvirt_code=code, libvirt_message=message)
