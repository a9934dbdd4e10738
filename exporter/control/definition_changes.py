"""What becomes of a definition that is there: made persistent, renamed, undefined with its companions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import libvirt
from pydantic import Field, model_validator

from collectors.domain_xml import element_tree
from exporter.control.comparing import inactive_xml, unified
from exporter.control.domain import DomainOperation, domain_state, existing_domain, is_state, live_state
from exporter.control.errors import RefusedError
from exporter.control.guest_fields import DomainName
from exporter.control.operation import Call, NoParameters, Operation, Parameters, Plan, State


class MakePersistent(DomainOperation[NoParameters]):
    verb = "make-persistent"
    area = "definition"
    summary = "Defines a running transient domain, so that it outlives its stop."

    def plan(self, call: Call, parameters: NoParameters) -> Plan:
        handle = call.subject.handle
        return Plan(
            state=domain_state(handle), steps=["define its running configuration"],
            nothing_to_do=bool(handle.isPersistent()),
        )  # fmt: skip

    def act(self, call: Call, parameters: NoParameters) -> None:
        # Its own XML goes back to where it came from, with its secrets; it is shown to nobody.
        flags = libvirt.VIR_DOMAIN_XML_SECURE | libvirt.VIR_DOMAIN_XML_INACTIVE
        call.session.connection.defineXML(call.subject.handle.XMLDesc(flags))


class UndefineParameters(Parameters):
    while_running: bool = Field(default=False, description="Let a running one become transient.")
    managed_save: bool = Field(default=False, description="Remove its managed save image too.")
    snapshots: bool = Field(default=False, description="Remove its snapshots' metadata too.")
    checkpoints: bool = Field(default=False, description="Remove its checkpoints' metadata too.")
    nvram: bool = Field(default=False, description="Remove its UEFI variables too.")
    keep_nvram: bool = Field(default=False, description="Leave the file of its UEFI variables where it is.")

    @model_validator(mode="after")
    def _one_fate(self) -> Self:
        if self.nvram and self.keep_nvram:
            raise ValueError("nvram and keep_nvram are both given; choose one")
        return self


class Undefine(DomainOperation[UndefineParameters]):
    verb = "undefine"
    area = "definition"
    summary = "Removes a domain's definition; its companions only where each is named."
    parameters = UndefineParameters
    destructive = True

    def check(self, call: Call, parameters: UndefineParameters) -> None:
        handle, name = call.subject.handle, call.subject.name
        if not handle.isPersistent():
            raise RefusedError(f"domain {name} is transient: it has no definition", next_step="destroy it")
        if handle.isActive() and not parameters.while_running:
            raise RefusedError(
                f"domain {name} is {live_state(handle)}", next_step="stop it first, or give --while-running"
            )
        for what, there, named, flags in (
            ("a managed save image", domain_state(handle).get("managed_save"), parameters.managed_save,
             "--managed-save to remove it too"),
            ("snapshots", _count(handle.snapshotNum), parameters.snapshots, "--snapshots to remove their metadata too"),
            ("checkpoints", _count(handle.listAllCheckpoints), parameters.checkpoints,
             "--checkpoints to remove their metadata too"),
            ("UEFI variables", _has_variables(handle), parameters.nvram or parameters.keep_nvram,
             "--nvram to remove them too, or --keep-nvram"),
        ):  # fmt: skip
            if there and not named:
                raise RefusedError(f"domain {name} has {what}", next_step=f"give {flags}")

    def plan(self, call: Call, parameters: UndefineParameters) -> Plan:
        handle = call.subject.handle
        state = domain_state(handle)
        lost = ["its definition"]
        lost += ["the guest's memory in its managed save"] if state.get("managed_save") else []
        for what, count in (("snapshots", handle.snapshotNum), ("checkpoints", handle.listAllCheckpoints)):
            lost += [f"{_count(count)} {what}' metadata"] if _count(count) else []
        lost += ["its UEFI variables"] if parameters.nvram and _has_variables(handle) else []
        return Plan(state=state, steps=["undefine it"], diff=unified(inactive_xml(handle), ""), lost=lost)

    def act(self, call: Call, parameters: UndefineParameters) -> None:
        flags = libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE if parameters.managed_save else 0
        flags |= libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA if parameters.snapshots else 0
        flags |= libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA if parameters.checkpoints else 0
        flags |= libvirt.VIR_DOMAIN_UNDEFINE_NVRAM if parameters.nvram else 0
        flags |= libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM if parameters.keep_nvram else 0
        call.subject.handle.undefineFlags(flags)


class RenameParameters(Parameters):
    new_name: DomainName = Field(description="The name it is to have.")


class Rename(DomainOperation[RenameParameters]):
    verb = "rename"
    area = "definition"
    summary = "Gives a domain that is not running another name."
    parameters = RenameParameters

    def check(self, call: Call, parameters: RenameParameters) -> None:
        if call.subject.name == parameters.new_name:
            return
        handle = call.subject.handle
        if not is_state(handle, "shutoff"):
            raise RefusedError(
                f"domain {call.subject.name} is {live_state(handle)}", next_step="shut it down first"
            )
        # libvirt refuses these too, but only once it is asked.
        if domain_state(handle).get("managed_save"):
            raise RefusedError(
                f"domain {call.subject.name} has a managed save image, which keeps its name",
                next_step="start it, or drop the image with 'domain managed-save-remove'",
            )
        for what, count in (("snapshots", handle.snapshotNum), ("checkpoints", handle.listAllCheckpoints)):
            if _count(count):
                raise RefusedError(
                    f"domain {call.subject.name} has {what}, which keep its name",
                    next_step=f"delete them first ('{what[:-1]} list {call.subject.name}' names them)",
                )
        if existing_domain(call.session, parameters.new_name, None) is not None:
            raise RefusedError(f"there is a domain {parameters.new_name} already", next_step="choose another name")

    def plan(self, call: Call, parameters: RenameParameters) -> Plan:
        return Plan(
            state=domain_state(call.subject.handle),
            steps=[f"rename {call.subject.name} to {parameters.new_name}"],
            nothing_to_do=call.subject.name == parameters.new_name,
        )

    def act(self, call: Call, parameters: RenameParameters) -> None:
        call.subject.handle.rename(parameters.new_name, 0)

    def after(self, call: Call, parameters: RenameParameters) -> State:
        return domain_state(call.session.connection.lookupByUUIDString(call.subject.uuid))


def _count(ask: Callable[[], Any]) -> int:
    """How many there are; none where the driver has no such thing."""
    try:
        found = ask()
    except libvirt.libvirtError:
        return 0
    return found if isinstance(found, int) else len(found)


def _has_variables(handle: Any) -> bool:
    """Whether it boots by UEFI. Where libvirt chose the firmware, its XML does not tell the variables' file."""
    boot = element_tree(inactive_xml(handle)).find("os")
    return boot is not None and (boot.get("firmware") == "efi" or boot.find("nvram") is not None)


OPERATIONS: tuple[Operation[Any], ...] = (MakePersistent(), Undefine(), Rename())
