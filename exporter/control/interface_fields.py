"""What a host interface may be defined as: Ethernet, bridge, VLAN, bond. Typed, checked, frozen.

Every field is refused here, with its cause, before libvirt sees anything; `exporter.control.interface_xml` turns
the result into libvirt's XML. Facts: libvirt's schemas/interface.rng, and the kernel's own limits where it is laxer.
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address, ip_interface
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)

from exporter.control.operation import Parameters

Address = IPv4Interface | IPv6Interface
Gateway = IPv4Address | IPv6Address

# IFNAMSIZ of linux/if.h is 16 with the closing zero; the characters are libvirt's own deviceName without the
# path separators, since a name becomes a file name in the host's network configuration.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,14}")
_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")


def parse_interface_name(value: object) -> str:
    """The name of a network interface; raises ValueError for one that Linux or libvirt cannot have."""
    if isinstance(value, str) and _NAME.fullmatch(value):
        return value
    raise ValueError("is no interface name; it has 1 to 15 letters, digits, '_', '.' or '-', like eth0 or br-lan")


def parse_mac(value: object) -> str:
    """A MAC address in lower case, since libvirt's look-up knows no other; raises ValueError for a malformed one."""
    text = value.strip().lower().replace("-", ":") if isinstance(value, str) else ""
    if _MAC.fullmatch(text):
        return text
    raise ValueError("is no MAC address; it has six pairs of hexadecimal digits, like 52:54:00:1a:2b:3c")


def _not_multicast(mac: str) -> str:
    if int(mac[:2], 16) & 1:
        raise ValueError("is a multicast address, which no interface may have; its first byte must be even")
    if mac == "00:00:00:00:00:00":
        raise ValueError("is the zero address, which no interface may have")
    return mac


def parse_cidr(value: object) -> Address:
    """A host's address with its prefix, `192.0.2.5/24` or `2001:db8::5/64`; raises ValueError for anything else."""
    if isinstance(value, (IPv4Interface, IPv6Interface)):
        return value
    text = value.strip() if isinstance(value, str) else ""
    if "/" not in text or "%" in text:
        raise ValueError("is no address with a prefix length; write it like 192.0.2.5/24 or 2001:db8::5/64")
    try:
        address = ip_interface(text)
    except ValueError as error:
        raise ValueError(f"is no address with a prefix length ({error}); write it like 192.0.2.5/24") from error
    return _usable(address)


def _usable(address: Address) -> Address:
    network, last = address.network, address.max_prefixlen
    if address.is_multicast or address.is_unspecified or address.is_loopback:
        raise ValueError("is a multicast, loopback or empty address, which an interface is not given")
    if network.prefixlen == 0:
        raise ValueError("has the prefix length 0, which is every address there is")
    # RFC 3021: a /31 has no network or broadcast address.
    if isinstance(address, IPv4Interface) and network.prefixlen < last - 1:
        if address.ip == network.network_address:
            raise ValueError(f"is the address of the network {network} itself, not of a host in it")
        if address.ip == network.broadcast_address:
            raise ValueError(f"is the broadcast address of {network}")
    return address


def parse_gateway(value: object) -> Gateway:
    """A router's address; raises ValueError for anything else."""
    if isinstance(value, (IPv4Address, IPv6Address)):
        return value
    try:
        gateway = ip_address(value.strip() if isinstance(value, str) and "%" not in value else "")
    except ValueError as error:
        raise ValueError("is no IP address; write it like 192.0.2.1 or 2001:db8::1") from error
    if gateway.is_multicast or gateway.is_unspecified or gateway.is_loopback:
        raise ValueError("is a multicast, loopback or empty address, which no router has")
    return gateway


def parse_arp_target(value: object) -> IPv4Address:
    """An IPv4 address; raises ValueError for anything else."""
    address = parse_gateway(value)
    if not isinstance(address, IPv4Address):
        raise ValueError("is no IPv4 address, and ARP knows no other")
    return address


