"""A demonstration guest with Debian's own guest agent: qemu-ga and its libraries in a further archive of the
initial file system, beside what the agent looks at (a user logged in, a release, a program that shuts down)."""

from __future__ import annotations

import gzip
import re
import struct
from pathlib import Path

from exporter.control.seed import write_seed
from exporter.demonstration.guest_definition import Disk, Guest
from exporter.demonstration.guest_image import GuestImage
from exporter.demonstration.initramfs import Entry, write_newc
from exporter.demonstration.private_hypervisor import PrivateHypervisor
from exporter.demonstration.programs import find_program, run_program

HOSTNAME = "inside"
MOUNTPOINT = "/mnt"
_FOLDER, _PROGRAM, _FILE = 0o040755, 0o100755, 0o100644
_SHUTDOWN = b"""#!/bin/sh
echo "AGENT shutdown $*" > /dev/ttyS0
case "$*" in *-r*) reboot -f ;; *) poweroff -f ;; esac
"""
_RELEASE = b'ID=virtgauge\nNAME="virtgauge demonstration"\nVERSION_ID="7.2"\n'


def agent_image(image: GuestImage, folder: Path, *, without: str = "") -> GuestImage:
    """`image` with qemu-ga, written to `folder`; `without` is a command that it refuses."""
    files = {"usr/sbin/qemu-ga": (_PROGRAM, _program("qemu-ga"))}
    if without:
        refusing = f'#!/bin/sh\nexec /usr/sbin/qemu-ga.whole --block-rpcs={without} "$@"\n'.encode()
        files = {"usr/sbin/qemu-ga": (_PROGRAM, refusing), "usr/sbin/qemu-ga.whole": (_PROGRAM, _program("qemu-ga"))}
    for line in run_program(["ldd", find_program("qemu-ga")]).decode().splitlines():
        found = re.search(r"(/\S+) \(0x", line)
        if found:
            files[found[1].lstrip("/")] = (_PROGRAM, Path(found[1]).read_bytes())
    files["sbin/shutdown"] = (_PROGRAM, _SHUTDOWN)
    files["etc/os-release"] = (_FILE, _RELEASE)
    files["var/run/utmp"] = (_FILE, _logged_in("root", "ttyS0"))
    folders = {str(parent): None for name in files for parent in reversed(Path(name).parents) if str(parent) != "."}
    entries = [Entry(name, _FOLDER) for name in folders]
    entries += [Entry(name, mode, data) for name, (mode, data) in files.items()]
    whole = folder / "initramfs-with-agent"
    whole.write_bytes(image.initramfs.read_bytes() + gzip.compress(write_newc(entries), 1, mtime=0))
    return GuestImage(image.kernel, whole, f"{image.digest}-agent")


def agent_guest(hypervisor: PrivateHypervisor, name: str) -> Guest:
    """A guest whose agent runs, with a filesystem at MOUNTPOINT; for type qemu, since a Linux guest is to boot."""
    iso = hypervisor.folder / "images" / f"{name}-files.iso"
    if not iso.exists():
        write_seed(iso, "#cloud-config\n", name, name)
    orders = {"agent": "1", "hostname": HOSTNAME, "mount": "vda"}
    return Guest(name, accelerator="qemu", memory_mib=128, disks=(Disk(iso),), boot_orders=orders)


def _program(name: str) -> bytes:
    return Path(find_program(name)).read_bytes()


def _logged_in(user: str, line: str) -> bytes:
    """glibc's record of a login (struct utmpx on x86-64; USER_PROCESS is 7)."""
    return struct.pack("<hxxi32s4s32s256shhiii16s20x", 7, 1, line.encode(), b"S0", user.encode(), b"", 0, 0, 0, 1, 0,
                       b"")  # fmt: skip
