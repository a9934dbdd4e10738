"""A domain's checkpoints: listed, created, deleted."""

from __future__ import annotations

from typing import Any
from xml.etree.ElementTree import tostring

import libvirt
from pydantic import Field, JsonValue

from collectors.domain_xml import element_tree
from exporter.control.domain import P, domain_state
from exporter.control.errors import RefusedError
from exporter.control.guest_fields import OneLine
from exporter.control.operation import Call, NoParameters, Operation, Plan, Role, State, moment
from exporter.control.snapshots import NamedParameters, OfDomain, named_element


class _OfCheckpoints(OfDomain[P]):
    noun = "checkpoint"

    def state(self, call: Call, parameters: P) -> State:
        names: list[JsonValue] = sorted(found.getName() for found in call.subject.handle.listAllCheckpoints(0))
        return {**domain_state(call.subject.handle), "checkpoints": names}

    def there(self, call: Call, name: str) -> bool:
        return name in [found.getName() for found in call.subject.handle.listAllCheckpoints(0)]


class ListCheckpoints(_OfCheckpoints[NoParameters]):
    """`rows`: name, parent, created (RFC 3339)."""

    verb = "list"
    summary = "Lists a domain's checkpoints: points from which changed blocks are kept account of."
    role = Role.READER
    reads = True

    def state(self, call: Call, parameters: NoParameters) -> State:
        rows: list[JsonValue] = []
        for found in call.subject.handle.listAllCheckpoints(0):
            root = element_tree(found.getXMLDesc(libvirt.VIR_DOMAIN_CHECKPOINT_XML_NO_DOMAIN))
            row = {"name": found.getName(), "parent": root.findtext("parent/name"),
                   "created": moment(int(root.findtext("creationTime") or 0))}  # fmt: skip
            rows.append({key: value for key, value in row.items() if value})
        return {"rows": rows}


class CreateCheckpointParameters(NamedParameters):
    description: OneLine = Field(default="", description="A text kept with it.")


class CreateCheckpoint(_OfCheckpoints[CreateCheckpointParameters]):
    verb = "create"
    summary = "Makes a checkpoint on a running domain's qcow2 disks."
    parameters = CreateCheckpointParameters

    def check(self, call: Call, parameters: CreateCheckpointParameters) -> None:
        if not call.subject.handle.isActive():
            raise RefusedError(f"domain {call.subject.name} is not running", next_step="start it")
        if self.there(call, parameters.name):
            raise RefusedError(
                f"domain {call.subject.name} has a checkpoint {parameters.name} already", next_step="choose another"
            )

    def act(self, call: Call, parameters: CreateCheckpointParameters) -> None:
        call.subject.handle.checkpointCreateXML(checkpoint_xml(parameters.name, parameters.description), 0)


class DeleteCheckpoint(_OfCheckpoints[NamedParameters]):
    verb = "delete"
    summary = "Deletes a checkpoint; what it kept account of goes to the one before it."
    parameters = NamedParameters
    destructive = True

    def plan(self, call: Call, parameters: NamedParameters) -> Plan:
        there = self.there(call, parameters.name)
        lost = [f"the account of blocks changed since {parameters.name}"] if there else []
        return Plan(state=self.state(call, parameters), steps=["delete it"], lost=lost, nothing_to_do=not there)

    def act(self, call: Call, parameters: NamedParameters) -> None:
        call.subject.handle.checkpointLookupByName(parameters.name).delete(0)


def checkpoint_xml(name: str, description: str) -> str:
    """The `<domaincheckpoint>`."""
    return tostring(named_element("domaincheckpoint", name, description), encoding="unicode")


OPERATIONS: tuple[Operation[Any], ...] = (ListCheckpoints(), CreateCheckpoint(), DeleteCheckpoint())
