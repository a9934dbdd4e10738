"""Whether guests run under KVM here: believed only of a guest that has booted under it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from exporter.demonstration.errors import DemonstrationError
from exporter.demonstration.guest_definition import Accelerator, Guest
from exporter.demonstration.guest_image import GuestImage, lock_folder
from exporter.demonstration.private_hypervisor import PrivateHypervisor

KVM_DEVICE = Path("/dev/kvm")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
CPU_INFO = Path("/proc/cpuinfo")
TIMEOUT_S = 20.0


def accelerator(hypervisor: PrivateHypervisor, image: GuestImage, cache: Path) -> Accelerator:
    """`kvm` if a guest boots under it within 20 s, else `qemu` (software emulation).

    The answer is kept in `cache` until the next boot of this machine or another image. A KVM device alone proves
    nothing: where the processor offers no virtualisation, it is a software one, in which an ordinary
    Linux does not boot; elsewhere a nested one may hang, and finding that out takes the whole 20 s.
    """
    if not KVM_DEVICE.exists() or not processor_virtualises(CPU_INFO.read_text()):
        return "qemu"
    file = cache / "acceleration.json"
    # The KVM modules may change with a reboot; what the daemon was built with hardly matters.
    asked = {"boot": BOOT_ID.read_text().strip(), "image": image.digest}
    with lock_folder(cache):
        known = _read(file)
        if known.get("asked") == asked:
            return "kvm" if known.get("kvm") else "qemu"
        works = kvm_boots(hypervisor, image)
        file.write_text(json.dumps({"asked": asked, "kvm": works}))
    return "kvm" if works else "qemu"


def processor_virtualises(cpu_info: str) -> bool:
    """Whether /proc/cpuinfo, given as text, names Intel's (vmx) or AMD's (svm) virtualisation."""
    return re.search(r"^flags\s*:.*\b(vmx|svm)\b", cpu_info, re.MULTILINE) is not None


def kvm_boots(hypervisor: PrivateHypervisor, image: GuestImage, timeout_s: float = TIMEOUT_S) -> bool:
    """Start a guest under KVM and wait for it to report that it booted; it is removed again."""
    probe = Guest("virtgauge-kvm-probe", accelerator="kvm")
    try:
        console = hypervisor.start_guest(probe, image)
    except DemonstrationError:
        return False
    try:
        console.wait_ready(timeout_s)
    except DemonstrationError:
        return False
    finally:
        hypervisor.virsh("destroy", probe.name)
    return True


def _read(file: Path) -> dict[str, object]:
    try:
        known = json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
