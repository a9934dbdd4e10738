"""A domain's snapshots: listed, created, reverted to, deleted."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal
from xml.etree.ElementTree import Element, SubElement, tostring

import libvirt
from pydantic import AfterValidator, Field, JsonValue

from collectors.domain_xml import element_tree
from exporter.control.connection import Session
from exporter.control.device_change import device_root
from exporter.control.domain import DomainOperation, P, domain_state, is_state, live_state
from exporter.control.errors import ControlError, NotFoundError, RefusedError, UnsupportedError
from exporter.control.folders import Folders
from exporter.control.guest_fields import OneLine
from exporter.control.hotplug_disk import disk_shown
from exporter.control.merging import crash_warnings, told_if_ended
from exporter.control.operation import Call, NoParameters, Operation, Parameters, Plan, Progress, Role, State, moment
from exporter.control.overlays import overlays, refuse_volumes, written_disks
from exporter.control.quiescing import quiesced, refuse_without_agent
from exporter.control.snapshot_failure import Attempt, not_taken
from exporter.control.snapshot_images import made_by, merged_away, refuse_missing

_REVERTS_EXTERNAL = 9_009_000  # libvirt 9.9.0


def _snapshot_name(text: str) -> str:
    # It becomes part of a file's name.
    if not text.isprintable() or "/" in text or text.startswith((".", "-")) or text != text.strip():
        raise ValueError("is no name; use printable characters, no '/', no dot, dash or blank at its beginning")
    return text


Name = Annotated[str, AfterValidator(_snapshot_name), Field(min_length=1, max_length=64)]


class NamedParameters(Parameters):
    name: Name = Field(description="The snapshot's or checkpoint's name.")


class OfDomain(DomainOperation[P]):
    """State: the domain's, and the names of what it has of this kind."""

    noun = "snapshot"
    area = "snapshots"
    deadline_s = 300.0

    def state(self, call: Call, parameters: P) -> State:
        return {**domain_state(call.subject.handle), "snapshots": [name for name in _names(call.subject.handle)]}

    def aftermath(self, session: Session, folders: Folders, begun: Mapping[str, JsonValue]) -> str:
        subject = begun.get("subject")
        try:
            handle = session.connection.lookupByUUIDString(str(subject["uuid"]))  # type: ignore
        except (libvirt.libvirtError, KeyError, TypeError):
            return ""
        names = ", ".join(_names(handle)) or "none"
        return f"interrupted; the domain is {live_state(handle)}; its snapshots: {names}; libvirt may still be at it"


class ListSnapshots(OfDomain[NoParameters]):
    """`rows`: name, created (RFC 3339), state, kind, current, parent, description."""

    verb = "list"
    summary = "Lists a domain's snapshots."
    role = Role.READER
    reads = True

    def state(self, call: Call, parameters: NoParameters) -> State:
        rows = [_row(snapshot) for snapshot in call.subject.handle.listAllSnapshots(0)]
        rows.sort(key=lambda row: (str(row.get("created")), str(row["name"])))
        return {"rows": list(rows)}


class CreateSnapshotParameters(NamedParameters):
    description: OneLine = Field(default="", description="A text kept with it.")
    kind: Literal["internal", "external"] = Field(
        default="external",
        description="external: the disks only, each goes on in a new file; internal: inside qcow2, with the memory.",
    )
    quiesce: bool = Field(default=False, description="The guest agent writes out the file systems and holds them.")


