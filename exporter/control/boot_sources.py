"""Whether what a guest is to boot from can be booted at all: libvirt and QEMU do not tell.

Measured: a file that is no kernel, an ISO that is none, a network without a boot file: the guest starts, no error
comes, and nothing happens. So their own marks are looked at first.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import libvirt

from exporter.control.connection import Session
from exporter.control.errors import InvalidError, RefusedError, UnsupportedError

# Linux: Documentation/arch/x86/boot.rst (HdrS at 0x202), arm64/booting.rst (ARM\x64 at 0x38); ELF for PVH; MZ for EFI.
_KERNEL_MARKS = ((0x202, b"HdrS"), (0x38, b"ARM\x64"), (0, b"\x7fELF"), (0, b"MZ"), (0, b"\x1f\x8b"))
# ECMA-119: the volume descriptors begin at sector 16; El Torito: the boot record is sector 17.
_ISO_MARK = (16 * 2048 + 1, b"CD001")
_BOOT_RECORD = (17 * 2048 + 7, b"EL TORITO SPECIFICATION")


def require_kernel(path: Path) -> None:
    """Raises InvalidError where the file is no kernel that QEMU boots directly."""
    if not any(_has(path, *mark) for mark in _KERNEL_MARKS):
        raise InvalidError(f"{path} is no kernel", next_step="choose a bzImage, vmlinux or EFI kernel")


def require_bootable_iso(path: Path) -> None:
    """Raises InvalidError where the file is no ISO image with a boot record."""
    if not _has(path, *_ISO_MARK):
        raise InvalidError(f"{path} is no ISO image", next_step="choose another")
    if not _has(path, *_BOOT_RECORD):
        raise InvalidError(f"{path} cannot be booted (no El Torito boot record)", next_step="choose another")


def require_boot_network(session: Session, name: str) -> None:
    """Raises RefusedError where the libvirt network is not active or names no boot file, libvirtError if missing."""
    network = session.connection.networkLookupByName(name)
    if not network.isActive():
        raise RefusedError(f"network {name} is not active", next_step=f"start it (virsh net-start {name})")
    root = ElementTree.fromstring(network.XMLDesc(0))
    forwarded = root.find("forward")
    # A bridge to the world outside has its own boot server, of which libvirt knows nothing.
    if forwarded is not None and forwarded.get("mode") in ("bridge", "open", "passthrough", "private", "vepa"):
        return
    if root.find("ip/dhcp/bootp") is None:
        raise RefusedError(
            f"network {name} serves no boot file", next_step="add <bootp file=...> to its <dhcp>, and <tftp root=...>"
        )


def require_efi(session: Session, machine: str | None, kind: str) -> None:
    """Raises UnsupportedError where this host has no UEFI firmware for the machine."""
    try:
        text = session.connection.getDomainCapabilities(None, None, machine, kind, 0)
    except libvirt.libvirtError as error:
        raise UnsupportedError(
            "this host's libvirt cannot say which firmware it has", next_step="use BIOS",
            libvirt_code=error.get_error_code(), libvirt_message=error.get_error_message(),
        ) from error  # fmt: skip
    offered = ElementTree.fromstring(text).iterfind("os/enum[@name='firmware']/value")
    if "efi" not in [value.text for value in offered]:
        raise UnsupportedError("this host has no UEFI firmware", next_step="install the package ovmf, or use BIOS")


def _has(path: Path, offset: int, mark: bytes) -> bool:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(len(mark)) == mark
    except OSError as error:
        raise InvalidError(f"{path}: {error.strerror}", next_step="check the path") from error
