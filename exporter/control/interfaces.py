"""Changes to the host's interfaces: define, undefine, up, down, and the transaction they happen in.

Each change opens libvirt's transaction unless one is open, and is rolled back by a watchdog process unless it is
committed in time (`exporter.control.interface_change`). Writing is netcf's: where libvirt was built with the udev
backend (Debian), each of these is refused with UnsupportedError before anything happens.
"""

from __future__ import annotations

import difflib
from typing import Any, ClassVar, Generic, TypeVar

import libvirt
from pydantic import Field

from exporter.control import interface_change
from exporter.control.connection import Session, is_remote
from exporter.control.errors import NotFoundError, RefusedError, TimedOutError, UnsupportedError
from exporter.control.interface_change import LOCK_KEY, ChangeFile, OpenChange
from exporter.control.interface_fields import Bond, Bridge, Ethernet, InterfaceFields, Vlan
from exporter.control.interface_reading import absent, change_state, find_interface, interface_row
from exporter.control.interface_xml import interface_parts, interface_xml, kind_of
from exporter.control.operation import Call, NoParameters, Operation, Parameters, Plan, Role, State, Subject
from exporter.control.own_connectivity import HostNetwork, caller_address

CONFIRM_WITHIN_S = 60.0


class ConfirmWithin(Parameters):
    """How a change is confirmed."""

    confirm_within_s: float = Field(
        default=CONFIRM_WITHIN_S, ge=1, le=3600, description="Roll back unless committed within this, in seconds."
    )


class Changing(ConfirmWithin):
    """What every change takes."""

    commit: bool = Field(default=False, description="Commit at once, without waiting for a confirmation.")
    override: bool = Field(
        default=False, description="Also where the interface carries the default route or your own connection."
    )


class DefineEthernet(Ethernet, Changing):
    """Parameters of define-ethernet."""


class DefineBridge(Bridge, Changing):
    """Parameters of define-bridge."""


class DefineVlan(Vlan, Changing):
    """Parameters of define-vlan."""


class DefineBond(Bond, Changing):
    """Parameters of define-bond."""


P = TypeVar("P", bound=Parameters)
C = TypeVar("C", bound=Changing)
D = TypeVar("D", bound=Changing)


class _InterfaceOperation(Operation[P], Generic[P]):
    noun = "interface"
    area = "interfaces"
    role = Role.ADMIN  # it concerns the whole host
    deadline_s = 60.0
    host_network: ClassVar[HostNetwork] = HostNetwork()

    def state(self, call: Call, parameters: P) -> State:
        shown: State = {"change": change_state(call.folders)}
        interface = _lookup(call.session, call.subject.name) if call.subject.kind == "interface" else None
        return shown if interface is None else {**interface_row(interface), **shown}


class _Change(_InterfaceOperation[C], Generic[C]):
    """One change inside the transaction."""

    def touched(self, call: Call, parameters: C) -> tuple[str, ...]:
        """Names of the interfaces whose traffic the change may stop."""
        interface = call.subject.handle
        parts = interface_parts(interface.XMLDesc(0)) if interface is not None else ()
        return (call.subject.name, *parts)

    def check(self, call: Call, parameters: C) -> None:
        _check_writable(call.session)
        if parameters.override:
            return
        reasons = self.host_network.protected(caller_address.get())
        for name in self.touched(call, parameters):
            if name in reasons:
                raise RefusedError(
                    f"{self.verb} of {call.subject.name} touches {name}, which {reasons[name]}",
                    next_step="use another interface, or give override if you can reach the host some other way",
                )

    def plan(self, call: Call, parameters: C) -> Plan:
        opened = ChangeFile(call.folders).load()
        steps = [f"join the open change ({opened.remaining_s():.0f} s left)" if opened else "begin a change"]
        steps.append(self.summary)
        if parameters.commit:
            steps.append("commit at once")
        elif opened is None:
            steps.append(f"roll back unless 'interface commit' comes within {parameters.confirm_within_s:g} s")
        return Plan(state=self.state(call, parameters), steps=steps, diff=self.difference(call, parameters))

    def difference(self, call: Call, parameters: C) -> str:
        """Unified diff of the configuration."""
        return ""

    def act(self, call: Call, parameters: C) -> None:
        file = ChangeFile(call.folders)
        joined = file.load()
        if joined is not None and joined.remaining_s() <= 0:
            raise RefusedError("the open change's time is over; it is being rolled back", next_step="ask again")
        if joined is not None:
            _keep_open(call.session)
        change = joined or interface_change.begin(call.session, call.folders, parameters.confirm_within_s)
        call.intent({"change": change.id})
        try:
            self.apply(call, parameters)
        except BaseException:
            # Only what this very operation began: an earlier step of a joined change stays until its end.
            if joined is None:
                interface_change.roll_back(call.session, call.folders, change)
            raise
        if parameters.commit:
            interface_change.commit(call.session, call.folders, change)
        else:
            _ask_to_confirm(call, change)

    def apply(self, call: Call, parameters: C) -> None:
        """The change itself, inside the transaction."""
        raise NotImplementedError

    def aftermath(self, session: Session, folders: Any, begun: Any) -> str:
        change = ChangeFile(folders).load()
        if change is not None and change.id == begun.get("change"):
            return f"the change is open; it is rolled back at {change.confirm_before} unless it is committed"
        return "no change is open: it was rolled back, or committed; 'interface list' shows what is there"


