"""A guest's CD-ROM drive: what is in it, inserted and ejected, running or not."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import libvirt
from pydantic import Field

from exporter.control.domain import DomainOperation, domain_state
from exporter.control.errors import ControlError, RefusedError
from exporter.control.guest_fields import HostPath, Word
from exporter.control.operation import Call, Operation, P, Parameters, Plan, State


class EjectParameters(Parameters):
    drive: Word | None = Field(default=None, description="Its target, like sda; needed where there are several.")
    force: bool = Field(default=False, description="Although the guest has locked the drive.")


class InsertParameters(EjectParameters):
    iso: HostPath = Field(description="An ISO image in an image folder.")


class _ChangesMedium(DomainOperation[P]):
    area = "provisioning"

    def wanted(self, call: Call, parameters: P) -> str:
        """The path of what is to be in the drive, '' for nothing."""
        raise NotImplementedError

    def state(self, call: Call, parameters: P) -> State:
        drive = _drive(call, parameters)
        return {**domain_state(call.subject.handle), "drive": _target(drive), "iso": _medium(drive)}

    def check(self, call: Call, parameters: P) -> None:
        self.wanted(call, parameters)
        _drive(call, parameters)

    def plan(self, call: Call, parameters: P) -> Plan:
        drive, iso = _drive(call, parameters), self.wanted(call, parameters)
        step = f"put {iso} into {_target(drive)}" if iso else f"eject what is in {_target(drive)}"
        return Plan(state=self.state(call, parameters), steps=[step], nothing_to_do=_medium(drive) == iso)

    def act(self, call: Call, parameters: P) -> None:
        handle, drive = call.subject.handle, _drive(call, parameters)
        for child in drive.findall("source") + drive.findall("backingStore"):
            drive.remove(child)
        iso = self.wanted(call, parameters)
        if iso:
            SubElement(drive, "source", file=iso)
        flags = libvirt.VIR_DOMAIN_AFFECT_LIVE if handle.isActive() else 0
        flags |= libvirt.VIR_DOMAIN_AFFECT_CONFIG if handle.isPersistent() else 0
        flags |= libvirt.VIR_DOMAIN_DEVICE_MODIFY_FORCE if parameters.force else 0  # type: ignore[attr-defined]
        handle.updateDeviceFlags(ElementTree.tostring(drive, encoding="unicode"), flags)

    def verify(self, call: Call, parameters: P) -> None:
        if _medium(_drive(call, parameters)) != self.wanted(call, parameters):
            raise ControlError("libvirt reported success, but the drive is as it was", next_step="see libvirtd's log")


class Insert(_ChangesMedium[InsertParameters]):
    verb = "cdrom-insert"
    summary = "Puts an ISO image into the guest's CD-ROM drive."
    parameters = InsertParameters

    def wanted(self, call: Call, parameters: InsertParameters) -> str:
        return str(call.folders.image(parameters.iso, "the ISO"))


class Eject(_ChangesMedium[EjectParameters]):
    verb = "cdrom-eject"
    summary = "Empties the guest's CD-ROM drive."
    parameters = EjectParameters

    def wanted(self, call: Call, parameters: EjectParameters) -> str:
        return ""


def _drive(call: Call, parameters: Any) -> Element:
    root = ElementTree.fromstring(call.subject.handle.XMLDesc(0))
    drives = [disk for disk in root.iterfind("devices/disk") if disk.get("device") == "cdrom"]
    there = ", ".join(map(_target, drives))
    if parameters.drive is not None:
        drives = [drive for drive in drives if _target(drive) == parameters.drive]
    if not drives:
        raise RefusedError(
            f"domain {call.subject.name} has no such CD-ROM drive", next_step=f"it has: {there or 'none'}"
        )
    if len(drives) > 1:
        raise RefusedError(f"domain {call.subject.name} has several CD-ROM drives", next_step=f"choose one of {there}")
    return drives[0]


def _target(drive: Element) -> str:
    target = drive.find("target")
    return (target.get("dev") or "") if target is not None else ""


def _medium(drive: Element) -> str:
    source = drive.find("source")
    return (source.get("file") or "") if source is not None else ""


OPERATIONS: tuple[Operation[Any], ...] = (Insert(), Eject())
