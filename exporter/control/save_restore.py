"""Save and restore of a guest's memory, with a record that is checked before restoring; managed save."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import libvirt
from pydantic import Field, JsonValue

from exporter.control.connection import Session
from exporter.control.domain import DomainOperation, domain_state, is_state, live_state
from exporter.control.errors import ControlError, RefusedError
from exporter.control.folders import Folders
from exporter.control.guest_fields import OneLine
from exporter.control.lifecycle import new_file, require_room
from exporter.control.operation import (
    Call,
    NoParameters,
    Operation,
    P,
    Parameters,
    Plan,
    Progress,
    Role,
    State,
    Subject,
)
from exporter.control.save_records import (
    SaveRecord,
    changed_disks,
    checked_image,
    image_file,
    is_whole,
    read_record,
    record_file,
    record_of,
    records,
    reserve,
    without_record,
)

_HEADER_BYTES = 1 << 20
_SAVE_TIME_S = 1800.0
Then = Literal["as-saved", "running", "paused"]
_FLAGS: dict[str, int] = {
    "as-saved": 0, "running": libvirt.VIR_DOMAIN_SAVE_RUNNING, "paused": libvirt.VIR_DOMAIN_SAVE_PAUSED
}  # fmt: skip


class SaveParameters(Parameters):
    then: Then = Field(default="as-saved", description="How it is to go on when restored.")
    comment: Annotated[OneLine, Field(max_length=200)] = Field(default="", description="Kept in the record.")
    allow_transient: bool = Field(
        default=False, description="Save a transient domain, whose definition is then only in the image."
    )


class Save(DomainOperation[SaveParameters]):
    """`details.saved`: the record's id, by which it is restored."""

    verb = "save"
    area = "save_restore"
    summary = "Writes the guest's memory to a file and stops it, to go on from there later."
    parameters = SaveParameters
    long_running = True
    deadline_s = _SAVE_TIME_S

    def check(self, call: Call, parameters: SaveParameters) -> None:
        handle, name = call.subject.handle, call.subject.name
        state = live_state(handle)
        if state not in ("running", "blocked", "paused"):
            raise RefusedError(f"domain {name} is {state} and cannot be saved", next_step="start it first")
        if not handle.isPersistent() and not parameters.allow_transient:
            raise RefusedError(
                f"domain {name} is transient: once saved, its definition is only in the image",
                next_step="make it persistent first, or give --allow-transient",
            )
        need = (handle.info()[1] << 10) + _HEADER_BYTES
        require_room(call.folders.private(call.folders.saves), need, "its memory")

    def plan(self, call: Call, parameters: SaveParameters) -> Plan:
        handle = call.subject.handle
        return Plan(
            state=domain_state(handle),
            steps=[f"write up to {handle.info()[1]} KiB to {call.folders.saves} and stop it", "record its SHA-256"],
        )

    def act(self, call: Call, parameters: SaveParameters) -> None:
        file = new_file(call.folders.private(call.folders.saves), call, "img")
        call.intent({"saved": file.stem, "comment": parameters.comment})
        reserve(file)
        try:
            with _progress_by_size(call, file, call.subject.handle.info()[1] << 10):
                call.subject.handle.saveFlags(str(file), None, _FLAGS[parameters.then])
        except libvirt.libvirtError:
            # Only ours to remove while it holds no image: a broken connection may mean that libvirt goes on.
            if file.exists() and not file.stat().st_size:
                file.unlink()
            raise
        call.progress(Progress("recording its SHA-256"))
        record = record_of(call.folders, file.stem, call.session.connection, _now(), parameters.comment)
        call.details.update({"saved": record.id, "size_bytes": record.size_bytes, "sha256": record.sha256})

    def verify(self, call: Call, parameters: SaveParameters) -> None:
        if not call.deadline.within(10).wait_for(lambda: is_state(call.subject.handle, "shutoff", "gone")):
            raise ControlError(f"domain {call.subject.name} was saved and runs on", next_step="see libvirtd's log")

    def aftermath(self, session: Session, folders: Folders, begun: Mapping[str, JsonValue]) -> str:
        saved = begun.get("saved")
        if not isinstance(saved, str) or not image_file(folders, saved).exists():
            return "interrupted before anything was saved; the domain goes on"
        file = image_file(folders, saved)
        if not file.stat().st_size:
            file.unlink()
            return "interrupted before anything was saved; the domain goes on"
        if not is_whole(file):
            return f"interrupted; libvirt may still be writing {saved}; then 'saved adopt', else 'saved remove'"
        record_of(folders, saved, session.connection, _now(), str(begun.get("comment") or ""))
        return f"interrupted after libvirt had saved it; recorded now; restore it with 'saved restore {saved}'"


