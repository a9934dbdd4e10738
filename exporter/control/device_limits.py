"""Limits on a guest's disks (iotune) and network interfaces (bandwidth): set, and lifted again."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Self, TypeVar
from xml.etree.ElementTree import Element

import libvirt
from pydantic import Field, JsonValue, model_validator

from exporter.control.device_change import FLAGS, DeviceChange, DeviceParameters, Side, Step, Values, device_root
from exporter.control.errors import InvalidError, RefusedError, UnsupportedError
from exporter.control.guest_fields import Word
from exporter.control.operation import Call, Operation

Limits = dict[str, int]
"""By libvirt's names, without what is 0: not limited."""

_IOTUNE = tuple(f"{way}_{what}_sec" for what in ("bytes", "iops") for way in ("total", "read", "write"))
_MOST = 1_000_000_000_000_000  # QEMU's own: THROTTLE_VALUE_MAX


class LimitParameters(DeviceParameters):
    device: Word | None = Field(default=None, description="Which one; all of them where not given.")


L = TypeVar("L", bound=LimitParameters)


class LimitsChange(DeviceChange[L]):
    """Values: by device, its Limits."""

    area = "hotplug"
    set_verb: str

    @abstractmethod
    def devices(self, handle: Any, side: Side) -> list[str]:
        """The names of those that can be limited."""

    @abstractmethod
    def limits(self, handle: Any, side: Side, device: str) -> Limits: ...

    @abstractmethod
    def set_limits(self, handle: Any, side: Side, device: str, limits: Limits) -> None:
        """`limits` names all that is to be set, 0 for what is lifted."""

    def after_it(self, before: Limits, parameters: L) -> Limits:
        """What a device with the limits `before` is to have; nothing, unless an operation says otherwise."""
        return {}

    def now(self, handle: Any, side: Side, parameters: L) -> Values:
        chosen = self.devices(handle, side)
        if parameters.device is not None:
            chosen = [device for device in chosen if device.lower() == parameters.device.lower()]
        return {device: _json(self.limits(handle, side, device)) for device in chosen}

    def wanted(self, call: Call, side: Side, parameters: L) -> Values:
        now = self.now(call.subject.handle, side, parameters)
        if not now:
            there = ", ".join(self.devices(call.subject.handle, side))
            raise RefusedError(
                f"domain {call.subject.name} has no such {self.device_word} to limit",
                next_step=f"it has: {there or 'none'}",
            )
        return {device: _json(self.after_it(_limits(before), parameters)) for device, before in now.items()}

    device_word = "device"

    def apply(self, call: Call, side: Side, wanted: Values, parameters: L) -> None:
        handle = call.subject.handle
        for device, before in self.now(handle, side, parameters).items():
            limits = _limits(wanted[device])
            if limits != before:
                self.set_limits(handle, side, device, {name: 0 for name in _limits(before)} | limits)

    def reverse(self, call: Call, side: Side, parameters: L) -> list[Step]:
        steps: list[Step] = []
        after = self.wanted(call, side, parameters)
        for device, before in self.now(call.subject.handle, side, parameters).items():
            lifted = {name: 0 for name in _limits(after[device])}
            if after[device] != before:
                fields = {name.replace(".", "_"): value for name, value in (lifted | _limits(before)).items()}
                steps.append((f"domain.{self.set_verb}", {"device": device, **fields}))
        return steps


class BlockLimitParameters(LimitParameters):
    device: Word | None = Field(default=None, description="The disk's target, like vda; every disk where not given.")


def _rate(what: str) -> Any:
    return Field(default=None, ge=0, le=_MOST, description=f"{what}; 0 lifts it; what is not given stays.")


def _burst(what: str) -> Any:
    return Field(default=None, ge=0, le=_MOST, description=f"{what} in a burst; 0 lifts it.")


