"""The demonstration hypervisor: it works, its guests do what they are told, and nothing of it stays behind."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import libvirt
import pytest

from exporter.demonstration.acceleration import kvm_boots, processor_virtualises
from exporter.demonstration.errors import DemonstrationError
from exporter.demonstration.guest_console import GuestConsole
from exporter.demonstration.guest_definition import Guest, disk_xml, interface_xml
from exporter.demonstration.guest_image import GuestImage
from exporter.demonstration.private_hypervisor import PrivateHypervisor
from exporter.demonstration.private_namespaces import BRIDGE_ADDRESS, BRIDGE_MAC
from tests.live.servers import free_port

SYSTEM_FOLDERS = tuple(map(Path, ("/run/libvirt", "/var/lib/libvirt", "/var/cache/libvirt", "/etc/libvirt")))


@contextmanager
def opened(uri: str, *, read_only: bool = True) -> Iterator[Any]:
    connection = libvirt.openReadOnly(uri) if read_only else libvirt.open(uri)
    try:
        yield connection
    finally:
        connection.close()


def statistics(hypervisor: PrivateHypervisor, name: str) -> dict[str, Any]:
    with opened(hypervisor.read_only_uri) as connection:
        found: dict[str, Any] = connection.domainListGetStats([connection.lookupByName(name)], 0)[0][1]
    return found


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def wait_until_gone(pids: list[int], timeout_s: float = 10.0) -> list[int]:
    deadline = time.monotonic() + timeout_s
    while (left := [pid for pid in pids if alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def system_libvirt() -> set[str]:
    """The paths in the system libvirt's folders, as the outside sees them."""
    return {str(path) for folder in SYSTEM_FOLDERS if folder.exists() for path in (folder, *folder.rglob("*"))}


def mounts() -> set[str]:
    return set(Path("/proc/self/mountinfo").read_text().splitlines())


def links() -> set[str]:
    return set(os.listdir("/sys/class/net"))


def test_statistics_over_the_read_only_socket(hypervisor: PrivateHypervisor, load_guest: GuestConsole) -> None:
    found = statistics(hypervisor, load_guest.name)
    assert found["block.0.name"] == "vda"
    assert found["net.0.name"].startswith("vnet")
    assert found["balloon.available"] > 0
    assert found["vcpu.0.time"] > 0
    with opened(hypervisor.read_only_uri) as connection:
        domain = connection.lookupByName(load_guest.name)
        with pytest.raises(libvirt.libvirtError, match="read only"):
            domain.destroy()


def test_the_read_only_socket_is_for_every_user(hypervisor: PrivateHypervisor) -> None:
    folder = hypervisor.folder / "run"
    assert stat.S_IMODE((folder / "libvirt-sock-ro").stat().st_mode) == 0o777
    assert stat.S_IMODE((folder / "libvirt-sock").stat().st_mode) == 0o700
    asked = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    subprocess.run([*asked, "virsh", "-r", "-c", hypervisor.read_only_uri, "list"], check=True, capture_output=True)


def test_orders_are_counted_exactly(hypervisor: PrivateHypervisor, load_guest: GuestConsole) -> None:
    assert load_guest.order("idle").status == 0
    before = statistics(hypervisor, load_guest.name)
    for order in ("write 10485760", "read 1048576 4096", f"ping {BRIDGE_ADDRESS} {BRIDGE_MAC} 20 1000"):
        answer = load_guest.order(order)
        assert answer.status == 0, answer
    after = statistics(hypervisor, load_guest.name)
    grown = {
        key: after[key] - before[key]
        for key in after
        if key.startswith(("block.0.", "net.0.")) and isinstance(after[key], int)
    }
    assert (grown["block.0.wr.bytes"], grown["block.0.wr.reqs"]) == (10485760, 160)
    assert (grown["block.0.rd.bytes"], grown["block.0.rd.reqs"]) == (1048576, 256)
    assert (grown["net.0.tx.pkts"], grown["net.0.tx.bytes"]) == (20, 20 * 1042)
    assert (grown["net.0.rx.pkts"], grown["net.0.rx.bytes"]) == (20, 20 * 1042)


def test_an_unknown_order_is_answered(load_guest: GuestConsole) -> None:
    assert load_guest.order("nonsense").status == 127


def test_devices_are_plugged_and_unplugged(hypervisor: PrivateHypervisor, load_guest: GuestConsole) -> None:
    disk = disk_xml(hypervisor.new_disk(load_guest.name, 1 << 20, "vdb"))
    interface = interface_xml(hypervisor.new_interface())
    with opened(hypervisor.uri, read_only=False) as connection:
        domain = connection.lookupByName(load_guest.name)
        for device in (disk, interface):
            domain.attachDevice(device)
        plugged = statistics(hypervisor, load_guest.name)
        assert (plugged["block.count"], plugged["net.count"]) == (2, 2)
        deadline = time.monotonic() + 60
        while load_guest.order("read 4096 4096 vdb").status != 0:  # the guest still takes the device in
            assert time.monotonic() < deadline, "the guest did not take the disk in"
            time.sleep(0.5)
        for device in (disk, interface):
            domain.detachDevice(device)
        while time.monotonic() < deadline:
            left = statistics(hypervisor, load_guest.name)
            if (left["block.count"], left["net.count"]) == (1, 1):
                return
            time.sleep(0.2)
    pytest.fail("the guest did not let go of the devices")