class CreateSnapshot(OfDomain[CreateSnapshotParameters]):
    verb = "create"
    summary = "Takes a snapshot of a domain's disks, or of disks and memory."
    parameters = CreateSnapshotParameters
    long_running = True

    def check(self, call: Call, parameters: CreateSnapshotParameters) -> None:
        handle, name = call.subject.handle, call.subject.name
        if parameters.name in _names(handle):
            raise RefusedError(f"domain {name} has a snapshot {parameters.name} already", next_step="choose another")
        if not handle.isPersistent():
            raise RefusedError(f"domain {name} is transient", next_step="make it persistent first")
        if parameters.quiesce and (parameters.kind == "internal" or not handle.isActive()):
            raise RefusedError(
                "only an external snapshot of a running guest can be quiesced", next_step="leave --quiesce out"
            )
        if parameters.quiesce:
            refuse_without_agent(call)
        disks = written_disks(handle)
        if parameters.kind == "external":
            refuse_volumes(handle, name, disks)
            for overlay in overlays(call, parameters.name, disks).values():
                if overlay.exists():
                    raise RefusedError(f"{overlay} exists already", next_step="choose another name")
            return
        for target, disk in disks.items():
            if disk.get("format") != "qcow2":
                raise RefusedError(
                    f"disk {target} of domain {name} is {disk.get('format') or 'no qcow2'}, which holds no snapshots",
                    next_step="take an external one",
                )

    def plan(self, call: Call, parameters: CreateSnapshotParameters) -> Plan:
        steps = [f"take the {parameters.kind} snapshot {parameters.name}"]
        if parameters.kind == "external":
            files = overlays(call, parameters.name, written_disks(call.subject.handle))
            steps += [f"{target} goes on in {file}" for target, file in files.items()]
        return Plan(state=self.state(call, parameters), steps=steps)

    def act(self, call: Call, parameters: CreateSnapshotParameters) -> None:
        handle = call.subject.handle
        call.progress(Progress("taking it"))
        flags = 0
        disks: dict[str, Path] = {}
        before: dict[str, str] = {}
        if parameters.kind == "external":
            flags = libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
            flags |= libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_QUIESCE if parameters.quiesce else 0
            written = written_disks(handle)
            disks = overlays(call, parameters.name, written)
            before = {target: str(disk.get("file")) for target, disk in written.items()}
            call.details["files"] = {target: str(path) for target, path in disks.items()}
            call.intent({"files": call.details["files"]})
        others = [target for target in _targets(handle) if target not in disks] if disks else []
        xml = snapshot_xml(parameters.name, parameters.description, disks, others)

        def told(error: libvirt.libvirtError, held: str = "") -> ControlError:
            return not_taken(call, Attempt(parameters.name, parameters.quiesce, before, disks), error, held)

        try:
            with quiesced(call, told) if parameters.quiesce else nullcontext():
                handle.snapshotCreateXML(xml, flags)
        except libvirt.libvirtError as error:
            raise told(error) from error

    def verify(self, call: Call, parameters: CreateSnapshotParameters) -> None:
        if parameters.name not in _names(call.subject.handle):
            raise ControlError("libvirt reported success, but the snapshot is not there", next_step="see its log")


class RevertSnapshotParameters(NamedParameters):
    then: Literal["as_it_was", "running", "paused"] = Field(
        default="as_it_was", description="Whether the guest runs afterwards."
    )


class RevertSnapshot(OfDomain[RevertSnapshotParameters]):
    verb = "revert"
    summary = "Takes a domain back to a snapshot; what has happened since is lost."
    parameters = RevertSnapshotParameters
    destructive = True
    long_running = True

    def check(self, call: Call, parameters: RevertSnapshotParameters) -> None:
        row = _row(_snapshot(call, parameters.name))
        if row["kind"] == "external" and call.session.connection.getLibVersion() < _REVERTS_EXTERNAL:
            raise UnsupportedError(
                f"this host's libvirt cannot revert to the external snapshot {parameters.name}",
                next_step="that needs libvirt 9.9; stop the guest and define it with the snapshot's first image",
            )
        refuse_missing(call, _snapshot(call, parameters.name))

    def plan(self, call: Call, parameters: RevertSnapshotParameters) -> Plan:
        lost = ["what its disks got since"]
        lost += ["the running guest's memory"] if call.subject.handle.isActive() else []
        return Plan(state=self.state(call, parameters), steps=[f"revert to {parameters.name}"], lost=lost)

    def act(self, call: Call, parameters: RevertSnapshotParameters) -> None:
        flags = {
            "as_it_was": 0, "running": libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_RUNNING,
            "paused": libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_PAUSED,
        }[parameters.then]  # fmt: skip
        call.progress(Progress("reverting"))
        call.subject.handle.revertToSnapshot(_snapshot(call, parameters.name), flags)

    def verify(self, call: Call, parameters: RevertSnapshotParameters) -> None:
        handle = call.subject.handle
        if parameters.then != "as_it_was" and not is_state(handle, parameters.then, "blocked"):
            raise ControlError(f"the domain is {live_state(handle)} after the revert", next_step="see 'domain show'")


class DeleteSnapshotParameters(NamedParameters):
    children: bool = Field(default=False, description="Those taken after it too; they are kept without this.")
    metadata_only: bool = Field(default=False, description="Only forget it; its data stays in the images.")


