"""A running guest's disk made larger, while it is in use."""

from __future__ import annotations

from typing import Any

import libvirt
from pydantic import Field

from exporter.control.block_chain import disk_element
from exporter.control.domain import DomainOperation, domain_state
from exporter.control.errors import ControlError, RefusedError
from exporter.control.guest_fields import Word
from exporter.control.operation import Call, Operation, Parameters, Plan, State


class SetDiskSizeParameters(Parameters):
    device: Word = Field(description="The disk's target, like vda.")
    capacity_bytes: int = Field(ge=512, le=1 << 60, multiple_of=512, description="What the guest is to see.")


class SetDiskSize(DomainOperation[SetDiskSizeParameters]):
    """State: `capacity_bytes`, of the running guest's disk."""

    verb = "set-disk-size"
    area = "hotplug"
    summary = "Makes a running guest's disk larger; the guest sees it at once."
    parameters = SetDiskSizeParameters
    deadline_s = 60.0

    def state(self, call: Call, parameters: SetDiskSizeParameters) -> State:
        return {**domain_state(call.subject.handle), "capacity_bytes": _capacity(call, parameters)}

    def check(self, call: Call, parameters: SetDiskSizeParameters) -> None:
        handle, name = call.subject.handle, call.subject.name
        if not handle.isActive():
            raise RefusedError(f"domain {name} is not running", next_step="resize its volume with 'volume resize'")
        disk_element(handle, name, parameters.device)
        now = _capacity(call, parameters)
        if parameters.capacity_bytes < now:
            raise RefusedError(
                f"disk {parameters.device} of domain {name} has {now} bytes, and a smaller one would lose some",
                next_step="ask for more than that",
            )

    def plan(self, call: Call, parameters: SetDiskSizeParameters) -> Plan:
        now, wanted = _capacity(call, parameters), parameters.capacity_bytes
        return Plan(
            state=self.state(call, parameters), steps=[f"{now} bytes of {parameters.device} become {wanted}"],
            warnings=["partitions and file systems in it stay as they are: grow them in the guest"],
            nothing_to_do=now == wanted,
        )  # fmt: skip

    def act(self, call: Call, parameters: SetDiskSizeParameters) -> None:
        call.subject.handle.blockResize(
            parameters.device, parameters.capacity_bytes, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES
        )

    def verify(self, call: Call, parameters: SetDiskSizeParameters) -> None:
        now = _capacity(call, parameters)
        if now != parameters.capacity_bytes:
            raise ControlError(f"{parameters.device} has {now} bytes after it", next_step="see libvirtd's log")


def _capacity(call: Call, parameters: SetDiskSizeParameters) -> int:
    return int(call.subject.handle.blockInfo(parameters.device)[0])


OPERATIONS: tuple[Operation[Any], ...] = (SetDiskSize(),)