class SetBlockLimitParameters(BlockLimitParameters):
    """libvirt's names and units. `total_` excludes `read_` and `write_` of the same kind."""

    total_bytes_sec: int | None = _rate("Bytes per second, read and written together")
    read_bytes_sec: int | None = _rate("Bytes per second read")
    write_bytes_sec: int | None = _rate("Bytes per second written")
    total_iops_sec: int | None = _rate("Requests per second")
    read_iops_sec: int | None = _rate("Read requests per second")
    write_iops_sec: int | None = _rate("Write requests per second")
    total_bytes_sec_max: int | None = _burst("Bytes per second, read and written together,")
    read_bytes_sec_max: int | None = _burst("Bytes per second read")
    write_bytes_sec_max: int | None = _burst("Bytes per second written")
    total_iops_sec_max: int | None = _burst("Requests per second")
    read_iops_sec_max: int | None = _burst("Read requests per second")
    write_iops_sec_max: int | None = _burst("Write requests per second")

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        given = self.given()
        if not given:
            raise ValueError("sets no limit; give one, like total_bytes_sec")
        for what in ("bytes", "iops"):
            for end in ("", "_max"):
                if given.get(f"total_{what}_sec{end}") and (
                    given.get(f"read_{what}_sec{end}") or given.get(f"write_{what}_sec{end}")
                ):
                    raise ValueError(f"total_{what}_sec{end} cannot stand beside read_ or write_{what}_sec{end}")
        return self

    def given(self) -> Limits:
        """What was given, 0 for what is to be lifted."""
        every = self.model_dump(exclude_none=True, exclude={"device", "apply_to"})
        return {name: int(value) for name, value in every.items()}


class _BlockLimits(LimitsChange[L]):
    set_verb = "set-block-limit"
    device_word = "disk"

    def devices(self, handle: Any, side: Side) -> list[str]:
        disks = device_root(handle, side).iterfind("devices/disk")
        return [_target(disk) for disk in disks if disk.get("device", "disk") in ("disk", "lun")]

    def limits(self, handle: Any, side: Side, device: str) -> Limits:
        told = handle.blockIoTune(device, FLAGS[side])
        names = (*_IOTUNE, *(f"{name}_max" for name in _IOTUNE))
        return {name: int(told[name]) for name in names if told.get(name)}

    def set_limits(self, handle: Any, side: Side, device: str, limits: Limits) -> None:
        # A group of disks that share one limit would otherwise stay joined, and change together: that is wanted.
        handle.setBlockIoTune(device, limits, FLAGS[side])


class SetBlockLimit(_BlockLimits[SetBlockLimitParameters]):
    verb = "set-block-limit"
    summary = "Limits what a guest reads and writes on a disk, or on all its disks."
    parameters = SetBlockLimitParameters

    def after_it(self, before: Limits, parameters: SetBlockLimitParameters) -> Limits:
        given = parameters.given()
        kept = {name: value for name, value in before.items() if not _excluded(name, given)}
        return {name: value for name, value in (kept | given).items() if value}


class LiftBlockLimit(_BlockLimits[BlockLimitParameters]):
    verb = "lift-block-limit"
    summary = "Lifts every limit on a guest's disk, or on all its disks."
    parameters = BlockLimitParameters


class InterfaceLimitParameters(LimitParameters):
    device: Word | None = Field(default=None, description="The interface's MAC address; every one where not given.")


def _kib(what: str) -> Any:
    return Field(default=None, ge=0, le=(1 << 32) - 1, description=f"{what}; 0 lifts it; what is not given stays.")


class SetInterfaceLimitParameters(InterfaceLimitParameters):
    """Inbound is what the guest receives. A peak or burst needs an average of the same direction."""

    inbound_average_kib: int | None = _kib("KiB per second to the guest")
    inbound_peak_kib: int | None = _kib("KiB per second to the guest in a burst")
    inbound_burst_kib: int | None = _kib("KiB that may go to the guest at peak speed")
    outbound_average_kib: int | None = _kib("KiB per second from the guest")
    outbound_peak_kib: int | None = _kib("KiB per second from the guest in a burst")
    outbound_burst_kib: int | None = _kib("KiB that may come from the guest at peak speed")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.given():
            raise ValueError("sets no limit; give one, like outbound_average_kib")
        return self

    def given(self) -> Limits:
        every = self.model_dump(exclude_none=True, exclude={"device", "apply_to"})
        return {name.removesuffix("_kib").replace("_", "."): int(value) for name, value in every.items()}


