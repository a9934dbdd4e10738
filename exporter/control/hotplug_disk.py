"""A guest's disks attached and detached, running or not."""

from __future__ import annotations

import os
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import libvirt
from pydantic import Field

from exporter.control.connection import is_remote
from exporter.control.device_change import FLAGS, DeviceChange, DeviceParameters, Side, Step, Values, device_root
from exporter.control.device_removal import remove_live
from exporter.control.errors import RefusedError
from exporter.control.guest_fields import GuestDisk, Word
from exporter.control.guest_xml import TARGET_PREFIXES, disk_element
from exporter.control.image_users import files_of, source_file, users_of
from exporter.control.operation import Call, Operation, Plan

_MOST_TARGETS = 26
_PLUGGABLE = ("virtio", "scsi", "usb")


class AttachDiskParameters(DeviceParameters, GuestDisk):
    device: Word | None = Field(default=None, description="Its target, like vdb; the first free one where not given.")


class DetachDiskParameters(DeviceParameters):
    device: Word = Field(description="The disk's target, like vdb.")
    within_s: float = Field(default=20.0, gt=0, le=3600, description="How long the guest may take to let go of it.")


class AttachDisk(DeviceChange[AttachDiskParameters]):
    """Values: by target, what is there (see `disk_shown`)."""

    verb = "attach-disk"
    area = "hotplug"
    summary = "Gives a guest a disk: an image or block device in an image folder."
    parameters = AttachDiskParameters

    def now(self, handle: Any, side: Side, parameters: AttachDiskParameters) -> Values:
        return disks_of(handle, side)

    def wanted(self, call: Call, side: Side, parameters: AttachDiskParameters) -> Values:
        now = disks_of(call.subject.handle, side)
        element = self._element(call, parameters)
        target, new = disk_shown(element)
        if target in now and now[target] != new:
            raise RefusedError(
                f"domain {call.subject.name} has another disk at {target}", next_step="choose another --device"
            )
        twins = _disks_with(call, side, str(new["file"])) - {target}
        if twins and not parameters.read_only:
            raise RefusedError(
                f"domain {call.subject.name} has {new['file']} in its disk {min(twins)}",
                next_step="choose another image",
            )
        return now | {target: new}

    def check(self, call: Call, parameters: AttachDiskParameters) -> None:
        super().check(call, parameters)
        sides, name = self.sides(call, parameters), call.subject.name
        if "live" in sides and parameters.bus not in _PLUGGABLE:
            raise RefusedError(
                f"a disk on {parameters.bus} cannot be given to domain {name} while it runs",
                next_step="choose bus virtio or scsi, or apply to persistent",
            )
        path = str(call.folders.image(parameters.file, "the disk"))
        used = users_of(call.session.connection, path, running=True, besides=call.subject.uuid,
                        reaches=call.reaches)  # fmt: skip
        if used and not parameters.read_only:
            raise RefusedError(
                f"{path} is in use by {', '.join(used)}",
                next_step="two guests that write to one disk destroy it; detach it there first",
            )

    def apply(self, call: Call, side: Side, wanted: Values, parameters: AttachDiskParameters) -> None:
        try:
            attach(call, self._element(call, parameters), side)
        except libvirt.libvirtError as error:
            if "PCI slots" not in (error.get_error_message() or ""):
                raise
            raise RefusedError(
                f"domain {call.subject.name} has no free PCI slot",
                next_step="use bus scsi, or apply to persistent",
                libvirt_code=error.get_error_code(),
                libvirt_message=error.get_error_message(),
            ) from error

    def reverse(self, call: Call, side: Side, parameters: AttachDiskParameters) -> list[Step]:
        return [("domain.detach-disk", {"device": disk_shown(self._element(call, parameters))[0]})]

    def _element(self, call: Call, parameters: AttachDiskParameters) -> Element:
        element = disk_element(parameters, call.folders, {})
        target = element.find("target")
        assert target is not None
        target.set("dev", parameters.device or _free_target(call.subject.handle, parameters.bus, element))
        return element


