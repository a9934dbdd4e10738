"""Saved memory images: listed, shown, restored once verified, adopted after a crash, removed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import libvirt
from pydantic import Field, JsonValue

from exporter.control.connection import Session
from exporter.control.domain import domain_state, live_state
from exporter.control.errors import ControlError, RefusedError
from exporter.control.folders import Folders
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
    without_record,
)  # fmt: skip

SAVE_TIME_S = 1800.0
Then = Literal["as-saved", "running", "paused"]
FLAGS: dict[str, int] = {
    "as-saved": 0, "running": libvirt.VIR_DOMAIN_SAVE_RUNNING, "paused": libvirt.VIR_DOMAIN_SAVE_PAUSED
}  # fmt: skip
"""libvirt's flag, for saving and restoring alike."""


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
    deadline_s = SAVE_TIME_S

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

        def told(done: float) -> None:
            call.deadline.check(f"verifying the image of {record.domain}")
            call.progress(Progress("verifying its SHA-256", done))

        checked_image(call.folders, record, told)

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
        call.session.connection.restoreFlags(str(file), None, FLAGS[parameters.then])
        call.details.update({"domain": record.domain, "uuid": record.uuid})

    def verify(self, call: Call, parameters: RestoreParameters) -> None:
        record = read_record(call.folders, call.subject.name)
        domain = _domain(call, record.uuid)
        if domain is None or live_state(domain) not in ("running", "blocked", "paused"):
            raise ControlError(f"domain {record.domain} was restored and is not there", next_step="see its QEMU's log")
        if parameters.remove:
            _remove(call.folders, record.id)

    def after(self, call: Call, parameters: RestoreParameters) -> State:
        return domain_state(_domain(call, str(call.details["uuid"])))

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
        record = record_of(call.folders, call.subject.name, call.session.connection, now(), "adopted")
        call.intent({"domain": record.domain, "uuid": record.uuid})


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
        if record_file(call.folders, call.subject.name).exists():
            record = read_record(call.folders, call.subject.name)
            call.intent({"domain": record.domain, "uuid": record.uuid})
        _remove(call.folders, call.subject.name)


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


def now() -> str:
    """The time of a record, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


OPERATIONS: tuple[Operation[Any], ...] = (ListSaved(), ShowSaved(), Restore(), Adopt(), RemoveSaved())
