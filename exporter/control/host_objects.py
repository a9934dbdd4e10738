"""What virtual networks and storage pools share: defined, started, stopped, started with the host, shown."""

from __future__ import annotations

import difflib
import uuid as uuids
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import libvirt
from pydantic import Field, JsonValue

from exporter.control.connection import Session
from exporter.control.errors import ControlError, InvalidError, NotFoundError, RefusedError
from exporter.control.folders import Folders
from exporter.control.operation import Call, NoParameters, Operation, P, Parameters, Plan, Role, State, Subject

_REFERENCE_MOST_CHARACTERS = 1024
SEE_LOG = "see libvirtd's log"


@dataclass(frozen=True)
class Kind:
    """libvirt's names for one kind of thing on a connection."""

    noun: str
    list_all: str
    by_name: str
    by_uuid: str
    missing: tuple[int, ...]

    def look(self, session: Session, reference: str) -> Any | None:
        """libvirt's object of a name or UUID; None where there is none."""
        connection = session.connection
        try:
            words = ((self.by_uuid, str(uuids.UUID(reference))), (self.by_name, reference))
        except ValueError:
            words = ((self.by_name, reference),)  # type: ignore[assignment]
        for method, word in words:
            try:
                return getattr(connection, method)(word)
            except libvirt.libvirtError as error:
                if error.get_error_code() not in self.missing:
                    raise
        return None

    def subject(self, session: Session, reference: str) -> Subject:
        """Raises NotFoundError with the nearest names."""
        if not reference or len(reference) > _REFERENCE_MOST_CHARACTERS or not reference.isprintable():
            raise InvalidError(f"this is no {self.noun}'s name or UUID", next_step=f"see '{self.noun} list'")
        handle = self.look(session, reference)
        if handle is None:
            names = [found.name() for found in getattr(session.connection, self.list_all)(0)]
            nearest = difflib.get_close_matches(reference, names, n=3, cutoff=0.4)
            raise NotFoundError(
                f"there is no {self.noun} {reference!r}", nearest=nearest,
                next_step="" if nearest else f"there are: {', '.join(sorted(names)[:20]) or 'none'}",
            )  # fmt: skip
        return self.subject_of(handle)

    def subject_of(self, handle: Any) -> Subject:
        uuid = handle.UUIDString()
        return Subject(kind=self.noun, key=f"{self.noun}-{uuid}", name=handle.name(), uuid=uuid, handle=handle)


def host_state(handle: Any) -> State:
    """name, uuid, active, persistent, autostart; `{"state": "gone"}` for one that is no more."""
    try:
        return {
            "name": handle.name(), "uuid": handle.UUIDString(), "active": bool(handle.isActive()),
            "persistent": bool(handle.isPersistent()), "autostart": bool(handle.autostart()),
        }  # fmt: skip
    except libvirt.libvirtError as error:
        if error.get_error_code() in (libvirt.VIR_ERR_NO_NETWORK, libvirt.VIR_ERR_NO_STORAGE_POOL):
            return {"state": "gone"}
        raise


class HostOperation(Operation[P]):
    """An operation on one network or pool; it concerns the whole host, so it needs an admin."""

    kind: ClassVar[Kind]
    role = Role.ADMIN
    deadline_s = 60.0

    def find(self, session: Session, reference: str | None, parameters: P) -> Subject:
        return self.kind.subject(session, reference or "")

    def shown(self, handle: Any) -> State:
        """What else there is to know of one that runs or not."""
        return {}

    def users(self, call: Call) -> list[str]:
        """The running domains that would lose it."""
        return []

    def state(self, call: Call, parameters: P) -> State:
        state = host_state(call.subject.handle)
        return {**state, **self.shown(call.subject.handle)} if "name" in state else state

    def aftermath(self, session: Session, folders: Folders, begun: Mapping[str, JsonValue]) -> str:
        subject = begun.get("subject")
        handle = self.kind.look(session, str(subject.get("uuid"))) if isinstance(subject, dict) else None
        if handle is None:
            return f"interrupted; the {self.noun} is not there"
        how = "active" if handle.isActive() else "not active"
        kept = "defined" if handle.isPersistent() else "not defined"
        return f"interrupted; the {self.noun} is {kept} and {how}"


class ListOperation(HostOperation[NoParameters]):
    """`rows`: one State each, by name."""

    verb = "list"
    role = Role.READER
    reads = True
    takes_subject = False

    def find(self, session: Session, reference: str | None, parameters: NoParameters) -> Subject:
        return Subject(kind="host", key="host", name="")

    def state(self, call: Call, parameters: NoParameters) -> State:
        rows = [{**host_state(found), **self.shown(found)}
                for found in getattr(call.session.connection, self.kind.list_all)(0)]  # fmt: skip
        rows.sort(key=lambda row: str(row.get("name")))
        return {"rows": [row for row in rows if "name" in row]}


class ShowOperation(HostOperation[NoParameters]):
    verb = "show"
    role = Role.READER
    reads = True


class XmlOperation(HostOperation[NoParameters]):
    verb = "xml"
    role = Role.READER
    reads = True

    def state(self, call: Call, parameters: NoParameters) -> State:
        return {"xml": call.subject.handle.XMLDesc(0)}


