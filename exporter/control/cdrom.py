"""A guest's CD-ROM drive: what is in it, inserted and ejected, running or not."""

from __future__ import annotations

from typing import Any, TypeVar
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import libvirt
from pydantic import Field

from exporter.control.device_change import FLAGS, DeviceChange, DeviceParameters, Side, Step, Values, device_root
from exporter.control.errors import RefusedError
from exporter.control.guest_fields import HostPath, Word
from exporter.control.hotplug_disk import disk_shown
from exporter.control.operation import Call, Operation


class EjectParameters(DeviceParameters):
    drive: Word | None = Field(default=None, description="Its target, like sda; needed where there are several.")
    force: bool = Field(default=False, description="Although the guest has locked the drive.")


class InsertParameters(EjectParameters):
    iso: HostPath = Field(description="An ISO image in an image folder.")


D = TypeVar("D", bound=EjectParameters)


class _ChangesMedium(DeviceChange[D]):
    """Values: `drive`, its target, and `iso`, the path of what is in it; '' for nothing."""

    area = "hotplug"

    def medium(self, call: Call, parameters: D) -> str:
        """The path of what is to be in the drive, '' for nothing."""
        raise NotImplementedError

    def now(self, handle: Any, side: Side, parameters: D) -> Values:
        drive = _drive(handle, side, parameters)
        return {"drive": disk_shown(drive)[0], "iso": _medium(drive)}

    def wanted(self, call: Call, side: Side, parameters: D) -> Values:
        now = self.now(call.subject.handle, side, parameters)
        return {"drive": now["drive"], "iso": self.medium(call, parameters)}

    def apply(self, call: Call, side: Side, wanted: Values, parameters: D) -> None:
        drive = _drive(call.subject.handle, side, parameters)
        for child in drive.findall("source") + drive.findall("backingStore"):
            drive.remove(child)
        if wanted["iso"]:
            drive.set("type", "file")
            SubElement(drive, "source", file=str(wanted["iso"]))
        force = libvirt.VIR_DOMAIN_DEVICE_MODIFY_FORCE
        flags = FLAGS[side] | (force if parameters.force and side == "live" else 0)
        try:
            call.subject.handle.updateDeviceFlags(ElementTree.tostring(drive, encoding="unicode"), flags)
        except libvirt.libvirtError as error:
            if "locked" not in (error.get_error_message() or ""):
                raise
            raise RefusedError(
                f"the guest in domain {call.subject.name} has locked its drive {wanted['drive']}",
                next_step="unmount it in the guest, or give --force, which the guest takes for a fault of the disc",
                libvirt_code=error.get_error_code(),
                libvirt_message=error.get_error_message(),
            ) from error

    def reverse(self, call: Call, side: Side, parameters: D) -> list[Step]:
        now = self.now(call.subject.handle, side, parameters)
        if now["iso"]:
            return [("domain.cdrom-insert", now)]
        return [("domain.cdrom-eject", {"drive": now["drive"]})]


class Insert(_ChangesMedium[InsertParameters]):
    verb = "cdrom-insert"
    summary = "Puts an ISO image into the guest's CD-ROM drive."
    parameters = InsertParameters

    def medium(self, call: Call, parameters: InsertParameters) -> str:
        return str(call.folders.image(parameters.iso, "the ISO"))


class Eject(_ChangesMedium[EjectParameters]):
    verb = "cdrom-eject"
    summary = "Empties the guest's CD-ROM drive."
    parameters = EjectParameters

    def medium(self, call: Call, parameters: EjectParameters) -> str:
        return ""


def _drive(handle: Any, side: Side, parameters: EjectParameters) -> Element:
    drives = [disk for disk in device_root(handle, side).iterfind("devices/disk") if disk.get("device") == "cdrom"]
    there = ", ".join(disk_shown(drive)[0] for drive in drives)
    if parameters.drive is not None:
        drives = [drive for drive in drives if disk_shown(drive)[0] == parameters.drive]
    if not drives:
        raise RefusedError(f"domain {handle.name()} has no such CD-ROM drive", next_step=f"it has: {there or 'none'}")
    if len(drives) > 1:
        raise RefusedError(
            f"domain {handle.name()} has several CD-ROM drives", next_step=f"choose one with --drive: {there}"
        )
    return drives[0]


def _medium(drive: Element) -> str:
    return str(disk_shown(drive)[1].get("file") or "")


OPERATIONS: tuple[Operation[Any], ...] = (Insert(), Eject())
