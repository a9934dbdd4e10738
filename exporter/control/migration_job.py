"""A migration that is on its way: looked at, given other limits, aborted; also one that another process began.

These do not take the guest's own lock, which the migration holds, but one of the migration.
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import libvirt
from pydantic import Field, model_validator

from exporter.control.connection import Session
from exporter.control.domain import DomainOperation, domain_state, find_domain
from exporter.control.errors import RefusedError, TimedOutError
from exporter.control.folders import Folders
from exporter.control.migration_progress import job_facts, outgoing_job
from exporter.control.operation import Call, NoParameters, Operation, Parameters, Plan, Role, State, Subject

P = TypeVar("P", bound=Parameters)


def is_migrating(connection: Any, uuid: str) -> bool:
    """Whether libvirt is moving the guest away from this host now."""
    try:
        return outgoing_job(connection.lookupByUUIDString(uuid)) is not None
    except libvirt.libvirtError:
        return False


def abort_mark(folders: Folders, uuid: str) -> Path:
    """The file that says an abort was asked for, to the process that migrates, which may be another one.

    libvirt does not always: cut off in a write, QEMU may call its aborted migration a broken pipe.
    """
    return folders.private(folders.locks) / f"migration-{uuid}.aborted"


class _MigrationOperation(DomainOperation[P]):
    area: ClassVar[str] = "migration"
    beside_jobs: ClassVar[bool] = True

    def find(self, session: Session, reference: str | None, parameters: P) -> Subject:
        subject = find_domain(session, reference or "")
        return dataclasses.replace(subject, key=f"migration-{subject.uuid}")

    def state(self, call: Call, parameters: P) -> State:
        job = outgoing_job(call.subject.handle)
        facts = {} if job is None else job_facts(job)
        return {**domain_state(call.subject.handle), "migrating": job is not None, **facts}


class MigrateStatus(_MigrationOperation[NoParameters]):
    verb = "migrate-status"
    summary = "Shows how far a guest's migration is: passes, memory left, rate, dirty rate."
    role = Role.READER
    reads = True


class MigrateAbort(_MigrationOperation[NoParameters]):
    verb = "migrate-abort"
    summary = "Aborts a guest's migration; it goes on here."

    def check(self, call: Call, parameters: NoParameters) -> None:
        if in_post_copy(call.subject.handle):
            raise RefusedError(
                f"domain {call.subject.name} runs on the destination already (post-copy)",
                next_step="wait: to abort would lose it",
            )

    def plan(self, call: Call, parameters: NoParameters) -> Plan:
        idle = outgoing_job(call.subject.handle) is None
        return Plan(state=self.state(call, parameters), steps=["abort the migration"], nothing_to_do=idle)

    def act(self, call: Call, parameters: NoParameters) -> None:
        mark = abort_mark(call.folders, str(call.subject.uuid))
        with contextlib.suppress(OSError):  # the abort matters more than how it is told of
            mark.touch(mode=0o600)
        try:
            call.subject.handle.abortJob()
        except libvirt.libvirtError as error:
            # It ended by itself meanwhile; what is there is looked at next.
            if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:
                with contextlib.suppress(OSError):
                    mark.unlink(missing_ok=True)
                raise

    def verify(self, call: Call, parameters: NoParameters) -> None:
        handle = call.subject.handle
        if not call.deadline.within(20).wait_for(lambda: outgoing_job(handle) is None):
            raise TimedOutError(
                f"the migration of domain {call.subject.name} was aborted and goes on", next_step="see libvirtd's log"
            )
        if not _is_active(handle):
            call.warnings.append("the migration ended before the abort: the guest does not run here")


class TuneParameters(Parameters):
    bandwidth_mib_per_second: int | None = Field(
        default=None, ge=1, le=1 << 20, description="Most MiB a second for the memory."
    )
    max_downtime_s: float | None = Field(
        default=None, ge=0.001, le=2000, description="Longest stand-still that is accepted at the end."
    )
    post_copy: bool = Field(default=False, description="Switch to post-copy; the migration must allow it.")

    @model_validator(mode="after")
    def _something(self) -> TuneParameters:
        if self.bandwidth_mib_per_second is None and self.max_downtime_s is None and not self.post_copy:
            raise ValueError("nothing to change; give a bandwidth, a downtime or post_copy")
        return self


class MigrateTune(_MigrationOperation[TuneParameters]):
    verb = "migrate-tune"
    summary = "Changes the limits of a migration that is on its way, or switches it to post-copy."
    parameters = TuneParameters

    def check(self, call: Call, parameters: TuneParameters) -> None:
        if outgoing_job(call.subject.handle) is None:
            raise RefusedError(f"domain {call.subject.name} is not being migrated", next_step="see migrate-status")

    def plan(self, call: Call, parameters: TuneParameters) -> Plan:
        steps = []
        if parameters.bandwidth_mib_per_second is not None:
            steps.append(f"most bandwidth: {parameters.bandwidth_mib_per_second} MiB/s")
        if parameters.max_downtime_s is not None:
            steps.append(f"longest stand-still: {parameters.max_downtime_s:g} s")
        if parameters.post_copy:
            steps.append("run it on the destination before all its memory is there")
        lost = ["the guest itself, where the destination or the network fails from now on"]
        return Plan(state=self.state(call, parameters), steps=steps, lost=lost if parameters.post_copy else [])

    def act(self, call: Call, parameters: TuneParameters) -> None:
        handle = call.subject.handle
        if parameters.bandwidth_mib_per_second is not None:
            handle.migrateSetMaxSpeed(parameters.bandwidth_mib_per_second, 0)
        if parameters.max_downtime_s is not None:
            handle.migrateSetMaxDowntime(max(1, round(parameters.max_downtime_s * 1000)), 0)
        if parameters.post_copy:
            handle.migrateStartPostCopy(0)


def in_post_copy(handle: Any) -> bool:
    """Whether the guest already runs on the destination while its memory still comes from here."""
    with contextlib.suppress(libvirt.libvirtError):
        state, reason = handle.state()
        return bool(
            state == libvirt.VIR_DOMAIN_PAUSED
            and reason in (libvirt.VIR_DOMAIN_PAUSED_POSTCOPY, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED)
        )
    return False


def _is_active(handle: Any) -> bool:
    with contextlib.suppress(libvirt.libvirtError):
        return bool(handle.isActive())
    return False


OPERATIONS: tuple[Operation[Any], ...] = (MigrateStatus(), MigrateAbort(), MigrateTune())
