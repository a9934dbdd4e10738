"""A domain as control sees it: found by id, name or UUID; acted on by UUID; its state in words."""

from __future__ import annotations

import contextlib
import difflib
import os
import time
import uuid as uuids
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import libvirt
from pydantic import JsonValue

from collectors.domain import reason_name, state_name
from exporter.control.connection import Session
from exporter.control.errors import InvalidError, NotFoundError, RefusedError
from exporter.control.folders import Folders
from exporter.control.libvirt_jobs import job_in_words
from exporter.control.operation import Call, Operation, Parameters, State, Subject

P = TypeVar("P", bound=Parameters)

_REFERENCE_MOST_CHARACTERS = 1024
_NEAREST = 3
_MISSING = (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_INVALID_ARG)


class DomainOperation(Operation[P]):
    """An operation on one existing domain."""

    noun = "domain"
    beside_jobs: ClassVar[bool] = False
    """Whether libvirt lets it happen while a job of its own (a migration, a save) holds the domain."""

    def held_by(self, session: Session, subject: Subject) -> str:
        return "" if self.beside_jobs else job_in_words(session, subject.handle)

    def find(self, session: Session, reference: str | None, parameters: P) -> Subject:
        return find_domain(session, reference or "")

    def state(self, call: Call, parameters: P) -> State:
        return domain_state(call.subject.handle)

    def aftermath(self, session: Session, folders: Folders, begun: Mapping[str, JsonValue]) -> str:
        return interrupted(session, begun)


def interrupted(session: Session, begun: Mapping[str, JsonValue]) -> str:
    """What a trail says of an act on a domain that a crash cut off: what the domain is now."""
    subject = begun.get("subject")
    uuid = subject.get("uuid") if isinstance(subject, dict) else None
    now = "not there"
    try:
        state = domain_state(session.connection.lookupByUUIDString(str(uuid)))
        now = f"{state['state']} ({state['reason']})" if "reason" in state else str(state["state"])
    except libvirt.libvirtError as error:
        if error.get_error_code() not in _MISSING:
            raise
    return f"interrupted; the domain is {now} now; whether it was done is unknown; it is not repeated"


def find_domain(session: Session, reference: str) -> Subject:
    """The domain of an id, name or UUID, or of `id:`, `name:`, `uuid:` before one where it is ambiguous.

    Raises NotFoundError with the nearest names; RefusedError where a name and another domain's id are the same.
    """
    if not reference or len(reference) > _REFERENCE_MOST_CHARACTERS or not reference.isprintable():
        raise InvalidError("this is no domain's id, name or UUID", next_step="list the domains with 'domain list'")
    connection = session.connection
    found = {handle.UUIDString(): handle for handle in _matches(connection, reference)}
    if not found:
        names = [handle.name() for handle in connection.listAllDomains()]
        near = difflib.get_close_matches(reference, names, n=_NEAREST, cutoff=0.4)
        otherwise = "list them with 'domain list'" if names else "no domain is defined or running here"
        raise NotFoundError(
            f"there is no domain {reference!r}", nearest=near, next_step="" if near else otherwise
        )
    if len(found) > 1:
        raise RefusedError(
            f"{reference!r} is one domain's name and another's id",
            next_step=f"write name:{reference}, id:{reference} or the UUID",
        )
    return subject_of(next(iter(found.values())))


def _matches(connection: Any, reference: str) -> Iterator[Any]:
    kind, colon, rest = reference.partition(":")
    kinds = (kind,) if colon and kind in ("id", "name", "uuid") else ("name", "uuid", "id")
    word = rest if len(kinds) == 1 else reference
    lookups: dict[str, Callable[[str], Any]] = {
        "name": connection.lookupByName,
        "uuid": lambda text: connection.lookupByUUIDString(str(uuids.UUID(text))),
        "id": lambda text: connection.lookupByID(int(text)),
    }
    for way in kinds:
        if way == "id" and not (word.isdecimal() and word.isascii() and len(word) < 10):
            continue
        try:
            yield lookups[way](word)
        except ValueError:
            continue
        except libvirt.libvirtError as error:
            if error.get_error_code() not in _MISSING:
                raise


def existing_domain(session: Session, name: str, uuid: str | None) -> Any:
    """The domain of that UUID, else of that name; None where there is none."""
    connection = session.connection
    for look, word in ((connection.lookupByUUIDString, uuid), (connection.lookupByName, name)):
        if word:
            try:
                return look(word)
            except libvirt.libvirtError as error:
                if error.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_INVALID_ARG):
                    raise
    return None


def subject_of(handle: Any) -> Subject:
    """The Subject of a virDomain; its lock is its UUID's."""
    uuid = handle.UUIDString()
    return Subject(
        kind="domain", key=f"domain-{uuid}", name=handle.name(), uuid=uuid, id=domain_id(handle),
        uptime_s=uptime_s(handle), handle=handle,
    )  # fmt: skip


def domain_id(handle: Any) -> int | None:
    """The running domain's id, None when it does not run. Asks libvirt: a handle's own id may be an old one."""
    try:
        if not handle.isActive():
            return None
        found = handle.connect().lookupByUUIDString(handle.UUIDString()).ID()
    except libvirt.libvirtError:
        return None
    return int(found) if found >= 0 else None


def domain_state(handle: Any) -> State:
    """Name, UUID, id, state with reason, active, persistent, autostart, managed save, title. `{}` when it is gone."""
    try:
        state, reason = handle.state()
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return {"state": "gone"}
        raise
    active, persistent = bool(handle.isActive()), bool(handle.isPersistent())
    shown: State = {
        "name": handle.name(),
        "uuid": handle.UUIDString(),
        "id": domain_id(handle) if active else None,
        "state": state_name(state) or str(state),
        "reason": reason_name(state, reason),
        "active": active,
        "persistent": persistent,
    }
    with contextlib.suppress(libvirt.libvirtError):  # not every driver has these
        shown["autostart"] = bool(handle.autostart())
    with contextlib.suppress(libvirt.libvirtError):
        shown["managed_save"] = bool(handle.hasManagedSaveImage())
    with contextlib.suppress(libvirt.libvirtError):
        shown["title"] = handle.metadata(libvirt.VIR_DOMAIN_METADATA_TITLE, None)
    return {name: value for name, value in shown.items() if value is not None}


def is_state(handle: Any, *names: str) -> bool:
    """Whether the domain is in one of the states; `gone` is a transient one that has ended."""
    try:
        return (state_name(handle.state()[0]) or "") in names
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return "gone" in names
        raise


def live_state(handle: Any) -> str:
    """The state's name now; `gone` for a transient domain that has ended."""
    return str(domain_state(handle)["state"])


def qemu_pid(uuid: str, proc: Path = Path("/proc")) -> int | None:
    """The process of a local QEMU guest, by the `-uuid` of its command line; None where there is none to see."""
    wanted = b"\0-uuid\0" + uuid.encode() + b"\0"
    with os.scandir(proc) as entries:
        for entry in entries:
            if entry.name.isdecimal():
                with contextlib.suppress(OSError):
                    if wanted in (proc / entry.name / "cmdline").read_bytes():
                        return int(entry.name)
    return None


def uptime_s(handle: Any, proc: Path = Path("/proc")) -> float | None:
    """Seconds since a local QEMU guest's process started; None where that cannot be known."""
    try:
        if not handle.isActive() or handle.connect().getType() != "QEMU":
            return None
        pid = qemu_pid(handle.UUIDString(), proc)
        if pid is None:
            return None
        ticks = int((proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[19])
        return round(time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"), 1)
    except (libvirt.libvirtError, OSError, ValueError, IndexError):
        return None
