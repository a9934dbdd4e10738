"""Block jobs of a running guest's disk: overlays committed into their base, the base pulled up, watched."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import libvirt
from pydantic import Field, JsonValue

from exporter.control.block_chain import (
    Job,
    JobEnd,
    base_index,
    chain_of,
    commits_into,
    disk_element,
    job_of,
    known_job,
    require_chain,
    settled_chain,
    watch_job,
)
from exporter.control.connection import Session
from exporter.control.device_change import device_root
from exporter.control.domain import DomainOperation, P, domain_state, existing_domain, is_state
from exporter.control.errors import ControlError, RefusedError, TimedOutError
from exporter.control.folders import Folders
from exporter.control.guest_fields import HostPath, Word
from exporter.control.hotplug_disk import disk_shown
from exporter.control.image_users import users_of
from exporter.control.merging import crash_warnings, guest_ended, has_ended, how_it_is, told_if_ended
from exporter.control.operation import (
    Call,
    NoParameters,
    Operation,
    Parameters,
    Plan,
    Progress,
    Role,
    State,
)  # fmt: skip
from exporter.control.power import refuse_unless_running
from exporter.control.snapshot_images import refuse_if_inside

_SETTLES_S = 2.0
"""How long libvirt may need to show a disk's new chain once the job is gone."""


class DiskParameters(Parameters):
    device: Word = Field(description="The disk's target, like vda.")


class BlockJobParameters(DiskParameters):
    bandwidth_bytes_sec: int | None = Field(
        default=None, ge=1, le=1 << 50, description="Copy no faster than this many bytes per second."
    )
    within_s: float = Field(default=3600.0, gt=0, le=7 * 86400, description="Aborted where it takes longer.")


class BlockCommitParameters(BlockJobParameters):
    base: HostPath | None = Field(
        default=None, description="The image of the chain that is written into; the lowest where not given."
    )


class BlockPullParameters(BlockJobParameters):
    base: HostPath | None = Field(
        default=None, description="The image of the chain that stays below; none stays where not given."
    )


class OnDisk(DomainOperation[P]):
    area = "snapshots"

    def state(self, call: Call, parameters: P) -> State:
        device = getattr(parameters, "device", "")
        shown: State = {"chain": [name for name in chain_of(call.subject.handle, device)]}
        job = known_job(call.subject.handle, device)
        return {**domain_state(call.subject.handle), **shown, **({"job": job} if job else {})}

    def check(self, call: Call, parameters: P) -> None:
        if not is_state(call.subject.handle, "paused"):  # QEMU goes on with its jobs
            refuse_unless_running(call, "have a block job")
        disk_element(call.subject.handle, call.subject.name, getattr(parameters, "device", ""))

    def aftermath(self, session: Session, folders: Folders, begun: Mapping[str, JsonValue]) -> str:
        subject, asked = begun.get("subject"), begun.get("parameters")
        if not isinstance(subject, dict) or not isinstance(asked, dict):
            return ""
        device = str(asked["device"])
        handle = existing_domain(session, "", str(subject["uuid"]))
        chain = " on ".join(chain_of(handle, device)) if handle is not None else ""
        if not chain:
            return "interrupted; the domain does not run any more, and its block job ended with it"
        job = known_job(handle, device)
        if job is None:
            return (
                f"interrupted; libvirt cannot tell now whether it goes on with {device}, which is {chain};"
                " see what 'domain block-jobs' shows, and ask for it again to see it through"
            )
        if not job:
            return f"interrupted; no job runs on {device}; it is {chain}"
        return (
            f"interrupted; libvirt goes on with the {job['type']} of {device} ({job['percent']} %); it is {chain};"
            f" ask for it again to see it through, or stop it with 'domain block-abort --device {device}'"
        )


class ListBlockJobs(DomainOperation[NoParameters]):
    """`rows`: device, type, percent, chain (the newest file first), bandwidth_bytes_sec."""

    verb = "block-jobs"
    area = "snapshots"
    summary = "Lists a guest's disks with their chains of images and the block jobs on them."
    role = Role.READER
    reads = True

    def state(self, call: Call, parameters: NoParameters) -> State:
        handle = call.subject.handle
        rows: list[JsonValue] = []
        for disk in device_root(handle, "live").iterfind("devices/disk"):
            target = disk_shown(disk)[0]
            if disk.get("device", "disk") == "disk":
                chain: list[JsonValue] = [name for name in chain_of(handle, target)]
                rows.append({"device": target, **job_of(handle, target), "chain": chain})
        return {"rows": rows}


