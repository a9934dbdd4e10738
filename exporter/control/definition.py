"""Definitions: from typed fields or outside XML, and compared. What becomes of one is in `definition_changes`."""

from __future__ import annotations

import os
import uuid as uuids
from collections.abc import Mapping
from typing import Any, ClassVar
from xml.etree import ElementTree

import libvirt
from pydantic import Field, JsonValue

from exporter.control import definition_changes
from exporter.control.allow_list import checked_domain_xml, parse
from exporter.control.comparing import comparable_pair, inactive_xml, unified
from exporter.control.connection import Session
from exporter.control.domain import DomainOperation, P, domain_state, existing_domain, interrupted, subject_of
from exporter.control.errors import InvalidError, RefusedError, UnsupportedError
from exporter.control.folders import Folders
from exporter.control.guest_fields import GuestFields
from exporter.control.guest_xml import console_file, guest_xml, host_type
from exporter.control.operation import Call, NoParameters, Operation, Parameters, Plan, Role, State, Subject


class DefinesDomain(Operation[P]):
    """What all ways of making a domain share: `identity` and `xml` tell what is to be made.

    libvirt checks it by its schema.
    """

    noun = "domain"
    area = "definition"
    takes_subject = False
    deadline_s = 60.0
    boots: ClassVar[bool] = False

    def identity(self, parameters: P) -> tuple[str, str | None]:
        """Name, and UUID where one is given."""
        raise NotImplementedError

    def xml(self, call: Call, parameters: P, kind: str) -> str:
        raise NotImplementedError

    def _replaces(self, parameters: P) -> bool:
        return False

    def _paused(self, parameters: P) -> bool:
        return False

    def find(self, session: Session, reference: str | None, parameters: P) -> Subject:
        name, uuid = self.identity(parameters)
        existing = existing_domain(session, name, uuid)
        if existing is not None:
            return subject_of(existing)
        # Chosen now, and given back to us as the reference once its lock is held: who finds the new domain by name
        # meanwhile waits at the same lock.
        made_up = uuid or reference or str(uuids.uuid4())
        return Subject(kind="domain", key=f"domain-{made_up}", name=name, uuid=made_up, exists=False)

    def state(self, call: Call, parameters: P) -> State:
        return domain_state(call.subject.handle) if call.subject.exists else {"state": "not defined"}

    def check(self, call: Call, parameters: P) -> None:
        name, uuid = self.identity(parameters)
        found = call.subject
        if getattr(parameters, "bootloader", None) and call.session.driver == "QEMU":
            raise UnsupportedError(
                "QEMU has no host bootloader (pygrub is Xen's)", next_step="boot a disk, or give a kernel and initrd"
            )
        if not found.exists:
            return
        if self.boots:
            raise RefusedError(f"there is a domain {found.name} already", next_step="choose another name")
        if uuid and uuid != found.uuid:
            raise RefusedError(f"{name} is the name of domain {found.uuid}", next_step="choose another name or UUID")
        if found.name != name:
            raise RefusedError(f"UUID {uuid} is domain {found.name}", next_step="rename that, or choose another UUID")
        if not self._replaces(parameters):
            step = "give --replace to change it" if hasattr(parameters, "replace") else "choose another name"
            raise RefusedError(f"domain {name} is defined already", next_step=step)

    def plan(self, call: Call, parameters: P) -> Plan:
        wanted = self.xml(call, parameters, host_type(call.session))
        now = inactive_xml(call.subject.handle) if call.subject.exists else ""
        warnings = ["it runs: the new definition counts from its next boot"] if _runs(call.subject) else []
        step = "create it transient and boot it" if self.boots else "define it"
        return Plan(state=self.state(call, parameters), steps=[step], diff=unified(now, wanted), warnings=warnings)

    def act(self, call: Call, parameters: P) -> None:
        xml = self.xml(call, parameters, host_type(call.session))
        _prepare_console(call.folders, xml)
        connection = call.session.connection
        if self.boots:
            paused = libvirt.VIR_DOMAIN_START_PAUSED if self._paused(parameters) else 0
            made = connection.createXML(xml, libvirt.VIR_DOMAIN_START_VALIDATE | paused)
        else:
            made = connection.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
        call.details["uuid"] = made.UUIDString()
        if self.boots:
            call.details["id"] = made.ID()

    def verify(self, call: Call, parameters: P) -> None:
        # Raises libvirt's own "no such domain" where it is not there.
        call.session.connection.lookupByUUIDString(call.details["uuid"])

    def after(self, call: Call, parameters: P) -> State:
        return domain_state(call.session.connection.lookupByUUIDString(call.details["uuid"]))

    def aftermath(self, session: Session, folders: Folders, begun: Mapping[str, JsonValue]) -> str:
        return interrupted(session, begun)


class DefineParameters(GuestFields):
    replace: bool = Field(default=False, description="Change the definition of a domain of that name.")


