"""A running guest's disk as a chain of images, the job on it, and how that job ends."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any
from xml.etree.ElementTree import Element

import libvirt
from pydantic import JsonValue

from exporter.control.device_change import device_root
from exporter.control.domain import live_state
from exporter.control.errors import NotFoundError, RefusedError
from exporter.control.hotplug_disk import disk_shown
from exporter.control.image_users import layers_of, source_file
from exporter.control.operation import Deadline, Subject
from exporter.control.power import STOPPED

_NAMES = {
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_PULL: "pull",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COPY: "copy",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_COMMIT: "commit",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT: "active commit",
    libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_BACKUP: "backup",
}
# The guest is off or gone, it has no such disk, the driver has no such jobs.
_WITHOUT_JOBS = (
    libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN, libvirt.VIR_ERR_INVALID_ARG,
    libvirt.VIR_ERR_NO_SUPPORT,
)  # fmt: skip
Job = dict[str, JsonValue]


def job_of(handle: Any, device: str) -> Job:
    """type, percent, ready (all is copied), bandwidth; {} where no job runs on the disk, or the guest does not run.

    Raises libvirtError where libvirt cannot tell: measured on libvirt 9.0, it gives up after 30 s where something else
    holds the guest (QEMU hangs in a call of somebody's), while the job goes on.
    """
    try:
        info = handle.blockJobInfo(device, libvirt.VIR_DOMAIN_BLOCK_JOB_INFO_BANDWIDTH_BYTES)
    except libvirt.libvirtError as error:
        if error.get_error_code() not in _WITHOUT_JOBS:
            raise
        return {}
    if not info:
        return {}
    done, end = int(info["cur"]), int(info["end"])
    return {
        "type": _NAMES.get(info["type"], str(info["type"])),
        "percent": round(100 * done / end, 1) if end else 0.0,
        "ready": _is_ready(handle, device),
        "bandwidth_bytes_sec": int(info.get("bandwidth") or 0),
    }


def known_job(handle: Any, device: str) -> Job | None:
    """The same, for who asks again: None where libvirt cannot tell now. Raises where the connection is gone."""
    try:
        return job_of(handle, device)
    except libvirt.libvirtError as error:
        if error.get_error_domain() == libvirt.VIR_FROM_RPC:
            raise
        return None


def _is_ready(handle: Any, device: str) -> bool:
    """Whether all is copied, and the disk can change over. Not by the numbers: an empty overlay's are 1 of 1."""
    with contextlib.suppress(libvirt.libvirtError):
        for disk in device_root(handle, "live").iterfind("devices/disk"):
            mirror = disk.find("mirror")
            if mirror is not None and disk_shown(disk)[0] == device:
                return mirror.get("ready") == "yes"
    return False


def commits_into(handle: Any, device: str) -> str:
    """The image that an active commit of the disk writes to, as `chain_of` names it; empty where none runs."""
    for disk in device_root(handle, "live").iterfind("devices/disk"):
        mirror = disk.find("mirror")
        if mirror is not None and disk_shown(disk)[0] == device and mirror.get("job") == "active-commit":
            source = mirror.find("source")
            return _image(handle, source) if source is not None else mirror.get("file", "?")
    return ""


def chain_of(handle: Any, device: str) -> list[str]:
    """The files of a running guest's disk, the one it writes to first; [] where it does not run.

    Of one that is off libvirt shows the definition, which has the top image alone, whatever is below it.
    """
    try:
        root = device_root(handle, "live")
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
            raise
        return []
    disks = root.findall("devices/disk") if root.get("id") else []
    disk = next((found for found in disks if disk_shown(found)[0] == device), None)
    return [] if disk is None else [file for file, _ in _layers(handle, disk)]


def require_chain(subject: Subject, device: str, base: str | None) -> list[str]:
    """The chain of a disk that a job is to change: never empty, and `base`, where given, is below its top.

    Raises RefusedError where the guest has ended since it was last looked at, or nothing is in the drive.
    """
    chain = chain_of(subject.handle, device)
    if not chain:
        state = live_state(subject.handle)
        if state in STOPPED:
            raise RefusedError(
                f"domain {subject.name} has ended meanwhile and is {state}; nothing was changed",
                next_step="start it, and ask again",
            )
        raise RefusedError(
            f"disk {device} of domain {subject.name} has nothing in it", next_step="choose another --device"
        )
    if base is not None and base not in chain[1:]:
        raise NotFoundError(
            f"disk {device} has no image {base!r} below the one it writes to", next_step=f"it is {' on '.join(chain)}"
        )
    return chain


def base_index(subject: Subject, device: str, file: str) -> str:
    """An image of the chain as libvirt addresses it, `vda[2]`: no path goes back to it."""
    disk = disk_element(subject.handle, subject.name, device)
    index = next((index for named, index in _layers(subject.handle, disk) if named == file), "")
    if not index:
        raise RefusedError(
            f"{file} is no longer in disk {device} of domain {subject.name}, which is {live_state(subject.handle)};"
            " nothing was changed",
            next_step="see what 'domain block-jobs' shows, and ask again",
        )
    return f"{device}[{index}]"


def disk_element(handle: Any, name: str, device: str) -> Element:
    """The running guest's `<disk>` of that target. Raises NotFoundError with those there are."""
    disks = {disk_shown(disk)[0]: disk for disk in device_root(handle, "live").iterfind("devices/disk")}
    if device not in disks:
        raise NotFoundError(f"domain {name} has no disk {device!r}", next_step=f"it has: {', '.join(disks) or 'none'}")
    return disks[device]


def _layers(handle: Any, disk: Element) -> Iterator[tuple[str, str]]:
    """Each image's file and libvirt's number of it, the one that is written to first."""
    for layer, source in layers_of(disk):
        yield _image(handle, source), layer.get("index") or source.get("index") or ""


def _image(handle: Any, source: Element) -> str:
    """The file or device; of one on the network `nbd:name`, which no path looks like; `?` of what is not known."""
    name, protocol = source.get("name") or "?", source.get("protocol")
    return source_file(handle.connect(), source) or (f"{protocol}:{name}" if protocol else "?")


class JobEnd:
    """libvirt's word of how a disk's job went. Filled by its event thread."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._status: int | None = None

    @property
    def word(self) -> str:
        """`failed`, `canceled`, `completed`, `ready`; empty where nothing was told."""
        with self._lock:
            names = {
                libvirt.VIR_DOMAIN_BLOCK_JOB_COMPLETED: "completed", libvirt.VIR_DOMAIN_BLOCK_JOB_FAILED: "failed",
                libvirt.VIR_DOMAIN_BLOCK_JOB_CANCELED: "canceled", libvirt.VIR_DOMAIN_BLOCK_JOB_READY: "ready",
            }  # fmt: skip
            return names.get(self._status, "") if self._status is not None else ""

    def on_event(self, _connection: object, _domain: object, device: str, _type: int, status: int, _: object) -> None:
        if device == self._device:
            with self._lock:
                self._status = status


def settled_chain(handle: Any, device: str, goal: list[str], end: JobEnd, within_s: float) -> list[str]:
    """The chain once libvirt shows how the job that is over went, also to who has cancelled."""
    Deadline(within_s).wait_for(lambda: chain_of(handle, device) in (goal, []) or end.word in ("failed", "canceled"))
    return chain_of(handle, device)


@contextlib.contextmanager
def watch_job(handle: Any, device: str) -> Iterator[JobEnd]:
    """The job's events while it is open; stays empty where the driver has none."""
    told, connection, number = JobEnd(device), handle.connect(), None
    with contextlib.suppress(libvirt.libvirtError):
        event = libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2
        number = connection.domainEventRegisterAny(handle, event, told.on_event, None)
    try:
        yield told
    finally:
        if number is not None:
            with contextlib.suppress(libvirt.libvirtError):  # the connection died meanwhile
                connection.domainEventDeregisterAny(number)
