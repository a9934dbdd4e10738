"""Storage pools of folders and their volumes: listed, defined, started, stopped; created, resized, deleted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement, indent, tostring

import libvirt
from pydantic import Field, JsonValue

from exporter.control.connection import Session, is_remote
from exporter.control.errors import ControlError, NotFoundError, RefusedError
from exporter.control.folders import Folders
from exporter.control.guest_fields import DomainName, HostPath
from exporter.control.host_objects import (
    AutostartOperation,
    DefineOperation,
    HostOperation,
    Kind,
    ListOperation,
    ShowOperation,
    StartOperation,
    StopOperation,
    UndefineOperation,
    XmlOperation,
)
from exporter.control.image_users import users_of
from exporter.control.operation import Call, NoParameters, Operation, P, Parameters, Plan, Role, State, Subject
from exporter.control.shared_storage import MOUNTS, shared_with_others

POOL = Kind(
    "pool", "listAllStoragePools", "storagePoolLookupByName", "storagePoolLookupByUUIDString",
    (libvirt.VIR_ERR_NO_STORAGE_POOL, libvirt.VIR_ERR_INVALID_ARG),
)  # fmt: skip


class PoolFields(Parameters):
    name: DomainName = Field(description="The pool's name.")
    folder: HostPath = Field(description="An existing folder: an image folder, or one in it.")


class _OfPool(HostOperation[P]):
    noun = "pool"
    area = "storage"
    kind = POOL

    def shown(self, handle: Any) -> State:
        root = ElementTree.fromstring(handle.XMLDesc(0))
        _state, capacity, allocation, available = handle.info()
        shown: State = {"type": root.get("type"), "folder": root.findtext("target/path")}
        if handle.isActive():
            shown |= {"capacity_bytes": capacity, "allocation_bytes": allocation, "available_bytes": available}
        return {name: value for name, value in shown.items() if value is not None}


class ListPools(_OfPool[NoParameters], ListOperation):
    summary = "Lists the storage pools."


class ShowPool(_OfPool[NoParameters], ShowOperation):
    summary = "Shows a storage pool."


class PoolXml(_OfPool[NoParameters], XmlOperation):
    summary = "Shows a storage pool's XML."


class StartPool(_OfPool[NoParameters], StartOperation):
    summary = "Starts a storage pool, so that its volumes are known."


class StopPool(_OfPool[NoParameters], StopOperation):
    summary = "Stops a storage pool; its files stay, and guests go on with theirs."


class AutostartPool(_OfPool[Any], AutostartOperation):
    summary = "Sets whether a storage pool starts with the host."


class UndefinePool(_OfPool[NoParameters], UndefineOperation):
    summary = "Removes a storage pool's definition; its files stay."


class RefreshPool(_OfPool[NoParameters]):
    verb = "refresh"
    summary = "Has libvirt look again at what lies in a storage pool."
    role = Role.OPERATOR

    def check(self, call: Call, parameters: NoParameters) -> None:
        require_active(call.subject.handle)

    def act(self, call: Call, parameters: NoParameters) -> None:
        call.subject.handle.refresh(0)


class DefinePool(_OfPool[PoolFields], DefineOperation[PoolFields]):
    summary = "Defines a storage pool of a folder, without starting it."
    parameters = PoolFields

    def identity(self, parameters: PoolFields) -> str:
        return parameters.name

    def xml(self, call: Call, parameters: PoolFields) -> str:
        return pool_xml(parameters.name, call.folders.image_folder(parameters.folder, "the pool's folder"))

    def define(self, call: Call, xml: str) -> Any:
        return call.session.connection.storagePoolDefineXML(xml, 0)


VolumeName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+@\-]{0,199}$")]


class VolumeParameters(Parameters):
    pool: DomainName = Field(description="The pool it lies in.")


class _OfVolume(Operation[P]):
    """Subjects: a volume by its name, in the pool that the parameters name."""

    noun = "volume"
    area = "storage"
    deadline_s = 300.0

    def find(self, session: Session, reference: str | None, parameters: Any) -> Subject:
        pool = POOL.subject(session, parameters.pool).handle
        require_active(pool)
        names = sorted(volume.name() for volume in pool.listAllVolumes(0))
        if reference not in names:
            raise NotFoundError(f"pool {parameters.pool} has no volume {reference!r}", nearest=names[:3],
                                next_step="" if names else "it is empty")  # fmt: skip
        return _volume_subject(pool.storageVolLookupByName(reference))

    def state(self, call: Call, parameters: P) -> State:
        return volume_state(call.subject.handle) if call.subject.exists else {"state": "not there"}

    def aftermath(self, session: Session, folders: Folders, begun: Mapping[str, JsonValue]) -> str:
        subject, asked = begun.get("subject"), begun.get("parameters")
        if not (isinstance(subject, dict) and isinstance(asked, dict)):
            return ""
        pool = POOL.look(session, str(asked.get("pool")))
        names = [volume.name() for volume in pool.listAllVolumes(0)] if pool is not None and pool.isActive() else []
        there = subject.get("name") in names
        return f"interrupted; the volume is {'' if there else 'not '}there; libvirt may still be at it"


class ListVolumes(_OfVolume[VolumeParameters]):
    """`rows`: name, file, format, capacity_bytes, allocation_bytes."""

    verb = "list"
    summary = "Lists the volumes of a storage pool."
    parameters = VolumeParameters
    role = Role.READER
    reads = True
    takes_subject = False

    def find(self, session: Session, reference: str | None, parameters: VolumeParameters) -> Subject:
        return POOL.subject(session, parameters.pool)

    def state(self, call: Call, parameters: VolumeParameters) -> State:
        require_active(call.subject.handle)
        rows = sorted((volume_state(volume) for volume in call.subject.handle.listAllVolumes(0)),
                      key=lambda row: str(row.get("name")))  # fmt: skip
        return {"rows": list(rows)}


class CreateVolumeParameters(VolumeParameters):
    name: VolumeName = Field(description="Its name in the pool, and of its file.")
    capacity_bytes: int = Field(ge=512, le=1 << 60, description="What the guest sees.")
    format: Literal["raw", "qcow2"] = Field(default="qcow2", description="The image's format.")
    allocate: bool = Field(default=False, description="Take all of the space now (raw only).")


class CreateVolume(_OfVolume[CreateVolumeParameters]):
    verb = "create"
    summary = "Creates an empty volume in a storage pool."
    parameters = CreateVolumeParameters
    takes_subject = False
    long_running = True

    def find(self, session: Session, reference: str | None, parameters: CreateVolumeParameters) -> Subject:
        pool = POOL.subject(session, parameters.pool)
        return Subject(kind="volume", key=f"volume-new-{pool.uuid}-{parameters.name}", name=parameters.name,
                       exists=False, handle=pool.handle)  # fmt: skip

    def check(self, call: Call, parameters: CreateVolumeParameters) -> None:
        pool = call.subject.handle
        require_active(pool)
        if parameters.name in [volume.name() for volume in pool.listAllVolumes(0)]:
            raise RefusedError(
                f"pool {parameters.pool} has a volume {parameters.name} already", next_step="choose another name"
            )
        available = pool.info()[3]
        if parameters.allocate and available < parameters.capacity_bytes:
            raise RefusedError(
                f"pool {parameters.pool} has {available} bytes free, and it needs {parameters.capacity_bytes}",
                next_step="make room, or leave --allocate out",
            )

    def plan(self, call: Call, parameters: CreateVolumeParameters) -> Plan:
        warnings = []
        if call.subject.handle.info()[3] < parameters.capacity_bytes:
            warnings.append("the pool has less room than that; a guest that fills it will be stopped by its host")
        return Plan(state=self.state(call, parameters), steps=["create it"], warnings=warnings)

    def act(self, call: Call, parameters: CreateVolumeParameters) -> None:
        call.subject.handle.createXML(volume_xml(parameters), 0)

    def after(self, call: Call, parameters: CreateVolumeParameters) -> State:
        return volume_state(call.subject.handle.storageVolLookupByName(parameters.name))


class ResizeVolumeParameters(VolumeParameters):
    capacity_bytes: int = Field(ge=512, le=1 << 60, description="What it is to have.")
    shrink: bool = Field(default=False, description="Although what lies behind the new end is lost.")


class ResizeVolume(_OfVolume[ResizeVolumeParameters]):
    verb = "resize"
    summary = "Makes a volume larger, or smaller where that is asked for by name."
    parameters = ResizeVolumeParameters

    def check(self, call: Call, parameters: ResizeVolumeParameters) -> None:
        now = call.subject.handle.info()[1]
        if parameters.capacity_bytes < now and not parameters.shrink:
            raise RefusedError(
                f"volume {call.subject.name} has {now} bytes, more than that", next_step="give --shrink to cut it off"
            )
        allocated = call.subject.handle.info()[2]
        if parameters.capacity_bytes < min(now, allocated):
            raise RefusedError(
                f"{allocated} bytes of volume {call.subject.name} are written, and libvirt cuts none of them off",
                next_step="ask for at least that; copy the image with qemu-img otherwise",
            )
        used = users_of(call.session.connection, call.subject.handle.path(), running=True)
        if used and parameters.capacity_bytes != now:
            raise RefusedError(
                f"volume {call.subject.name} is in use by the running {', '.join(used)}",
                next_step="make it larger with 'domain set disk-size', or stop the domain first",
            )

    def plan(self, call: Call, parameters: ResizeVolumeParameters) -> Plan:
        now, wanted = call.subject.handle.info()[1], parameters.capacity_bytes
        return Plan(
            state=self.state(call, parameters), steps=[f"{now} bytes become {wanted}"], nothing_to_do=now == wanted,
            lost=[f"the last {now - wanted} bytes of it"] if wanted < now else [],
            warnings=unseen_users(call) if now != wanted else [],
        )  # fmt: skip

    def act(self, call: Call, parameters: ResizeVolumeParameters) -> None:
        flags = libvirt.VIR_STORAGE_VOL_RESIZE_SHRINK if parameters.shrink else 0
        call.subject.handle.resize(parameters.capacity_bytes, flags)

    def verify(self, call: Call, parameters: ResizeVolumeParameters) -> None:
        now = call.subject.handle.info()[1]
        if now != parameters.capacity_bytes:
            raise ControlError(f"volume {call.subject.name} has {now} bytes after it", next_step="see libvirtd's log")


class DeleteVolume(_OfVolume[VolumeParameters]):
    verb = "delete"
    summary = "Deletes a volume and all that is in it."
    parameters = VolumeParameters
    destructive = True

    def check(self, call: Call, parameters: VolumeParameters) -> None:
        used = users_of(call.session.connection, call.subject.handle.path(), running=False)
        if used:
            raise RefusedError(
                f"volume {call.subject.name} is a disk of {', '.join(used)}", next_step="detach or undefine that first"
            )

    def plan(self, call: Call, parameters: VolumeParameters) -> Plan:
        state = self.state(call, parameters)
        lost = [f"{state.get('file')} with all that is in it"]
        return Plan(state=state, steps=["delete it"], lost=lost, warnings=unseen_users(call))

    def act(self, call: Call, parameters: VolumeParameters) -> None:
        call.details["file"] = call.subject.handle.path()
        call.subject.handle.delete(0)

    def after(self, call: Call, parameters: VolumeParameters) -> State:
        return {"state": "gone"}

    def verify(self, call: Call, parameters: VolumeParameters) -> None:
        pool = POOL.subject(call.session, parameters.pool).handle
        if call.subject.name in [volume.name() for volume in pool.listAllVolumes(0)]:
            raise ControlError(f"volume {call.subject.name} was deleted and is there", next_step="see libvirtd's log")


def volume_state(volume: Any) -> State:
    """name, file, format, capacity_bytes, allocation_bytes."""
    _kind, capacity, allocation = volume.info()
    form = ElementTree.fromstring(volume.XMLDesc(0)).find("target/format")
    shown: State = {
        "name": volume.name(), "file": volume.path(), "format": form.get("type") if form is not None else None,
        "capacity_bytes": capacity, "allocation_bytes": allocation,
    }  # fmt: skip
    return {name: value for name, value in shown.items() if value is not None}


def unseen_users(call: Call) -> list[str]:
    """The plan's warning where guests of other hosts may use the volume, which no look at this one shows."""
    pool = call.subject.handle.storagePoolLookupByVolume()
    mounts = None if is_remote(call.session.connection.getURI()) else MOUNTS
    shared = shared_with_others(pool.XMLDesc(0), mounts)
    unseen = "may be used by other hosts too, whose guests are not seen from here: look there"
    return [f"pool {pool.name()} ({shared}) {unseen}"] if shared else []


