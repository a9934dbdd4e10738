"""The host's devices: listed by capability, as a tree, shown; PCI devices taken for guests, reset and given back."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, ClassVar, Literal, TypeVar

import libvirt
from pydantic import Field, JsonValue

from collectors.domain_xml import element_tree
from exporter.control.connection import Session, is_remote
from exporter.control.errors import (
    ControlError,
    InvalidError,
    NotFoundError,
    RefusedError,
    UnsupportedError,
    from_libvirt,
)
from exporter.control.folders import Folders
from exporter.control.host_devices import FOR_GUESTS, HostDevices
from exporter.control.node_device_xml import (
    NodeDevice,
    node_devices,
    parse_node_device,
    parse_pci_address,
    pci_address_of,
)
from exporter.control.operation import Call, NoParameters, Operation, Parameters, Plan, Role, State, Subject

# One lock for all: whether a device may go depends on what becomes of the others in its group.
LOCK_KEY = "node-devices"
P = TypeVar("P", bound=Parameters)
Capability = Literal[
    "system", "pci", "usb_device", "usb", "net", "scsi_host", "scsi_target", "scsi", "storage", "fc_host", "vports",
    "scsi_generic", "drm", "mdev", "mdev_types", "ccw", "css", "vdpa", "ap_card", "ap_queue", "ap_matrix", "vpd",
]  # fmt: skip


def find_device(session: Session, reference: str) -> Subject:
    """The device of libvirt's name, a PCI address, an interface, a block device or a path. Raises NotFoundError."""
    devices = node_devices(session.connection)
    address = parse_pci_address(reference)
    for device, handle in devices:
        words = (device.name, device.interface, device.path, device.block, (device.block or "").removeprefix("/dev/"))
        if reference and (reference in words or (address is not None and address == device.address)):
            return Subject(kind="node device", key=LOCK_KEY, name=device.name, handle=handle)
    names = [word for device, _ in devices for word in (device.name, device.interface) if word]
    near = difflib.get_close_matches(reference, names, n=3, cutoff=0.4)
    raise NotFoundError(
        f"there is no node device {reference[:80]!r}", nearest=near,
        next_step="" if near else "list what there is with 'nodedev list'",
    )


def guests_with(connection: Any, address: str) -> list[str]:
    """The running guests that have this PCI device."""
    found = []
    for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
        try:
            root = element_tree(domain.XMLDesc(0))
        except libvirt.libvirtError:  # it has ended meanwhile
            continue
        # hostdev, a network's hostdev interface, and an NVMe disk all name it in their source.
        if any(pci_address_of(source) == address for source in root.iterfind("devices/*/source/address")):
            found.append(domain.name())
    return sorted(found)


class _NodeDeviceOperation(Operation[P]):
    noun = "nodedev"
    area = "node_devices"

    def __init__(self, host: HostDevices | None = None) -> None:
        self.host = host or HostDevices()

    def find(self, session: Session, reference: str | None, parameters: P) -> Subject:
        if not self.takes_subject:
            return Subject(kind="node devices", key=LOCK_KEY, name="")
        return find_device(session, reference or "")

    def device(self, call: Call) -> NodeDevice:
        return parse_node_device(call.subject.handle.XMLDesc(0))

    def state(self, call: Call, parameters: P) -> State:
        return self.shown(call, self.device(call))

    def shown(self, call: Call, device: NodeDevice) -> State:
        """Its row and, of a PCI device of this host: driver, IOMMU group with its members, who uses it."""
        row = device.row()
        connection = call.session.connection
        if device.address is None or is_remote(connection.getURI()):
            return row
        group = self.host.group(device.address)
        facts: dict[str, JsonValue | None] = {
            "driver": self.host.driver(device.address) or device.driver,
            "iommu_group": group if group is not None else device.iommu_group,
            "iommu_group_others": list(self.host.group_members(device.address)) or None,
            "used_by_host": list(self.host.uses(device.address)) or None,
            "used_by_guests": list(guests_with(connection, device.address)) or None,
        }
        return {**row, **{name: value for name, value in facts.items() if value is not None}}


class ListParameters(Parameters):
    capability: Capability | None = Field(default=None, description="Only those with this capability of libvirt's.")


class List(_NodeDeviceOperation[ListParameters]):
    verb = "list"
    summary = "Lists the host's devices, or those of one capability."
    parameters = ListParameters
    role = Role.READER
    reads = True
    takes_subject = False

    def state(self, call: Call, parameters: ListParameters) -> State:
        devices = [device for device, _ in node_devices(call.session.connection)]
        wanted = parameters.capability
        rows = [device.row() for device in devices if wanted is None or wanted in device.capabilities]
        for row in rows:
            row.pop("path", None)
        return {"rows": list(rows), "devices": len(rows)}


