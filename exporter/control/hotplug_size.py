"""A guest's virtual CPUs and memory modules, more or fewer, running or not."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import libvirt
from pydantic import Field

from exporter.control.device_change import FLAGS, DeviceChange, DeviceParameters, Side, Step, Values, device_root
from exporter.control.device_removal import remove_live
from exporter.control.errors import RefusedError, TimedOutError
from exporter.control.hotplug_disk import alias_of, attach
from exporter.control.operation import Call, Operation

_UNITS_KIB = {"KiB": 1, "MiB": 1 << 10, "GiB": 1 << 20}
_KIB_PER_MIB = 1024


class SetVcpusParameters(DeviceParameters):
    vcpus: int = Field(ge=1, le=4096, description="How many it is to have, within its maximum.")


class SetVcpus(DeviceChange[SetVcpusParameters]):
    """Values: `vcpus`, `maximum_vcpus`."""

    verb = "set-vcpus"
    area = "hotplug"
    summary = "Sets how many virtual CPUs a guest has, within its maximum."
    parameters = SetVcpusParameters
    deadline_s = 60.0

    def now(self, handle: Any, side: Side, parameters: SetVcpusParameters) -> Values:
        vcpu = device_root(handle, side).find("vcpu")
        most = int((vcpu.text if vcpu is not None else None) or 1)
        return {"vcpus": int(vcpu.get("current", most)) if vcpu is not None else 1, "maximum_vcpus": most}

    def wanted(self, call: Call, side: Side, parameters: SetVcpusParameters) -> Values:
        most = self.now(call.subject.handle, side, parameters)["maximum_vcpus"]
        if not isinstance(most, int) or parameters.vcpus > most:
            raise RefusedError(
                f"domain {call.subject.name} can have at most {most} vCPUs",
                next_step="ask for fewer, or raise <vcpu> in its definition for the next boot",
            )
        return {"vcpus": parameters.vcpus, "maximum_vcpus": most}

    def apply(self, call: Call, side: Side, wanted: Values, parameters: SetVcpusParameters) -> None:
        try:
            call.subject.handle.setVcpusFlags(parameters.vcpus, FLAGS[side])
        except libvirt.libvirtError as error:
            said = error.get_error_message() or ""
            if "timed out" not in said:
                raise
            raise TimedOutError(
                f"the guest in domain {call.subject.name} has not let go of a vCPU",
                next_step="it may still do so; look at it with 'domain show'",
                libvirt_code=error.get_error_code(),
                libvirt_message=said,
            ) from error

    def reverse(self, call: Call, side: Side, parameters: SetVcpusParameters) -> list[Step]:
        return [("domain.set-vcpus", {"vcpus": self.now(call.subject.handle, side, parameters)["vcpus"]})]


class AttachMemoryParameters(DeviceParameters):
    size_mib: int = Field(ge=1, le=16 << 20, description="The module's size; Linux guests use multiples of 128 MiB.")
    node: int = Field(default=0, ge=0, le=1023, description="The guest's NUMA node it belongs to.")


class DetachMemoryParameters(AttachMemoryParameters):
    size_mib: int = Field(ge=1, le=16 << 20, description="The size of the module to take.")
    within_s: float = Field(default=20.0, gt=0, le=3600, description="How long the guest may take to let go of it.")


class AttachMemory(DeviceChange[AttachMemoryParameters]):
    """Values: `modules`, the sizes in KiB with their nodes, in order. Each call attaches one more."""

    verb = "attach-memory"
    area = "hotplug"
    summary = "Gives a guest a memory module (DIMM); it needs <maxMemory> with a free slot."
    parameters = AttachMemoryParameters

    def now(self, handle: Any, side: Side, parameters: AttachMemoryParameters) -> Values:
        return {"modules": list(_sizes(handle, side))}

    def wanted(self, call: Call, side: Side, parameters: AttachMemoryParameters) -> Values:
        handle, name = call.subject.handle, call.subject.name
        root, modules = device_root(handle, side), _sizes(handle, side)
        maximum = root.find("maxMemory")
        slots = int(maximum.get("slots", "0")) if maximum is not None else 0
        if maximum is None or len(modules) >= slots:
            cause = "has no slot for memory" if maximum is None else f"has all its {slots} slots for memory filled"
            raise RefusedError(f"domain {name} {cause}", next_step="give it <maxMemory slots=...> for its next boot")
        total = _kib(root.find("memory")) + parameters.size_mib * _KIB_PER_MIB
        if total > _kib(maximum):
            raise RefusedError(
                f"domain {name} would have {total} KiB, more than its <maxMemory>, {_kib(maximum)} KiB",
                next_step="attach less",
            )
        return {"modules": list(sorted([*modules, _module(parameters)]))}

    def settled(self, call: Call, side: Side, wanted: Values, parameters: AttachMemoryParameters) -> bool:
        return list(_sizes(call.subject.handle, side)) == wanted["modules"]

    def apply(self, call: Call, side: Side, wanted: Values, parameters: AttachMemoryParameters) -> None:
        element = Element("memory", model="dimm")
        target = SubElement(element, "target")
        SubElement(target, "size", unit="MiB").text = str(parameters.size_mib)
        SubElement(target, "node").text = str(parameters.node)
        attach(call, element, side)

    def reverse(self, call: Call, side: Side, parameters: AttachMemoryParameters) -> list[Step]:
        return [("domain.detach-memory", {"size_mib": parameters.size_mib, "node": parameters.node})]


class DetachMemory(DeviceChange[DetachMemoryParameters]):
    verb = "detach-memory"
    area = "hotplug"
    summary = "Takes a memory module from a guest; a running guest must let go of it."
    parameters = DetachMemoryParameters

    def time_needed_s(self, parameters: DetachMemoryParameters) -> float:
        return parameters.within_s + self.deadline_s

    def now(self, handle: Any, side: Side, parameters: DetachMemoryParameters) -> Values:
        return {"modules": list(_sizes(handle, side))}

    def wanted(self, call: Call, side: Side, parameters: DetachMemoryParameters) -> Values:
        modules = _sizes(call.subject.handle, side)
        if _module(parameters) not in modules:
            raise RefusedError(
                f"domain {call.subject.name} has no memory module of {_module(parameters)}",
                next_step=f"it has: {', '.join(modules) or 'none'}",
            )
        modules.remove(_module(parameters))
        return {"modules": list(modules)}

    def apply(self, call: Call, side: Side, wanted: Values, parameters: DetachMemoryParameters) -> None:
        handle = call.subject.handle
        element = [module for module in _modules(handle, side) if _told(module) == _module(parameters)][-1]
        xml = ElementTree.tostring(element, encoding="unicode")
        if side == "persistent":
            handle.detachDeviceFlags(xml, FLAGS[side])
            return
        remove_live(call, xml, alias_of(element), f"memory module {alias_of(element)}",
                    lambda: list(_sizes(handle, side)) != wanted["modules"], parameters.within_s)  # fmt: skip

    def reverse(self, call: Call, side: Side, parameters: DetachMemoryParameters) -> list[Step]:
        return [("domain.attach-memory", {"size_mib": parameters.size_mib, "node": parameters.node})]


def _modules(handle: Any, side: Side) -> list[Element]:
    return [found for found in device_root(handle, side).iterfind("devices/memory") if found.get("model") == "dimm"]


def _sizes(handle: Any, side: Side) -> list[str]:
    return sorted(_told(module) for module in _modules(handle, side))


def _told(module: Element) -> str:
    return f"{_kib(module.find('target/size')) // _KIB_PER_MIB} MiB on node {module.findtext('target/node') or 0}"


def _module(parameters: AttachMemoryParameters) -> str:
    return f"{parameters.size_mib} MiB on node {parameters.node}"


def _kib(element: Element | None) -> int:
    return int(element.text or 0) * _UNITS_KIB[element.get("unit", "KiB")] if element is not None else 0


OPERATIONS: tuple[Operation[Any], ...] = (SetVcpus(), AttachMemory(), DetachMemory())