class Define(DefinesDomain[DefineParameters]):
    verb = "define"
    summary = "Defines a domain from fields, without starting it."
    parameters = DefineParameters

    def identity(self, parameters: DefineParameters) -> tuple[str, str | None]:
        return parameters.name, parameters.uuid

    def _replaces(self, parameters: DefineParameters) -> bool:
        return parameters.replace

    def xml(self, call: Call, parameters: DefineParameters, kind: str) -> str:
        return guest_xml(parameters, call.folders, kind, call.subject.uuid)


class CreateParameters(GuestFields):
    paused: bool = Field(default=False, description="Start with the CPUs stopped.")


class Create(DefinesDomain[CreateParameters]):
    verb = "create"
    summary = "Creates a transient domain from fields and boots it; it is gone when it stops."
    parameters = CreateParameters
    boots = True

    def identity(self, parameters: CreateParameters) -> tuple[str, str | None]:
        return parameters.name, parameters.uuid

    def _paused(self, parameters: CreateParameters) -> bool:
        return parameters.paused

    def xml(self, call: Call, parameters: CreateParameters, kind: str) -> str:
        return guest_xml(parameters, call.folders, kind, call.subject.uuid)


class DefineXmlParameters(Parameters):
    xml: str = Field(description="libvirt's <domain> XML; checked against the allow-list.")
    replace: bool = Field(default=False, description="Change the definition of a domain of that name.")


class CreateXmlParameters(Parameters):
    xml: str = Field(description="libvirt's <domain> XML; checked against the allow-list.")
    paused: bool = Field(default=False, description="Start with the CPUs stopped.")


class _DefinesXml(DefinesDomain[P]):
    """From outside XML: the right of administrators, through the allow-list."""

    role = Role.ADMIN

    def identity(self, parameters: P) -> tuple[str, str | None]:
        # The first look, before the allow-list knows the folders: only for the name and UUID.
        return _named_in(parameters.xml)  # type: ignore[attr-defined]

    def xml(self, call: Call, parameters: P, kind: str) -> str:
        root = checked_domain_xml(parameters.xml, call.folders)  # type: ignore[attr-defined]
        if root.find("uuid") is None and call.subject.uuid:
            ElementTree.SubElement(root, "uuid").text = call.subject.uuid
        return ElementTree.tostring(root, encoding="unicode")

    def check(self, call: Call, parameters: P) -> None:
        checked_domain_xml(parameters.xml, call.folders)  # type: ignore[attr-defined]
        super().check(call, parameters)

    def audited(self, parameters: P) -> dict[str, JsonValue]:
        return {"xml_characters": len(parameters.xml)}  # type: ignore[attr-defined]


class DefineXml(_DefinesXml[DefineXmlParameters]):
    verb = "define-xml"
    summary = "Defines a domain from libvirt's XML, as far as the allow-list goes."
    parameters = DefineXmlParameters

    def _replaces(self, parameters: DefineXmlParameters) -> bool:
        return parameters.replace


class CreateXml(_DefinesXml[CreateXmlParameters]):
    verb = "create-xml"
    summary = "Creates a transient domain from libvirt's XML, as far as the allow-list goes, and boots it."
    parameters = CreateXmlParameters
    boots = True

    def _paused(self, parameters: CreateXmlParameters) -> bool:
        return parameters.paused


class Compare(DomainOperation[NoParameters]):
    """`details.diff`: what the next boot changes; `details.differs`."""

    verb = "compare"
    area = "definition"
    summary = "Compares the running configuration with the one of the next boot."
    role = Role.READER
    reads = True

    def state(self, call: Call, parameters: NoParameters) -> State:
        handle = call.subject.handle
        if not (handle.isActive() and handle.isPersistent()):
            what = "is not running" if not handle.isActive() else "is transient"
            raise RefusedError(f"domain {call.subject.name} {what}: there are no two to compare", next_step="see xml")
        diff = unified(*comparable_pair(handle.XMLDesc(0), inactive_xml(handle)), "running", "next boot")
        return {"differs": bool(diff), "diff": diff}


def _named_in(xml: str) -> tuple[str, str | None]:
    root, _lines = parse(xml)
    name, uuid = (root.findtext("name") or "").strip(), (root.findtext("uuid") or "").strip()
    if not name or not name.isprintable():
        raise InvalidError("the XML gives the domain no name", next_step="add <name>")
    return name, uuid.lower() or None


def _prepare_console(folders: Folders, xml: str) -> None:
    """libvirt's log daemon does not make folders."""
    uuid = ElementTree.fromstring(xml).findtext("uuid") or ""
    file = console_file(folders, uuid)
    if str(file) in xml:
        folders.private(file.parent)
        # Our own open: what is read later was made by us, whoever writes to it.
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))


def _runs(subject: Subject) -> bool:
    return subject.exists and bool(subject.handle.isActive())


OPERATIONS: tuple[Operation[Any], ...] = (
    Define(), Create(), DefineXml(), CreateXml(), Compare(), *definition_changes.OPERATIONS
)  # fmt: skip
