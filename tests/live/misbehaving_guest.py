"""A real Linux guest that misbehaves when it is told to, the way guests do.

Its disk `vda` lies on the private hypervisor's disk, `vdb` on a file system that is smaller than the disk: writing
to it pauses the guest with ENOSPC, until `make_room`. A panic reaches libvirt through its pvpanic device; its QEMU is
kept, as `on_crash` preserve says. It holds memory on order, and its balloon is below its maximum.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any

import libvirt

from exporter.demonstration.guest_console import GuestConsole
from exporter.demonstration.guest_definition import Accelerator, Disk, Guest
from exporter.demonstration.guest_image import GuestImage
from exporter.demonstration.private_hypervisor import PrivateHypervisor
from tests.live.operating import eventually

DISK_BYTES = 32 << 20
ROOM_BYTES = 4 << 20
MAXIMUM_MIB, CURRENT_MIB = 192, 128


class MisbehavingGuest:
    """A persistent guest, from start() to stop(). One thread."""

    def __init__(self, hypervisor: PrivateHypervisor, name: str, image: GuestImage, accelerator: Accelerator) -> None:
        self.name = name
        self._hypervisor = hypervisor
        self._folder = hypervisor.folder / "images" / f"{name}-small"
        self._folder.mkdir()
        # Mounted inside the hypervisor's namespaces, where QEMU is; it goes with them.
        hypervisor.run("mount", "-t", "tmpfs", "-o", f"size={ROOM_BYTES}", "small", str(self._folder))
        small = self._folder / "vdb.raw"
        hypervisor.run("truncate", "-s", str(DISK_BYTES), str(small))
        disks = (hypervisor.new_disk(name, DISK_BYTES), Disk(small, "vdb"))
        guest = Guest(name, accelerator=accelerator, memory_mib=MAXIMUM_MIB, disks=disks)
        xml = hypervisor.definition(guest, image)
        for old, new in (
            ("<on_crash>destroy<", "<on_crash>preserve<"),
            ("</memory>", f"</memory><currentMemory unit='MiB'>{CURRENT_MIB}</currentMemory>"),
        ):
            assert old in xml
            xml = xml.replace(old, new)
        self._connection = libvirt.open(hypervisor.uri)
        self._domain: Any = self._connection.defineXML(xml)
        self.uuid: str = self._domain.UUIDString()
        self.console: GuestConsole = hypervisor.console(name)

    def start(self) -> None:
        """Boots it and waits until it takes orders."""
        self._domain.create()
        self.console.wait_ready()

    def stop(self) -> None:
        """Ends and undefines it, whatever state it is in."""
        if self._domain.isActive():
            self._domain.destroy()
        self._domain.undefine()
        self._connection.close()
        self._hypervisor.run("umount", "--lazy", str(self._folder))

    def state(self) -> tuple[int, int]:
        """libvirt's numbers of its state and the reason."""
        state, reason = self._domain.state()
        return state, reason

    def is_running(self) -> bool:
        return self.state()[0] == libvirt.VIR_DOMAIN_RUNNING

    def describes(self) -> str:
        """Everything of it that control could have changed: state, id, live and persistent configuration."""
        active = self._domain.isActive()
        live = self._domain.XMLDesc() if active else ""
        return f"{self.state()} {self._domain.ID()}\n{live}\n{self._domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)}"

    # How it misbehaves

    def fill_storage(self) -> None:
        """Writes more than there is room for; returns when libvirt has paused it."""
        self._say(f"write {ROOM_BYTES * 2} 65536 vdb")
        eventually(lambda: self.state() == (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR),
                  "paused by an I/O error")

    def make_room(self) -> None:
        """The storage grows, so that the write it stands at succeeds once it is resumed."""
        self._hypervisor.run("mount", "-o", f"remount,size={DISK_BYTES * 2}", str(self._folder))

    def take_room(self) -> None:
        """The storage is small again, and the disk's file empty."""
        self._hypervisor.run("fallocate", "--punch-hole", "--offset", "0", "--length", str(DISK_BYTES),
                             str(self._folder / "vdb.raw"))
        self._hypervisor.run("mount", "-o", f"remount,size={ROOM_BYTES}", str(self._folder))

    def panic(self) -> None:
        """Its kernel panics; returns when libvirt knows."""
        self._say("panic")
        eventually(lambda: self.state()[0] == libvirt.VIR_DOMAIN_CRASHED, "crashed")

    def hold_memory(self, mib: int) -> None:
        """Holds so much more memory; 0 lets go."""
        answer = self.console.order(f"mem {mib}")
        assert answer.status == 0, answer

    def write_steadily(self, bytes_per_second: int) -> None:
        """Writes to vda from now on; 0 stops."""
        answer = self.console.order(f"wrate {bytes_per_second}")
        assert answer.status == 0, answer

    def iotune(self) -> dict[str, int]:
        """The limits of vda that are not zero."""
        limits = self._domain.blockIoTune("vda")
        return {name: value for name, value in limits.items() if value and name != "group_name"}

    def balloon_mib(self) -> int:
        """The memory that it has now."""
        return int(self._domain.info()[2]) // 1024

    def _say(self, order: str) -> None:
        """An order whose answer may never come: what the guest does then is seen in libvirt."""
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(10)
            line.connect(str(self.console.files.socket))
            line.sendall(order.encode() + b"\n")
            line.settimeout(1)  # open until the guest has read it
            with contextlib.suppress(TimeoutError):
                line.recv(4096)
