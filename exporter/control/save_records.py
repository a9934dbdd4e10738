"""Saved memory images and the record beside each: what it is of, how long, its SHA-256, the disks' state then.

libvirt itself checks nothing of this: flipped bytes inside the memory, or a disk that has moved on, restore "without
error" (measured). The image holds the guest's memory, keys included: folder 0700, files 0600, names of ours only.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from collectors.domain_xml import element_tree
from exporter.control.errors import ControlError, NotFoundError, RefusedError
from exporter.control.folders import Folders
from exporter.control.image_users import source_file

_ID = re.compile(r"[0-9a-f-]{36}-[0-9]{8}T[0-9]{6}Z-[0-9a-f]{8}")
# libvirt writes "Part" in place of "Save" until the image is whole (qemu_saveimage.h).
_WHOLE, _PART = b"LibvirtQemudSave", b"LibvirtQemudPart"
_BLOCK = 1 << 20


class DiskGeneration(BaseModel):
    """A disk file as it was when the guest's memory was saved; a block device has no time to compare."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    block_device: bool = False
    size_bytes: int = 0
    modified_ns: int = 0
    inode: int = 0


class SaveRecord(BaseModel):
    """What is known of one saved image."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    domain: str
    uuid: str
    saved: str
    size_bytes: int
    sha256: str
    disks: tuple[DiskGeneration, ...] = ()
    comment: str = ""


def image_file(folders: Folders, record_id: str) -> Path:
    """The image of a record. Raises NotFoundError for what is no record's id: it never leads out of the folder."""
    if not _ID.fullmatch(record_id):
        raise NotFoundError(f"there is no saved image {record_id[:80]!r}", next_step="list them with 'saved list'")
    return folders.saves / f"{record_id}.img"


def record_file(folders: Folders, record_id: str) -> Path:
    return image_file(folders, record_id).with_suffix(".json")


def records(folders: Folders) -> list[SaveRecord]:
    """All readable records, newest last; a damaged one is left out, as its image is then without a record."""
    found = []
    for path in sorted(folders.saves.glob("*.json")) if folders.saves.is_dir() else ():
        with contextlib.suppress(OSError, ValidationError, UnicodeDecodeError):
            found.append(SaveRecord.model_validate_json(path.read_text()))
    return sorted(found, key=lambda record: record.saved)


def without_record(folders: Folders) -> list[str]:
    """The ids of images that have no record: an operation ended in the middle."""
    known = {record.id for record in records(folders)}
    images = folders.saves.glob("*.img") if folders.saves.is_dir() else ()
    return sorted(path.stem for path in images if path.stem not in known and _ID.fullmatch(path.stem))


def read_record(folders: Folders, record_id: str) -> SaveRecord:
    """The record. Raises NotFoundError with the ids there are."""
    for record in records(folders):
        if record.id == record_id:
            return record
    image_file(folders, record_id)
    if record_id in without_record(folders):
        raise RefusedError(f"saved image {record_id} has no record", next_step="make one with 'saved adopt'")
    raise NotFoundError(f"there is no saved image {record_id}", next_step="list them with 'saved list'")


def write_record(folders: Folders, record: SaveRecord) -> None:
    """Writes it beside its image, whole or not at all."""
    target = record_file(folders, record.id)
    part = target.with_suffix(".part")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, record.model_dump_json(indent=1).encode())
        os.fsync(fd)
    finally:
        os.close(fd)
    part.rename(target)


def reserve(file: Path) -> None:
    """Makes the image's file, empty and 0600: libvirt overwrites what is there and keeps its mode."""
    os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))


def is_whole(file: Path) -> bool:
    """Whether libvirt finished writing the image."""
    with file.open("rb") as image:
        return image.read(len(_WHOLE)) == _WHOLE


def sha256(file: Path, told: Callable[[float], None] = lambda _fraction: None) -> str:
    """The image's SHA-256; `told` hears how far it is. Raises RefusedError for anything but a regular file."""
    fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(fd, "rb") as image:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise RefusedError(f"{file} is no regular file", next_step="remove it")
        digest = hashlib.sha256()
        done = 0
        while block := image.read(_BLOCK):
            digest.update(block)
            done += len(block)
            told(done / max(1, status.st_size))
        return digest.hexdigest()


def disk_generations(connection: Any, xml: str) -> tuple[DiskGeneration, ...]:
    """The state of each writable disk of a domain XML that is a file or device of this host, or a volume."""
    found = []
    for disk in element_tree(xml).iterfind("devices/disk"):
        source = disk.find("source")
        path = source_file(connection, source) if source is not None else ""
        if path and disk.find("readonly") is None and disk.get("device", "disk") == "disk":
            found.append(_generation(path))
    return tuple(found)


def _generation(path: str) -> DiskGeneration:
    try:
        status = os.stat(path)
    except OSError:
        return DiskGeneration(path=path)
    if stat.S_ISBLK(status.st_mode):
        return DiskGeneration(path=path, block_device=True)
    return DiskGeneration(
        path=path, size_bytes=status.st_size, modified_ns=status.st_mtime_ns, inode=status.st_ino
    )


def changed_disks(record: SaveRecord) -> list[str]:
    """What is different about each disk that is not as it was; empty where all are."""
    found = []
    for then in record.disks:
        now = _generation(then.path)
        if now == then:
            continue
        if not os.path.exists(then.path):
            found.append(f"{then.path} is gone")
        else:
            found.append(f"{then.path} was written to, or replaced, since")
    return found


def checked_image(folders: Folders, record: SaveRecord, told: Callable[[float], None] = lambda _f: None) -> Path:
    """The record's image, verified. Raises RefusedError where it is missing, of another size or content."""
    file = image_file(folders, record.id)
    try:
        size, found = file.lstat().st_size, sha256(file, told)
    except OSError as error:
        raise RefusedError(
            f"the image of {record.id} cannot be read ({error.strerror})", next_step="remove its record"
        ) from error
    if size != record.size_bytes or found != record.sha256:
        raise RefusedError(
            f"the image of {record.id} is damaged: {size} bytes with SHA-256 {found[:12]}..., saved were"
            f" {record.size_bytes} with {record.sha256[:12]}...",
            next_step="it cannot be restored; boot the domain instead",
        )
    return file


def record_of(folders: Folders, record_id: str, connection: Any, saved: str, comment: str) -> SaveRecord:
    """The record of a finished image, written. Raises ControlError where the image is not whole."""
    file = image_file(folders, record_id)
    if not file.is_file() or not is_whole(file):
        raise ControlError(
            f"the image {record_id} is not whole", next_step="wait until libvirt has written it, or remove it"
        )
    xml = connection.saveImageGetXMLDesc(str(file), 0)
    domain = element_tree(xml)
    record = SaveRecord(
        id=record_id,
        domain=domain.findtext("name") or "",
        uuid=domain.findtext("uuid") or "",
        saved=saved,
        size_bytes=file.stat().st_size,
        sha256=sha256(file),
        disks=disk_generations(connection, xml),
        comment=comment,
    )
    write_record(folders, record)
    return record