InterfaceName = Annotated[
    str, BeforeValidator(parse_interface_name), WithJsonSchema({"type": "string", "pattern": f"^{_NAME.pattern}$"})
]
Mac = Annotated[
    str,
    BeforeValidator(parse_mac),
    WithJsonSchema({"type": "string", "pattern": "^[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}$"}),
]
DeviceMac = Annotated[Mac, AfterValidator(_not_multicast)]
Cidr = Annotated[
    Address,
    PlainValidator(parse_cidr),
    PlainSerializer(str),
    WithJsonSchema({"type": "string", "examples": ["192.0.2.5/24", "2001:db8::5/64"]}),
]
Router = Annotated[
    Gateway,
    PlainValidator(parse_gateway),
    PlainSerializer(str),
    WithJsonSchema({"type": "string", "examples": ["192.0.2.1"]}),
]
ArpTarget = Annotated[
    IPv4Address,
    PlainValidator(parse_arp_target),
    PlainSerializer(str),
    WithJsonSchema({"type": "string", "format": "ipv4"}),
]
Names = tuple[InterfaceName, ...]
Addresses = tuple[Cidr, ...]
Routers = tuple[Router, ...]
Tag = Annotated[int, Field(ge=1, le=4094)]
# From 1: libvirt and the kernel take 0 for "not set".
Milliseconds = Annotated[int, Field(ge=1, le=3_600_000)]


class InterfaceFields(Parameters):
    """What every kind of interface has. Addresses are the host's own on that interface."""

    start: Literal["onboot", "none", "hotplug"] = Field(default="onboot", description="When the host brings it up.")
    mtu_bytes: int | None = Field(default=None, ge=68, le=65535, description="Largest frame's payload, in bytes.")
    dhcp: bool = Field(default=False, description="Get the IPv4 address by DHCP.")
    dhcp6: bool = Field(default=False, description="Get the IPv6 address by DHCPv6.")
    autoconf: bool = Field(default=False, description="Get the IPv6 address by router advertisement.")
    address: Addresses = Field(default=(), description="Static address with prefix, like 192.0.2.5/24; repeatable.")
    gateway: Routers = Field(default=(), description="Router of the default route, one an IP version.")

    @property
    def interface_name(self) -> str:
        """The name that the host knows it by."""
        raise NotImplementedError

    @property
    def parts(self) -> tuple[str, ...]:
        """Other interfaces that become part of this one, or carry it."""
        return ()

    @model_validator(mode="after")
    def _addressing(self) -> Self:
        for version in (4, 6):
            addresses = [address for address in self.address if address.version == version]
            gateways = [gateway for gateway in self.gateway if gateway.version == version]
            automatic = self.dhcp if version == 4 else self.dhcp6 or self.autoconf
            _check_family(version, addresses, gateways, automatic)
        if len(set(self.address)) < len(self.address):
            raise ValueError("address is given twice; name each once")
        return self


def _check_family(version: int, addresses: list[Address], gateways: list[Gateway], automatic: bool) -> None:
    if version == 4 and automatic and addresses:
        raise ValueError("dhcp and a static IPv4 address are both given; choose one")
    if len(gateways) > 1:
        raise ValueError(f"{len(gateways)} IPv{version} gateways are given, libvirt takes one")
    if gateways and not addresses:
        raise ValueError(f"the gateway {gateways[0]} needs a static IPv{version} address; add address, or leave it out")
    for gateway in gateways:
        on_link = any(gateway in address.network for address in addresses) or gateway.is_link_local
        if not on_link:
            networks = ", ".join(str(address.network) for address in addresses)
            raise ValueError(f"the gateway {gateway} is in none of the interface's networks ({networks})")
        if any(gateway == address.ip for address in addresses):
            raise ValueError(f"the gateway {gateway} is the interface's own address")


