"""The new files that a guest's disks go on in after an external snapshot: their names, and what refuses them."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import JsonValue

from exporter.control.device_change import device_root
from exporter.control.errors import RefusedError
from exporter.control.hotplug_disk import disk_of_domain, disk_shown
from exporter.control.operation import Call

_LONGEST_STEM = 100


def written_disks(handle: Any) -> dict[str, dict[str, JsonValue]]:
    """The disks that a snapshot takes, by target: those that the guest can write to."""
    side: Literal["live", "persistent"] = "live" if handle.isActive() else "persistent"
    found = device_root(handle, side).iterfind("devices/disk")
    shown = (disk_of_domain(handle, disk) for disk in found if disk.get("device", "disk") == "disk")
    return {target: disk for target, disk in shown if not disk.get("read_only")}


def overlays(call: Call, snapshot: str, disks: Mapping[str, Mapping[str, JsonValue]]) -> dict[str, Path]:
    """The new file of each of the disks. Raises RefusedError where one has no place, or two would be the same.

    libvirt 9.0 gives two disks of a guest that is off one file, which then cannot start any more.
    """
    made: dict[Path, str] = {}
    for target, disk in disks.items():
        path = _overlay(call, snapshot, target, str(disk.get("file") or ""))
        if path in made:
            raise RefusedError(
                f"disks {made[path]} and {target} of domain {call.subject.name} would both go on in {path}",
                next_step="give one of them another target, or name the files:"
                f" 'virsh snapshot-create-as --disk-only --diskspec {target},file=...'",
            )
        made[path] = target
    return {target: path for path, target in made.items()}


def refuse_volumes(handle: Any, name: str, disks: Collection[str]) -> None:
    """Raises RefusedError where an external snapshot of a guest that is off takes a pool's volume; `disks` are
    the targets of those that it takes.

    Measured on libvirt 9.0: it makes one, and can then neither delete it nor revert to it ("disk source and parent disk
    source are not the same"). Of a running guest it keeps the volume in the chain of the disk.
    """
    for disk in device_root(handle, "persistent").iterfind("devices/disk") if not handle.isActive() else ():
        source, target = disk.find("source"), disk_shown(disk)[0]
        if source is not None and source.get("volume") and target in disks:
            raise RefusedError(
                f"disk {target} of domain {name} is volume {source.get('volume')} of pool {source.get('pool')}, and"
                " libvirt could not delete an external snapshot of it that is taken while the guest is off",
                next_step="start the guest first, or take an internal one where the volume is qcow2",
            )


def _overlay(call: Call, snapshot: str, target: str, file: str) -> Path:
    """The new file of a disk: beside its image, in an image folder, a name of ours."""
    if not os.path.isabs(file):
        raise _without_place(call, target, f"{file or 'nothing'}, no file that libvirt knows of on this host")
    image = call.folders.image(file, f"disk {target}")
    if stat.S_ISBLK(image.stat().st_mode):  # beside it is /dev, which is in memory
        raise _without_place(call, target, f"the block device {file}")
    name = ".".join((image.stem[:_LONGEST_STEM], _safe(target), _safe(snapshot), "qcow2"))
    return Path(os.path.realpath(image.parent)) / name


def _without_place(call: Call, target: str, what: str) -> RefusedError:
    return RefusedError(
        f"disk {target} of domain {call.subject.name} is {what}: an external snapshot's new file has no place beside"
        " it",
        next_step="take an internal one where the disk is qcow2, or name a place: 'virsh snapshot-create-as"
        f" --disk-only --diskspec {target},file=...'",
    )


def _safe(text: str) -> str:
    return "".join(character if character.isalnum() else "_" for character in text)
