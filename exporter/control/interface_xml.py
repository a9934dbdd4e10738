"""libvirt's XML of a host interface: built from typed fields, and read back as far as one asks.

Built by the XML library only, so that no value can become markup. Pure; any thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from exporter.control.interface_fields import Bond, Bridge, Ethernet, InterfaceFields, Vlan

_KINDS: dict[type[InterfaceFields], str] = {Ethernet: "ethernet", Bridge: "bridge", Vlan: "vlan", Bond: "bond"}


def kind_of(fields: InterfaceFields) -> str:
    """libvirt's type of these fields' interface."""
    return next(kind for fields_type, kind in _KINDS.items() if isinstance(fields, fields_type))


def interface_xml(fields: InterfaceFields) -> str:
    """The definition that `virInterfaceDefineXML` takes, in the order of libvirt's schema."""
    root = Element("interface", type=kind_of(fields), name=fields.interface_name)
    SubElement(root, "start", mode=fields.start)
    if isinstance(fields, Ethernet) and fields.mac is not None:
        SubElement(root, "mac", address=fields.mac)
    if fields.mtu_bytes is not None:
        SubElement(root, "mtu", size=str(fields.mtu_bytes))
    root.extend(_protocols(fields))
    if isinstance(fields, Bridge):
        root.append(_bridge(fields))
    elif isinstance(fields, Vlan):
        vlan = SubElement(root, "vlan", {"tag": str(fields.tag)})
        SubElement(vlan, "interface", name=fields.parent)
    elif isinstance(fields, Bond):
        root.append(_bond(fields))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode")


def _protocols(fields: InterfaceFields) -> Iterator[Element]:
    for version in (4, 6):
        protocol = Element("protocol", family=f"ipv{version}")
        if version == 6 and fields.autoconf:
            SubElement(protocol, "autoconf")
        if fields.dhcp if version == 4 else fields.dhcp6:
            SubElement(protocol, "dhcp")
        for address in fields.address:
            if address.version == version:
                SubElement(protocol, "ip", address=str(address.ip), prefix=str(address.network.prefixlen))
        for gateway in fields.gateway:
            if gateway.version == version:
                SubElement(protocol, "route", gateway=str(gateway))
        if len(protocol):
            yield protocol


def _bridge(fields: Bridge) -> Element:
    bridge = Element("bridge", stp="on" if fields.stp else "off", delay=f"{fields.delay_s:g}")
    for port in fields.port:
        SubElement(bridge, "interface", type="ethernet", name=port)
    return bridge


def _bond(fields: Bond) -> Element:
    bond = Element("bond", mode=fields.mode)
    if fields.miimon_ms is not None:
        monitor = SubElement(bond, "miimon", freq=str(fields.miimon_ms))
        for name, value_ms in (("downdelay", fields.downdelay_ms), ("updelay", fields.updelay_ms)):
            if value_ms is not None:
                monitor.set(name, str(value_ms))
    elif fields.arp_interval_ms is not None:
        SubElement(bond, "arpmon", interval=str(fields.arp_interval_ms), target=str(fields.arp_target))
    for port in fields.port:
        SubElement(bond, "interface", type="ethernet", name=port)
    return bond


def interface_kind(xml: str) -> str:
    """The type in an interface's XML (ethernet, bridge, vlan, bond); empty where libvirt gives none."""
    return ElementTree.fromstring(xml).get("type", "")


def interface_parts(xml: str) -> tuple[str, ...]:
    """Names of the interfaces that are a bridge's or a bond's ports, or carry a VLAN."""
    root = ElementTree.fromstring(xml)
    return tuple(part.get("name", "") for part in root.iter("interface") if part is not root)
