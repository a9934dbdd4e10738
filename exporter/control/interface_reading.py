"""The host's interfaces as libvirt shows them: listed, found by name or MAC, and as node devices."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable
from typing import Any
from xml.etree import ElementTree

import libvirt
from pydantic import Field, JsonValue

from exporter.control.connection import Session
from exporter.control.errors import InvalidError, NotFoundError, RefusedError
from exporter.control.folders import Folders
from exporter.control.interface_change import LOCK_KEY, ChangeFile
from exporter.control.interface_fields import parse_mac
from exporter.control.interface_xml import interface_kind, interface_parts
from exporter.control.node_device_xml import parse_node_device
from exporter.control.operation import Call, NoParameters, Operation, Parameters, Role, State, Subject


def find_interface(session: Session, reference: str) -> Subject:
    """The interface by name or MAC (any case). Raises NotFoundError, RefusedError where several have the MAC."""
    # Searched in the list: libvirt's own look-up by MAC knows lower case only, and complains where one has none.
    found = session.connection.listAllInterfaces(0)
    for interface in found:
        if interface.name() == reference:
            return subject_of(interface)
    with contextlib.suppress(ValueError):
        return _only(_with_mac(found, parse_mac(reference)), reference)
    names = [interface.name() for interface in found]
    near = difflib.get_close_matches(reference, names, n=3, cutoff=0.3)
    raise NotFoundError(
        f"there is no interface {reference[:60]!r}", nearest=near,
        next_step="" if near else "list what there is with 'interface list'",
    )


def _with_mac(interfaces: Iterable[Any], mac: str) -> list[Any]:
    return [interface for interface in interfaces if (interface.MACString() or "").lower() == mac]


def _only(found: list[Any], reference: str) -> Subject:
    if not found:
        raise NotFoundError(f"no interface has the MAC address {reference}", next_step="see 'interface list'")
    if len(found) > 1:
        names = ", ".join(sorted(interface.name() for interface in found))
        raise RefusedError(f"{len(found)} interfaces have the MAC address {reference}", next_step=f"name one: {names}")
    return subject_of(found[0])


def subject_of(interface: Any) -> Subject:
    """What the operations act on: all interfaces have one lock, since libvirt has one transaction a host."""
    return Subject(kind="interface", key=LOCK_KEY, name=interface.name(), handle=interface)


def absent(name: str) -> Subject:
    """An interface that is to be made."""
    return Subject(kind="interface", key=LOCK_KEY, name=name, exists=False)


def interface_row(interface: Any) -> dict[str, JsonValue]:
    """Name, type, whether it is active, MAC, parts; what libvirt does not tell is absent."""
    row: dict[str, JsonValue] = {"name": interface.name(), "active": bool(interface.isActive())}
    mac = interface.MACString()
    if mac:
        row["mac"] = mac.lower()
    with contextlib.suppress(libvirt.libvirtError, ElementTree.ParseError):  # gone, or a kind this build cannot show
        xml = interface.XMLDesc(0)
        row["type"] = interface_kind(xml)
        if interface_parts(xml):
            row["parts"] = list(interface_parts(xml))
    return row


def change_state(folders: Folders) -> dict[str, JsonValue]:
    """The open change, if there is one."""
    change = ChangeFile(folders).load()
    if change is None:
        return {"open": False}
    return {
        "open": True,
        "confirm_before": change.confirm_before,
        "remaining_s": round(change.remaining_s(), 1),
        "watched": ChangeFile(folders).is_watched(),
    }


class _Reading(Operation[Any]):
    noun = "interface"
    area = "interfaces"
    reads = True
    role = Role.READER


class ListParameters(Parameters):
    active: bool = Field(default=False, description="Only those that are up.")
    inactive: bool = Field(default=False, description="Only those that are defined, but not up.")


class List(_Reading):
    verb = "list"
    summary = "List the host's interfaces, with the counts of active and defined ones."
    parameters = ListParameters
    takes_subject = False

    def find(self, session: Session, reference: str | None, parameters: ListParameters) -> Subject:
        return Subject(kind="interfaces", key=LOCK_KEY, name="")

    def state(self, call: Call, parameters: ListParameters) -> State:
        if parameters.active and parameters.inactive:
            raise InvalidError("active and inactive are both asked for", next_step="leave both out for all")
        rows = [interface_row(interface) for interface in call.session.connection.listAllInterfaces(0)]
        active = [row for row in rows if row["active"]]
        shown = active if parameters.active else [r for r in rows if not r["active"]] if parameters.inactive else rows
        connection = call.session.connection
        return {
            "rows": sorted(shown, key=lambda row: str(row["name"])),
            "active": len(active),
            "inactive": len(rows) - len(active),
            # libvirt's own counts: its named lists leave lo out, which is in the full list alone.
            "libvirt_active": connection.numOfInterfaces(),
            "libvirt_defined": connection.numOfDefinedInterfaces(),
        }


class Show(_Reading):
    verb = "show"
    summary = "Show one interface, by name or MAC: state, MAC, type and XML."

    def find(self, session: Session, reference: str | None, parameters: NoParameters) -> Subject:
        return find_interface(session, reference or "")

    def state(self, call: Call, parameters: NoParameters) -> State:
        interface = call.subject.handle
        return {**interface_row(interface), "xml": interface.XMLDesc(0)}


class Change(_Reading):
    verb = "change"
    summary = "Show whether an interface change is open, and until when it must be committed."
    takes_subject = False

    def find(self, session: Session, reference: str | None, parameters: NoParameters) -> Subject:
        return Subject(kind="interfaces", key=LOCK_KEY, name="")

    def state(self, call: Call, parameters: NoParameters) -> State:
        return change_state(call.folders)


class DeviceList(_Reading):
    verb = "device-list"
    summary = "List the network cards as libvirt's node devices of capability net."
    takes_subject = False

    def find(self, session: Session, reference: str | None, parameters: NoParameters) -> Subject:
        return Subject(kind="node devices", key="node-devices", name="")

    def state(self, call: Call, parameters: NoParameters) -> State:
        flag = libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_NET
        devices = call.session.connection.listAllDevices(flag)
        rows = sorted((device_row(device) for device in devices), key=lambda row: str(row["name"]))
        return {"rows": rows, "devices": len(rows)}  # type: ignore[dict-item]


class DeviceShow(_Reading):
    verb = "device-show"
    summary = "Show one network card's node device, by its device or interface name: parent, MAC, link, XML."

    def find(self, session: Session, reference: str | None, parameters: NoParameters) -> Subject:
        devices = session.connection.listAllDevices(libvirt.VIR_CONNECT_LIST_NODE_DEVICES_CAP_NET)
        rows = {device.name(): device_row(device) for device in devices}
        for device in devices:
            if reference in (device.name(), rows[device.name()].get("interface")):
                name = device.name()
                return Subject(kind="node device", key=f"node-device-{name}", name=name, handle=device)
        names = [*rows, *(str(row["interface"]) for row in rows.values() if "interface" in row)]
        near = difflib.get_close_matches(reference or "", names, n=3, cutoff=0.3)
        raise NotFoundError(f"there is no network device {(reference or '')[:60]!r}", nearest=near,
                            next_step="" if near else "list what there is with 'interface device-list'")  # fmt: skip

    def state(self, call: Call, parameters: NoParameters) -> State:
        device = call.subject.handle
        return {**device_row(device), "xml": device.XMLDesc(0)}


def device_row(device: Any) -> dict[str, JsonValue]:
    """A net device's name, interface, MAC, parent, link state and speed; what is unknown is absent."""
    row = parse_node_device(device.XMLDesc(0)).row()
    wanted = ("name", "interface", "mac", "parent", "path", "link", "speed_mbit_per_second")
    return {key: row[key] for key in wanted if key in row}


OPERATIONS: tuple[Operation[Any], ...] = (List(), Show(), Change(), DeviceList(), DeviceShow())
