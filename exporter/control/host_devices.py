"""What this host itself does with a PCI device: disks, interfaces, IOMMU group. Read from the kernel's files.

A device that the host uses must not be taken from it: with the disk of the root file system or the interface of the
default route the host itself is gone. Pure reading; any thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from exporter.control.own_connectivity import HostNetwork

# Drivers that hold a device for guests and do nothing with it themselves.
FOR_GUESTS = frozenset(("vfio-pci", "pci-stub", "xen-pciback"))
_BRIDGE_CLASS = "0x06"


@dataclass(frozen=True)
class HostDevices:
    """The host's PCI devices as the kernel shows them. `root` is `/` except in tests."""

    root: Path = Path("/")

    def driver(self, address: str) -> str | None:
        """The driver that is bound to it; None where there is none."""
        link = self._folder(address) / "driver"
        return os.path.basename(os.readlink(link)) if link.is_symlink() else None

    def group(self, address: str) -> int | None:
        """Its IOMMU group; None where the kernel uses no IOMMU."""
        link = self._folder(address) / "iommu_group"
        name = os.path.basename(os.readlink(link)) if link.is_symlink() else ""
        return int(name) if name.isdecimal() else None

    def group_members(self, address: str) -> list[str]:
        """The other devices of its group that a guest could have; bridges are left out, they stay with the host."""
        folder = self._folder(address) / "iommu_group/devices"
        found = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
        return [other for other in found if other != address and not self.is_bridge(other)]

    def is_bridge(self, address: str) -> bool:
        """Whether it is a bridge (PCI class 06), behind which other devices are."""
        return _text(self._folder(address) / "class").startswith(_BRIDGE_CLASS)

    def what_is_there(self, address: str) -> list[str]:
        """What the host has by it and would lose: `interface eth1`, `disk sdb`."""
        disks = [name for name in self.disks(address) if not (self._class("block", name) / "partition").exists()]
        return [*(f"interface {name}" for name in self.interfaces(address)), *(f"disk {name}" for name in disks)]

    def uses(self, address: str) -> list[str]:
        """What the host does with it, one sentence each; empty where it could be taken away."""
        found = [use for name in self.interfaces(address) for use in self._interface_uses(name)]
        found += [use for name in self.disks(address) for use in self._disk_uses(name)]
        functions = _text(self._folder(address) / "sriov_numvfs")
        if functions.isdecimal() and int(functions):
            found.append(f"it has {functions} virtual functions, which would vanish")
        if _text(self._folder(address) / "boot_vga") == "1" and self.driver(address) not in (None, *FOR_GUESTS):
            found.append("it is the host's own display")
        return found

    def interfaces(self, address: str) -> list[str]:
        """The network interfaces on it."""
        return self._below(address, "net")

    def disks(self, address: str) -> list[str]:
        """The block devices on it, partitions too."""
        return self._below(address, "block")

    def _folder(self, address: str) -> Path:
        return self.root / "sys/bus/pci/devices" / address

    def _below(self, address: str, kind: str) -> list[str]:
        place = os.path.realpath(self._folder(address)) + "/"
        links = self.root / "sys/class" / kind
        found = links.iterdir() if links.is_dir() else iter(())
        return sorted(link.name for link in found if os.path.realpath(link).startswith(place))

    def _interface_uses(self, name: str) -> Iterator[str]:
        network = HostNetwork(self.root)
        addresses = network.addresses(name)
        if addresses:
            yield f"interface {name} has the address {addresses[0]}"
        if name in network.below(network.default_route()):
            yield f"interface {name} carries the host's default route"
        above = sorted(entry.name.removeprefix("upper_") for entry in self._class("net", name).glob("upper_*"))
        if above:
            yield f"interface {name} is part of {', '.join(above)}"

    def _disk_uses(self, name: str) -> Iterator[str]:
        for disk in self._with_holders(name):
            by = "" if disk == name else f" (by {disk})"
            for point in self._mounts(disk):
                yield f"disk {name} is mounted on {point}{by}"
            if self._is_swap(disk):
                yield f"disk {name} is swap space{by}"
        holders = self._holders(name)
        if holders:
            yield f"disk {name} is held by {', '.join(holders)}"
        elif self._is_busy(name):
            yield f"disk {name} is in use by the kernel"

    def _with_holders(self, name: str) -> Iterator[str]:
        """It, and what stands on top of it (LVM, RAID, encryption), all the way up."""
        waiting, seen = [name], set()
        while waiting:
            disk = waiting.pop()
            if disk not in seen:
                seen.add(disk)
                yield disk
                waiting += self._holders(disk)

    def _holders(self, name: str) -> list[str]:
        folder = self._class("block", name) / "holders"
        return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []

    def _mounts(self, disk: str) -> list[str]:
        """Where it is mounted: by its number, and by its name, since btrfs has numbers of its own."""
        number = _text(self._class("block", disk) / "dev")
        found = []
        for line in _text(self.root / "proc/self/mountinfo").splitlines():
            fields, _, rest = line.partition(" - ")
            source = rest.split()[1] if len(rest.split()) > 1 else ""
            if fields.split()[2] == number or os.path.basename(os.path.realpath(source)) == disk:
                found.append(fields.split()[4])
        return found

    def _is_swap(self, disk: str) -> bool:
        lines = _text(self.root / "proc/swaps").splitlines()[1:]
        return any(os.path.basename(os.path.realpath(line.split()[0])) == disk for line in lines if line.split())

    def _is_busy(self, disk: str) -> bool:
        """Whether the kernel lets nobody have it alone: open(2), O_EXCL on a block device. ZFS shows only so."""
        try:
            os.close(os.open(self.root / "dev" / disk, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC))
        except OSError as error:
            return error.errno == errno.EBUSY
        return False

    def _class(self, kind: str, name: str) -> Path:
        return self.root / "sys/class" / kind / name


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="surrogateescape").strip()
    return ""
