"""Start, suspend, resume, wake, core dump, autostart. Turning off is in `exporter.control.power`."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import libvirt
from pydantic import Field, JsonValue

from exporter.control import power
from exporter.control.connection import Session
from exporter.control.domain import DomainOperation, domain_state, is_state, live_state
from exporter.control.errors import ControlError, RefusedError, TimedOutError
from exporter.control.folders import Folders
from exporter.control.operation import Call, NoParameters, Operation, Parameters, Plan, Progress, Role
from exporter.control.power import refuse_unless_running

UP = ("running", "blocked", "paused", "pmsuspended", "shutdown")


class StartParameters(Parameters):
    paused: bool = Field(default=False, description="Start with the CPUs stopped; resume lets it run.")
    ignore_saved: bool = Field(
        default=False, description="Drop a managed save image and boot: the cure for a damaged one."
    )


class Start(DomainOperation[StartParameters]):
    verb = "start"
    area = "lifecycle"
    summary = "Boots a defined domain, or brings back its managed save."
    parameters = StartParameters
    deadline_s = 120.0

    def check(self, call: Call, parameters: StartParameters) -> None:
        state = live_state(call.subject.handle)
        if state == "crashed" and call.subject.handle.isActive():
            raise RefusedError(
                f"domain {call.subject.name} has crashed and is kept for inspection", next_step="destroy it first"
            )
        if state in ("paused", "pmsuspended") and not parameters.paused:
            raise RefusedError(
                f"domain {call.subject.name} is started already, and {state}",
                next_step="resume it" if state == "paused" else "wake it",
            )
        if parameters.paused and state in UP and state != "paused":
            raise RefusedError(f"domain {call.subject.name} is started already, and {state}", next_step="suspend it")

    def plan(self, call: Call, parameters: StartParameters) -> Plan:
        handle = call.subject.handle
        state = domain_state(handle)
        saved = state.get("managed_save", False)
        drops = bool(saved and parameters.ignore_saved)
        step = "boot it" if not saved or drops else "bring back its managed save"
        return Plan(
            state=state,
            steps=[step + (" with the CPUs stopped" if parameters.paused else "")],
            lost=["the guest's memory in its managed save"] if drops else [],
            nothing_to_do=is_state(handle, *UP),
        )

    def act(self, call: Call, parameters: StartParameters) -> None:
        flags = libvirt.VIR_DOMAIN_START_PAUSED if parameters.paused else 0
        flags |= libvirt.VIR_DOMAIN_START_FORCE_BOOT if parameters.ignore_saved else 0
        saved = bool(domain_state(call.subject.handle).get("managed_save"))
        try:
            call.subject.handle.createWithFlags(flags)
        except libvirt.libvirtError as error:
            if not saved or parameters.ignore_saved:
                raise
            # libvirt keeps the damaged image, so that every later start would fail the same way.
            raise ControlError(
                f"domain {call.subject.name} could not be brought back from its managed save",
                next_step="start it with --ignore-saved (the saved memory is lost)",
                libvirt_code=error.get_error_code(),
                libvirt_message=error.get_error_message(),
            ) from error
        call.details["started_from"] = "managed save" if saved and not parameters.ignore_saved else "boot"

    def verify(self, call: Call, parameters: StartParameters) -> None:
        # A restored image may bring back a paused domain; a short-lived guest may have ended already.
        state = live_state(call.subject.handle)
        if state not in UP:
            raise ControlError(
                f"domain {call.subject.name} was started and is {state} again",
                next_step="see its reason with 'domain show', and its console",
            )


class Suspend(DomainOperation[NoParameters]):
    verb = "suspend"
    area = "lifecycle"
    summary = "Stops the domain's CPUs; its memory stays."

    def check(self, call: Call, parameters: NoParameters) -> None:
        if not is_state(call.subject.handle, "paused"):
            refuse_unless_running(call, "be suspended")

    def plan(self, call: Call, parameters: NoParameters) -> Plan:
        handle = call.subject.handle
        return Plan(state=domain_state(handle), steps=["stop its CPUs"], nothing_to_do=is_state(handle, "paused"))

    def act(self, call: Call, parameters: NoParameters) -> None:
        call.subject.handle.suspend()

    def verify(self, call: Call, parameters: NoParameters) -> None:
        _wait_for(call, "paused")


class Resume(DomainOperation[NoParameters]):
    verb = "resume"
    area = "lifecycle"
    summary = "Lets a suspended domain's CPUs go on."

    def check(self, call: Call, parameters: NoParameters) -> None:
        state = live_state(call.subject.handle)
        if state not in ("paused", "running", "blocked"):
            raise RefusedError(
                f"domain {call.subject.name} is {state} and cannot be resumed",
                next_step="wake it" if state == "pmsuspended" else "start it",
            )

    def plan(self, call: Call, parameters: NoParameters) -> Plan:
        handle = call.subject.handle
        return Plan(
            state=domain_state(handle),
            steps=["let its CPUs go on"],
            nothing_to_do=is_state(handle, "running", "blocked"),
        )

    def act(self, call: Call, parameters: NoParameters) -> None:
        handle = call.subject.handle
        failed_disk = domain_state(handle).get("reason") == _BY_DISK
        handle.resume()
        # QEMU now repeats the write that failed; only its success tells that the storage has room again.
        if failed_disk and call.deadline.within(_REPEATED_S).wait_for(lambda: is_state(handle, "paused"), 0.05):
            raise ControlError(
                f"domain {call.subject.name} was paused again at once by an I/O error: its storage is still full or"
                " fails",
                next_step="give the storage room or mend it ('virsh domblkerror' names the disk), then resume again",
            )

    def verify(self, call: Call, parameters: NoParameters) -> None:
        _wait_for(call, "running", "blocked")


class Wake(DomainOperation[NoParameters]):
    verb = "wake"
    area = "lifecycle"
    summary = "Wakes a guest that has put itself to sleep (suspend to RAM)."

    def check(self, call: Call, parameters: NoParameters) -> None:
        state = live_state(call.subject.handle)
        if state not in ("pmsuspended", "running", "blocked"):
            raise RefusedError(
                f"domain {call.subject.name} is {state} and does not sleep",
                next_step="resume it" if state == "paused" else "start it",
            )

    def plan(self, call: Call, parameters: NoParameters) -> Plan:
        handle = call.subject.handle
        asleep = is_state(handle, "pmsuspended")
        return Plan(state=domain_state(handle), steps=["wake it"], nothing_to_do=not asleep)

    def act(self, call: Call, parameters: NoParameters) -> None:
        call.subject.handle.pMWakeup(0)

    def verify(self, call: Call, parameters: NoParameters) -> None:
        _wait_for(call, "running", "blocked")


_BY_DISK = "io_error"
_REPEATED_S = 1.5
"""How long a resumed guest is watched; a repeated write on full storage fails within milliseconds."""


def _wait_for(call: Call, *states: str) -> None:
    handle = call.subject.handle
    if not call.deadline.within(10).wait_for(lambda: is_state(handle, *states)):
        raise TimedOutError(
            f"domain {call.subject.name} is {live_state(handle)}, not {states[0]}", next_step="look at 'domain show'"
        )


class AutostartParameters(Parameters):
    enabled: bool = Field(default=True, description="Whether libvirt starts the domain when the host comes up.")


class Autostart(DomainOperation[AutostartParameters]):
    verb = "autostart"
    area = "lifecycle"
    summary = "Sets whether the domain starts with the host."
    parameters = AutostartParameters

    def check(self, call: Call, parameters: AutostartParameters) -> None:
        if not call.subject.handle.isPersistent():
            raise RefusedError(
                f"domain {call.subject.name} is transient and has no autostart", next_step="make it persistent first"
            )

    def plan(self, call: Call, parameters: AutostartParameters) -> Plan:
        now = bool(call.subject.handle.autostart())
        return Plan(
            state=domain_state(call.subject.handle),
            steps=[f"autostart: {now} becomes {parameters.enabled}"],
            nothing_to_do=now == parameters.enabled,
        )

    def act(self, call: Call, parameters: AutostartParameters) -> None:
        call.subject.handle.setAutostart(int(parameters.enabled))

    def verify(self, call: Call, parameters: AutostartParameters) -> None:
        if bool(call.subject.handle.autostart()) != parameters.enabled:
            raise ControlError("autostart was set and is not", next_step="see the log of libvirtd")


class CoreDumpParameters(Parameters):
    memory_only: bool = Field(default=True, description="The guest's memory as ELF (for crash, gdb), not a save image.")
    then: Literal["resume", "crash", "reset", "restart"] = Field(
        default="resume",
        description="What becomes of the guest after: restart ends it and starts it anew, as a crashed one needs.",
    )
    live: bool = Field(default=False, description="Let it run meanwhile: the dump is then not of one moment.")


class CoreDump(DomainOperation[CoreDumpParameters]):
    """The dump's path is in `details.file`: a name of ours in a 0700 folder, since it holds the guest's memory."""

    verb = "core-dump"
    area = "lifecycle"
    summary = "Writes the guest's memory to a file of the dumps folder."
    parameters = CoreDumpParameters
    role = Role.ADMIN
    long_running = True
    deadline_s = 900.0

    def is_destructive(self, parameters: CoreDumpParameters) -> bool:
        return parameters.then != "resume"

    def check(self, call: Call, parameters: CoreDumpParameters) -> None:
        if live_state(call.subject.handle) not in ("running", "blocked", "paused", "crashed"):
            refuse_unless_running(call, "be dumped")
        if parameters.then == "reset" and is_state(call.subject.handle, "crashed"):
            # Seen with libvirt 9.0: it stays crashed, and once libvirtd itself ended.
            raise RefusedError(
                f"domain {call.subject.name} is crashed, which a reset does not mend", next_step="use then=restart"
            )
        if parameters.then == "restart" and not call.subject.handle.isPersistent():
            raise RefusedError(
                f"domain {call.subject.name} is transient: once it ends there is nothing to start",
                next_step="use then=resume",
            )
        need = (call.subject.handle.info()[1] << 10) + (1 << 20)
        require_room(call.folders.private(call.folders.state), need, "a core dump")

    def plan(self, call: Call, parameters: CoreDumpParameters) -> Plan:
        return Plan(
            state=domain_state(call.subject.handle),
            steps=[
                f"write {call.subject.handle.info()[1]} KiB of memory to {dumps(call.folders)}",
                f"{parameters.then} it",
            ],
            lost=[power.MEMORY_LOST] if parameters.then != "resume" else [],
        )

    def act(self, call: Call, parameters: CoreDumpParameters) -> None:
        file = new_file(call.folders.private(dumps(call.folders)), call, "dump")
        call.intent({"file": str(file)})
        call.progress(Progress(f"writing {file.name}"))
        flags = libvirt.VIR_DUMP_MEMORY_ONLY if parameters.memory_only else 0
        flags |= libvirt.VIR_DUMP_LIVE if parameters.live else 0
        flags |= {"resume": 0, "reset": libvirt.VIR_DUMP_RESET}.get(parameters.then, libvirt.VIR_DUMP_CRASH)
        call.subject.handle.coreDump(str(file), flags)
        call.details["file"] = str(file)
        if parameters.then == "restart":
            call.progress(Progress("starting it again"))
            call.subject.handle.create()

    def verify(self, call: Call, parameters: CoreDumpParameters) -> None:
        file = Path(str(call.details["file"]))
        if not file.is_file() or not file.stat().st_size:
            raise ControlError(f"libvirt reported success, but {file} is not there", next_step="see libvirtd's log")
        call.details["size_bytes"] = file.stat().st_size
        if parameters.then == "restart":
            _wait_for(call, "running", "blocked")

    def aftermath(self, session: Session, folders: Folders, begun: Mapping[str, JsonValue]) -> str:
        file = begun.get("file")
        if not isinstance(file, str) or not Path(file).exists():
            return "interrupted; no dump was left behind; the guest goes on"
        return f"interrupted; {file} may be a part of a dump only; remove it and ask again"


def dumps(folders: Folders) -> Path:
    """Where core dumps go."""
    return folders.state / "dumps"


def new_file(folder: Path, call: Call, ending: str) -> Path:
    """A name in `folder` that no file has: the domain's UUID, the time, and something random."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    return folder / f"{call.subject.uuid}-{stamp}-{uuid.uuid4().hex[:8]}.{ending}"


def require_room(folder: Path, need_bytes: int, what: str) -> None:
    """Raises RefusedError where the folder's file system has less room than `need_bytes`."""
    room = os.statvfs(folder)
    free = room.f_bavail * room.f_frsize
    if free < need_bytes:
        raise RefusedError(
            f"{folder} has {free >> 20} MiB free, and {what} may need {need_bytes >> 20} MiB", next_step="make room"
        )


OPERATIONS: tuple[Operation[Any], ...] = (
    Start(), Suspend(), Resume(), Wake(), Autostart(), CoreDump(), *power.OPERATIONS
)  # fmt: skip
