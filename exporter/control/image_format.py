"""A disk image's own header: whether it is what it is said to be, and leads to no other file."""

from __future__ import annotations

import os
from pathlib import Path

from exporter.control.errors import InvalidError

# qcow2 (QEMU's docs/interop/qcow2.txt): magic, version, backing file offset; from version 3 on, at byte 72, the
# features that a reader must know, of which bit 2 says that the data lie in another file.
_MAGIC = b"QFI\xfb"
_EXTERNAL_DATA = 1 << 2
_LONGEST_NAME = 1023


def require_plain(path: Path, form: str) -> None:
    """Raises InvalidError where an image is not of its format, or names another file that QEMU would open.

    A raw image is not looked at: its bytes are the guest's. A backing file may be any file of the host.
    """
    if form != "qcow2":
        return
    try:
        with path.open("rb") as image:
            header = image.read(80)
    except OSError as error:
        raise InvalidError(f"{path}: {error.strerror}", next_step="check the path") from error
    if len(header) < 72 or header[:4] != _MAGIC:
        raise InvalidError(f"{path} is no qcow2 image", next_step="say format raw, or convert it with qemu-img")
    version = int.from_bytes(header[4:8], "big")
    if int.from_bytes(header[8:16], "big"):
        raise InvalidError(
            f"{path} has a backing file, which could be any file of this host",
            next_step="make it stand alone: qemu-img convert -O qcow2",
        )
    if version >= 3 and int.from_bytes(header[72:80], "big") & _EXTERNAL_DATA:
        raise InvalidError(
            f"{path} keeps its data in another file", next_step="make it stand alone: qemu-img convert -O qcow2"
        )


def backing_file(path: Path) -> str | None:
    """The file below a qcow2 image, as its header names it; None where it names none, or is no qcow2 image.

    A name relative to the image is made absolute. Raises OSError.
    """
    with path.open("rb") as image:
        header = image.read(20)
        offset, length = int.from_bytes(header[8:16], "big"), int.from_bytes(header[16:20], "big")
        if header[:4] != _MAGIC or not offset or not 0 < length <= _LONGEST_NAME:
            return None
        image.seek(offset)
        name = os.fsdecode(image.read(length)).removeprefix("file:")
    # A protocol's name (nbd:..., json:{...}) is none of this host's files.
    if "\0" in name or (":" in name and not name.startswith(("/", "."))):
        return None
    return str(path.parent / name)