def test_guests_outlive_their_daemon(fresh_hypervisor: PrivateHypervisor, image: GuestImage) -> None:
    fresh_hypervisor.start_guest(Guest("survivor"), image)
    qemu, daemon = fresh_hypervisor.qemu_pid("survivor"), fresh_hypervisor.daemon_pid
    fresh_hypervisor.kill_daemon()
    assert alive(qemu)
    fresh_hypervisor.start_daemon()
    assert fresh_hypervisor.daemon_pid != daemon
    assert fresh_hypervisor.qemu_pid("survivor") == qemu
    assert "survivor" in fresh_hypervisor.virsh("list", "--name")
    fresh_hypervisor.stop_daemon()
    fresh_hypervisor.start_daemon()
    os.kill(qemu, signal.SIGKILL)
    assert wait_until_gone([qemu]) == []
    deadline = time.monotonic() + 10
    while "survivor" in fresh_hypervisor.virsh("list", "--name") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "survivor" not in fresh_hypervisor.virsh("list", "--name")


def test_nothing_stays_behind_and_the_system_is_untouched(image: GuestImage) -> None:
    before = (system_libvirt(), mounts(), links())
    with PrivateHypervisor() as first, PrivateHypervisor() as second:
        for private in (first, second):
            private.start_guest(Guest("short", interfaces=(private.new_interface(),)), image)
        assert first.uri != second.uri
        os.kill(first.qemu_pid("short"), signal.SIGSTOP)
        pids = [process.pid for private in (first, second) for process in private.processes()]
        assert len(pids) >= 6
        assert (system_libvirt(), mounts(), links()) == before
        folders = (first.folder, second.folder)
    assert wait_until_gone(pids) == []
    assert not any(folder.exists() for folder in folders)
    assert (system_libvirt(), mounts(), links()) == before


def test_everything_ends_with_a_killed_starter() -> None:
    program = (
        "import sys, time\n"
        "from exporter.demonstration.private_hypervisor import PrivateHypervisor\n"
        "private = PrivateHypervisor()\n"
        "private.start()\n"
        "print(private.folder, *(process.pid for process in private.processes()), flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        folder, *pids = starter.stdout.readline().split()
        starter.kill()
    left = wait_until_gone([int(pid) for pid in pids])
    subprocess.run(["rm", "-r", folder], check=True)
    assert len(pids) >= 2
    assert left == []


def test_kvm_is_not_believed_of_a_guest_that_does_not_report(hypervisor: PrivateHypervisor, image: GuestImage) -> None:
    assert not kvm_boots(hypervisor, image, timeout_s=0.2)
    assert "probe" not in hypervisor.virsh("list", "--name")


def test_a_processor_without_virtualisation_is_told_by_its_flags() -> None:
    assert processor_virtualises("processor : 0\nflags\t\t: fpu vme svm sse\n")
    assert not processor_virtualises("processor : 0\nmodel name : vmx 1\nflags\t\t: fpu vme sse\n")


def test_a_guest_that_cannot_start_is_an_error(hypervisor: PrivateHypervisor, image: GuestImage) -> None:
    missing = hypervisor.new_disk("broken", 4096)
    missing.file.unlink()
    with pytest.raises(DemonstrationError, match=missing.file.name):
        hypervisor.start_guest(Guest("broken", disks=(missing,)), image)


def test_a_silent_guest_is_an_error(hypervisor: PrivateHypervisor) -> None:
    with pytest.raises(DemonstrationError, match="guest nobody was not ready"):
        hypervisor.console("nobody").wait_ready(timeout_s=0.2)
    with pytest.raises(DemonstrationError, match="guest nobody did not carry out 'cpu 1'"):
        hypervisor.console("nobody").order("cpu 1")


def test_a_folder_that_is_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DemonstrationError, match="is not empty"):
        PrivateHypervisor(tmp_path).start()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_make_run_watches_three_guests_and_ends_all_it_started(number: signal.Signals, image: GuestImage) -> None:
    port = free_port()
    flags = ["--demonstration", f"--web.listen-address=127.0.0.1:{port}"]
    command = [sys.executable, "-m", "exporter.demonstration", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        line = program.stdout.readline()
        pids = descendants(program.pid)
        program.send_signal(number)
        status = program.wait(15)
    assert line.startswith("virtgauge: watching the demonstration hypervisor (3 guests, ")
    assert line.endswith(f"; open http://127.0.0.1:{port}/\n")
    assert len(pids) >= 3
    assert wait_until_gone(pids) == []
    assert status == 0


def descendants(pid: int) -> list[int]:
    """Every process below `pid`; in a private hypervisor, orphans are below process 1 of its namespace."""
    children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [grandchild for child in children for grandchild in descendants(child)]
