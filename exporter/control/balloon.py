"""A guest's memory by its balloon: taken from it and given back, within its maximum."""

from __future__ import annotations

from typing import Any, Self

import libvirt
from pydantic import Field, model_validator

from collectors.domain_xml import element_tree
from exporter.control.device_change import FLAGS, DeviceChange, DeviceParameters, Side, Step, Values
from exporter.control.errors import RefusedError, TimedOutError
from exporter.control.operation import Call, Operation, Progress

_KIB_PER_MIB = 1024


class SetMemoryParameters(DeviceParameters):
    memory_mib: int | None = Field(default=None, ge=1, le=16 << 20, description="The memory it is to have.")
    percent_of_maximum: int | None = Field(default=None, ge=1, le=100, description="The same, by its maximum.")
    change_mib: int | None = Field(
        default=None, ge=-(16 << 20), le=16 << 20,
        description="So much more, or with a minus less, than now; at most its maximum.",
    )  # fmt: skip
    within_s: float = Field(default=30.0, gt=0, le=3600, description="How long the guest may take to follow.")
    force: bool = Field(default=False, description="Although the guest uses more than it would be left with.")

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if sum(value is not None for value in (self.memory_mib, self.percent_of_maximum, self.change_mib)) != 1:
            raise ValueError("give exactly one of memory_mib, percent_of_maximum and change_mib")
        return self


class SetMemory(DeviceChange[SetMemoryParameters]):
    """Values: `memory_kib`, `maximum_memory_kib`. The guest itself must give memory up: it is waited for."""

    verb = "set-memory"
    area = "hotplug"
    summary = "Sets the memory a guest has, by its balloon, within its maximum."
    parameters = SetMemoryParameters

    def time_needed_s(self, parameters: SetMemoryParameters) -> float:
        return parameters.within_s + self.deadline_s

    def now(self, handle: Any, side: Side, parameters: SetMemoryParameters) -> Values:
        if side == "live":
            # From libvirtd's memory, kept current by QEMU's balloon event: it answers for a hung guest too.
            _state, maximum_kib, memory_kib, *_rest = handle.info()
            return {"memory_kib": memory_kib, "maximum_memory_kib": maximum_kib}
        root = element_tree(handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        return {
            "memory_kib": int(root.findtext("currentMemory") or root.findtext("memory") or 0),
            "maximum_memory_kib": int(root.findtext("memory") or 0),
        }

    def wanted(self, call: Call, side: Side, parameters: SetMemoryParameters) -> Values:
        now = self.now(call.subject.handle, side, parameters)
        memory_kib, maximum_kib = _kib(now, "memory_kib"), _kib(now, "maximum_memory_kib")
        wanted_kib = _target_kib(parameters, memory_kib, maximum_kib)
        if wanted_kib > maximum_kib:
            raise RefusedError(
                f"{wanted_kib} KiB is more than the maximum of domain {call.subject.name}, {maximum_kib} KiB",
                next_step=f"ask for at most {maximum_kib // _KIB_PER_MIB} MiB, or attach memory",
            )
        if wanted_kib < _KIB_PER_MIB:
            raise RefusedError(f"domain {call.subject.name} would have less than 1 MiB", next_step="take less")
        return {"memory_kib": wanted_kib, "maximum_memory_kib": maximum_kib}

    def check(self, call: Call, parameters: SetMemoryParameters) -> None:
        super().check(call, parameters)
        if "live" not in self.sides(call, parameters):
            return
        handle, name = call.subject.handle, call.subject.name
        wanted_kib = _kib(self.wanted(call, "live", parameters), "memory_kib")
        memory_kib = _kib(self.now(handle, "live", parameters), "memory_kib")
        if wanted_kib != memory_kib and not _has_balloon(handle):
            raise RefusedError(
                f"domain {name} has no memory balloon",
                next_step="apply to persistent, or give it a <memballoon> for its next boot",
            )
        needed_kib = _needed_kib(handle, memory_kib)
        if needed_kib is not None and wanted_kib < min(needed_kib, memory_kib) and not parameters.force:
            raise RefusedError(
                f"domain {name} uses {needed_kib} KiB, and would be left with {wanted_kib} KiB",
                next_step="take less, or give --force (the guest may end programs for lack of memory)",
            )

    def cautions(self, call: Call, parameters: SetMemoryParameters) -> list[str]:
        handle = call.subject.handle
        if "live" not in self.sides(call, parameters) or _needed_kib(handle, 0) is not None:
            return []
        wanted, now = self.wanted(call, "live", parameters), self.now(handle, "live", parameters)
        if _kib(wanted, "memory_kib") >= _kib(now, "memory_kib"):
            return []
        return ["the guest tells no memory statistics: how much it uses is unknown, and it may not follow"]

    def apply(self, call: Call, side: Side, wanted: Values, parameters: SetMemoryParameters) -> None:
        call.subject.handle.setMemoryFlags(_kib(wanted, "memory_kib"), FLAGS[side])

    def reverse(self, call: Call, side: Side, parameters: SetMemoryParameters) -> list[Step]:
        memory_kib = _kib(self.now(call.subject.handle, side, parameters), "memory_kib")
        return [("domain.set-memory", {"memory_mib": max(1, memory_kib // _KIB_PER_MIB)})]

    def await_settled(self, call: Call, side: Side, wanted: Values, parameters: SetMemoryParameters) -> None:
        if side == "persistent":
            return super().await_settled(call, side, wanted, parameters)
        call.progress(Progress("waiting for the guest to follow"))
        if not call.deadline.within(parameters.within_s).wait_for(
            lambda: self.settled(call, side, wanted, parameters), poll_s=0.2
        ):
            memory_kib = self.now(call.subject.handle, side, parameters)["memory_kib"]
            raise TimedOutError(
                f"domain {call.subject.name} was asked to have {wanted['memory_kib']} KiB, and has {memory_kib} KiB"
                f" after {parameters.within_s:g} s: the guest does not follow, or only so far",
                next_step="it needs a balloon driver that has started; it may still follow; setting it back undoes it",
            )
        return None


def _target_kib(parameters: SetMemoryParameters, memory_kib: int, maximum_kib: int) -> int:
    if parameters.memory_mib is not None:
        return parameters.memory_mib * _KIB_PER_MIB
    if parameters.percent_of_maximum is not None:
        whole = maximum_kib * parameters.percent_of_maximum // 100
        return whole if whole == maximum_kib else max(_KIB_PER_MIB, whole // _KIB_PER_MIB * _KIB_PER_MIB)
    return min(memory_kib + (parameters.change_mib or 0) * _KIB_PER_MIB, maximum_kib)


def _kib(values: Values, name: str) -> int:
    value = values[name]
    assert isinstance(value, int)
    return value


def _has_balloon(handle: Any) -> bool:
    balloon = element_tree(handle.XMLDesc(0)).find("devices/memballoon")
    # Only QEMU's domains have the device; other drivers balloon without one.
    return balloon.get("model") != "none" if balloon is not None else handle.connect().getType() != "QEMU"


def _needed_kib(handle: Any, memory_kib: int) -> int | None:
    """What the guest cannot give up; None where it does not tell (no driver, or statistics are off)."""
    try:
        usable_kib = handle.memoryStats().get("usable")
    except libvirt.libvirtError:
        return None
    return None if usable_kib is None else memory_kib - int(usable_kib)


OPERATIONS: tuple[Operation[Any], ...] = (SetMemory(),)