class _RunsJob(OnDisk[P]):
    long_running = True
    job_types: tuple[str, ...] = ()
    merges = True
    """Whether it writes overlays into what is below them."""

    def time_needed_s(self, parameters: Any) -> float:
        return float(parameters.within_s) + 120  # three answers of a guest that hangs, 30 s each

    def check(self, call: Call, parameters: Any) -> None:
        super().check(call, parameters)
        require_chain(call.subject, parameters.device, parameters.base)
        job = job_of(call.subject.handle, parameters.device)
        if job and job["type"] not in self.job_types:
            raise RefusedError(
                f"a {job['type']} runs on that disk already", next_step="wait for it, or stop it with 'block-abort'"
            )

    @abstractmethod
    def goal(self, chain: list[str], base: str | None) -> list[str]:
        """What the chain is to be in the end."""

    @abstractmethod
    def start(self, call: Call, parameters: Any, chain: list[str]) -> None:
        """Has libvirt begin; `chain` is what the disk is."""

    def refuse_another(self, call: Call, parameters: Any, goal: list[str]) -> None:
        """Raises RefusedError where a job runs that somebody else began for another goal."""

    def finish(self, call: Call, parameters: Any, goal: list[str]) -> bool:
        """Once everything is copied; false where the caller cancels it."""
        return True

    def ready(self, job: Job) -> bool:
        """Whether `finish` may be called while the job is still there."""
        return False

    def act(self, call: Call, parameters: Any) -> None:
        handle, device = call.subject.handle, parameters.device
        chain = require_chain(call.subject, device, parameters.base)
        goal = self.goal(chain, parameters.base)
        call.details["chain_before"] = list(chain)
        doing = f"{self.verb} of {device}"
        job: Job | None = {}

        def over() -> bool:
            nonlocal job
            job = known_job(handle, device)
            if job is None:
                call.progress(Progress("waiting for libvirt to tell of the job"))
            elif job:
                call.progress(Progress(f"{job['type']} of {device}", float(str(job["percent"])) / 100))
            return job is not None and (not job or self.ready(job))

        with watch_job(handle, device) as end:
            if not job_of(handle, device):
                self.start(call, parameters, chain)
            self.refuse_another(call, parameters, goal)
            done = call.deadline.within(parameters.within_s).wait_for(over, poll_s=0.2)
            if done and job:
                with told_if_ended(call, doing, {device: chain}, merges=self.merges):
                    done = self.finish(call, parameters, goal)
            if not done:
                self._stop(call, parameters, end, chain)
            elif not job and settled_chain(handle, device, goal, end, _SETTLES_S) != goal:
                raise self._ended_early(call, parameters, end, chain)
        call.deadline.wait_for(lambda: known_job(handle, device) == {})

    def _stop(self, call: Call, parameters: Any, end: JobEnd, chain: list[str]) -> None:
        """Ends a job that must not go on, and raises why; returns where it was done before it could be ended."""
        handle, device = call.subject.handle, parameters.device
        cancelled = call.deadline.cancelled.is_set()
        why = "cancelled by the caller" if cancelled else f"not done within {parameters.within_s:g} s"
        stopped = True
        try:
            handle.blockJobAbort(device, 0)
        except libvirt.libvirtError as error:
            stopped = False
            if known_job(handle, device) != {}:
                raise TimedOutError(
                    f"{self.verb} of {device} is to be stopped ({why}), and libvirt does not do so: it may go on",
                    next_step=f"stop it with 'domain block-abort --device {device}', or ask again to see it through",
                    libvirt_code=error.get_error_code(), libvirt_message=error.get_error_message(),
                    outcome_unknown=True,
                ) from error  # fmt: skip
        goal = self.goal(chain, parameters.base)
        found = settled_chain(handle, device, goal, end, _SETTLES_S)
        if found == goal:
            return
        if not found or not stopped:
            raise self._ended_early(call, parameters, end, chain)
        raise TimedOutError(
            f"{self.verb} of {device} was stopped before its end ({why}); the guest goes on with its disk as it was",
            next_step="ask again, with more time or bandwidth",
        )

    def _ended_early(self, call: Call, parameters: Any, end: JobEnd, chain: list[str]) -> ControlError:
        """Why it is not done; raises what libvirt raises where that is away."""
        # QEMU cancels or fails the jobs of a guest that powers itself off before libvirt knows that it is off.
        if call.deadline.within(_SETTLES_S).wait_for(lambda: has_ended(call.subject.handle)):
            return guest_ended(
                call.subject, f"{self.verb} of {parameters.device}", {parameters.device: chain}, merges=self.merges
            )
        kept = "the guest goes on with its disk as it was"
        if end.word == "failed":
            return ControlError(
                f"{self.verb} of {parameters.device} failed in QEMU; {kept}",
                next_step="look for room and errors where its images lie, and in the guest's log of QEMU",
            )
        if end.word != "canceled":
            return ControlError(
                f"{self.verb} of {parameters.device} is over and not done, and libvirt does not say why; {kept}",
                next_step="look at libvirtd's log and the guest's log of QEMU, and ask again",
            )
        return RefusedError(
            f"{self.verb} of {parameters.device} was stopped by somebody else before its end; {kept}",
            next_step="'control audit' tells what virtgauge was asked; ask again when it may go on",
        )

    def verify(self, call: Call, parameters: Any) -> None:
        chain, before = chain_of(call.subject.handle, parameters.device), call.details["chain_before"]
        assert isinstance(before, list)
        if not chain:
            raise ControlError(
                f"the guest ended before it could be seen that {self.verb} of {parameters.device} is done:"
                f" it is {how_it_is(call.subject.handle)}",
                next_step=f"keep all of {', '.join(str(file) for file in before)}; start it, and see what"
                " 'domain block-jobs' shows",
                outcome_unknown=True,
            )
        goal = self.goal([str(file) for file in before], parameters.base)
        if chain != goal:
            raise ControlError(f"{parameters.device} is {' on '.join(chain)} after it", next_step="see libvirtd's log")
        call.details["unused_files"] = [file for file in before if file not in goal]