class DeleteSnapshot(OfDomain[DeleteSnapshotParameters]):
    verb = "delete"
    summary = "Deletes a snapshot: the guest stays as it is, the way back is lost."
    parameters = DeleteSnapshotParameters
    destructive = True
    long_running = True

    def check(self, call: Call, parameters: DeleteSnapshotParameters) -> None:
        if parameters.name not in _names(call.subject.handle) or parameters.metadata_only:
            return
        later = _later(call, parameters)
        external = [name for name, snapshot in later.items() if made_by(call.session.connection, snapshot)]
        if len(later) > 1 and external:
            raise UnsupportedError(
                f"libvirt does not delete external snapshots with those taken after them ({', '.join(external)})",
                next_step=f"delete each by itself, without --children: {', '.join(later)};"
                " or forget them all: --metadata-only",
            )
        self._merged(call, parameters)

    def _merged(self, call: Call, parameters: DeleteSnapshotParameters) -> dict[str, tuple[str, str]]:
        gone = parameters.name not in _names(call.subject.handle)
        if gone or parameters.metadata_only or len(_later(call, parameters)) > 1:
            return {}
        return merged_away(call, _snapshot(call, parameters.name))

    def plan(self, call: Call, parameters: DeleteSnapshotParameters) -> Plan:
        there = parameters.name in _names(call.subject.handle)
        merges = self._merged(call, parameters)
        lost = [f"the state kept in {parameters.name}" + (" and those after it" if parameters.children else "")]
        merged = [
            f"write {file} into {below}" + ("" if file.startswith("/dev/") else ", and remove it")  # a device stays
            for file, below in merges.values()
        ]
        return Plan(
            state=self.state(call, parameters), steps=[*merged, "delete it"], lost=lost if there else [],
            warnings=crash_warnings(call, merges), nothing_to_do=not there,
        )  # fmt: skip

    def act(self, call: Call, parameters: DeleteSnapshotParameters) -> None:
        # Without any to delete with it, libvirt 9.0 would still refuse the flag of an external one.
        flags = libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_CHILDREN if len(_later(call, parameters)) > 1 else 0
        flags |= libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY if parameters.metadata_only else 0
        merges = self._merged(call, parameters) if call.subject.handle.isActive() else {}
        call.progress(Progress("deleting"))
        doing = f"delete of snapshot {parameters.name}"
        with told_if_ended(call, doing, merges) if merges else nullcontext():
            _snapshot(call, parameters.name).delete(flags)

    def verify(self, call: Call, parameters: DeleteSnapshotParameters) -> None:
        if parameters.name in _names(call.subject.handle):
            raise ControlError("libvirt reported success, but the snapshot is there", next_step="see libvirtd's log")


def _later(call: Call, parameters: DeleteSnapshotParameters) -> dict[str, Any]:
    """By name what is to be deleted, each before those it was taken after: with `children` all taken after it."""
    snapshot = _snapshot(call, parameters.name)
    flags = libvirt.VIR_DOMAIN_SNAPSHOT_LIST_DESCENDANTS | libvirt.VIR_DOMAIN_SNAPSHOT_LIST_TOPOLOGICAL
    children = snapshot.listAllChildren(flags) if parameters.children else []
    return {found.getName(): found for found in (*reversed(children), snapshot)}


def snapshot_xml(name: str, description: str, external: Mapping[str, Path], left_out: list[str]) -> str:
    """The `<domainsnapshot>`; `external` are the new files by target. Escaped by the XML library."""
    root = named_element("domainsnapshot", name, description)
    if external:
        disks = SubElement(root, "disks")
        for target, path in external.items():
            disk = SubElement(disks, "disk", name=target, snapshot="external")
            SubElement(disk, "driver", type="qcow2")
            SubElement(disk, "source", file=str(path))
        for target in left_out:
            SubElement(disks, "disk", name=target, snapshot="no")
    return tostring(root, encoding="unicode")


def named_element(tag: str, name: str, description: str) -> Element:
    """An element with a name and a description, where there is one."""
    root = Element(tag)
    SubElement(root, "name").text = name
    if description:
        SubElement(root, "description").text = description
    return root


def _names(handle: Any) -> list[str]:
    return sorted(snapshot.getName() for snapshot in handle.listAllSnapshots(0))


def _snapshot(call: Call, name: str) -> Any:
    names = _names(call.subject.handle)
    if name not in names:
        raise NotFoundError(f"domain {call.subject.name} has no snapshot {name!r}", nearest=names[:3],
                            next_step="" if names else "it has none")  # fmt: skip
    return call.subject.handle.snapshotLookupByName(name)


def _row(snapshot: Any) -> dict[str, JsonValue]:
    root = element_tree(snapshot.getXMLDesc(0))
    memory = root.find("memory")
    external = any(disk.get("snapshot") == "external" for disk in root.iterfind("disks/disk"))
    row: dict[str, JsonValue] = {
        "name": snapshot.getName(),
        "kind": "external" if external else "internal",
        "state": root.findtext("state"),
        "memory": memory is not None and memory.get("snapshot") != "no",
        "created": moment(int(root.findtext("creationTime") or 0)),
        "current": bool(snapshot.isCurrent()),
        "parent": root.findtext("parent/name"),
        "description": root.findtext("description"),
    }
    return {name: value for name, value in row.items() if value is not None}


def _targets(handle: Any) -> list[str]:
    found = device_root(handle, "live" if handle.isActive() else "persistent").iterfind("devices/disk")
    return [disk_shown(disk)[0] for disk in found]


OPERATIONS: tuple[Operation[Any], ...] = (
    ListSnapshots(), CreateSnapshot(), RevertSnapshot(), DeleteSnapshot()
)  # fmt: skip
