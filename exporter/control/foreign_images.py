"""Whose images a caller with a narrow scope may give to guests: none that hold the data of a guest out of its scope.

An image's path is the only thing an operation names besides its domain, so it is the only way out of a scope.
Read-only media (ISO images) are shared by intent and do not count.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import libvirt

from exporter.control.connection import Session
from exporter.control.errors import RefusedError

_QCOW2 = b"QFI\xfb"
_LONGEST_NAME = 1023
_DEEPEST_CHAIN = 200


class ForeignImages:
    """Refuses images of domains that `reaches` does not hold. One thread at a time; asks libvirt at each call."""

    def __init__(self, session: Session, reaches: Callable[[str], bool]) -> None:
        self._session = session
        self._reaches = reaches

    def refuse(self, path: Path) -> None:
        """Raises RefusedError where such a domain has `path` (links resolved), running or not. Names no domain."""
        for domain in self._session.connection.listAllDomains():
            if not self._reaches(domain.name()) and any(_is_same(path, image) for image in self._images(domain)):
                raise RefusedError(f"{path} belongs to a domain that this token does not reach",
                                   next_step="choose another image")  # fmt: skip

    def _images(self, domain: Any) -> Iterator[str]:
        for flags in (0, libvirt.VIR_DOMAIN_XML_INACTIVE):
            try:
                root = ElementTree.fromstring(domain.XMLDesc(flags))
            except libvirt.libvirtError:  # it went away meanwhile
                continue
            for disk in root.iterfind("devices/disk"):
                if disk.get("device", "disk") in ("disk", "lun") and disk.find("readonly") is None:
                    for source in disk.iter("source"):
                        yield from _chain(self._path(source))

    def _path(self, source: Element) -> str:
        if (pool := source.get("pool")) and (volume := source.get("volume")):
            with suppress(libvirt.libvirtError):
                found = self._session.connection.storagePoolLookupByName(pool).storageVolLookupByName(volume)
                return str(found.path())
        return source.get("file") or source.get("dev") or ""


def _is_same(path: Path, image: str) -> bool:
    """Whether both are one file, by whatever name."""
    with suppress(OSError):
        return os.path.samefile(path, image)
    return str(path) == image


def _chain(path: str) -> Iterator[str]:
    """The image and those that it stands on, as their own headers tell: a domain's definition names the last only."""
    for _ in range(_DEEPEST_CHAIN):
        if not path:
            return
        path = os.path.realpath(path)
        yield path
        backing = _backing_file(path)
        path = os.path.join(os.path.dirname(path), backing) if backing else ""


def _backing_file(path: str) -> str:
    """What a qcow2 image names as its backing file (docs/interop/qcow2.txt of QEMU); empty for none."""
    with suppress(OSError), open(path, "rb") as image:
        header = image.read(20)
        if len(header) == 20 and header[:4] == _QCOW2:
            image.seek(int.from_bytes(header[8:16], "big"))
            length = int.from_bytes(header[16:20], "big")
            if 0 < length <= _LONGEST_NAME and int.from_bytes(header[8:16], "big"):
                return image.read(length).decode(errors="surrogateescape").removeprefix("file:")
    return ""
