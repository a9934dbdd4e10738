"""A machine with an IOMMU, in software: Debian's kernel in a QEMU of its own, with Intel's VT-d and spare PCI devices.

Its root file system is this machine's own, read-only (virtiofs), so that libvirtd, QEMU and this project's Python run
inside as they are installed here; what they write goes to memory. Nothing of this machine's own devices is touched.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from exporter.demonstration.guest_image import cache_folder, lock_folder
from exporter.demonstration.guest_kernel import fetch_kernel
from exporter.demonstration.initramfs import build_initramfs
from exporter.demonstration.programs import find_program, run_program
from tests.samples import REPOSITORY

RESULT = "RESULT "
# The disk that is mounted inside; interfaces with the default route, with an address, two that share one IOMMU group,
# and a free one behind a port of its own, as a slot of a server's board has it.
DISK, DEFAULT, ADDRESS, PAIRED, OTHER, PORT, FREE = (
    "0000:00:10.0", "0000:00:11.0", "0000:00:12.0", "0000:00:13.0", "0000:00:13.1", "0000:00:14.0", "0000:01:00.0"
)  # fmt: skip
_MODULES = ("virtiofs", "vfio_iommu_type1", "vfio_pci", "tun")
_MEMORY_MIB = 1536
FIRST_RESULT_S = 240.0
"""Eight times what it takes on an idle machine of two cores."""
_IN_MEMORY = ("run", "var/lib/libvirt", "var/log/libvirt", "var/cache/libvirt", "etc/libvirt")
_KERNEL_WORDS = (
    "console=ttyS0 mitigations=off intel_iommu=on iommu=nopt panic=-1 random.trust_cpu=on no_timer_check"
    " cryptomgr.notests net.ifnames=0"
)
# The kernel tells its boot on the console, and then only what is grave: it would stand between the module's words.
_INIT = """#!/bin/sh
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "/modules/$module" 2>/dev/null; done < /modules/order
hostname inside
mkdir /new
mount -t virtiofs -o ro root /new
for folder in proc sys dev; do mount --move /$folder /new/$folder; done
for folder in {in_memory}; do mount -t tmpfs tmpfs /new/$folder; done
cd /new
echo 3 > /new/proc/sys/kernel/printk
chroot /new /usr/bin/env PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/run TMPDIR=/run PYTHONPATH={repository} \\
  {python} -B -m {module} > /new/dev/ttyS0 2>&1
poweroff -f
"""


def virtiofsd() -> str | None:
    """The program that shares a folder with a virtual machine; None where it is not installed."""
    folders = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/libexec", "/usr/lib/qemu"))
    return shutil.which("virtiofsd", path=folders)


def run_inside(module: str, timeout_s: float) -> dict[str, Any]:
    """Boots the machine, runs a Python module of this project in it as root; what it printed, by `step` (see `RESULT`).

    One that prints nothing for FIRST_RESULT_S hangs in its boot, which was seen once in some hundred boots: it is
    started anew, twice at most.  Fails with all of the console where it is not over in time, or printed nothing.
    """
    for _ in range(2):
        with contextlib.suppress(_SilentError):
            return _run_once(module, timeout_s)
    return _run_once(module, timeout_s)


class _SilentError(AssertionError):
    """The machine runs and the module in it has printed nothing."""


def _run_once(module: str, timeout_s: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="vg-iommu-", dir="/tmp") as name, contextlib.ExitStack() as ending:
        folder = Path(name)
        shared, console = folder / "shared.sock", folder / "console.log"
        server = [str(virtiofsd()), f"--socket-path={shared}", "-o", "source=/", "-o", "cache=always",
                  "-o", "sandbox=chroot"]  # fmt: skip
        ending.enter_context(_running(server, folder / "virtiofsd.log"))
        end_s = time.monotonic() + 15
        while not shared.exists():
            assert time.monotonic() < end_s, (folder / "virtiofsd.log").read_text()
            time.sleep(0.05)
        machine = ending.enter_context(_running(_command(folder, shared, console, module), folder / "qemu.log"))
        for until_s in (FIRST_RESULT_S, timeout_s - FIRST_RESULT_S):
            with contextlib.suppress(subprocess.TimeoutExpired):
                machine.wait(until_s)
            printed = console.read_text(errors="replace") if console.exists() else ""
            told = f"{printed}\n{(folder / 'qemu.log').read_text(errors='replace')}"
            if machine.returncode is None and RESULT not in printed:
                raise _SilentError(f"nothing was done in the machine within {until_s:g} s:\n{told}")
        assert machine.returncode == 0, f"the machine was not done within {timeout_s:g} s:\n{told}"
    lines = [json.loads(line.removeprefix(RESULT)) for line in printed.splitlines() if line.startswith(RESULT)]
    assert lines, told
    return {line["step"]: line for line in lines}


@contextlib.contextmanager
def _running(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _command(folder: Path, shared: Path, console: Path, module: str) -> list[str]:
    kernel, initramfs = _image(module)
    disk = folder / "disk.raw"
    with disk.open("xb") as file:
        file.truncate(16 << 20)
    run_program(["mkfs.ext4", "-q", str(disk)])
    nets = {"addr=0x11": 1, "addr=0x12": 2, "addr=0x13.0,multifunction=on": 3, "addr=0x13.1": 4, "bus=slot1": 5}
    words = [
        find_program("qemu-system-x86_64"), "-M", "q35", "-accel", "tcg,tb-size=256", "-cpu", "max",
        "-m", str(_MEMORY_MIB),
        "-object", f"memory-backend-memfd,id=memory,size={_MEMORY_MIB}M,share=on", "-numa", "node,memdev=memory",
        "-nodefaults", "-display", "none", "-no-reboot", "-serial", f"file:{console}",
        "-device", "intel-iommu,intremap=on,eim=off",
        "-chardev", f"socket,id=shared,path={shared}", "-device", "vhost-user-fs-pci,chardev=shared,tag=root",
        "-kernel", str(kernel), "-initrd", str(initramfs), "-append", _KERNEL_WORDS,
        "-drive", f"file={disk},format=raw,if=none,id=disk", "-device", "nvme,drive=disk,serial=disk,addr=0x10",
        "-device", "pcie-root-port,id=slot1,chassis=1,slot=1,addr=0x14",
    ]  # fmt: skip
    for place, number in nets.items():
        words += ["-netdev", f"hubport,id=net{number},hubid={number}"]
        words += ["-device", f"virtio-net-pci,netdev=net{number},romfile=,{place}"]
    return words


def _image(module: str) -> tuple[Path, Path]:
    """The kernel and its first file system, built once and kept in the cache."""
    init = _INIT.format(in_memory=" ".join(_IN_MEMORY), repository=REPOSITORY, python=sys.executable, module=module)
    busybox = Path(find_program("busybox")).read_bytes()
    digest = hashlib.sha256(b"\0".join((repr(_MODULES).encode(), init.encode(), busybox))).hexdigest()[:16]
    folder = cache_folder() / f"iommu-{digest}"
    kernel, initramfs = folder / "kernel", folder / "initramfs"
    with lock_folder(cache_folder()):
        if not initramfs.exists():
            fetched = fetch_kernel(_MODULES)
            applets = run_program(["busybox", "--list"]).decode().split()
            folder.mkdir(exist_ok=True)
            kernel.write_bytes(fetched.image)
            part = initramfs.with_suffix(".new")
            part.write_bytes(build_initramfs(busybox, applets, fetched.modules, init.encode()))
            part.rename(initramfs)
    return kernel, initramfs