class StartOperation(HostOperation[NoParameters]):
    verb = "start"

    def plan(self, call: Call, parameters: NoParameters) -> Plan:
        return Plan(state=self.state(call, parameters), steps=["start it"],
                    nothing_to_do=bool(call.subject.handle.isActive()))  # fmt: skip

    def act(self, call: Call, parameters: NoParameters) -> None:
        call.subject.handle.create()

    def verify(self, call: Call, parameters: NoParameters) -> None:
        if not call.subject.handle.isActive():
            raise ControlError(f"{self.noun} {call.subject.name} was started and is not active", next_step=SEE_LOG)


class StopOperation(HostOperation[NoParameters]):
    verb = "stop"

    def plan(self, call: Call, parameters: NoParameters) -> Plan:
        handle, users = call.subject.handle, self.users(call)
        active = bool(handle.isActive())
        lost = [f"what it is to the running guests {', '.join(users)}"] if users and active else []
        lost += [f"its definition: {self.noun} {call.subject.name} is transient"] if not handle.isPersistent() else []
        return Plan(state=self.state(call, parameters), steps=["stop it"], lost=lost, nothing_to_do=not active)

    def act(self, call: Call, parameters: NoParameters) -> None:
        call.subject.handle.destroy()

    def verify(self, call: Call, parameters: NoParameters) -> None:
        if host_state(call.subject.handle).get("active"):
            raise ControlError(f"{self.noun} {call.subject.name} was stopped and is active", next_step=SEE_LOG)


class HostAutostartParameters(Parameters):
    enabled: bool = Field(default=True, description="Whether libvirt starts it when the host comes up.")


class AutostartOperation(HostOperation[HostAutostartParameters]):
    verb = "autostart"
    parameters = HostAutostartParameters

    def check(self, call: Call, parameters: HostAutostartParameters) -> None:
        if not call.subject.handle.isPersistent():
            raise RefusedError(f"{self.noun} {call.subject.name} is transient", next_step="define it first")

    def plan(self, call: Call, parameters: HostAutostartParameters) -> Plan:
        now = bool(call.subject.handle.autostart())
        return Plan(state=self.state(call, parameters), steps=[f"autostart: {now} becomes {parameters.enabled}"],
                    nothing_to_do=now == parameters.enabled)  # fmt: skip

    def act(self, call: Call, parameters: HostAutostartParameters) -> None:
        call.subject.handle.setAutostart(int(parameters.enabled))


class UndefineOperation(HostOperation[NoParameters]):
    verb = "undefine"
    destructive = True

    def check(self, call: Call, parameters: NoParameters) -> None:
        handle, name = call.subject.handle, call.subject.name
        if not handle.isPersistent():
            raise RefusedError(f"{self.noun} {name} is transient", next_step="stop it")
        if handle.isActive():
            raise RefusedError(f"{self.noun} {name} is active", next_step="stop it first")

    def plan(self, call: Call, parameters: NoParameters) -> Plan:
        diff = _diff(call.subject.handle.XMLDesc(0), "")
        return Plan(state=self.state(call, parameters), steps=["undefine it"], diff=diff, lost=["its definition"])

    def act(self, call: Call, parameters: NoParameters) -> None:
        call.subject.handle.undefine()


class DefineOperation(HostOperation[P]):
    """Defines what is not there yet; `element_xml` and `define` make it."""

    verb = "define"
    takes_subject = False

    def identity(self, parameters: P) -> str:
        raise NotImplementedError

    def xml(self, call: Call, parameters: P) -> str:
        raise NotImplementedError

    def define(self, call: Call, xml: str) -> Any:
        raise NotImplementedError

    def find(self, session: Session, reference: str | None, parameters: P) -> Subject:
        name = self.identity(parameters)
        found = self.kind.look(session, name)
        if found is not None:
            return self.kind.subject_of(found)
        return Subject(kind=self.noun, key=f"{self.noun}-new-{name}", name=name, exists=False)

    def state(self, call: Call, parameters: P) -> State:
        return host_state(call.subject.handle) if call.subject.exists else {"state": "not defined"}

    def check(self, call: Call, parameters: P) -> None:
        if call.subject.exists:
            raise RefusedError(f"there is a {self.noun} {call.subject.name} already", next_step="choose another name")

    def plan(self, call: Call, parameters: P) -> Plan:
        return Plan(state=self.state(call, parameters), steps=["define it"], diff=_diff("", self.xml(call, parameters)))

    def act(self, call: Call, parameters: P) -> None:
        self.define(call, self.xml(call, parameters))

    def after(self, call: Call, parameters: P) -> State:
        found = self.kind.look(call.session, call.subject.name)
        if found is None:
            raise ControlError(f"{self.noun} {call.subject.name} was defined and is not there", next_step=SEE_LOG)
        return {**host_state(found), **self.shown(found)}

    def aftermath(self, session: Session, folders: Folders, begun: Mapping[str, JsonValue]) -> str:
        subject = begun.get("subject")
        name = str(subject.get("name")) if isinstance(subject, dict) else ""
        there = self.kind.look(session, name) is not None
        return f"interrupted; the {self.noun} {name} is {'' if there else 'not '}defined"


def _diff(now: str, wanted: str) -> str:
    return "\n".join(difflib.unified_diff(now.splitlines(), wanted.splitlines(), "now", "then", lineterm=""))