class BlockCommit(_RunsJob[BlockCommitParameters]):
    verb = "block-commit"
    summary = "Writes a disk's overlays into its base image and goes on with that, while the guest runs."
    parameters = BlockCommitParameters
    job_types = ("active commit",)

    def goal(self, chain: list[str], base: str | None) -> list[str]:
        return chain[chain.index(base) :] if base is not None else chain[-1:]

    def check(self, call: Call, parameters: BlockCommitParameters) -> None:
        super().check(call, parameters)
        chain = require_chain(call.subject, parameters.device, parameters.base)
        base = self.goal(chain, parameters.base)[0]
        self.refuse_another(call, parameters, [base])
        refuse_if_inside(call.subject.handle, call.subject.name, chain[: chain.index(base)])
        # What stands on the base itself would see other data; what stands on the overlays loses what is under them.
        for file in chain[1 : chain.index(base) + 1]:
            if not file.startswith("/"):
                raise RefusedError(
                    f"{file}, an image of disk {parameters.device}, is no file of this host: what else needs it cannot"
                    " be seen",
                    next_step="commit into an image above it (--base), or pull it up with 'domain block-pull'",
                )
            users = users_of(call.session.connection, file, running=False, besides=call.subject.uuid,
                             reaches=call.reaches)  # fmt: skip
            if users:
                raise RefusedError(
                    f"{file} is in use by {', '.join(users)}, whose disk would be destroyed",
                    next_step="commit into an image above it (--base), or pull it up with 'domain block-pull'",
                )

    def plan(self, call: Call, parameters: BlockCommitParameters) -> Plan:
        chain = require_chain(call.subject, parameters.device, parameters.base)
        base = self.goal(chain, parameters.base)[0]
        short = chain[0] == base
        above = chain[: chain.index(base)]
        return Plan(
            state=self.state(call, parameters),
            steps=[f"write {', '.join(above)} into {base}", f"go on with {base}"] if not short else [],
            lost=[f"the state that {base} has kept: snapshots with it as their image"] if not short else [],
            warnings=crash_warnings(call, {parameters.device: (chain[0], base)}) if not short else [],
            nothing_to_do=short,
        )

    def start(self, call: Call, parameters: BlockCommitParameters, chain: list[str]) -> None:
        handle, device = call.subject.handle, parameters.device
        index = base_index(call.subject, device, self.goal(chain, parameters.base)[0])
        flags = libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE | libvirt.VIR_DOMAIN_BLOCK_COMMIT_BANDWIDTH_BYTES
        handle.blockCommit(device, index, None, parameters.bandwidth_bytes_sec or 0, flags)

    def ready(self, job: Job) -> bool:
        return job["ready"] is True

    def refuse_another(self, call: Call, parameters: BlockCommitParameters, goal: list[str]) -> None:
        # Changing over to another image than the plan told would lose what is between them.
        into = commits_into(call.subject.handle, parameters.device)
        if into not in ("", goal[0]):
            raise RefusedError(
                f"a commit of {parameters.device} into {into} runs, which is not {goal[0]}",
                next_step=f"wait for it, stop it with 'block-abort', or see it through with --base {into}",
            )

    def finish(self, call: Call, parameters: BlockCommitParameters, goal: list[str]) -> bool:
        handle, device = call.subject.handle, parameters.device

        last: libvirt.libvirtError | None = None

        def pivoted() -> bool:
            nonlocal last
            self.refuse_another(call, parameters, goal)
            try:
                handle.blockJobAbort(device, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
            except libvirt.libvirtError as error:
                # All is copied, and yet QEMU has not said "ready" to libvirt: said in a moment. Or the guest is busy.
                if error.get_error_code() not in (
                    libvirt.VIR_ERR_BLOCK_COPY_ACTIVE, libvirt.VIR_ERR_OPERATION_INVALID,
                    libvirt.VIR_ERR_OPERATION_TIMEOUT,
                ) or known_job(handle, device) == {}:  # fmt: skip
                    raise
                last = error
                return False
            return True

        if call.deadline.within(60).wait_for(pivoted):
            return True
        if call.deadline.cancelled.is_set():
            return False
        assert last is not None
        raise TimedOutError(
            f"{self.verb} of {device} is copied, and does not change over to {goal[0]}: the job stays, ready",
            next_step=f"ask again to see it through, or stop it with 'domain block-abort --device {device}'",
            libvirt_code=last.get_error_code(), libvirt_message=last.get_error_message(), outcome_unknown=True,
        )  # fmt: skip


class BlockPull(_RunsJob[BlockPullParameters]):
    verb = "block-pull"
    summary = "Copies what a disk's overlay lacks from its base images, so that it stands alone."
    parameters = BlockPullParameters
    job_types = ("pull",)
    merges = False

    def goal(self, chain: list[str], base: str | None) -> list[str]:
        return [*chain[:1], *(chain[chain.index(base) :] if base is not None else ())]

    def check(self, call: Call, parameters: BlockPullParameters) -> None:
        super().check(call, parameters)
        chain = require_chain(call.subject, parameters.device, parameters.base)
        if self.goal(chain, parameters.base) != chain:
            refuse_if_inside(call.subject.handle, call.subject.name, chain[:1])

    def plan(self, call: Call, parameters: BlockPullParameters) -> Plan:
        chain = require_chain(call.subject, parameters.device, parameters.base)
        goal = self.goal(chain, parameters.base)
        steps = [f"copy what {chain[0]} lacks from {', '.join(file for file in chain if file not in goal)}"]
        return Plan(state=self.state(call, parameters), steps=steps, nothing_to_do=goal == chain)

    def start(self, call: Call, parameters: BlockPullParameters, chain: list[str]) -> None:
        handle, device, bandwidth = call.subject.handle, parameters.device, parameters.bandwidth_bytes_sec or 0
        if parameters.base is None:
            handle.blockPull(device, bandwidth, libvirt.VIR_DOMAIN_BLOCK_PULL_BANDWIDTH_BYTES)
            return
        index = base_index(call.subject, device, parameters.base)
        handle.blockRebase(device, index, bandwidth, libvirt.VIR_DOMAIN_BLOCK_REBASE_BANDWIDTH_BYTES)


OPERATIONS: tuple[Operation[Any], ...] = (ListBlockJobs(), BlockCommit(), BlockPull())