class Tree(_NodeDeviceOperation[NoParameters]):
    """`rows` in the tree's order; `depth` counts from 0, `device` is the name behind two blanks a step."""

    verb = "tree"
    summary = "Shows the host's devices as a tree: what hangs on what."
    role = Role.READER
    reads = True
    takes_subject = False

    def state(self, call: Call, parameters: NoParameters) -> State:
        devices = {device.name: device for device, _ in node_devices(call.session.connection)}
        rows: list[JsonValue] = []

        def walk(name: str, depth: int) -> None:
            device = devices[name]
            what = {key: value for key, value in device.row().items() if key in ("driver", "interface", "block")}
            rows.append({"device": "  " * depth + name, "capability": device.capability, **what, "depth": depth})
            for other in devices.values():
                if other.parent == name and other.name != name:
                    walk(other.name, depth + 1)

        for device in devices.values():
            if device.parent not in devices:
                walk(device.name, 0)
        return {"rows": rows, "devices": len(rows)}


class Show(_NodeDeviceOperation[NoParameters]):
    verb = "show"
    summary = "Shows one device, by name, PCI address, interface or disk: parent, driver, IOMMU group, users, XML."
    role = Role.READER
    reads = True

    def state(self, call: Call, parameters: NoParameters) -> State:
        return {**self.shown(call, self.device(call)), "xml": call.subject.handle.XMLDesc(0)}


class _PciChange(_NodeDeviceOperation[P]):
    role: ClassVar[Role] = Role.ADMIN
    deadline_s: ClassVar[float] = 60.0

    def pci(self, call: Call) -> tuple[NodeDevice, str]:
        """The device and its PCI address. Raises InvalidError, RefusedError for what must never be changed."""
        device = self.device(call)
        if is_remote(call.session.connection.getURI()):
            raise RefusedError(
                "this libvirt is of another host, and what that host uses cannot be seen from here",
                next_step="run virtgauge on that host",
            )
        if device.address is None:
            hint = f"its parent is {device.parent}" if device.parent else "see 'nodedev list --capability pci'"
            raise InvalidError(f"node device {device.name} is no PCI device", next_step=hint)
        return device, device.address

    def refuse_used(self, call: Call, address: str) -> None:
        """Raises RefusedError where a guest or the host uses the device, with what for."""
        guests = guests_with(call.session.connection, address)
        if guests:
            raise RefusedError(
                f"PCI device {address} belongs to the running guest {', '.join(guests)}",
                next_step="take it from the guest first",
            )
        if self.host.is_bridge(address):
            raise RefusedError(f"PCI device {address} is a bridge of the host", next_step="choose a device behind it")
        uses = self.host.uses(address)
        if uses:
            raise RefusedError(
                f"the host uses PCI device {address}: {'; '.join(uses)}", next_step="end that use first"
            )

    def aftermath(self, session: Session, folders: Folders, begun: Mapping[str, JsonValue]) -> str:
        subject = begun.get("subject")
        try:
            name = str(subject["name"]) if isinstance(subject, dict) else ""
            device = parse_node_device(session.connection.nodeDeviceLookupByName(name).XMLDesc(0))
        except libvirt.libvirtError:
            return ""
        driver = (self.host.driver(device.address) if device.address else None) or device.driver or "no driver"
        group = self.host.group_members(device.address) if device.address else []
        others = "".join(f", {other} of its group with {self.host.driver(other) or 'no driver'}" for other in group)
        return f"interrupted; {name} is now with {driver}{others}"


class DetachParameters(Parameters):
    with_group: bool = Field(
        default=False, description="Take the other devices of its IOMMU group, too: a guest can only have them all."
    )


