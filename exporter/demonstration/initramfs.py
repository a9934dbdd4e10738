"""Writes the initial root file system of the demonstration guest: BusyBox, kernel modules, the init script."""

from __future__ import annotations

import gzip
import stat
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

_FOLDER = stat.S_IFDIR | 0o755
_FILE = stat.S_IFREG | 0o644
_PROGRAM = stat.S_IFREG | 0o755
_LINK = stat.S_IFLNK | 0o777
_DEVICE = stat.S_IFCHR | 0o600


class Entry(NamedTuple):
    """One entry of the archive; `device` is (major, minor) of a character device."""

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def build_initramfs(busybox: bytes, applets: Sequence[str], modules: Mapping[str, bytes], init_script: bytes) -> bytes:
    """The gzip-compressed archive. `modules` holds the unpacked modules in loading order.

    The same input gives the same bytes: owners, times and inode numbers are fixed.
    """
    entries = [Entry(name, _FOLDER) for name in ("bin", "dev", "proc", "sys", "run", "modules", "etc")]
    entries += [Entry("dev/console", _DEVICE, device=(5, 1)), Entry("dev/null", _DEVICE, device=(1, 3))]
    entries += [Entry("bin/busybox", _PROGRAM, busybox)]
    entries += [Entry(f"bin/{applet}", _LINK, b"busybox") for applet in sorted(applets) if applet != "busybox"]
    entries += [Entry(f"modules/{name}.ko", _FILE, data) for name, data in modules.items()]
    entries += [Entry("modules/order", _FILE, "".join(f"{name}.ko\n" for name in modules).encode())]
    entries += [Entry("init", _PROGRAM, init_script)]
    return gzip.compress(write_newc(entries), 6, mtime=0)


def write_newc(entries: Iterable[Entry]) -> bytes:
    """A cpio archive in the "newc" form that the kernel unpacks."""
    archive = bytearray()
    for inode, entry in enumerate([*entries, Entry("TRAILER!!!", 0)], start=1):
        name = entry.name.encode() + b"\0"
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        header = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
        archive += b"070701" + b"".join(b"%08X" % value for value in header) + name
        archive += b"\0" * (-len(archive) % 4)
        archive += entry.data
        archive += b"\0" * (-len(archive) % 4)
    return bytes(archive)