@contextmanager
def _progress_by_size(call: Call, file: Path, expected_bytes: int) -> Iterator[None]:
    """Tells how much is written, by the file's size: asking libvirt would need another connection."""
    over = threading.Event()

    def tell() -> None:
        while not over.wait(0.5):
            if file.exists():
                call.progress(Progress("writing memory", min(1.0, file.stat().st_size / max(1, expected_bytes))))

    teller = threading.Thread(target=tell, name="control-save-progress", daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()


class ListSaved(Operation[NoParameters]):
    """`rows`: the records; an image without one has only `id` and `whole`."""

    noun = "saved"
    verb = "list"
    area = "save_restore"
    summary = "Lists the saved memory images."
    role = Role.READER
    reads = True
    takes_subject = False

    def find(self, session: Session, reference: str | None, parameters: NoParameters) -> Subject:
        return Subject(kind="host", key="host", name="")

    def state(self, call: Call, parameters: NoParameters) -> State:
        rows: list[JsonValue] = [_shown(record) for record in records(call.folders)]
        for record_id in without_record(call.folders):
            rows.append({"id": record_id, "record": False, "whole": is_whole(image_file(call.folders, record_id))})
        return {"rows": rows}


class SavedOperation(Operation[P]):
    """On one saved image, by its id. The lock is its domain's, since the id begins with its UUID."""

    noun = "saved"
    area = "save_restore"

    def find(self, session: Session, reference: str | None, parameters: P) -> Subject:
        # Whether it is there is told by `check`, which knows the folder.
        name = reference or ""
        return Subject(kind="saved image", key=f"domain-{name[:36]}", name=name)

    def state(self, call: Call, parameters: P) -> State:
        return _shown(read_record(call.folders, call.subject.name))


class ShowSaved(SavedOperation[NoParameters]):
    verb = "show"
    summary = "Shows a saved image's record, verifies its SHA-256, and tells which disks moved on."
    role = Role.READER
    reads = True

    def state(self, call: Call, parameters: NoParameters) -> State:
        record = read_record(call.folders, call.subject.name)
        shown = _shown(record)
        try:
            checked_image(call.folders, record)
            shown["image"] = "whole"
        except RefusedError as error:
            shown["image"] = error.cause
        changed: list[JsonValue] = [*changed_disks(record)]
        return {**shown, "changed_disks": changed}


class RestoreParameters(Parameters):
    then: Then = Field(default="as-saved", description="How it is to go on.")
    ignore_changed_disks: bool = Field(
        default=False, description="Restore although a disk moved on: the guest's file systems may be destroyed."
    )
    remove: bool = Field(default=False, description="Remove the image and its record once restored.")


class Restore(SavedOperation[RestoreParameters]):
    """`after`: the restored domain, looked up."""

    verb = "restore"
    summary = "Lets a guest go on from a saved image, once that is verified."
    parameters = RestoreParameters
    long_running = True
    deadline_s = _SAVE_TIME_S

    def is_destructive(self, parameters: RestoreParameters) -> bool:
        return parameters.ignore_changed_disks

    def check(self, call: Call, parameters: RestoreParameters) -> None:
        record = read_record(call.folders, call.subject.name)
        domain = _domain(call, record.uuid)
        if domain is not None and domain.isActive():
            raise RefusedError(f"domain {domain.name()} is running", next_step="stop it first")
        other = _named(call, record.domain)
        if other is not None and other.UUIDString() != record.uuid:
            raise RefusedError(
                f"the name {record.domain} now is another domain's ({other.UUIDString()})", next_step="rename that"
            )
        changed = changed_disks(record)
        if changed and not parameters.ignore_changed_disks:
            raise RefusedError(
                f"the disks of {record.domain} moved on since it was saved: {'; '.join(changed)}",
                next_step="boot the domain instead: its memory no longer fits its disks",
            )
        checked_image(call.folders, record, lambda done: call.progress(Progress("verifying its SHA-256", done)))

    def plan(self, call: Call, parameters: RestoreParameters) -> Plan:
        record = read_record(call.folders, call.subject.name)
        warnings = []
        if any(disk.block_device for disk in record.disks):
            warnings.append("whether its block devices were written to since cannot be seen")
        lost = ["the file systems of the guest, if their disks moved on"] if changed_disks(record) else []
        return Plan(state=_shown(record), steps=[f"restore {record.domain}"], lost=lost, warnings=warnings)

    def act(self, call: Call, parameters: RestoreParameters) -> None:
        record = read_record(call.folders, call.subject.name)
        call.intent({"domain": record.domain, "uuid": record.uuid})
        file = image_file(call.folders, record.id)
        call.progress(Progress("restoring"))
        call.session.connection.restoreFlags(str(file), None, _FLAGS[parameters.then])
        call.details["domain"] = record.domain
        call.details["uuid"] = record.uuid

    def verify(self, call: Call, parameters: RestoreParameters) -> None:
        record = read_record(call.folders, call.subject.name)
        domain = _domain(call, record.uuid)
        if domain is None or live_state(domain) not in ("running", "blocked", "paused"):
            raise ControlError(f"domain {record.domain} was restored and is not there", next_step="see its QEMU's log")
        call.details["restored"] = domain_state(domain)
        if parameters.remove:
            _remove(call.folders, record.id)

    def after(self, call: Call, parameters: RestoreParameters) -> State:
        restored = call.details["restored"]
        return restored if isinstance(restored, dict) else {}

    def aftermath(self, session: Session, folders: Folders, begun: Mapping[str, JsonValue]) -> str:
        try:
            state = domain_state(session.connection.lookupByUUIDString(str(begun.get("uuid"))))["state"]
        except libvirt.libvirtError:
            state = "not there"
        return f"interrupted; the domain is {state}; the image and its record are still there"


class Adopt(SavedOperation[NoParameters]):
    verb = "adopt"
    summary = "Makes the record of an image that an interrupted save left behind."
    role = Role.ADMIN

    def state(self, call: Call, parameters: NoParameters) -> State:
        known = record_file(call.folders, call.subject.name).exists()
        return super().state(call, parameters) if known else {"id": call.subject.name, "record": False}

    def check(self, call: Call, parameters: NoParameters) -> None:
        if call.subject.name not in without_record(call.folders):
            read_record(call.folders, call.subject.name)

    def plan(self, call: Call, parameters: NoParameters) -> Plan:
        known = call.subject.name not in without_record(call.folders)
        return Plan(steps=["record its SHA-256"], nothing_to_do=known)

    def act(self, call: Call, parameters: NoParameters) -> None:
        record_of(call.folders, call.subject.name, call.session.connection, _now(), "adopted")


class RemoveSaved(SavedOperation[NoParameters]):
    verb = "remove"
    summary = "Removes a saved image and its record."
    destructive = True

    def state(self, call: Call, parameters: NoParameters) -> State:
        there = image_file(call.folders, call.subject.name).exists()
        return {"id": call.subject.name, "state": "there" if there else "removed"}

    def check(self, call: Call, parameters: NoParameters) -> None:
        if call.subject.name not in without_record(call.folders):
            read_record(call.folders, call.subject.name)

    def plan(self, call: Call, parameters: NoParameters) -> Plan:
        return Plan(steps=["remove the image and its record"], lost=["the guest's memory in it"])

    def act(self, call: Call, parameters: NoParameters) -> None:
        _remove(call.folders, call.subject.name)


class ManagedSave(DomainOperation[NoParameters]):
    verb = "managed-save"
    area = "save_restore"
    summary = "Saves the guest's memory in libvirt's own place; the next start brings it back."
    long_running = True
    deadline_s = _SAVE_TIME_S

    def check(self, call: Call, parameters: NoParameters) -> None:
        handle, name = call.subject.handle, call.subject.name
        if not handle.isPersistent():
            raise RefusedError(f"domain {name} is transient and has no managed save", next_step="use save")
        state = live_state(handle)
        if state not in ("running", "blocked", "paused") and not handle.hasManagedSaveImage():
            raise RefusedError(f"domain {name} is {state} and cannot be saved", next_step="start it first")

    def plan(self, call: Call, parameters: NoParameters) -> Plan:
        handle = call.subject.handle
        there = not handle.isActive() and bool(handle.hasManagedSaveImage())
        return Plan(state=domain_state(handle), steps=["save and stop it"], nothing_to_do=there)

    def act(self, call: Call, parameters: NoParameters) -> None:
        call.progress(Progress("writing memory"))
        call.subject.handle.managedSave(0)

    def verify(self, call: Call, parameters: NoParameters) -> None:
        handle = call.subject.handle
        if handle.isActive() or not handle.hasManagedSaveImage():
            raise ControlError(f"domain {call.subject.name} has no managed save after all", next_step="see its state")

    def aftermath(self, session: Session, folders: Folders, begun: Mapping[str, JsonValue]) -> str:
        subject = begun.get("subject")
        try:
            state = domain_state(session.connection.lookupByUUIDString(str(subject["uuid"])))  # type: ignore
        except (libvirt.libvirtError, KeyError, TypeError):
            return ""
        has = "it has a managed save" if state.get("managed_save") else "it has no managed save"
        return f"interrupted; the domain is {state['state']} and {has}; libvirt may still be at it"


class ManagedSaveRemove(DomainOperation[NoParameters]):
    verb = "managed-save-remove"
    area = "save_restore"
    summary = "Drops a domain's managed save, so that the next start boots."
    destructive = True

    def plan(self, call: Call, parameters: NoParameters) -> Plan:
        handle = call.subject.handle
        there = bool(handle.hasManagedSaveImage())
        lost = ["the guest's memory in its managed save"] if there else []
        return Plan(state=domain_state(handle), steps=["remove it"], lost=lost, nothing_to_do=not there)

    def act(self, call: Call, parameters: NoParameters) -> None:
        call.subject.handle.managedSaveRemove(0)


def _shown(record: SaveRecord) -> State:
    shown = record.model_dump(mode="json")
    return {**shown, "disks": [str(disk["path"]) for disk in shown["disks"]], "record": True}


def _domain(call: Call, uuid: str) -> Any:
    return _looked_up(call.session.connection.lookupByUUIDString, uuid)


def _named(call: Call, name: str) -> Any:
    return _looked_up(call.session.connection.lookupByName, name)


def _looked_up(function: Any, word: str) -> Any:
    try:
        return function(word)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def _remove(folders: Folders, record_id: str) -> None:
    # The image first: a record without an image restores nothing, an image without a record would look unfinished.
    image_file(folders, record_id).unlink(missing_ok=True)
    record_file(folders, record_id).unlink(missing_ok=True)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


OPERATIONS: tuple[Operation[Any], ...] = (
    Save(), ListSaved(), ShowSaved(), Restore(), Adopt(), RemoveSaved(), ManagedSave(), ManagedSaveRemove()
)  # fmt: skip
