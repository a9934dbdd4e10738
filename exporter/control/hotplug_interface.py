"""A guest's network interfaces attached and detached, running or not."""

from __future__ import annotations

import hashlib
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from pydantic import Field

from exporter.control.device_change import FLAGS, DeviceChange, DeviceParameters, Side, Step, Values, device_root
from exporter.control.device_removal import remove_live
from exporter.control.errors import RefusedError
from exporter.control.guest_fields import GuestInterface, MacAddress
from exporter.control.guest_xml import interface_element
from exporter.control.hotplug_disk import alias_of, attach
from exporter.control.networks import NETWORK
from exporter.control.operation import Call, Operation

_PREFIX = "52:54:00"  # QEMU's


class AttachInterfaceParameters(DeviceParameters, GuestInterface):
    pass


class DetachInterfaceParameters(DeviceParameters):
    device: MacAddress = Field(description="The interface's MAC address.")
    within_s: float = Field(default=20.0, gt=0, le=3600, description="How long the guest may take to let go of it.")


class AttachInterface(DeviceChange[AttachInterfaceParameters]):
    """Values: by MAC address, `type`, `source` and `model`. The same on both sides, one made up too."""

    verb = "attach-interface"
    area = "hotplug"
    summary = "Gives a guest a network interface on a virtual network or a bridge."
    parameters = AttachInterfaceParameters

    def now(self, handle: Any, side: Side, parameters: AttachInterfaceParameters) -> Values:
        return interfaces_of(handle, side)

    def wanted(self, call: Call, side: Side, parameters: AttachInterfaceParameters) -> Values:
        now = interfaces_of(call.subject.handle, side)
        mac, new = _shown(self._element(call, parameters))
        if mac in now and now[mac] != new:
            raise RefusedError(
                f"domain {call.subject.name} has another interface with {mac}", next_step="choose another --mac"
            )
        return now | {mac: new}

    def check(self, call: Call, parameters: AttachInterfaceParameters) -> None:
        super().check(call, parameters)
        if parameters.network is None:
            return
        network = NETWORK.subject(call.session, parameters.network)
        if "live" in self.sides(call, parameters) and not network.handle.isActive():
            raise RefusedError(
                f"network {network.name} is not active",
                next_step=f"start it ('network start {network.name}'), or apply to persistent",
            )

    def apply(self, call: Call, side: Side, wanted: Values, parameters: AttachInterfaceParameters) -> None:
        (mac,) = set(wanted) - set(interfaces_of(call.subject.handle, side))
        attach(call, self._element(call, parameters, mac), side)

    def reverse(self, call: Call, side: Side, parameters: AttachInterfaceParameters) -> list[Step]:
        return [("domain.detach-interface", {"device": _shown(self._element(call, parameters))[0]})]

    def _element(self, call: Call, parameters: AttachInterfaceParameters, mac: str | None = None) -> Element:
        element = interface_element(parameters)
        if element.find("mac") is None:
            made = ElementTree.Element("mac", address=mac or _free_mac(call.subject.handle, call.subject.uuid or ""))
            element.insert(0, made)
        return element


class DetachInterface(DeviceChange[DetachInterfaceParameters]):
    verb = "detach-interface"
    area = "hotplug"
    summary = "Takes a network interface from a guest; a running guest must let go of it."
    parameters = DetachInterfaceParameters

    def time_needed_s(self, parameters: DetachInterfaceParameters) -> float:
        return parameters.within_s + self.deadline_s

    def now(self, handle: Any, side: Side, parameters: DetachInterfaceParameters) -> Values:
        return interfaces_of(handle, side)

    def wanted(self, call: Call, side: Side, parameters: DetachInterfaceParameters) -> Values:
        found = [_shown(element) for element in _elements(call.subject.handle, side)]
        same = len([mac for mac, _ in found if mac == parameters.device])
        if same > 1:
            raise RefusedError(
                f"domain {call.subject.name} has {same} interfaces with {parameters.device}",
                next_step="give them addresses of their own in its definition first",
            )
        return {mac: shown for mac, shown in found if mac != parameters.device}

    def cautions(self, call: Call, parameters: DetachInterfaceParameters) -> list[str]:
        sides = self.sides(call, parameters)
        there = {mac for side in sides for mac in interfaces_of(call.subject.handle, side)}
        if parameters.device not in there:
            return [f"domain {call.subject.name} has no such interface; it has: {', '.join(sorted(there)) or 'none'}"]
        return ["the guest's connections over it are cut"] if "live" in sides else []

    def apply(self, call: Call, side: Side, wanted: Values, parameters: DetachInterfaceParameters) -> None:
        handle, mac = call.subject.handle, parameters.device
        element = next(found for found in _elements(handle, side) if _shown(found)[0] == mac)
        xml = ElementTree.tostring(element, encoding="unicode")
        if side == "persistent":
            handle.detachDeviceFlags(xml, FLAGS[side])
            return
        remove_live(call, xml, alias_of(element), f"interface {mac}",
                    lambda: mac in interfaces_of(handle, "live"), parameters.within_s)  # fmt: skip

    def reverse(self, call: Call, side: Side, parameters: DetachInterfaceParameters) -> list[Step]:
        shown = interfaces_of(call.subject.handle, side).get(parameters.device)
        if not isinstance(shown, dict) or shown["type"] not in ("network", "bridge", "user"):
            return []
        source = {str(shown["type"]): shown["source"]} if "source" in shown else {}
        fields = {"mac": parameters.device, **source, "model": shown.get("model", "virtio")}
        return [("domain.attach-interface", fields)]


def interfaces_of(handle: Any, side: Side) -> Values:
    """By MAC address: type, source (the network's or bridge's name), model."""
    return dict(_shown(element) for element in _elements(handle, side))


def _elements(handle: Any, side: Side) -> list[Element]:
    return device_root(handle, side).findall("devices/interface")


def _shown(element: Element) -> tuple[str, Values]:
    mac, source, model = element.find("mac"), element.find("source"), element.find("model")
    kind = element.get("type") or ""
    shown: Values = {
        "type": kind,
        "source": source.get("dev" if kind == "direct" else kind) if source is not None else None,
        "model": model.get("type") if model is not None else None,
    }
    address = (mac.get("address") or "").lower() if mac is not None else ""
    return address, {name: value for name, value in shown.items() if value is not None}


def _free_mac(handle: Any, uuid: str) -> str:
    """The same for the same guest with the same interfaces, so that both sides get one address."""
    taken = sorted(
        mac
        for side, there in (("live", handle.isActive()), ("persistent", handle.isPersistent()))
        if there
        for mac in interfaces_of(handle, side)  # type: ignore[arg-type]
    )
    digest = hashlib.sha256(f"{uuid} {' '.join(taken)}".encode()).hexdigest()
    return ":".join((_PREFIX, digest[:2], digest[2:4], digest[4:6]))


OPERATIONS: tuple[Operation[Any], ...] = (AttachInterface(), DetachInterface())
