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

import libvirt

from collectors.domain_xml import element_tree
from exporter.control.connection import Session, is_remote
from exporter.control.errors import RefusedError
from exporter.control.image_users import files_of


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
        connection = self._session.connection
        local = not is_remote(connection.getURI())
        for flags in (0, libvirt.VIR_DOMAIN_XML_INACTIVE):
            try:
                root = element_tree(domain.XMLDesc(flags))
            except libvirt.libvirtError:  # it went away meanwhile
                continue
            for disk in root.iterfind("devices/disk"):
                if disk.get("device", "disk") in ("disk", "lun") and disk.find("readonly") is None:
                    yield from files_of(connection, disk, local=local)


def _is_same(path: Path, image: str) -> bool:
    """Whether both are one file, by whatever name."""
    with suppress(OSError):
        return os.path.samefile(path, image)
    return str(path) == image
