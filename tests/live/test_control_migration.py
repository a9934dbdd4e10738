"""Guests moved between two real daemons, each way; what stands against it; and what becomes of a guest on the way.

Everywhere: the guest is never lost, and its CPUs run on exactly one host.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import libvirt
import pytest

from exporter.control.destinations import Destination
from exporter.control.errors import (
    BusyError,
    ControlError,
    InvalidError,
    NotFoundError,
    RefusedError,
    TimedOutError,
    UnconfirmedError,
    UnreachableError,
)
from exporter.control.executor import Actor, Request
from exporter.control.migration_checks import check_cpu, free_memory_bytes, refuse_without_memory
from exporter.control.operation import Progress
from tests.live.host_pair import LINE, HostPair, define_on, host_pair
from tests.live.operating import OPERATIONS, Operator, eventually
from tests.live.sector_guests import SectorGuest, dirtying, pattern, saying

# The guest writes faster than that, so that it goes on until it is stopped.
ENDLESS: dict[str, Any] = {
    "to": "there", "shared_disk": ["hda"], "bandwidth_mib_per_second": 1, "max_downtime_s": 0.01, "within_s": 60
}  # fmt: skip


@pytest.fixture(scope="module")
def pair() -> Iterator[HostPair]:
    with host_pair() as pair:
        yield pair


@pytest.fixture
def here(pair: HostPair, tmp_path: Path) -> Iterator[Operator]:
    """Acts on the source; knows the destination, the source itself, and one that nothing listens on."""
    nowhere = Destination("nowhere", f"qemu+unix:///system?socket={tmp_path}/nothing")
    operator = Operator(pair.here.uri, tmp_path / "here", (), (pair.to_there, pair.to_here, nowhere))
    yield operator
    operator.close()


@pytest.fixture
def there(pair: HostPair, tmp_path: Path) -> Iterator[Operator]:
    operator = Operator(pair.there.uri, tmp_path / "there", (), (pair.to_here,))
    yield operator
    operator.close()


@pytest.fixture(scope="module")
def traveller(pair: HostPair) -> Iterator[SectorGuest]:
    """A guest whose memory holds a pattern that it keeps checking; it is wherever the last test left it."""
    guest = define_on(pair.here, "traveller", pattern())
    pair.here.virsh("start", guest.name)
    yield guest
    pair.remove(guest.uuid)


@pytest.fixture
def busy(pair: HostPair, here: Operator) -> Iterator[SectorGuest]:
    """A guest on the source that writes to its memory without a pause."""
    guest = define_on(pair.here, "busy", dirtying())
    here("domain.start", "busy")
    eventually(guest.said, "the guest's first word")
    yield guest
    pair.remove(guest.uuid)


def checks(guest: SectorGuest) -> int:
    said = guest.said()
    assert "PATTERN BAD" not in said, "the guest's memory was damaged on the way"
    return len(re.findall(r"PATTERN OK", said))


def goes_on(guest: SectorGuest) -> None:
    before = len(guest.said())
    eventually(lambda: len(guest.said()) > before, f"a word of {guest.name}")


WAYS: dict[str, dict[str, Any]] = {
    "direct": {},
    "peer-to-peer": {"transport": "peer-to-peer"},
    "tunnelled": {"transport": "tunnelled"},
    "paused": {"mode": "paused"},
    "convergence": {
        "auto_converge": True, "auto_converge_initial_percent": 30, "auto_converge_step_percent": 20,
        "compression": "xbzrle", "bandwidth_mib_per_second": 100, "max_downtime_s": 0.5,
    },
    "parallel": {"parallel_connections": 2},
    "renamed": {"new_name": "voyager"},
    "renamed back": {"new_name": "traveller"},
    "definition kept": {"keep_source": True},
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_each_way(pair: HostPair, here: Operator, there: Operator, traveller: SectorGuest, way: str) -> None:
    (at,) = pair.running_on(traveller.uuid)
    operator, goal = (here, "there") if at == "here" else (there, "here")
    eventually(lambda: checks(traveller) > 2, "the guest's first checks")
    name = operator("domain.show", traveller.uuid).subject["name"]
    # The disk is the same file for both hosts; that cannot be seen, so it is said, and confirmed by the name.
    moved = operator("domain.migrate", name, to=goal, shared_disk=["hda"], **WAYS[way])
    assert pair.running_on(traveller.uuid) == [goal]
    assert moved.after["state"] == "running"
    assert (moved.after["host"], moved.details["runs_on"]) == (goal, goal)
    assert moved.after["name"] == WAYS[way].get("new_name", name)
    assert moved.details["memory_total_bytes"] > 16 << 20
    assert moved.details["downtime_s"] < 30
    assert pair.defined_on(traveller.uuid) == (["here", "there"] if way == "definition kept" else [goal])
    before = checks(traveller)
    eventually(lambda: checks(traveller) > before + 2, "checks on the destination")
    assert operator.events()[-2:] == ["begin", "end"]
    operator.trail.verify()


def test_a_suspended_guest_arrives_suspended(pair: HostPair, here: Operator) -> None:
    guest = define_on(pair.here, "still", saying("UP"))
    try:
        here("domain.start", "still")
        here("domain.suspend", "still")
        assert here("domain.migrate", "still", to="there", shared_disk=["hda"]).after["state"] == "paused"
        assert (pair.defined_on(guest.uuid), pair.running_on(guest.uuid)) == (["there"], [])
    finally:
        pair.remove(guest.uuid)


def test_a_definition_alone(pair: HostPair, here: Operator) -> None:
    guest = define_on(pair.here, "paper", saying("UP"))
    try:
        copied = here("domain.migrate", "paper", to="there", shared_disk=["hda"], mode="offline", keep_source=True)
        assert pair.defined_on(guest.uuid) == ["here", "there"]
        assert any("one of the two hosts only" in warning for warning in copied.warnings)
        here("domain.migrate", "paper", to="there", shared_disk=["hda"], mode="offline")
        assert pair.defined_on(guest.uuid) == ["there"]
    finally:
        pair.remove(guest.uuid)


def test_a_local_disk_is_refused_and_copied_along(pair: HostPair, here: Operator) -> None:
    """libvirt's own folder is another one on each host: the disk's content must arrive there."""
    inside = "/var/lib/libvirt/images/local.raw"
    template = str(pair.here.folder / "images" / "local.raw")
    guest = define_on(pair.here, "local", pattern(), (template, inside))
    outside = pair.here.folder / "lib" / "images" / "local.raw"
    outside.write_bytes(guest.disk.read_bytes()[:512] + b"known content".ljust(1 << 20, b"."))
    pair.there.virsh("pool-create-as", "images", "dir", "--target", "/var/lib/libvirt/images")
    try:
        here("domain.start", "local")
        with pytest.raises(RefusedError, match=r"would lose its local disk hda \(/var/lib/libvirt/images/local.raw"):
            here("domain.migrate", "local", to="there")
        with pytest.raises(InvalidError, match="no writable disk 'vdz'"):
            here("domain.migrate", "local", to="there", copy_storage="full", copy_disk=["vdz"])
        plan = here.dry("domain.migrate", "local", to="there", copy_storage="full").plan
        assert plan is not None
        assert (plan.lost, "copy disk hda" in plan.steps[1]) == ([], True)
        here("domain.migrate", "local", to="there", copy_storage="full")
        assert pair.running_on(guest.uuid) == ["there"]
        arrived = pair.there.folder / "lib" / "images" / "local.raw"
        assert arrived.read_bytes() == outside.read_bytes()
        goes_on(guest)
        # Back again it would overwrite the file that was left behind, and that must be said and confirmed.
        pair.here.virsh("pool-create-as", "images", "dir", "--target", "/var/lib/libvirt/images")
        back = Operator(pair.there.uri, here.folders.state / "back", (), (pair.to_here,))
        asked = {"to": "here", "copy_storage": "full"}
        with pytest.raises(UnconfirmedError):
            back.run("domain.migrate", "local", asked, Request(Actor("tester", "api")))
        assert back("domain.migrate", "local", **asked).changed
        back.close()
    finally:
        pair.remove(guest.uuid)
        for host in (pair.here, pair.there):
            with contextlib.suppress(Exception):
                host.virsh("pool-destroy", "images")


def test_only_what_differs_from_a_base_on_both_hosts_is_copied(pair: HostPair, here: Operator) -> None:
    inside, base = "/var/lib/libvirt/images/layered.qcow2", "/var/lib/libvirt/images/base.raw"
    raw = f'type="raw" /><source file="{pair.here.folder}/images/layered.raw"'
    guest = define_on(pair.here, "layered", pattern(), (raw, f'type="qcow2" /><source file="{inside}"'))
    folders = [host.folder / "lib" / "images" for host in (pair.here, pair.there)]
    for host, folder in zip((pair.here, pair.there), folders, strict=True):
        (folder / "base.raw").write_bytes(guest.disk.read_bytes()[:512].ljust(4 << 20, b"\xcd"))
        host.virsh("pool-create-as", "images", "dir", "--target", "/var/lib/libvirt/images")
    pair.here.run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, inside)
    pair.here.run("qemu-io", "-c", "write -P 0xab 1M 64k", inside)
    try:
        here("domain.start", "layered")
        with pytest.raises(RefusedError, match=f"the destination there has no {inside}, and libvirt makes none"):
            here.dry("domain.migrate", "layered", to="there", copy_storage="incremental")
        pair.there.run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, inside)
        pair.there.virsh("pool-refresh", "images")
        here("domain.migrate", "layered", to="there", copy_storage="incremental")
        assert pair.running_on(guest.uuid) == ["there"]
        goes_on(guest)
        pair.there.virsh("destroy", "layered")
        for told in ("read -P 0xab 1M 64k", "read -P 0xcd 2M 64k"):
            assert b"read 65536/65536" in (read := pair.there.run("qemu-io", "-r", "-c", told, inside))
            assert b"verification failed" not in read
        # The base stayed where it was: 4 MiB are not in it.
        assert (folders[1] / "layered.qcow2").stat().st_size < 2 << 20
    finally:
        pair.remove(guest.uuid)
        for host in (pair.here, pair.there):
            host.virsh("pool-destroy", "images")


def test_what_stands_against_it(pair: HostPair, here: Operator, busy: SectorGuest) -> None:
    shared = {"shared_disk": ["hda"]}
    with pytest.raises(NotFoundError, match="no migration destination 'their'; the nearest: there"):
        here("domain.migrate", "busy", to="their", **shared)
    with pytest.raises(NotFoundError, match="no migration destination"):
        here("domain.migrate", "busy", to="qemu+tcp:// attacker/system", **shared)
    with pytest.raises(UnreachableError, match="nowhere is not reachable"):
        here("domain.migrate", "busy", to="nowhere", **shared)
    with pytest.raises(RefusedError, match="this very host"):
        here("domain.migrate", "busy", to="here", **shared)
    with pytest.raises(RefusedError, match="offline moves its definition only"):
        here("domain.migrate", "busy", to="there", mode="offline", **shared)
    with pytest.raises(UnconfirmedError):
        here.run("domain.migrate", "busy", {"to": "there", **shared}, Request(Actor("tester", "api")))
    with pytest.raises(RefusedError, match="not being migrated"):
        here("domain.migrate-tune", "busy", bandwidth_mib_per_second=5)
    assert here("domain.migrate-abort", "busy").changed is False
    # The name is taken: told before anything moved, and cured by another name.
    other = define_on(pair.there, "busy", saying("OTHER"))
    try:
        with pytest.raises(RefusedError, match=f"another domain busy .UUID {other.uuid}.*--new-name"):
            here("domain.migrate", "busy", to="there", **shared)
        assert here.dry("domain.migrate", "busy", to="there", new_name="busy2", **shared).plan is not None
    finally:
        pair.remove(other.uuid)
    assert pair.running_on(busy.uuid) == ["here"]
    listed = here("domain.migrate-destinations").details["rows"]
    assert listed[0] == {"name": "there", "transport": "unix", "protected": True}
    assert pair.there.uri not in str(listed)


NETWORK = "<network><name>{}</name><bridge name='{}'/></network>"


def test_a_network_or_device_that_the_destination_lacks(pair: HostPair, here: Operator, tmp_path: Path) -> None:
    asked = {"to": "there", "shared_disk": ["hda"]}
    file = tmp_path / "lab.xml"
    file.write_text(NETWORK.format("lab", "lab0"))
    iso = tmp_path / "medium.iso"  # both hosts see it
    iso.write_bytes(bytes(2048))
    devices = (
        "<interface type='network'><source network='lab'/><rom enabled='no'/></interface>"
        f"<disk type='file' device='cdrom'><source file='{iso}'/><target dev='hdb' bus='ide'/><readonly/></disk>"
        "</devices>"
    )
    guest = define_on(pair.here, "wired", saying("UP"), ("</devices>", devices))
    pair.here.virsh("net-create", str(file))
    try:
        here("domain.start", "wired")
        with pytest.raises(RefusedError, match="the destination there has no virtual network lab"):
            here.dry("domain.migrate", "wired", **asked)
        pair.there.virsh("net-define", str(file))
        with pytest.raises(RefusedError, match="virtual network lab is not active on there"):
            here.dry("domain.migrate", "wired", **asked)
        pair.there.virsh("net-start", "lab")
        moved = here("domain.migrate", "wired", **asked)
        assert pair.running_on(guest.uuid) == ["there"]
        assert f"{iso} in a drive must be on there too; else eject it first" in moved.warnings
        # What was looked at before is told, too.
        assert moved.details["cpu"] == "compatible"
        assert moved.details["memory_free_bytes"] > moved.details["memory_needed_bytes"] > 16 << 20
        assert moved.details["disks"][0]["target"] == "hda"
    finally:
        pair.remove(guest.uuid)
        for host in (pair.here, pair.there):
            host.virsh("net-destroy", "lab")
        pair.there.virsh("net-undefine", "lab")


def test_a_cpu_machine_or_memory_that_the_destination_lacks(pair: HostPair, here: Operator) -> None:
    cpu = "<cpu mode='custom' match='exact' check='partial'><model fallback='forbid'>EPYC-Milan</model></cpu>"
    guest = define_on(pair.here, "modern", saying("UP"), ("<os>", f"{cpu}<os>"))
    try:
        with pytest.raises(RefusedError, match=r"has no CPU like the guest's .*does not provide required features"):
            here("domain.migrate", "modern", to="there", mode="offline", shared_disk=["hda"])
    finally:
        pair.remove(guest.uuid)
    with pair.to_there.connection() as there:
        machine = ElementTree.fromstring("<domain type='qemu'><os><type arch='x86_64' machine='pc-0.1'/></os></domain>")
        with pytest.raises(RefusedError, match=r"cannot run machine pc-0\.1"):
            check_cpu(there, there, machine, "there")
        free = free_memory_bytes(there)
        assert free is not None
        assert free > 1 << 28
        with pytest.raises(RefusedError, match="MiB of memory free, and the guest may need"):
            refuse_without_memory("there", free + 1, free)


def test_a_guest_with_a_managed_save_stays(pair: HostPair, here: Operator, busy: SectorGuest) -> None:
    here("domain.managed-save", "busy")
    with pytest.raises(RefusedError, match="managed save, which does not go along"):
        here("domain.migrate", "busy", to="there", mode="offline", shared_disk=["hda"])
    with pytest.raises(RefusedError, match="is shutoff and has no memory to move"):
        here("domain.migrate", "busy", to="there", shared_disk=["hda"])


class Migration:
    """A migration that does not end by itself, in a thread of its own."""

    def __init__(self, operator: Operator, name: str, **asked: Any) -> None:
        self.cancelled = threading.Event()
        self.steps: list[Progress] = []
        self._error: ControlError | None = None
        request = Request(
            Actor("tester", "test"), confirmed=name, cancelled=self.cancelled, progress=self.steps.append
        )  # fmt: skip

        def run() -> None:
            try:
                operator.run("domain.migrate", name, {**ENDLESS, **asked}, request)
            except ControlError as error:
                self._error = error

        self._thread = threading.Thread(target=run)
        self._thread.start()
        eventually(lambda: any("pass 1" in step.phase for step in self.steps), "memory on its way")

    def failed(self) -> ControlError:
        """How it ended; it must have failed."""
        self._thread.join(90)
        assert not self._thread.is_alive()
        assert self._error is not None, "it was to fail"
        return self._error


def stays(pair: HostPair, guest: SectorGuest) -> None:
    """The guest is where it was, whole, and nowhere else."""
    eventually(lambda: pair.running_on(guest.uuid) == ["here"], "the guest on the source")
    assert pair.defined_on(guest.uuid) == ["here"]
    goes_on(guest)


def test_tuned_aborted_cancelled_and_out_of_time(pair: HostPair, here: Operator, busy: SectorGuest) -> None:
    migration = Migration(here, "busy")
    status = here("domain.migrate-status", "busy").details
    assert status["migrating"] is True
    assert status["memory_total_bytes"] > 16 << 20
    with pytest.raises(ControlError, match=r"busy with domain\.migrate"):
        here("domain.suspend", "busy")
    here("domain.migrate-tune", "busy", bandwidth_mib_per_second=2)
    eventually(lambda: any("pass 2" in s.phase for s in migration.steps), "a second pass")
    eventually(lambda: any("dirties" in s.phase for s in migration.steps), "a dirty rate")
    assert all(step.fraction is None or 0 <= step.fraction <= 1 for step in migration.steps)
    assert here("domain.migrate-abort", "busy").after["migrating"] is False
    assert "was aborted; it is running" in str(migration.failed())
    stays(pair, busy)

    migration = Migration(here, "busy")
    migration.cancelled.set()
    error = migration.failed()
    assert isinstance(error, TimedOutError)
    assert "cancelled by the caller; it is running" in str(error)
    stays(pair, busy)

    with pytest.raises(TimedOutError, match="not done within 5 s; it is running"):
        here("domain.migrate", "busy", **{**ENDLESS, "within_s": 5})
    stays(pair, busy)
    # Nor does it converge at 4 MiB/s; paused it ends, and arrives running.
    moved = here(
        "domain.migrate", "busy", **{**ENDLESS, "bandwidth_mib_per_second": 4, "within_s": 5, "on_timeout": "pause"}
    )
    assert any("paused" in warning for warning in moved.warnings)
    assert pair.running_on(busy.uuid) == ["there"]
    goes_on(busy)


def test_a_suspended_guest_that_does_not_go_stays_suspended(pair: HostPair, here: Operator, busy: SectorGuest) -> None:
    here("domain.suspend", "busy")
    with pytest.raises(TimedOutError, match="not done within 10 s; it is paused"):
        here("domain.migrate", "busy", **{**ENDLESS, "within_s": 5, "on_timeout": "pause"})
    assert here.state("busy") == "paused"


@pytest.mark.parametrize(
    "when", [{"post_copy": "after-first-pass", "bandwidth_mib_per_second": 8},
             {"post_copy": "allowed", "on_timeout": "post-copy", "within_s": 5}], ids=["at once", "out of time"]
)  # fmt: skip
def test_post_copy(pair: HostPair, here: Operator, busy: SectorGuest, when: dict[str, Any]) -> None:
    plan = here.dry("domain.migrate", "busy", **{**ENDLESS, **when}).plan
    assert plan is not None
    assert "the guest itself, where the destination or the network fails during post-copy" in plan.lost
    moved = here("domain.migrate", "busy", **{**ENDLESS, **when})
    assert moved.details["post_copy"] is True
    assert pair.running_on(busy.uuid) == ["there"]
    goes_on(busy)


def test_the_daemon_here_dies_on_the_way(pair: HostPair, here: Operator, busy: SectorGuest) -> None:
    """Nobody can say then where the guest is; the daemon that comes back gives the migration up."""
    migration = Migration(here, "busy")
    pair.here.kill_daemon()
    try:
        error = migration.failed()
        assert error.outcome_unknown
        assert "this host did not answer" in str(error)
    finally:
        pair.here.start_daemon()
    stays(pair, busy)
    eventually(lambda: not _known(pair.there.uri, busy.uuid), "the half on the destination gone")
    assert here("domain.migrate-status", "busy").details["migrating"] is False


def test_the_line_between_the_hosts_is_cut(pair: HostPair, here: Operator, busy: SectorGuest) -> None:
    migration = Migration(here, "busy", within_s=8)
    pair.there.run("ip", "link", "set", LINE, "down")
    try:
        assert "not done within 8 s; it is running" in str(migration.failed())
        stays(pair, busy)
    finally:
        pair.there.run("ip", "link", "set", LINE, "up")
    assert here("domain.migrate", "busy", to="there", shared_disk=["hda"]).details["runs_on"] == "there"


def _kill_qemu(pair: HostPair) -> None:
    os.kill(pair.there.qemu_pid("busy"), signal.SIGKILL)


@pytest.mark.parametrize(
    ("transport", "kill"),
    [
        ("direct", _kill_qemu),
        ("peer-to-peer", lambda pair: pair.there.kill_daemon()),
        ("direct", lambda pair: pair.there.kill_daemon()),
    ],
    ids=["its QEMU", "its daemon, peer to peer", "its daemon"],
)
def test_a_destination_that_dies_on_the_way(
    pair: HostPair, here: Operator, busy: SectorGuest, transport: str, kill: Callable[[HostPair], None]
) -> None:
    migration = Migration(here, "busy", transport=transport)
    kill(pair)
    try:
        assert "it is running" in str(migration.failed())
        goes_on(busy)
    finally:
        if not (pair.there.folder / "run" / "libvirtd.pid").exists() or not _answers(pair):
            pair.there.start_daemon()
    # The daemon that comes back ends the half that is left there.
    eventually(lambda: not _known(pair.there.uri, busy.uuid), "the half on the destination gone")
    stays(pair, busy)
    assert here.events()[-2:] == ["begin", "end"]


def test_the_guest_dies_on_the_way(pair: HostPair, here: Operator, busy: SectorGuest) -> None:
    """Of its QEMU's death nobody brings it back; what is said is that it runs nowhere."""
    migration = Migration(here, "busy")
    os.kill(pair.here.qemu_pid("busy"), signal.SIGKILL)
    error = migration.failed()
    assert "it runs on neither host" in str(error)
    assert "defect" not in str(error)
    assert pair.defined_on(busy.uuid) == ["here"]


