"""Block jobs of a running guest's disk: overlays committed into their base, the base pulled up, watched, aborted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from xml.etree.ElementTree import Element

import libvirt
from pydantic import Field, JsonValue

from exporter.control.connection import Session
from exporter.control.device_change import device_root
from exporter.control.domain import DomainOperation, P, domain_state
from exporter.control.errors import ControlError, NotFoundError, RefusedError, TimedOutError
from exporter.control.folders import Folders
from exporter.control.guest_fields import Word
from exporter.control.hotplug_disk import disk_shown
from exporter.control.operation import Call, NoParameters, Operation, Parameters, Plan, Progress, Role, State
from exporter.control.power import refuse_unless_running

_NAMES = {
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_PULL: "pull",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COPY: "copy",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COMMIT: "commit",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT: "active commit",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_BACKUP: "backup",
}


class DiskParameters(Parameters):
    device: Word = Field(description="The disk's target, like vda.")


class BlockJobParameters(DiskParameters):
    bandwidth_bytes_sec: int | None = Field(
        default=None, ge=1, le=1 << 50, description="Copy no faster than this many bytes per second."
    )
    within_s: float = Field(default=3600.0, gt=0, le=7 * 86400, description="Aborted where it takes longer.")


class _OnDisk(DomainOperation[P]):
    area = "snapshots"

    def state(self, call: Call, parameters: P) -> State:
        device = getattr(parameters, "device", "")
        shown: State = {"chain": [name for name in chain_of(call.subject.handle, device)]}
        job = job_of(call.subject.handle, device)
        return {**domain_state(call.subject.handle), **shown, **({"job": job} if job else {})}

    def check(self, call: Call, parameters: P) -> None:
        refuse_unless_running(call, "have a block job")
        _disk(call.subject.handle, call.subject.name, getattr(parameters, "device", ""))

    def aftermath(self, session: Session, folders: Folders, begun: Mapping[str, JsonValue]) -> str:
        subject, asked = begun.get("subject"), begun.get("parameters")
        try:
            handle = session.connection.lookupByUUIDString(str(subject["uuid"]))  # type: ignore
            device = str(asked["device"])  # type: ignore
            job, chain = job_of(handle, device), " on ".join(chain_of(handle, device))
        except (libvirt.libvirtError, KeyError, TypeError):
            return "interrupted; the domain does not run any more, and its block job ended with it"
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


class _RunsJob(_OnDisk[P]):
    long_running = True
    job_types: tuple[str, ...] = ()

    def time_needed_s(self, parameters: Any) -> float:
        return float(parameters.within_s) + 60

    def check(self, call: Call, parameters: P) -> None:
        super().check(call, parameters)
        job = job_of(call.subject.handle, getattr(parameters, "device", ""))
        if job and job["type"] not in self.job_types:
            raise RefusedError(
                f"a {job['type']} runs on that disk already", next_step="wait for it, or stop it with 'block-abort'"
            )

    def start(self, call: Call, parameters: Any) -> None:
        raise NotImplementedError

    def finish(self, call: Call, parameters: Any) -> None:
        """Once everything is copied."""

    def ready(self, job: dict[str, JsonValue]) -> bool:
        """Whether `finish` may be called while the job is still there."""
        return False

    def act(self, call: Call, parameters: Any) -> None:
        handle, device = call.subject.handle, parameters.device
        call.details["chain_before"] = [name for name in chain_of(handle, device)]
        if not job_of(handle, device):
            self.start(call, parameters)

        def over() -> bool:
            job = job_of(handle, device)
            if job:
                call.progress(Progress(f"{job['type']} of {device}", float(str(job["percent"])) / 100))
            return not job or self.ready(job)

        if not call.deadline.within(parameters.within_s).wait_for(over, poll_s=0.2):
            handle.blockJobAbort(device, 0)
            raise TimedOutError(
                f"{self.verb} of {device} was stopped before its end; the guest goes on with its disk as it was",
                next_step="ask again, with more time or bandwidth",
            )
        self.finish(call, parameters)
        call.deadline.wait_for(lambda: not job_of(handle, device))


class BlockCommit(_RunsJob[BlockJobParameters]):
    verb = "block-commit"
    summary = "Writes a disk's overlays into its base image and goes on with that, while the guest runs."
    parameters = BlockJobParameters
    job_types = ("active commit",)

    def plan(self, call: Call, parameters: BlockJobParameters) -> Plan:
        chain = chain_of(call.subject.handle, parameters.device)
        short = len(chain) < 2
        return Plan(
            state=self.state(call, parameters),
            steps=[f"write {', '.join(chain[:-1])} into {chain[-1]}", f"go on with {chain[-1]}"] if not short else [],
            lost=[f"the state that {chain[-1]} has kept: snapshots with it as their image"] if not short else [],
            nothing_to_do=short,
        )

    def start(self, call: Call, parameters: BlockJobParameters) -> None:
        handle = call.subject.handle
        base = _base_index(_disk(handle, call.subject.name, parameters.device), parameters.device)
        flags = libvirt.VIR_DOMAIN_BLOCK_COMMIT_ACTIVE | libvirt.VIR_DOMAIN_BLOCK_COMMIT_BANDWIDTH_BYTES
        handle.blockCommit(parameters.device, base, None, parameters.bandwidth_bytes_sec or 0, flags)

    def ready(self, job: dict[str, JsonValue]) -> bool:
        return job["ready"] is True

    def finish(self, call: Call, parameters: BlockJobParameters) -> None:
        handle, device = call.subject.handle, parameters.device

        def pivoted() -> bool:
            try:
                handle.blockJobAbort(device, libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT)
            except libvirt.libvirtError as error:
                # All is copied, and yet QEMU has not said "ready" to libvirt: said in a moment.
                if error.get_error_code() not in (
                    libvirt.VIR_ERR_BLOCK_COPY_ACTIVE, libvirt.VIR_ERR_OPERATION_INVALID
                ) or not job_of(handle, device):  # fmt: skip
                    raise
                return False
            return True

        if not call.deadline.within(30).wait_for(pivoted):
            raise TimedOutError("QEMU does not become ready to change over", next_step="ask again, or block-abort")

    def verify(self, call: Call, parameters: BlockJobParameters) -> None:
        chain, before = chain_of(call.subject.handle, parameters.device), call.details["chain_before"]
        assert isinstance(before, list)
        if chain != before[-1:]:
            raise ControlError(f"{parameters.device} is {' on '.join(chain)} after it", next_step="see libvirtd's log")
        call.details["unused_files"] = before[:-1]


class BlockPull(_RunsJob[BlockJobParameters]):
    verb = "block-pull"
    summary = "Copies what a disk's overlay lacks from its base images, so that it stands alone."
    parameters = BlockJobParameters
    job_types = ("pull",)

    def plan(self, call: Call, parameters: BlockJobParameters) -> Plan:
        chain = chain_of(call.subject.handle, parameters.device)
        steps = [f"copy what {chain[0]} lacks from {', '.join(chain[1:])}"]
        return Plan(state=self.state(call, parameters), steps=steps, nothing_to_do=len(chain) < 2)

    def start(self, call: Call, parameters: BlockJobParameters) -> None:
        flags = libvirt.VIR_DOMAIN_BLOCK_PULL_BANDWIDTH_BYTES
        call.subject.handle.blockPull(parameters.device, parameters.bandwidth_bytes_sec or 0, flags)

    def verify(self, call: Call, parameters: BlockJobParameters) -> None:
        chain, before = chain_of(call.subject.handle, parameters.device), call.details["chain_before"]
        assert isinstance(before, list)
        if chain != before[:1]:
            raise ControlError(f"{parameters.device} is {' on '.join(chain)} after it", next_step="see libvirtd's log")
        call.details["unused_files"] = before[1:]


class BlockAbort(_OnDisk[DiskParameters]):
    verb = "block-abort"
    summary = "Stops the block job on a guest's disk; the guest goes on with the disk as it was."
    parameters = DiskParameters

    def plan(self, call: Call, parameters: DiskParameters) -> Plan:
        job = job_of(call.subject.handle, parameters.device)
        return Plan(state=self.state(call, parameters), steps=["stop it"], nothing_to_do=not job)

    def act(self, call: Call, parameters: DiskParameters) -> None:
        call.subject.handle.blockJobAbort(parameters.device, 0)

    def verify(self, call: Call, parameters: DiskParameters) -> None:
        if not call.deadline.within(20).wait_for(lambda: not job_of(call.subject.handle, parameters.device)):
            raise TimedOutError(f"the job on {parameters.device} still runs", next_step="ask again")


def job_of(handle: Any, device: str) -> dict[str, JsonValue]:
    """type, percent, ready (all is copied), bandwidth; {} where no job runs on the disk."""
    try:
        info = handle.blockJobInfo(device, libvirt.VIR_DOMAIN_BLOCK_JOB_INFO_BANDWIDTH_BYTES)
    except libvirt.libvirtError:
        info = None
    if not info:
        return {}
    done, end = int(info["cur"]), int(info["end"])
    return {
        "type": _NAMES.get(info["type"], str(info["type"])),
        "percent": round(100 * done / end, 1) if end else 0.0,
        # libvirt tells cur 0 of 1 until a job has begun, and cur == end first when QEMU says it is ready.
        "ready": end > 1 and done == end,
        "bandwidth_bytes_sec": int(info.get("bandwidth") or 0),
    }


def chain_of(handle: Any, device: str) -> list[str]:
    """The files of a running guest's disk, the one it writes to first."""
    try:
        disks = device_root(handle, "live").findall("devices/disk")
    except libvirt.libvirtError:
        return []
    disk = next((found for found in disks if disk_shown(found)[0] == device), None)
    files = []
    layer: Element | None = disk
    while layer is not None:
        source = layer.find("source")
        if source is not None:
            files.append(source.get("file") or source.get("dev") or source.get("name") or "?")
        layer = layer.find("backingStore")
    return files


def _base_index(disk: Element, device: str) -> str:
    """The lowest image as libvirt addresses it, `vda[2]`: no path goes back to it."""
    index, layer = "", disk.find("backingStore")
    while layer is not None:
        index = layer.get("index") or index
        layer = layer.find("backingStore")
    return f"{device}[{index}]"


def _disk(handle: Any, name: str, device: str) -> Element:
    disks = {disk_shown(disk)[0]: disk for disk in device_root(handle, "live").iterfind("devices/disk")}
    if device not in disks:
        raise NotFoundError(f"domain {name} has no disk {device!r}", next_step=f"it has: {', '.join(disks) or 'none'}")
    return disks[device]


OPERATIONS: tuple[Operation[Any], ...] = (ListBlockJobs(), BlockCommit(), BlockPull(), BlockAbort())
