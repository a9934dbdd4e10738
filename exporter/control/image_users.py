"""Which domains use an image: named by a disk, as a file or as a volume of a pool, or below one that is, as the chain
of a running guest or the headers of qcow2 images tell. Changes nothing; any thread.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import libvirt

from collectors.domain_xml import element_tree
from exporter.control.connection import is_remote
from exporter.control.image_format import backing_file

_LONGEST_CHAIN = 64
_POOLS_OF_FILES = ("dir", "fs", "netfs", "logical")


def users_of(connection: Any, path: str, *, running: bool, besides: str | None = None,
             reaches: Callable[[str], bool] = lambda _name: True) -> list[str]:  # fmt: skip
    """`domain NAME` for each with that file in a disk's chain: the running ones, or all that are defined.

    `besides` is the UUID of one that is left out; one that the caller does not reach is not named.
    """
    wanted, local = os.path.realpath(path), not is_remote(connection.getURI())
    flags = libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE if running else 0
    found = []
    for domain in connection.listAllDomains(flags):
        if domain.UUIDString() == besides:
            continue
        disks = (disk for xml in _texts(domain, running) for disk in element_tree(xml).iterfind(".//disk"))
        if any(os.path.realpath(file) == wanted for disk in disks for file in files_of(connection, disk, local=local)):
            name = domain.name()
            found.append(f"domain {name}" if reaches(name) else "a domain that this token does not reach")
    return sorted(found)


def _texts(domain: Any, running: bool) -> Iterator[str]:
    try:
        yield domain.XMLDesc(0)
        if not running and domain.isPersistent():
            yield domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    except libvirt.libvirtError as error:  # it has ended meanwhile
        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
            raise


def files_of(connection: Any, disk: Element, *, local: bool) -> Iterator[str]:
    """The files of a `<disk>`: those that its XML names (a running guest's has the whole chain), and what the headers
    of these name below them, where the images are `local`, this machine's.
    """
    named = [file for source in disk.iterfind(".//source") if (file := source_file(connection, source))]
    yield from named
    for layer in (disk, *disk.iter("backingStore")) if local else ():
        source, form = layer.find("source"), layer.find("driver" if layer is disk else "format")
        # A raw image's bytes are the guest's own: what looks like a header there leads nowhere.
        if source is None or form is None or form.get("type") != "qcow2":
            continue
        below = _below(source_file(connection, source))
        for _ in range(_LONGEST_CHAIN):
            if below is None or below in named:
                break
            yield below
            below = _below(below)


def layers_of(disk: Element) -> Iterator[tuple[Element, Element]]:
    """Each image of a disk's chain, the one that is written to first: its `<disk>` or `<backingStore>`, its `<source>`.

    Not what a `<mirror>` is made of.
    """
    layer: Element | None = disk
    while layer is not None:
        source = layer.find("source")
        if source is not None:
            yield layer, source
        layer = layer.find("backingStore")


def source_file(connection: Any, source: Element) -> str:
    """The file or device that a `<source>` is; empty for one on the network, and for a volume that is not known."""
    if (pool := source.get("pool")) and (volume := source.get("volume")):
        with suppress(libvirt.libvirtError):
            return _volume_path(connection.storagePoolLookupByName(pool), volume)
    return source.get("file") or source.get("dev") or ""


def _volume_path(pool: Any, volume: str) -> str:
    """Also of a pool that is stopped, which knows no volumes, where they lie in its folder by their names."""
    if pool.isActive():
        return str(pool.storageVolLookupByName(volume).path())
    known = element_tree(pool.XMLDesc(0))
    folder = known.findtext("target/path")
    return os.path.join(folder, volume) if folder and known.get("type") in _POOLS_OF_FILES else ""


def _below(file: str) -> str | None:
    path = Path(os.path.realpath(file))
    try:
        mode = path.stat().st_mode
        return backing_file(path) if stat.S_ISREG(mode) or stat.S_ISBLK(mode) else None
    except OSError:
        return None
