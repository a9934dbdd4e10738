"""A domain's devices as control shows them: disks, interfaces, display, agent. Named as on the metrics page."""

from __future__ import annotations

from typing import Any
from xml.etree.ElementTree import Element

import libvirt
from pydantic import JsonValue

from collectors.agent_reading import channel_connected
from collectors.domain_xml import Disk, DomainXMLError, Interface, element_tree, parse
from exporter.control.operation import State

Row = dict[str, JsonValue]


def domain_devices(handle: Any) -> State:
    """`disks` and `interfaces` as rows, `graphics`, `agent`, `snapshots`; what it does not have is absent.

    From the XML, which libvirt answers without asking QEMU, so also for a guest that hangs. Raises libvirtError.
    """
    xml = handle.XMLDesc(0)
    try:
        definition = parse(xml)
    except DomainXMLError:  # an XML as no guest has it: the rest of what is known is shown all the same
        return {}
    root = element_tree(xml)
    sources = [_attribute(nic, "source", "network") for nic in root.iterfind("devices/interface")]
    disks: list[JsonValue] = [_disk(disk) for disk in definition.disks]
    interfaces: list[JsonValue] = [
        _interface(interface, network) for interface, network in zip(definition.interfaces, sources, strict=True)
    ]
    shown: State = {"machine": definition.machine, "disks": disks, "interfaces": interfaces}
    shown["graphics"] = [_display(display) for display in root.iterfind("devices/graphics")]
    connected = channel_connected(xml)
    if connected is not None and handle.isActive():
        shown["agent"] = "connected" if connected else "not connected"
    shown["snapshots"] = _snapshots(handle)
    return {name: value for name, value in shown.items() if value}


def _disk(disk: Disk) -> Row:
    row: Row = {
        "target": disk.target_device, "device": disk.device, "bus": disk.bus, "format": disk.driver_type,
        "source": disk.source_file, "serial": disk.serial, **dict(disk.limits),
    }  # fmt: skip
    return {name: value for name, value in row.items() if value}


def _interface(interface: Interface, network: str) -> Row:
    row: Row = {
        "target": interface.target_device, "mac": interface.mac, "model": interface.model, "type": interface.type,
        "network": network, "bridge": interface.source_bridge,
    }  # fmt: skip
    return {name: value for name, value in row.items() if value}


def _display(display: Element) -> str:
    address, port = display.get("listen", ""), display.get("port", "-1")
    return display.get("type", "") + (f" {address}:{port}" if port not in ("-1", "0") else "")


def _attribute(element: Element, path: str, name: str) -> str:
    found = element.find(path)
    return found.get(name, "") if found is not None else ""


def _snapshots(handle: Any) -> int:
    try:
        return int(handle.snapshotNum(0))
    except libvirt.libvirtError:  # a driver without snapshots
        return 0
