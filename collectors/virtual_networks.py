"""libvirt's virtual networks, and the host's interfaces as libvirt sees them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import libvirt

from .connection import Session
from .fields import Collector, Declaration, Field, Info, Kind
from .fields import Constant as Series
from .inventory import Inventory
from .periodic import Scope
from .snapshot import Record, Subject, Value

NETWORK_INFO = "libvirt_network_info"
INTERFACE_INFO = "libvirt_node_interface_info"


def _switch(source: str, name: str, text: str, call: str, label: str, since: str) -> Declaration:
    return Field(source, name, Kind.GAUGE, f"1 if {text}, 0 if not ({call}, {source}, boolean).",
                 subject_labels=(label,), since=since)


VIRTUAL_NETWORKS = Collector(
    name="virtual_networks",
    help="Virtual networks and host interfaces.",
    declarations=(
        Info(NETWORK_INFO, "Always 1; the virtual network and its bridge on the host (virNetworkGetBridgeName, text).",
             ("network", "uuid", "bridge"), source="network", since="0.2.0"),
        _switch("network.active", "libvirt_network_active", "the virtual network is up", "virNetworkIsActive",
                "network", "0.7.3"),
        _switch("network.autostart", "libvirt_network_autostart", "the virtual network starts with the host",
                "virNetworkGetAutostart", "network", "0.2.1"),
        _switch("network.persistent", "libvirt_network_persistent", "the virtual network is defined for good",
                "virNetworkIsPersistent", "network", "0.7.3"),
        Field("network.leases", "libvirt_network_dhcp_leases", Kind.GAUGE,
              "Leases that the virtual network's DHCP server gave (virNetworkGetDHCPLeases, network.leases, count).",
              subject_labels=("network",), since="1.2.6"),
        *(Field(f"networks.{state}", "libvirt_networks", Kind.GAUGE,
                "Number of virtual networks by state (virConnectListAllNetworks, networks.active, networks.inactive, "
                "count).", fixed=(("state", state),), subject_labels=(), since="0.10.2")
          for state in ("active", "inactive")),
        Info(INTERFACE_INFO, "Always 1; the host's interface and its MAC address (virInterfaceGetMACString, text).",
             ("interface", "mac"), source="interface", since="0.6.4"),
        _switch("interface.active", "libvirt_node_interface_active", "the host's interface is up",
                "virInterfaceIsActive", "interface", "0.7.3"),
    ),
)


class NetworkSource:
    """Reads the networks one by one, then the host's interfaces."""

    collector = VIRTUAL_NETWORKS.name
    period_s = 60.0
    deadline_s = 10.0

    def __init__(self, _inventory: Inventory) -> None:
        pass

    def parts(self, session: Session, scope: Scope) -> Sequence[tuple[str, str]]:
        networks = session.support.ask("listAllNetworks", lambda: session.connection.listAllNetworks(0)) or []
        return [("interfaces", ""), ("networks", ""), *sorted(("network", str(n.name())) for n in networks)]

    def read(self, session: Session, part: object) -> Iterable[Record]:
        assert isinstance(part, tuple)
        kind, name = part
        read_at_s = time.monotonic()
        if kind == "network":
            yield from self._network(session, name, read_at_s)
        elif kind == "networks":
            networks = session.support.ask("listAllNetworks", lambda: session.connection.listAllNetworks(0))
            if networks is not None:
                active = sum(1 for network in networks if network.isActive())
                stats: dict[str, Value] = {"networks.active": active, "networks.inactive": len(networks) - active}
                yield Record(Subject("networks", ("networks",), ()), self.collector, stats, read_at_s)
        else:
            yield from self._interfaces(session, read_at_s)

    def _network(self, session: Session, name: str, read_at_s: float) -> Iterable[Record]:
        try:
            network = session.connection.networkLookupByName(name)
        except libvirt.libvirtError as error:
            if error.get_error_code() == libvirt.VIR_ERR_NO_NETWORK:
                return
            raise
        active = network.isActive()
        stats: dict[str, Value] = {"network.active": active, "network.autostart": network.autostart(),
                                   "network.persistent": network.isPersistent()}
        if active:
            leases = session.support.ask("DHCPLeases", lambda: network.DHCPLeases())
            if leases is not None:
                stats["network.leases"] = len(leases)
        subject = Subject("network", (network.UUIDString(),), (("network", name),))
        info = Series(NETWORK_INFO, (("uuid", network.UUIDString()), ("bridge", _bridge(network))))
        yield Record(subject, self.collector, stats, read_at_s, (info,))

    def _interfaces(self, session: Session, read_at_s: float) -> Iterable[Record]:
        connection = session.connection
        found = session.support.ask("listAllInterfaces", lambda: connection.listAllInterfaces(0))
        for interface in found or []:
            name = str(interface.name())
            try:
                active, mac = interface.isActive(), str(interface.MACString() or "")
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_INTERFACE:
                    raise
                continue  # a container's, say, that went meanwhile
            subject = Subject("interface", (name,), (("interface", name),))
            info = Series(INTERFACE_INFO, (("mac", mac),))
            yield Record(subject, self.collector, {"interface.active": active}, read_at_s, (info,))


def _bridge(network: Any) -> str:
    try:
        return str(network.bridgeName())
    except libvirt.libvirtError:  # a network without one (hostdev, macvtap)
        return ""
