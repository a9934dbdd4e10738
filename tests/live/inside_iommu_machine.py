"""What runs inside the machine with an IOMMU (`iommu_machine`): libvirtd, and the operations on its PCI devices.

Prints one line of JSON a step; `test_control_node_devices` judges them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import libvirt

from exporter.control.errors import ControlError
from exporter.demonstration.private_hypervisor import QEMU_CONF
from tests.live.iommu_machine import ADDRESS, DEFAULT, DISK, FREE, OTHER, PAIRED, PORT, RESULT
from tests.live.operating import Operator

# The device as libvirt writes it in a guest's definition; taken from the host before, by us.
_HOLDER = """<domain type='qemu'><name>holder</name><memory unit='MiB'>16</memory>
<os><type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features><devices>
<controller type='usb' model='none'/><memballoon model='none'/>
<hostdev mode='subsystem' type='pci' managed='no'>
<source><address domain='0' bus='1' slot='0' function='0'/></source><rom enabled='no'/></hostdev>
</devices></domain>"""

_NETWORK = (
    "link set lo up", "link set eth0 up", "address add 192.0.2.5/24 dev eth0", "route add default via 192.0.2.1",
    "link set eth1 up", "address add 198.51.100.5/24 dev eth1",
)  # fmt: skip


def main() -> None:
    prepare()
    operator = Operator("qemu:///system", Path("/run/control"))
    for address in (DISK, DEFAULT, ADDRESS, PAIRED, PORT, FREE):
        tell(f"dry detach {address}", operator, "detach", address, dry=True)
    tell("show pair", operator, "show", PAIRED)
    tell("detach", operator, "detach", FREE)
    tell("detach again", operator, "detach", FREE)
    tell("reset", operator, "reset", FREE)
    guest = operator.executor.session.connection.createXML(_HOLDER, libvirt.VIR_DOMAIN_START_PAUSED)
    tell("show held", operator, "show", FREE)
    for verb in ("reattach", "reset"):
        tell(f"{verb} held", operator, verb, FREE)
    try:
        operator.dry("domain.migrate", "holder", to="there")
    except ControlError as error:
        report({"step": "migrate held", "error": type(error).__name__, "text": str(error)})
    guest.destroy()
    tell("reattach", operator, "reattach", FREE)
    tell_of_a_group_of_which_one_cannot_be_taken(operator)
    tell("detach group", operator, "detach", PAIRED, with_group=True)
    tell("reattach first", operator, "reattach", PAIRED)
    tell("reattach second", operator, "reattach", OTHER)
    report({"step": "trail", "events": operator.events(), "verified": operator.trail.verify()})


def tell_of_a_group_of_which_one_cannot_be_taken(operator: Operator) -> None:
    """The kernel takes no word about the second: the first is taken before that shows."""
    override = f"/sys/bus/pci/devices/{OTHER}/driver_override"
    subprocess.run(["mount", "--bind", "/dev/full", override], check=True)
    tell("detach broken group", operator, "detach", PAIRED, with_group=True)
    subprocess.run(["umount", override], check=True)
    tell("show other", operator, "show", OTHER)
    # What is missing of a group is taken, too.
    operator.executor.session.connection.nodeDeviceLookupByName(_name(PAIRED)).detachFlags(None, 0)
    tell("detach rest of group", operator, "detach", PAIRED, with_group=True)
    for address in (PAIRED, OTHER):
        tell(f"reattach rest {address}", operator, "reattach", address)


def prepare() -> None:
    """An address, a default route, a mounted disk; libvirtd."""
    for words in _NETWORK:
        subprocess.run(["ip", *words.split()], check=True)
    Path("/run/mounted").mkdir()
    subprocess.run(["mount", "-t", "ext4", "/dev/nvme0n1", "/run/mounted"], check=True)
    Path("/etc/libvirt/qemu.conf").write_text(QEMU_CONF)
    open_to_root = 'unix_sock_group = "root"\nauth_unix_ro = "none"\nauth_unix_rw = "none"\n'
    Path("/etc/libvirt/libvirtd.conf").write_text(open_to_root)
    subprocess.run(["libvirtd", "--daemon", "--pid-file", "/run/libvirtd.pid"], check=True)


def tell(step: str, operator: Operator, verb: str, address: str, dry: bool = False, **parameters: Any) -> None:
    """Does it, confirmed as libvirt names the device, and reports the answer or the refusal."""
    name = _name(address)
    done: dict[str, Any] = {"step": step}
    try:
        run = operator.dry if dry else operator
        result = run(f"nodedev.{verb}", name, **parameters)
        done |= {"changed": result.changed, "details": result.details, "after": result.after}
        done |= {"plan": result.plan.model_dump()} if result.plan else {}
    except ControlError as error:
        done |= {"error": type(error).__name__, "text": str(error)}
    driver = Path("/sys/bus/pci/devices") / address / "driver"
    report({**done, "driver": driver.resolve().name if driver.exists() else None})


def _name(address: str) -> str:
    return "pci_" + address.replace(":", "_").replace(".", "_")


def report(done: dict[str, Any]) -> None:
    sys.stdout.write(f"\n{RESULT}{json.dumps(done)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