def _check_writable(session: Session) -> None:
    """Raises UnsupportedError, RefusedError where changes cannot be made; changes nothing itself."""
    uri = session.uri or str(session.connection.getURI())
    if is_remote(uri):
        raise RefusedError(
            f"{uri} is another host: a change that cuts it off could not be rolled back from here",
            next_step="run virtgauge on that host",
        )
    try:
        # No interface at all: a backend that can write refuses the XML, one that cannot refuses the function.
        session.connection.interfaceDefineXML("<none/>", 0)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_SUPPORT:
            raise UnsupportedError(
                "this host's libvirt cannot change host interfaces: its backend (udev) only reads them",
                next_step="change them with the host's own tools (ifupdown, netplan, NetworkManager); reading works",
                libvirt_code=error.get_error_code(),
                libvirt_message=error.get_error_message(),
            ) from error


def _keep_open(session: Session) -> None:
    """Opens libvirt's transaction again where someone else (virsh iface-commit) ended it behind our back."""
    try:
        session.connection.changeBegin(0)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:
            raise


def _ask_to_confirm(call: Call, change: OpenChange) -> None:
    call.details["confirm_before"] = change.confirm_before
    call.warnings.append(
        f"rolled back in {change.remaining_s():.0f} s unless you confirm it with 'virtgauge interface commit'"
    )


def _lookup(session: Session, name: str) -> Any:
    try:
        return session.connection.interfaceLookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_INTERFACE:
            return None
        raise


def _definition(interface: Any) -> str:
    """The XML as defined; as active where the driver has no other (libvirt's test driver)."""
    try:
        return str(interface.XMLDesc(libvirt.VIR_INTERFACE_XML_INACTIVE))
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_INVALID_ARG:
            raise
        return str(interface.XMLDesc(0))


class _Define(_Change[D], Generic[D]):
    takes_subject = False

    def find(self, session: Session, reference: str | None, parameters: D) -> Subject:
        fields = _fields(parameters)
        try:
            found = find_interface(session, fields.interface_name)
        except NotFoundError:
            return absent(fields.interface_name)
        return found

    def touched(self, call: Call, parameters: D) -> tuple[str, ...]:
        return (*super().touched(call, parameters), *_fields(parameters).parts)

    def plan(self, call: Call, parameters: D) -> Plan:
        there = call.subject.exists
        warnings = [f"{call.subject.name} is defined already: its definition is replaced"] if there else []
        return super().plan(call, parameters).model_copy(update={"warnings": warnings})

    def difference(self, call: Call, parameters: D) -> str:
        old = _definition(call.subject.handle) if call.subject.exists else ""
        new = interface_xml(_fields(parameters))
        name = call.subject.name
        lines = difflib.unified_diff(
            old.splitlines(), new.splitlines(), f"{name} (now)", f"{name} ({kind_of(_fields(parameters))})", lineterm=""
        )
        return "\n".join(lines)

    def apply(self, call: Call, parameters: D) -> None:
        call.session.connection.interfaceDefineXML(interface_xml(_fields(parameters)), 0)

    def verify(self, call: Call, parameters: D) -> None:
        if _lookup(call.session, call.subject.name) is None:
            raise TimedOutError(f"{call.subject.name} was defined, but libvirt does not list it", outcome_unknown=True)


def _fields(parameters: Parameters) -> InterfaceFields:
    assert isinstance(parameters, InterfaceFields)
    return parameters


class DefineEthernetOperation(_Define[DefineEthernet]):
    verb = "define-ethernet"
    summary = "Define an Ethernet interface with DHCP or static addresses and a route."
    parameters = DefineEthernet


class DefineBridgeOperation(_Define[DefineBridge]):
    verb = "define-bridge"
    summary = "Define a bridge with its ports, spanning tree protocol and forward delay."
    parameters = DefineBridge


class DefineVlanOperation(_Define[DefineVlan]):
    verb = "define-vlan"
    summary = "Define a VLAN on another interface."
    parameters = DefineVlan


