"""The guest that an alert is about, looked up by the alert's labels, which are data: libvirt compares them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import libvirt

from exporter.control.connection import Session
from exporter.control.domain import domain_state
from exporter.control.errors import NotFoundError, from_libvirt
from exporter.control.webhook import Alert

MARK_URI = "https://virtgauge.github.io/protect/1"
"""Namespace of the element by which a guest's owner forbids rules to touch it."""


@dataclass(frozen=True)
class AlertedGuest:
    """The guest an alert is about, as libvirt has it now."""

    name: str
    uuid: str
    state: str
    reason: str
    marked: bool


def find_target(session: Session, alert: Alert) -> AlertedGuest:
    """By the label `uuid`, else `domain`. Raises NotFoundError, UnreachableError."""
    name, uuid = alert.labels.get("domain", ""), alert.labels.get("uuid", "")
    if not name and not uuid:
        raise NotFoundError("the alert has neither a label domain nor uuid", next_step="match other alerts")
    try:
        connection = session.connection
        handle = connection.lookupByUUIDString(uuid) if uuid else connection.lookupByName(name)
        found = domain_state(handle)
        if found["state"] == "gone" or (name and name != found["name"]):
            raise NotFoundError(f"there is no domain {name} with this UUID", next_step="list the domains")
        return AlertedGuest(str(found["name"]), str(found["uuid"]), str(found["state"]), str(found.get("reason") or ""),
                      _is_marked(handle))  # fmt: skip
    except ValueError:  # no name can hold a null or what is no character
        raise NotFoundError(f"there is no domain {name[:100]!r}", next_step="list the domains") from None
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            wanted = f"with the UUID {uuid[:100]!r}" if uuid else repr(name[:100])
            raise NotFoundError(f"there is no domain {wanted}", next_step="list the domains") from error
        raise from_libvirt(error, f"looking for the domain {(uuid or name)[:100]!r}") from error


def _is_marked(handle: Any) -> bool:
    """In the running guest or in its configuration: a mark that the owner made in one of them counts."""
    sides = [libvirt.VIR_DOMAIN_AFFECT_CURRENT]
    if handle.isActive() and handle.isPersistent():
        sides.append(libvirt.VIR_DOMAIN_AFFECT_CONFIG)
    return any(_has_mark(handle, side) for side in sides)


def _has_mark(handle: Any, side: int) -> bool:
    try:
        return bool(handle.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, MARK_URI, side))
    except libvirt.libvirtError as error:
        if error.get_error_code() in (libvirt.VIR_ERR_NO_DOMAIN_METADATA, libvirt.VIR_ERR_NO_SUPPORT):
            return False
        raise
