"""Save and restore of a guest's memory, with a record that is checked before restoring; managed save."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import libvirt
from pydantic import Field, JsonValue

from exporter.control import saved_images
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
    Parameters,
    Plan,
    Progress,
)
from exporter.control.save_records import (
    image_file,
    is_whole,
    record_of,
    reserve,
)
from exporter.control.saved_images import FLAGS, SAVE_TIME_S, Then, now

_HEADER_BYTES = 1 << 20


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
    deadline_s = SAVE_TIME_S

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
                call.subject.handle.saveFlags(str(file), None, FLAGS[parameters.then])
        except libvirt.libvirtError:
            # Only ours to remove while it holds no image: a broken connection may mean that libvirt goes on.
            if file.exists() and not file.stat().st_size:
                file.unlink()
            raise
        call.progress(Progress("recording its SHA-256"))
        record = record_of(call.folders, file.stem, call.session.connection, now(), parameters.comment)
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
        record_of(folders, saved, session.connection, now(), str(begun.get("comment") or ""))
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


class ManagedSave(DomainOperation[NoParameters]):
    verb = "managed-save"
    area = "save_restore"
    summary = "Saves the guest's memory in libvirt's own place; the next start brings it back."
    long_running = True
    deadline_s = SAVE_TIME_S

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


OPERATIONS: tuple[Operation[Any], ...] = (
    Save(), *saved_images.OPERATIONS, ManagedSave(), ManagedSaveRemove()
)  # fmt: skip
