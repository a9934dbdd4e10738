"""Many tiny real guests on a private hypervisor: they start in half a second and run a few instructions for ever.

Their firmware is 64 KiB whose reset vector halts or spins, so there is no BIOS, disk or timer at work; libvirt and
QEMU give the full set of statistics of them all the same.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import libvirt

from exporter.demonstration.private_hypervisor import PrivateHypervisor

_HALT, _SPIN = b"\xfa\xf4\xeb\xfd", b"\xfa\xeb\xfe"  # cli; hlt; jmp -1 and cli; jmp $
_DISK_BYTES = 1 << 20


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 30.0, every_s: float = 0.1) -> float:
    """Poll until the condition holds; the seconds it took.  Fails with ``what`` after ``timeout_s``."""
    start_s = time.monotonic()
    while not condition():
        assert time.monotonic() - start_s < timeout_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(every_s)
    return time.monotonic() - start_s


def firmware(spin: bool) -> bytes:
    image = bytearray(b"\xf4" * 65536)
    code = _SPIN if spin else _HALT
    image[0xFFF0:0xFFF0 + len(code)] = code
    return bytes(image)


class Fleet:
    """Tiny guests, by name.  Ends none of them by itself: they end with their hypervisor."""

    def __init__(self, hypervisor: PrivateHypervisor) -> None:
        self.hypervisor = hypervisor
        self._lock = threading.Lock()
        for spin in (False, True):
            self._rom(spin).write_bytes(firmware(spin))
        with self.connected() as connection:
            self.kind = "kvm" if "<domain type='kvm'" in connection.getCapabilities() and os.access(
                "/dev/kvm", os.R_OK | os.W_OK) else "qemu"

    @contextmanager
    def connected(self) -> Iterator[Any]:
        """A read-write connection of its own."""
        connection = libvirt.open(self.hypervisor.uri)
        try:
            yield connection
        finally:
            connection.close()

    def xml(self, name: str, spin: bool = False, vcpus: int = 1, disks: int = 1) -> str:
        """The definition of a guest with ``disks`` disks (vda, ...) and a tap without a bridge."""
        disk_files = [self._disk(name, f"vd{chr(97 + at)}") for at in range(disks)]
        return (f"<domain type='{self.kind}'><name>{name}</name><memory unit='MiB'>32</memory>"
                f"<vcpu current='{vcpus}'>{max(vcpus, 2)}</vcpu>"
                "<os><type arch='x86_64' machine='pc'>hvm</type>"
                f"<loader readonly='yes' type='rom'>{self._rom(spin)}</loader></os><features><acpi/></features>"
                "<devices><controller type='usb' model='none'/>"
                + "".join(disk_xml(file, file.stem.rpartition("-")[2]) for file in disk_files)
                + "<interface type='ethernet'><model type='virtio'/><rom enabled='no'/></interface>"
                "<memballoon model='virtio'/></devices></domain>")

    def start(self, names: Iterable[str], spin: Iterable[str] = ()) -> None:
        """Create transient guests, two at a time."""
        spinning = set(spin)

        def create(name: str) -> None:
            with self.connected() as connection:
                connection.createXML(self.xml(name, name in spinning), 0)

        with ThreadPoolExecutor(2) as threads:
            list(threads.map(create, names))

    def end(self, names: Iterable[str]) -> None:
        """Destroy guests; those that are gone already are no error."""
        with self.connected() as connection:
            for name in names:
                try:
                    connection.lookupByName(name).destroy()
                except libvirt.libvirtError as error:
                    if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                        raise

    def pid(self, name: str) -> int:
        return self.hypervisor.qemu_pid(name)

    @contextmanager
    def hung(self, names: Iterable[str]) -> Iterator[None]:
        """The guests' QEMUs stopped for the time of the block."""
        pids = [self.pid(name) for name in names]
        try:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGCONT)
                except ProcessLookupError:
                    continue

    def _rom(self, spin: bool) -> Path:
        return self.hypervisor.folder / "images" / ("spin.rom" if spin else "halt.rom")

    def _disk(self, name: str, target: str) -> Path:
        file = self.hypervisor.folder / "images" / f"{name}-{target}.raw"
        with file.open("wb") as image:
            image.truncate(_DISK_BYTES)
        return file


def disk_xml(file: Path, target: str) -> str:
    return (f"<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{file}'/>"
            f"<target dev='{target}' bus='virtio'/></disk>")