class DetachDisk(DeviceChange[DetachDiskParameters]):
    """The image itself stays as it is."""

    verb = "detach-disk"
    area = "hotplug"
    summary = "Takes a disk from a guest; a running guest must let go of it."
    parameters = DetachDiskParameters

    def time_needed_s(self, parameters: DetachDiskParameters) -> float:
        return parameters.within_s + self.deadline_s

    def now(self, handle: Any, side: Side, parameters: DetachDiskParameters) -> Values:
        return disks_of(handle, side)

    def wanted(self, call: Call, side: Side, parameters: DetachDiskParameters) -> Values:
        return {target: disk for target, disk in disks_of(call.subject.handle, side).items()
                if target != parameters.device}  # fmt: skip

    def plan(self, call: Call, parameters: DetachDiskParameters) -> Plan:
        plan = super().plan(call, parameters)
        sides = self.sides(call, parameters)
        there = {target for side in sides for target in disks_of(call.subject.handle, side)}
        if parameters.device not in there:
            told = ", ".join(sorted(there)) or "none"
            plan.warnings.append(f"domain {call.subject.name} has no disk {parameters.device}; it has: {told}")
        if "live" in sides and parameters.device in disks_of(call.subject.handle, "live"):
            plan.lost.append(f"what the guest has in use on {parameters.device} and has not written to it yet")
        return plan

    def apply(self, call: Call, side: Side, wanted: Values, parameters: DetachDiskParameters) -> None:
        handle = call.subject.handle
        element = _disk(handle, side, parameters.device)
        xml = ElementTree.tostring(element, encoding="unicode")
        if side == "persistent":
            handle.detachDeviceFlags(xml, FLAGS[side])
            return
        remove_live(
            call, xml, alias_of(element), f"disk {parameters.device}",
            lambda: parameters.device in disks_of(handle, "live"), parameters.within_s,
        )  # fmt: skip

    def reverse(self, call: Call, side: Side, parameters: DetachDiskParameters) -> list[Step]:
        shown = disks_of(call.subject.handle, side).get(parameters.device)
        if not isinstance(shown, dict) or shown.get("format") not in ("raw", "qcow2") or not shown.get("file"):
            return []
        fields = {name: value for name, value in shown.items() if name in GuestDisk.model_fields}
        return [("domain.attach-disk", {"device": parameters.device, **fields})]


def disks_of(handle: Any, side: Side) -> Values:
    """By target: file, format, bus, serial, read_only; what is not known is absent. No CD-ROM or floppy drives."""
    return dict(disk_of_domain(handle, disk) for disk in _elements(handle, side))


def _elements(handle: Any, side: Side) -> list[Element]:
    found = device_root(handle, side).iterfind("devices/disk")
    return [disk for disk in found if disk.get("device", "disk") in ("disk", "lun")]


def _disks_with(call: Call, side: Side, file: str) -> set[str]:
    """The targets of the domain's disks that are that file, or stand on it."""
    connection = call.session.connection
    local = not is_remote(connection.getURI())
    return {
        disk_shown(disk)[0]
        for disk in _elements(call.subject.handle, side)
        if os.path.realpath(file) in map(os.path.realpath, files_of(connection, disk, local=local))
    }


def disk_of_domain(handle: Any, disk: Element) -> tuple[str, Values]:
    """As `disk_shown`; a volume of a pool is the file that it is, where libvirt knows."""
    target, shown = disk_shown(disk)
    source = disk.find("source")
    if source is not None and source.get("volume") and (file := source_file(handle.connect(), source)):
        shown["file"] = file
    return target, shown


def disk_shown(disk: Element) -> tuple[str, Values]:
    """The target of a `<disk>`, and what it is."""
    target, source, driver = disk.find("target"), disk.find("source"), disk.find("driver")
    attributes = source.attrib if source is not None else {}
    shown: Values = {
        "file": attributes.get("file") or attributes.get("dev") or attributes.get("volume") or attributes.get("name"),
        "format": driver.get("type") if driver is not None else None,
        "bus": target.get("bus") if target is not None else None,
        "serial": disk.findtext("serial"),
        "read_only": True if disk.find("readonly") is not None else None,
    }
    name = (target.get("dev") or "") if target is not None else ""
    return name, {key: value for key, value in shown.items() if value is not None}


def attach(call: Call, element: Element, side: Side) -> None:
    """Attaches a device on one side."""
    call.subject.handle.attachDeviceFlags(ElementTree.tostring(element, encoding="unicode"), FLAGS[side])


def alias_of(element: Element) -> str:
    """The name a running device has in events."""
    alias = element.find("alias")
    return (alias.get("name") or "") if alias is not None else ""


def _disk(handle: Any, side: Side, target: str) -> Element:
    for disk in device_root(handle, side).iterfind("devices/disk"):
        if disk_shown(disk)[0] == target:
            return disk
    raise RefusedError(f"there is no disk {target}", next_step="look at its XML")


def _free_target(handle: Any, bus: str, element: Element) -> str:
    """The target that the same image has already, else the first that is free on both sides."""
    wanted = disk_shown(element)[1]
    taken: set[str] = set()
    for side in ("live", "persistent"):
        if not (handle.isActive() if side == "live" else handle.isPersistent()):
            continue
        for disk in device_root(handle, side).iterfind("devices/disk"):
            target, shown = disk_of_domain(handle, disk)
            if shown == wanted:
                return target
            taken.add(target)
    for number in range(_MOST_TARGETS):
        name = f"{TARGET_PREFIXES[bus]}{chr(ord('a') + number)}"
        if name not in taken:
            return name
    raise RefusedError(f"all {_MOST_TARGETS} targets of bus {bus} are taken", next_step="choose another bus")


OPERATIONS: tuple[Operation[Any], ...] = (AttachDisk(), DetachDisk())
