"""A node device as libvirt describes it: its place, capabilities, PCI address, IOMMU group, what it is called."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import libvirt
from pydantic import JsonValue

# libvirt prints a link speed that the kernel does not know as this number of Mbit/s.
_UNKNOWN_SPEED = "4294967295"
_PCI_ADDRESS = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([0-9a-f]{2})\.([0-7])", re.IGNORECASE)


@dataclass(frozen=True)
class NodeDevice:
    """One device. `capabilities` are its own first, then those nested in it; what is unknown is None or empty."""

    name: str
    parent: str | None
    path: str | None
    driver: str | None
    capabilities: tuple[str, ...]
    address: str | None
    """Of a PCI device, as the kernel writes it: 0000:00:03.0."""
    iommu_group: int | None
    interface: str | None
    block: str | None
    shown: dict[str, JsonValue]
    """What a listing has of it, under readable names."""

    @property
    def capability(self) -> str:
        return self.capabilities[0] if self.capabilities else ""

    def row(self) -> dict[str, JsonValue]:
        row: dict[str, JsonValue | None] = {
            "name": self.name, "capability": self.capability, "parent": self.parent, "driver": self.driver,
            "address": self.address, "iommu_group": self.iommu_group, **self.shown,
        }  # fmt: skip
        return {key: value for key, value in row.items() if value is not None}


def parse_node_device(xml: str) -> NodeDevice:
    """From virNodeDevice's XML."""
    root = ElementTree.fromstring(xml)
    main = root.find("capability")
    kinds = tuple(found.get("type", "") for found in root.iter("capability") if not found.get("type", "").isdecimal())
    group = root.find("capability/iommuGroup")
    return NodeDevice(
        name=root.findtext("name") or "",
        parent=root.findtext("parent"),
        path=root.findtext("path"),
        driver=root.findtext("driver/name"),
        capabilities=kinds,
        address=_address(main) if main is not None and main.get("type") == "pci" else None,
        iommu_group=int(group.get("number", "-1")) if group is not None else None,
        interface=root.findtext("capability/interface") if kinds[:1] == ("net",) else None,
        block=root.findtext("capability/block"),
        shown=_shown(root),
    )


def parse_pci_address(text: str) -> str | None:
    """A PCI address as the kernel writes it, from that or without the domain; None for anything else."""
    found = _PCI_ADDRESS.fullmatch(text.strip())
    if found is None:
        return None
    domain, bus, slot, function = found.groups()
    return f"{int(domain or '0', 16):04x}:{bus}:{slot}.{function}".lower()


def pci_address_of(source: Element) -> str | None:
    """The address of an XML element that has domain, bus, slot and function; `<address>` of a hostdev's source."""
    try:
        domain, bus, slot, function = (int(source.get(key, ""), 16) for key in ("domain", "bus", "slot", "function"))
    except ValueError:
        return None
    return f"{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"


def _address(capability: Element) -> str | None:
    # Decimal here, and hexadecimal in a domain's XML.
    try:
        numbers = [int(capability.findtext(key) or "") for key in ("domain", "bus", "slot", "function")]
    except ValueError:
        return None
    return "{:04x}:{:02x}:{:02x}.{:x}".format(*numbers)


def _shown(root: Element) -> dict[str, JsonValue]:
    row: dict[str, JsonValue] = {}
    for key, path in (
        ("interface", "capability/interface"), ("mac", "capability[@type='net']/address"),
        ("block", "capability/block"), ("vendor", "capability/vendor"), ("product", "capability/product"),
        ("class", "capability/class"), ("path", "path"),
    ):  # fmt: skip
        found = root.find(path)
        if found is not None and (found.text or found.get("id")):
            row[key] = found.text or found.get("id")
    size = root.findtext("capability/size")
    if size and size.isdecimal():
        row["size_bytes"] = int(size)
    return row | link_of(root)


def link_of(root: Element) -> dict[str, JsonValue]:
    """A net device's `link` and `speed_mbit_per_second`."""
    link = root.find("capability/link")
    row: dict[str, JsonValue] = {}
    if link is not None and link.get("state"):
        row["link"] = link.get("state")
    if link is not None and link.get("speed", _UNKNOWN_SPEED) != _UNKNOWN_SPEED:
        row["speed_mbit_per_second"] = int(link.get("speed", "0"))
    return row


def node_devices(connection: Any) -> list[tuple[NodeDevice, Any]]:
    """All devices of a virConnect with libvirt's handles, by name. One that goes meanwhile is left out."""
    found = []
    for handle in connection.listAllDevices(0):
        try:
            found.append((parse_node_device(handle.XMLDesc(0)), handle))
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_NODE_DEVICE:
                raise
    return sorted(found, key=lambda pair: pair[0].name)