class NamedInterfaceFields(InterfaceFields):
    """Those whose name is free."""

    name: InterfaceName = Field(description="Name of the interface, like eth0.")

    @property
    def interface_name(self) -> str:
        return self.name


class Ethernet(NamedInterfaceFields):
    """An Ethernet interface: a network card of the host."""

    mac: DeviceMac | None = Field(default=None, description="MAC address, where the card's own is not meant.")


class Bridge(NamedInterfaceFields):
    """A bridge with the interfaces that are its ports."""

    port: Names = Field(default=(), description="Interface that becomes a port of the bridge; repeatable.")
    stp: bool = Field(default=True, description="Spanning tree protocol, against loops.")
    delay_s: float = Field(default=0.0, ge=0, le=255, description="Forward delay, in seconds.")

    @property
    def parts(self) -> tuple[str, ...]:
        return self.port

    @model_validator(mode="after")
    def _ports(self) -> Self:
        _check_ports(self.name, self.port)
        return self


class Vlan(InterfaceFields):
    """A VLAN (802.1Q) on another interface. Its name follows from both: eth0.42."""

    parent: InterfaceName = Field(description="Interface that carries the tagged frames.")
    tag: Tag = Field(description="VLAN identifier, 1 to 4094.")

    @property
    def interface_name(self) -> str:
        # libvirt's schema says that the name is for reporting back only and always of this form.
        return f"{self.parent}.{self.tag}"

    @property
    def parts(self) -> tuple[str, ...]:
        return (self.parent,)

    @model_validator(mode="after")
    def _name_fits(self) -> Self:
        try:
            parse_interface_name(self.interface_name)
        except ValueError as error:
            raise ValueError(f"the VLAN's name {self.interface_name} {error}") from error
        return self


class Bond(NamedInterfaceFields):
    """Several interfaces that act as one. The first port is the primary of active-backup."""

    port: Names = Field(min_length=1, description="Interface that becomes part of the bond; repeatable.")
    mode: Literal[
        "balance-rr", "active-backup", "balance-xor", "broadcast", "802.3ad", "balance-tlb", "balance-alb"
    ] = Field(default="active-backup", description="How the ports share the work.")
    miimon_ms: Milliseconds | None = Field(default=None, description="Check the links this often, in milliseconds.")
    updelay_ms: Milliseconds | None = Field(default=None, description="Wait before a link counts as up.")
    downdelay_ms: Milliseconds | None = Field(default=None, description="Wait before a link counts as down.")
    arp_interval_ms: Milliseconds | None = Field(default=None, description="Check by ARP this often instead.")
    arp_target: ArpTarget | None = Field(default=None, description="Address that the ARP check asks.")

    @property
    def parts(self) -> tuple[str, ...]:
        return self.port

    @model_validator(mode="after")
    def _monitoring(self) -> Self:
        _check_ports(self.name, self.port)
        if (self.arp_interval_ms is None) != (self.arp_target is None):
            raise ValueError("arp_interval_ms and arp_target belong together; give both or none")
        if self.miimon_ms is not None and self.arp_interval_ms is not None:
            raise ValueError("miimon_ms and arp_interval_ms are both given; a bond has one way of checking")
        if self.miimon_ms is None and (self.updelay_ms or self.downdelay_ms):
            raise ValueError("updelay_ms and downdelay_ms need miimon_ms")
        # The kernel's bonding driver refuses ARP monitoring in these modes (bond_main.c).
        if self.arp_target is not None and self.mode in ("802.3ad", "balance-tlb", "balance-alb"):
            raise ValueError(f"mode {self.mode} cannot be checked by ARP; use miimon_ms")
        return self


def _check_ports(name: str, ports: tuple[str, ...]) -> None:
    if name in ports:
        raise ValueError(f"{name} cannot be a port of itself")
    if len(set(ports)) < len(ports):
        raise ValueError("a port is given twice; name each once")