def require_active(pool: Any) -> None:
    """Raises RefusedError where the pool is not started."""
    if not pool.isActive():
        raise RefusedError(f"pool {pool.name()} is not active", next_step="start it")


def pool_xml(name: str, folder: Path) -> str:
    """The `<pool>` of a folder; escaped by the XML library."""
    root = Element("pool", type="dir")
    SubElement(root, "name").text = name
    SubElement(SubElement(root, "target"), "path").text = str(folder)
    indent(root)
    return tostring(root, encoding="unicode")


def volume_xml(fields: CreateVolumeParameters) -> str:
    """The `<volume>`."""
    root = Element("volume")
    SubElement(root, "name").text = fields.name
    SubElement(root, "capacity", unit="bytes").text = str(fields.capacity_bytes)
    allocated = fields.capacity_bytes if fields.allocate and fields.format == "raw" else 0
    SubElement(root, "allocation", unit="bytes").text = str(allocated)
    SubElement(SubElement(root, "target"), "format", type=fields.format)
    return tostring(root, encoding="unicode")


def _volume_subject(volume: Any) -> Subject:
    return Subject(kind="volume", key=f"volume-{volume.key()}", name=volume.name(), handle=volume)


POOL_OPERATIONS: tuple[Operation[Any], ...] = (
    ListPools(), ShowPool(), PoolXml(), DefinePool(), StartPool(), StopPool(), RefreshPool(), AutostartPool(),
    UndefinePool(),
)  # fmt: skip
VOLUME_OPERATIONS: tuple[Operation[Any], ...] = (ListVolumes(), CreateVolume(), ResizeVolume(), DeleteVolume())
OPERATIONS = (*POOL_OPERATIONS, *VOLUME_OPERATIONS)