class _InterfaceLimits(LimitsChange[L]):
    set_verb = "set-interface-limit"
    device_word = "network interface"

    def devices(self, handle: Any, side: Side) -> list[str]:
        return [
            mac.get("address", "")
            for interface in device_root(handle, side).iterfind("devices/interface")
            # QEMU's user network and a passed-through device have no host interface that could be limited.
            if interface.get("type") not in ("user", "hostdev", "vdpa", "vhostuser")
            and (mac := interface.find("mac")) is not None
        ]

    def limits(self, handle: Any, side: Side, device: str) -> Limits:
        told = handle.interfaceParameters(device, FLAGS[side])
        return {name: int(value) for name, value in told.items() if value and not name.endswith("floor")}

    def set_limits(self, handle: Any, side: Side, device: str, limits: Limits) -> None:
        try:
            handle.setInterfaceParameters(device, limits, FLAGS[side])
        except libvirt.libvirtError as error:
            said = " ".join((error.get_error_message() or "").split())
            if "tc " not in said:
                raise
            raise UnsupportedError(
                "this host's kernel cannot shape the traffic",
                next_step="it needs tc and the modules sch_htb, sch_sfq, sch_ingress, cls_u32, cls_fw and act_police",
                libvirt_code=error.get_error_code(),
                libvirt_message=said,
            ) from error

    def reverse(self, call: Call, side: Side, parameters: L) -> list[Step]:
        steps = super().reverse(call, side, parameters)
        kept = ("device",)
        return [
            (name, {key if key in kept else f"{key}_kib": value for key, value in fields.items()})
            for name, fields in steps
        ]


class SetInterfaceLimit(_InterfaceLimits[SetInterfaceLimitParameters]):
    verb = "set-interface-limit"
    summary = "Limits what a guest sends and receives on a network interface, or on all of them."
    parameters = SetInterfaceLimitParameters

    def after_it(self, before: Limits, parameters: SetInterfaceLimitParameters) -> Limits:
        after = {name: value for name, value in (before | parameters.given()).items() if value}
        for way in ("inbound", "outbound"):
            rest = [name for name in after if name.startswith(f"{way}.")]
            if rest and f"{way}.average" not in after:
                if parameters.given().get(f"{way}.average") != 0:
                    raise InvalidError(
                        f"{', '.join(rest)} needs an average", next_step=f"give --{way}-average-kib too"
                    )
                for name in rest:
                    del after[name]
        return after


class LiftInterfaceLimit(_InterfaceLimits[InterfaceLimitParameters]):
    verb = "lift-interface-limit"
    summary = "Lifts every bandwidth limit on a guest's network interface, or on all of them."
    parameters = InterfaceLimitParameters


def _excluded(name: str, given: Limits) -> bool:
    """Whether a limit goes because the other way of giving it was given: total, or read and write."""
    way, _, rest = name.partition("_")
    others = ("read", "write") if way == "total" else ("total",)
    return any(given.get(f"{other}_{rest}") for other in others)


def _target(disk: Element) -> str:
    target = disk.find("target")
    return (target.get("dev") or "") if target is not None else ""


def _limits(values: JsonValue) -> Limits:
    assert isinstance(values, dict)
    return {name: int(value) for name, value in values.items() if isinstance(value, int)}


def _json(limits: Limits) -> JsonValue:
    return dict(limits)


OPERATIONS: tuple[Operation[Any], ...] = (
    SetBlockLimit(), LiftBlockLimit(), SetInterfaceLimit(), LiftInterfaceLimit()
)  # fmt: skip