def _answers(pair: HostPair) -> bool:
    try:
        libvirt.open(pair.there.uri).close()
    except libvirt.libvirtError:
        return False
    return True


def _known(uri: str, uuid: str) -> bool:
    connection = libvirt.open(uri)
    try:
        return uuid in [domain.UUIDString() for domain in connection.listAllDomains(0)]
    finally:
        connection.close()


KILLED = """
import sys, threading, time
from pathlib import Path
from exporter.control.destinations import Destination
from tests.live.operating import Operator
from tests.live.test_control_migration import ENDLESS
uri, state, there, stream, transport = sys.argv[1:]
operator = Operator(uri, Path(state), (), (Destination("there", there, stream),))
asked = {**ENDLESS, "transport": transport}
threading.Thread(target=operator, args=("domain.migrate", "busy"), kwargs=asked, daemon=True).start()
while not operator("domain.migrate-status", "busy").details.get("memory_remaining_bytes"):
    time.sleep(0.05)
print("migrating", flush=True)
threading.Event().wait()
"""


@pytest.mark.parametrize("transport", ["direct", "peer-to-peer"])
def test_virtgauge_killed_in_the_middle(pair: HostPair, here: Operator, busy: SectorGuest, transport: str) -> None:
    """kill -9: led by virtgauge, libvirt gives the migration up; peer to peer it goes on, and is told and aborted."""
    words = [pair.here.uri, str(here.folders.state), pair.there.uri, str(pair.to_there.stream_uri), transport]
    child = subprocess.Popen([sys.executable, "-c", KILLED, *words], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"migrating\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    if transport == "direct":
        eventually(lambda: not here("domain.migrate-status", "busy").details["migrating"], "the end of the migration")
    (explained,) = here.executor.explain_left_open(OPERATIONS)
    assert "interrupted in the middle; it is running" in str(explained["outcome"])
    assert "here" in str(explained["outcome"])
    assert ("domain migrate-abort" in str(explained["outcome"])) is (transport == "peer-to-peer")
    if transport == "peer-to-peer":
        # No lock of ours is held any more; libvirt would let the caller wait 30 s, or the guest be changed on its way.
        for refused in (lambda: here("domain.suspend", "busy"), lambda: here.dry("domain.set-vcpus", "busy", vcpus=1)):
            with pytest.raises(BusyError, match="libvirt is migrating it to another host"):
                refused()
    assert here("domain.migrate-abort", "busy").changed is (transport == "peer-to-peer")
    eventually(lambda: not _known(pair.there.uri, busy.uuid), "nothing left on the destination")
    stays(pair, busy)
    assert here.executor.explain_left_open(OPERATIONS) == []
    here.trail.verify()


def test_encrypted(pair: HostPair, here: Operator, busy: SectorGuest, tmp_path: Path) -> None:
    """Without certificates QEMU refuses, and the guest stays; with them it goes, and says nothing of open memory."""
    asked = {"to": "there", "shared_disk": ["hda"], "encrypt": True}
    with pytest.raises(ControlError, match=r"it is running .* here .*credentials"):
        here("domain.migrate", "busy", **asked)
    stays(pair, busy)
    pair.give_certificates(tmp_path)
    moved = here("domain.migrate", "busy", **asked)
    assert not any("unencrypted" in warning for warning in moved.warnings)
    assert pair.running_on(busy.uuid) == ["there"]
    goes_on(busy)