class DefineBondOperation(_Define[DefineBond]):
    verb = "define-bond"
    summary = "Define a bond of several interfaces."
    parameters = DefineBond


class _Existing(_Change[Changing]):
    parameters = Changing

    def find(self, session: Session, reference: str | None, parameters: Changing) -> Subject:
        return find_interface(session, reference or "")


class Undefine(_Existing):
    verb = "undefine"
    summary = "Remove an interface's definition."

    def is_destructive(self, parameters: Changing) -> bool:
        return parameters.commit

    def plan(self, call: Call, parameters: Changing) -> Plan:
        # Until it is committed it can be undone, so that nothing is lost.
        lost = [f"the definition of {call.subject.name}"] if parameters.commit else []
        up = bool(call.subject.handle.isActive())
        warnings = ["it is up, and stays so until it is taken down or the host restarts"] if up else []
        return super().plan(call, parameters).model_copy(update={"lost": lost, "warnings": warnings})

    def difference(self, call: Call, parameters: Changing) -> str:
        old = _definition(call.subject.handle).splitlines()
        return "\n".join(difflib.unified_diff(old, [], f"{call.subject.name} (now)", "undefined", lineterm=""))

    def apply(self, call: Call, parameters: Changing) -> None:
        call.subject.handle.undefine()

    def verify(self, call: Call, parameters: Changing) -> None:
        if _lookup(call.session, call.subject.name) is not None:
            raise TimedOutError(f"{call.subject.name} was undefined, but libvirt still lists it", outcome_unknown=True)


class _UpDown(_Existing):
    wanted: ClassVar[bool]

    def plan(self, call: Call, parameters: Changing) -> Plan:
        there = bool(call.subject.handle.isActive()) is self.wanted
        return super().plan(call, parameters).model_copy(update={"nothing_to_do": there})

    def verify(self, call: Call, parameters: Changing) -> None:
        if not call.deadline.wait_for(lambda: bool(call.subject.handle.isActive()) is self.wanted):
            raise TimedOutError(f"{call.subject.name} did not go {self.verb} in time", next_step="see 'interface show'")


class Up(_UpDown):
    verb = "up"
    summary = "Bring an interface up."
    wanted = True

    def apply(self, call: Call, parameters: Changing) -> None:
        call.subject.handle.create(0)


class Down(_UpDown):
    verb = "down"
    summary = "Take an interface down."
    wanted = False

    def apply(self, call: Call, parameters: Changing) -> None:
        call.subject.handle.destroy(0)


class _Transaction(_InterfaceOperation[P], Generic[P]):
    takes_subject = False

    def find(self, session: Session, reference: str | None, parameters: P) -> Subject:
        return Subject(kind="interfaces", key=LOCK_KEY, name="of the host")

    def opened(self, call: Call) -> OpenChange:
        """The open change; raises RefusedError without one."""
        change = ChangeFile(call.folders).load()
        if change is None:
            raise RefusedError("no interface change is open", next_step="'interface begin' or any change opens one")
        return change


class Begin(_Transaction[ConfirmWithin]):
    verb = "begin"
    summary = "Begin a change of several steps; it is rolled back unless it is committed in time."
    parameters = ConfirmWithin

    def check(self, call: Call, parameters: ConfirmWithin) -> None:
        _check_writable(call.session)
        if ChangeFile(call.folders).load() is not None:
            raise RefusedError("an interface change is open", next_step="commit it or roll it back first")

    def act(self, call: Call, parameters: ConfirmWithin) -> None:
        change = interface_change.begin(call.session, call.folders, parameters.confirm_within_s)
        _ask_to_confirm(call, change)


class Commit(_Transaction[NoParameters]):
    verb = "commit"
    summary = "Confirm the open change: what was changed stays."

    def check(self, call: Call, parameters: NoParameters) -> None:
        self.opened(call)

    def act(self, call: Call, parameters: NoParameters) -> None:
        interface_change.commit(call.session, call.folders, self.opened(call))


class Rollback(_Transaction[NoParameters]):
    verb = "rollback"
    summary = "Undo everything since the open change began."

    def check(self, call: Call, parameters: NoParameters) -> None:
        self.opened(call)

    def act(self, call: Call, parameters: NoParameters) -> None:
        if not interface_change.roll_back(call.session, call.folders, self.opened(call)):
            call.warnings.append("libvirt had no change open any more; there was nothing to undo")


OPERATIONS: tuple[Operation[Any], ...] = (
    DefineEthernetOperation(), DefineBridgeOperation(), DefineVlanOperation(), DefineBondOperation(),
    Undefine(), Up(), Down(), Begin(), Commit(), Rollback(),
)  # fmt: skip