class Detach(_PciChange[DetachParameters]):
    verb = "detach"
    summary = "Takes a PCI device from the host's driver, for a guest."
    parameters = DetachParameters

    def check(self, call: Call, parameters: DetachParameters) -> None:
        _, address = self.pci(call)
        taken = self.taken(address, parameters)
        if not taken:
            return
        if address in taken:
            self.refuse_used(call, address)
        if self.host.group(address) is None:
            raise UnsupportedError(
                f"PCI device {address} has no IOMMU group: the host uses no IOMMU",
                next_step="switch it on in the firmware, and with intel_iommu=on or amd_iommu=on for the kernel",
            )
        others = self.others(address)
        if others and address in taken and not parameters.with_group:
            named = ", ".join(f"{other} ({self.host.driver(other)})" for other in others)
            raise RefusedError(
                f"PCI device {address} shares its IOMMU group {self.host.group(address)} with {named}",
                next_step="take them all (--with-group), or choose another device",
            )
        for other in others:
            self.refuse_used(call, other)

    def others(self, address: str) -> list[str]:
        """The group's other devices that a driver of the host has."""
        members = self.host.group_members(address)
        return [other for other in members if self.host.driver(other) not in (None, *FOR_GUESTS)]

    def taken(self, address: str, parameters: DetachParameters) -> list[str]:
        """Those that are to be taken now: it, unless it is there, and with its group what the host still has of it."""
        itself = [] if self.host.driver(address) == "vfio-pci" else [address]
        return [*itself, *(self.others(address) if parameters.with_group else ())]

    def plan(self, call: Call, parameters: DetachParameters) -> Plan:
        device, address = self.pci(call)
        taken = self.taken(address, parameters)
        return Plan(
            state=self.shown(call, device),
            steps=[f"take {one} from {self.host.driver(one) or 'no driver'} and give it to vfio-pci" for one in taken],
            lost=[f"the host's {what}" for one in taken for what in self.host.what_is_there(one)],
            nothing_to_do=not taken,
        )

    def act(self, call: Call, parameters: DetachParameters) -> None:
        _, address = self.pci(call)
        devices = {device.address: handle for device, handle in node_devices(call.session.connection)}
        wanted = self.taken(address, parameters)
        drivers = {one: self.host.driver(one) for one in wanted}
        unknown = [one for one in wanted if one not in devices]
        if unknown:
            raise ControlError(
                f"libvirt does not list PCI device {', '.join(unknown)}, which the kernel has in that IOMMU group;"
                " nothing was taken",
                next_step="restart libvirtd (virtnodedevd), and see 'nodedev list --capability pci'",
            )
        taken: list[str] = []
        for one in wanted:
            try:
                devices[one].detachFlags(None, 0)
            except libvirt.libvirtError as error:
                kept = [back for back in taken if not self._given_back(call, devices[back], back, drivers[back])]
                raise from_libvirt(error, f"detach of PCI device {one}", _told(taken, kept)) from error
            taken.append(one)
        call.details["detached"] = [*taken]

    def _given_back(self, call: Call, handle: Any, address: str, before: str | None) -> bool:
        """Whether the host's driver has it again: a guest cannot have part of a group, nor has the host any of it.

        One that had no driver before is back without one.
        """
        with suppress(libvirt.libvirtError):
            handle.reAttach()
        deadline = call.deadline.within(10)
        none_is_right = before is None
        return deadline.wait_for(
            lambda: (now := self.host.driver(address)) not in FOR_GUESTS and (now is not None or none_is_right)
        )

    def verify(self, call: Call, parameters: DetachParameters) -> None:
        wanted = _texts(call.details["detached"])
        call.deadline.within(10).wait_for(lambda: all(self.host.driver(one) == "vfio-pci" for one in wanted))
        for address in wanted:
            driver = self.host.driver(address)
            if driver != "vfio-pci":
                raise ControlError(
                    f"PCI device {address} was detached and is with {driver or 'no driver'}", next_step="see dmesg"
                )


class Reset(_PciChange[NoParameters]):
    verb = "reset"
    summary = "Resets a PCI device that no driver of the host has."

    def check(self, call: Call, parameters: NoParameters) -> None:
        _, address = self.pci(call)
        self.refuse_used(call, address)
        driver = self.host.driver(address)
        if driver not in (None, *FOR_GUESTS):
            raise RefusedError(
                f"PCI device {address} is with the host's driver {driver}, which a reset would confuse",
                next_step="detach it first",
            )

    def plan(self, call: Call, parameters: NoParameters) -> Plan:
        device, address = self.pci(call)
        return Plan(state=self.shown(call, device), steps=[f"reset {address}"])

    def act(self, call: Call, parameters: NoParameters) -> None:
        call.subject.handle.reset()


class Reattach(_PciChange[NoParameters]):
    verb = "reattach"
    summary = "Gives a detached PCI device back to the host's driver."

    def check(self, call: Call, parameters: NoParameters) -> None:
        _, address = self.pci(call)
        guests = guests_with(call.session.connection, address)
        if guests:
            raise RefusedError(
                f"PCI device {address} belongs to the running guest {', '.join(guests)}",
                next_step="take it from the guest first",
            )

    def plan(self, call: Call, parameters: NoParameters) -> Plan:
        device, address = self.pci(call)
        return Plan(
            state=self.shown(call, device),
            steps=[f"give {address} back to the host's driver"],
            nothing_to_do=self.host.driver(address) not in FOR_GUESTS,
        )

    def act(self, call: Call, parameters: NoParameters) -> None:
        call.subject.handle.reAttach()

    def verify(self, call: Call, parameters: NoParameters) -> None:
        _, address = self.pci(call)
        if not call.deadline.within(10).wait_for(lambda: self.host.driver(address) not in FOR_GUESTS):
            raise ControlError(f"PCI device {address} is still with vfio-pci", next_step="see dmesg")
        if self.host.driver(address) is None:
            call.warnings.append(f"no driver of the host has taken {address}")


def _told(taken: list[str], kept: list[str]) -> str:
    """What became of the devices that were taken before one could not be; goes behind an error's next step."""
    back = [address for address in taken if address not in kept]
    told = f"; given back to the host: {', '.join(back)}" if back else ""
    if kept:
        told += f"; still taken from the host: {', '.join(kept)} ('nodedev reattach' gives each back)"
    return told


def _texts(value: JsonValue) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


OPERATIONS: tuple[Operation[Any], ...] = (List(), Tree(), Show(), Detach(), Reset(), Reattach())
