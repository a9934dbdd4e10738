"""Which of a guest's disks would be left behind: those that neither both hosts see nor a migration copies.

libvirt refuses a local file, but lets a local block device pass (qemu_migration.c, qemuMigrationSrcIsSafe): the guest
would start on the destination with whatever stands there under the same name. So all is judged here first.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import libvirt

from collectors.domain_xml import element_tree
from exporter.control.errors import InvalidError, RefusedError
from exporter.control.migration_parameters import MigrateParameters
from exporter.control.shared_storage import SHARED_FILE_SYSTEMS, SHARED_POOLS, file_system_of


@dataclass(frozen=True)
class GuestDisk:
    """A disk that can be written to. `seen` says what can be known from here of where it is."""

    target: str
    source: str
    seen: Literal["shared", "local"]
    why: str

    def as_json(self) -> dict[str, Any]:
        return {"target": self.target, "source": self.source, "storage": self.seen, "because": self.why}


def guest_disks(connection: Any, xml: str, mounts: Path | None = Path("/proc/self/mountinfo")) -> list[GuestDisk]:
    """The guest's writable disks. `mounts` None where the files are not this machine's."""
    found = []
    for disk in element_tree(xml).iterfind("devices/disk"):
        source, target = disk.find("source"), disk.find("target")
        if disk.get("device", "disk") not in ("disk", "lun") or disk.find("readonly") is not None:
            continue
        if source is None or target is None:
            continue
        shown = source.get("file") or source.get("dev") or source.get("name") or source.get("volume") or ""
        seen, why = _where(connection, disk, source, shown, mounts)
        found.append(GuestDisk(target.get("dev", ""), shown, seen, why))
    return found


def media(xml: str) -> list[str]:
    """The files in the guest's CD-ROM and floppy drives, which no migration takes along."""
    drives = (disk for disk in element_tree(xml).iterfind("devices/disk"))
    sources = (drive.find("source") for drive in drives if drive.get("device") in ("cdrom", "floppy"))
    return [file for source in sources if source is not None and (file := source.get("file"))]


def _where(
    connection: Any, disk: Element, source: Element, path: str, mounts: Path | None
) -> tuple[Literal["shared", "local"], str]:
    kind = disk.get("type")
    if disk.find("shareable") is not None:
        return "shared", "its definition says shareable"
    if kind == "network":
        return "shared", f"over the network ({source.get('protocol')})"
    if kind == "volume":
        pool = _pool_type(connection, source.get("pool", ""))
        return ("shared" if pool in SHARED_POOLS else "local"), f"in a pool of type {pool or 'unknown'}"
    if kind == "file":
        file_system = file_system_of(path, mounts) if mounts is not None else ""
        return ("shared" if file_system in SHARED_FILE_SYSTEMS else "local"), f"on {file_system or 'unknown'}"
    return "local", "a device of this host, as far as can be seen"


def _pool_type(connection: Any, name: str) -> str:
    try:
        return ElementTree.fromstring(connection.storagePoolLookupByName(name).XMLDesc(0)).get("type", "")
    except libvirt.libvirtError:
        return ""


def left_behind(disks: list[GuestDisk], parameters: MigrateParameters) -> list[GuestDisk]:
    """The local disks that are neither copied nor said to be shared."""
    copied = set(copied_targets(disks, parameters))
    return [
        disk for disk in disks
        if disk.seen == "local" and disk.target not in copied and disk.target not in parameters.shared_disk
    ]  # fmt: skip


def copied_targets(disks: list[GuestDisk], parameters: MigrateParameters) -> list[str]:
    """The targets that go along; empty where nothing is copied."""
    if parameters.copy_storage == "none":
        return []
    if parameters.copy_disk:
        return [disk.target for disk in disks if disk.target in parameters.copy_disk]
    return [disk.target for disk in disks if disk.seen == "local" and disk.target not in parameters.shared_disk]


def check_disks(name: str, disks: list[GuestDisk], parameters: MigrateParameters) -> None:
    """Raises InvalidError for a target the guest has not, RefusedError where a disk would be lost, by its name."""
    known = {disk.target for disk in disks}
    for target in (*parameters.copy_disk, *parameters.shared_disk):
        if target not in known:
            there = ", ".join(sorted(known)) or "none"
            raise InvalidError(f"domain {name} has no writable disk {target[:40]!r}", next_step=f"it has: {there}")
    lost = left_behind(disks, parameters)
    if lost:
        named = "; ".join(f"{disk.target} ({disk.source}, {disk.why})" for disk in lost)
        raise RefusedError(
            f"domain {name} would lose its local disk {named}",
            next_step="copy it along (--copy-storage full), or say that the destination sees the very same disk"
            f" (--shared-disk {lost[0].target})",
        )
