"""libvirt's virtual networks: listed, defined from typed fields, started, stopped, their leases."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement, indent, tostring

import libvirt
from pydantic import AfterValidator, Field, JsonValue, model_validator

from collectors.domain_xml import element_tree
from exporter.control.errors import RefusedError
from exporter.control.guest_fields import DomainName, HostPath, Word
from exporter.control.host_objects import (
    AutostartOperation,
    DefineOperation,
    HostOperation,
    Kind,
    ListOperation,
    ShowOperation,
    StartOperation,
    StopOperation,
    UndefineOperation,
    XmlOperation,
)
from exporter.control.operation import Call, NoParameters, Operation, P, Parameters, Role, State, moment

NETWORK = Kind(
    "network", "listAllNetworks", "networkLookupByName", "networkLookupByUUIDString",
    (libvirt.VIR_ERR_NO_NETWORK, libvirt.VIR_ERR_INVALID_ARG),
)  # fmt: skip


def _interface_address(text: str) -> str:
    try:
        return str(ipaddress.ip_interface(text))
    except ValueError:
        raise ValueError("is no address with its prefix; write it like 192.0.2.1/24 or 2001:db8::1/64") from None


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError("is no IP address") from None


Address = Annotated[str, AfterValidator(_address)]
# Below the folder, never out of it; DHCP's field holds 128 bytes with the closing zero.
BootFile = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._\-]*(/[A-Za-z0-9][A-Za-z0-9._\-]*)*$", max_length=127)
]


class NetworkFields(Parameters):
    name: DomainName = Field(description="The network's name.")
    forward: Literal["nat", "route", "isolated"] = Field(
        default="nat", description="How guests reach what is outside: translated, routed, or not at all."
    )
    bridge: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.\-]{0,14}$")] | None = Field(
        default=None, description="The host's bridge that libvirt makes; its own choice where not given."
    )
    address: Annotated[str, AfterValidator(_interface_address)] | None = Field(
        default=None, description="The host's address on it with its prefix, like 192.0.2.1/24."
    )
    dhcp_from: Address | None = Field(default=None, description="First address that DHCP gives out.")
    dhcp_to: Address | None = Field(default=None, description="Last address that DHCP gives out.")
    dns_domain: Word | None = Field(default=None, description="The DNS domain of its guests.")
    tftp_folder: HostPath | None = Field(
        default=None, description="An image folder, or one in it, whose files it serves by TFTP to guests that boot."
    )
    boot_file: BootFile | None = Field(
        default=None, description="The file there that DHCP tells a guest that boots from it."
    )

    @model_validator(mode="after")
    def _boots(self) -> Self:
        if (self.tftp_folder is None) != (self.boot_file is None):
            raise ValueError("give both tftp_folder and boot_file, or neither")
        if self.boot_file and (self.dhcp_from is None or ":" in self.dhcp_from):
            raise ValueError("a boot file is told by DHCP over IPv4; give dhcp_from and dhcp_to")
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.dhcp_from is None) != (self.dhcp_to is None):
            raise ValueError("give both dhcp_from and dhcp_to, or neither")
        if self.dhcp_from is None or self.dhcp_to is None:
            return self
        if self.address is None:
            raise ValueError("DHCP needs an address; give one")
        inside = ipaddress.ip_interface(self.address).network
        first, last = ipaddress.ip_address(self.dhcp_from), ipaddress.ip_address(self.dhcp_to)
        if first not in inside or last not in inside:
            raise ValueError(f"the DHCP range does not lie in {inside}")
        if int(first) > int(last):
            raise ValueError("the DHCP range ends before it begins")
        return self


class _OfNetwork(HostOperation[P]):
    noun = "network"
    area = "networks"
    kind = NETWORK

    def shown(self, handle: Any) -> State:
        root = ElementTree.fromstring(handle.XMLDesc(0))
        forward, bridge = root.find("forward"), root.find("bridge")
        shown: State = {
            "forward": forward.get("mode", "nat") if forward is not None else "isolated",
            "bridge": bridge.get("name") if bridge is not None else None,
            "addresses": [
                f"{ip.get('address')}/{ip.get('prefix') or ip.get('netmask') or ''}" for ip in root.iterfind("ip")
            ],
        }
        return {name: value for name, value in shown.items() if value}

    def users(self, call: Call) -> list[str]:
        found = []
        for domain in call.session.connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
            try:
                sources = element_tree(domain.XMLDesc(0)).iterfind("devices/interface/source")
            except libvirt.libvirtError:  # it has ended meanwhile
                continue
            if any(source.get("network") == call.subject.name for source in sources):
                found.append(domain.name())
        return sorted(found)


class ListNetworks(_OfNetwork[NoParameters], ListOperation):
    summary = "Lists the virtual networks."


class ShowNetwork(_OfNetwork[NoParameters], ShowOperation):
    summary = "Shows a virtual network."


class NetworkXml(_OfNetwork[NoParameters], XmlOperation):
    summary = "Shows a virtual network's XML."


class StartNetwork(_OfNetwork[NoParameters], StartOperation):
    summary = "Starts a virtual network: its bridge, DHCP and DNS."


class StopNetwork(_OfNetwork[NoParameters], StopOperation):
    summary = "Stops a virtual network; running guests on it lose their connection."


class AutostartNetwork(_OfNetwork[Any], AutostartOperation):
    summary = "Sets whether a virtual network starts with the host."


class UndefineNetwork(_OfNetwork[NoParameters], UndefineOperation):
    summary = "Removes a virtual network's definition."


class DefineNetwork(_OfNetwork[NetworkFields], DefineOperation[NetworkFields]):
    summary = "Defines a virtual network from fields, without starting it."
    parameters = NetworkFields

    def identity(self, parameters: NetworkFields) -> str:
        return parameters.name

    def xml(self, call: Call, parameters: NetworkFields) -> str:
        if parameters.tftp_folder is None:
            return network_xml(parameters)
        folder = call.folders.image_folder(parameters.tftp_folder, "the TFTP folder")
        call.folders.image(str(folder / str(parameters.boot_file)), "the boot file")
        return network_xml(parameters, folder)

    def define(self, call: Call, xml: str) -> Any:
        return call.session.connection.networkDefineXML(xml)


class Leases(_OfNetwork[NoParameters]):
    """`rows`: address, mac, hostname, expires (RFC 3339)."""

    verb = "leases"
    summary = "Lists the addresses that a virtual network's DHCP has given out."
    role = Role.READER
    reads = True

    def state(self, call: Call, parameters: NoParameters) -> State:
        if not call.subject.handle.isActive():
            raise RefusedError(f"network {call.subject.name} is not active", next_step="start it")
        rows: list[JsonValue] = []
        for lease in call.subject.handle.DHCPLeases():
            row = {"address": f"{lease['ipaddr']}/{lease['prefix']}", "mac": lease.get("mac"),
                   "hostname": lease.get("hostname"), "expires": moment(lease.get("expirytime"))}  # fmt: skip
            rows.append({name: value for name, value in row.items() if value})
        return {"rows": rows}


def network_xml(fields: NetworkFields, tftp_folder: Path | None = None) -> str:
    """The `<network>`; escaped by the XML library. `tftp_folder` is the checked one of the fields."""
    root = Element("network")
    SubElement(root, "name").text = fields.name
    if fields.forward != "isolated":
        SubElement(root, "forward", mode=fields.forward)
    SubElement(root, "bridge", {"name": fields.bridge} if fields.bridge else {})
    if fields.dns_domain:
        SubElement(root, "domain", name=fields.dns_domain)
    if fields.address:
        interface = ipaddress.ip_interface(fields.address)
        ip = SubElement(root, "ip", family=f"ipv{interface.version}", address=str(interface.ip),
                        prefix=str(interface.network.prefixlen))  # fmt: skip
        if tftp_folder is not None:
            SubElement(ip, "tftp", root=str(tftp_folder))
        if fields.dhcp_from and fields.dhcp_to:
            dhcp = SubElement(ip, "dhcp")
            SubElement(dhcp, "range", start=fields.dhcp_from, end=fields.dhcp_to)
            if fields.boot_file:
                SubElement(dhcp, "bootp", file=fields.boot_file)
    indent(root)
    return tostring(root, encoding="unicode")


OPERATIONS: tuple[Operation[Any], ...] = (
    ListNetworks(), ShowNetwork(), NetworkXml(), Leases(), DefineNetwork(), StartNetwork(), StopNetwork(),
    AutostartNetwork(), UndefineNetwork(),
)  # fmt: skip
