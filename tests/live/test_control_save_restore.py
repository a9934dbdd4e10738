"""Save and restore of a guest that keeps checking its own memory, and all that must be refused."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.control.audit import tells_of
from exporter.control.errors import ControlError, NotFoundError, RefusedError, UnconfirmedError
from exporter.control.executor import Actor, Request
from exporter.demonstration.private_hypervisor import PrivateHypervisor
from tests.live.operating import OPERATIONS, Operator, eventually
from tests.live.sector_guests import SectorGuest, define, pattern, sector_xml


@pytest.fixture
def operator(hypervisor: PrivateHypervisor, tmp_path: Path) -> Iterator[Operator]:
    operator = Operator(hypervisor.uri, tmp_path / "control", (hypervisor.folder / "images",))
    yield operator
    operator.close()


@pytest.fixture
def keeper(hypervisor: PrivateHypervisor, operator: Operator) -> Iterator[SectorGuest]:
    """A running guest whose memory holds a pattern; it says how often it found it whole."""
    guest = define(hypervisor, "keeper", pattern())
    operator("domain.start", "keeper")
    eventually(lambda: checks(guest) >= 2, "the guest's first checks")
    yield guest
    operator("domain.destroy", "keeper")
    hypervisor.virsh("undefine", "--managed-save", "keeper")


def checks(guest: SectorGuest) -> int:
    """The number of the guest's last check, whose four letters A to P are hexadecimal digits."""
    said = guest.said()
    assert "PATTERN BAD" not in said
    found = re.findall(r"PATTERN OK ([A-P]{4})\n", said)
    return int("".join(f"{ord(letter) - ord('A'):x}" for letter in found[-1]), 16) if found else 0


def saved_once(operator: Operator) -> str:
    return str(operator("domain.save", "keeper", comment="a test").details["saved"])


def image_of(operator: Operator, saved: str) -> Path:
    return operator.folders.saves / f"{saved}.img"


def test_the_guest_goes_on_where_it_was(operator: Operator, keeper: SectorGuest) -> None:
    saved = saved_once(operator)
    assert operator.state("keeper") == "shutoff"
    before = checks(keeper)
    (row,) = operator("saved.list").details["rows"]
    assert (row["id"], row["domain"], row["comment"]) == (saved, "keeper", "a test")
    assert image_of(operator, saved).stat().st_mode & 0o077 == 0
    assert operator.folders.saves.stat().st_mode & 0o077 == 0
    shown = operator("saved.show", saved).details
    assert (shown["image"], shown["changed_disks"]) == ("whole", [])
    assert operator.dry("saved.restore", saved).dry_run

    restored = operator("saved.restore", saved)
    found = {name: restored.after[name] for name in ("name", "uuid", "state")}
    assert found == {"name": "keeper", "uuid": keeper.uuid, "state": "running"}
    # The count goes on: a booted guest would begin at one.
    eventually(lambda: checks(keeper) > before, "a check after the restore")
    with pytest.raises(RefusedError, match="is running"):
        operator("saved.restore", saved)
    with pytest.raises(UnconfirmedError):
        operator.run("saved.remove", saved, {}, Request(Actor("tester", "api")))
    operator("domain.suspend", "keeper")
    again = operator("domain.save", "keeper").details["saved"]
    assert operator("saved.restore", again, then="running", remove=True).after["state"] == "running"
    operator("saved.remove", saved)
    assert operator("saved.list").details["rows"] == []
    assert operator.trail.verify() == len(operator.events())


def test_a_damaged_image_is_refused(operator: Operator, keeper: SectorGuest) -> None:
    """A flipped byte within the memory: libvirt restores it without a word."""
    saved = saved_once(operator)
    file = image_of(operator, saved)
    whole = file.read_bytes()
    middle = len(whole) // 2
    for damage in (whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :], whole[:-1], b""):
        file.write_bytes(damage)
        with pytest.raises(RefusedError, match="damaged"):
            operator("saved.restore", saved)
        assert operator.state("keeper") == "shutoff"
    file.unlink()
    with pytest.raises(RefusedError, match="cannot be read"):
        operator("saved.restore", saved)
    file.symlink_to("/dev/zero")
    with pytest.raises(RefusedError):
        operator("saved.restore", saved)
    file.unlink()
    file.write_bytes(whole)
    assert operator("saved.restore", saved).changed


def test_a_disk_that_moved_on_is_refused(operator: Operator, keeper: SectorGuest) -> None:
    saved = saved_once(operator)
    with keeper.disk.open("r+b") as disk:
        disk.seek(4096)
        disk.write(b"moved on")
    with pytest.raises(RefusedError, match=r"moved on.*keeper\.raw"):
        operator("saved.restore", saved)
    with pytest.raises(UnconfirmedError):
        operator.run("saved.restore", saved, {"ignore_changed_disks": True}, Request(Actor("t", "api")))
    assert operator("saved.restore", saved, ignore_changed_disks=True).changed


@pytest.mark.parametrize("name", ["", "x", "../../etc/shadow", "/etc/shadow", "0" * 36 + "-20260101T000000Z-00000000"])
def test_only_a_record_is_restored(operator: Operator, name: str) -> None:
    with pytest.raises(NotFoundError):
        operator("saved.restore", name)


def test_a_disk_that_is_gone_and_a_name_that_another_has(
    operator: Operator, keeper: SectorGuest, hypervisor: PrivateHypervisor
) -> None:
    saved = saved_once(operator)
    elsewhere = keeper.disk.rename(keeper.disk.with_suffix(".elsewhere"))
    with pytest.raises(RefusedError, match=r"keeper\.raw is gone"):
        operator("saved.restore", saved)
    elsewhere.rename(keeper.disk)
    hypervisor.virsh("undefine", "keeper")
    twin = define(hypervisor, "keeper", pattern())
    try:
        with pytest.raises(RefusedError, match=f"now is another domain's .{twin.uuid}"):
            operator("saved.restore", saved, ignore_changed_disks=True)
    finally:
        hypervisor.virsh("undefine", "keeper")
    assert operator("saved.restore", saved, ignore_changed_disks=True).after["uuid"] == keeper.uuid
    assert operator("domain.make-persistent", "keeper").changed


def test_it_goes_on_as_it_was_saved_to_or_as_it_is_told(operator: Operator, keeper: SectorGuest) -> None:
    saved = str(operator("domain.save", "keeper", then="paused").details["saved"])
    assert operator("saved.restore", saved).after["state"] == "paused"
    operator("domain.destroy", "keeper")
    before = checks(keeper)
    assert operator("saved.restore", saved, then="running").after["state"] == "running"
    eventually(lambda: checks(keeper) > before, "a check after the restore")
    # Whoever asks what was done to the guest hears of its images, too.
    told = [record for record in operator.trail.records() if tells_of(record, "keeper")]
    assert [record["event"] for record in told if record["operation"] == "saved.restore"] == ["begin", "end"] * 2
    assert [record for record in told if tells_of(record, keeper.uuid)] == told


def test_no_room_for_the_memory(operator: Operator, keeper: SectorGuest, hypervisor: PrivateHypervisor) -> None:
    """Seen before: nothing is begun. Not seen, since it went meanwhile: the guest goes on, and nothing is left."""
    small = [*IN_A_SMALL_FOLDER, str(operator.folders.private(operator.folders.saves)), sys.executable, "-c"]
    refused = subprocess.run(
        [*small, SAVES, hypervisor.uri, str(operator.folders.state)], capture_output=True, text=True, check=False
    )
    assert "RefusedError" in refused.stderr
    assert "MiB free, and its memory may need" in refused.stderr
    assert "refused" in operator.events()
    hypervisor.run("mount", "-t", "tmpfs", "-o", "size=64k", "small", str(operator.folders.saves))
    try:
        with pytest.raises(ControlError, match=r"No space left on device.*make room"):
            operator("domain.save", "keeper")
    finally:
        hypervisor.run("umount", "--lazy", str(operator.folders.saves))
    before = checks(keeper)
    eventually(lambda: checks(keeper) > before, "the guest goes on")
    assert operator.state("keeper") == "running"
    assert operator("saved.list").details["rows"] == []
    assert list(operator.folders.saves.iterdir()) == []


def test_states_that_cannot_be_saved(operator: Operator, keeper: SectorGuest, hypervisor: PrivateHypervisor) -> None:
    operator("domain.destroy", "keeper")
    for verb in ("save", "managed-save"):
        with pytest.raises(RefusedError, match="shutoff and cannot be saved"):
            operator(f"domain.{verb}", "keeper")
    xml, brief = sector_xml(hypervisor, "brief", pattern())
    file = hypervisor.folder / "definitions" / "brief.xml"
    file.write_text(xml)
    hypervisor.virsh("create", str(file))
    try:
        with pytest.raises(RefusedError, match="no managed save"):
            operator("domain.managed-save", "brief")
        with pytest.raises(RefusedError, match="--allow-transient"):
            operator("domain.save", "brief")
        saved = operator("domain.save", "brief", allow_transient=True)
        assert saved.after == {"state": "gone"}
        assert operator("saved.restore", str(saved.details["saved"])).after["persistent"] is False
    finally:
        operator("domain.destroy", "brief")
    assert "PATTERN BAD" not in brief.said()


def test_managed_save_and_a_damaged_one(operator: Operator, keeper: SectorGuest, hypervisor: PrivateHypervisor) -> None:
    assert operator("domain.managed-save", "keeper").after["managed_save"] is True
    assert not operator("domain.managed-save", "keeper").changed
    before = checks(keeper)
    assert operator("domain.start", "keeper").details["started_from"] == "managed save"
    eventually(lambda: checks(keeper) > before, "a check after the start")

    operator("domain.managed-save", "keeper")
    image = hypervisor.folder / "lib" / "qemu" / "save" / "keeper.save"
    image.write_bytes(b"LibvirtQemudSave" + bytes(100))
    with pytest.raises(ControlError, match="--ignore-saved"):
        operator("domain.start", "keeper")
    with pytest.raises(UnconfirmedError):
        operator.run("domain.start", "keeper", {"ignore_saved": True}, Request(Actor("t", "api")))
    with pytest.raises(RefusedError, match="--managed-save"):
        operator("domain.undefine", "keeper")
    with pytest.raises(RefusedError, match="managed save image, which keeps its name"):
        operator("domain.rename", "keeper", new_name="other")
    assert operator("domain.start", "keeper", ignore_saved=True).details["started_from"] == "boot"
    operator("domain.managed-save", "keeper")
    assert operator("domain.managed-save-remove", "keeper").changed
    assert not operator("domain.managed-save-remove", "keeper").changed
    assert operator("domain.start", "keeper").details["started_from"] == "boot"


def test_killed_in_the_middle_of_a_save(operator: Operator, keeper: SectorGuest, hypervisor: PrivateHypervisor) -> None:
    """kill -9 of the process that saves: libvirt goes on with it, and the next start tells."""
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, hypervisor.uri, str(operator.folders.state)], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"saving\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    eventually(lambda: operator.state("keeper") in ("shutoff", "running") and not busy(operator), "the end of the save")
    (explained,) = operator.executor.explain_left_open(OPERATIONS)
    assert "interrupted" in str(explained["outcome"])
    if operator.state("keeper") == "shutoff":
        (row,) = operator("saved.list").details["rows"]
        before = checks(keeper)
        operator("saved.restore", str(row["id"]))
        eventually(lambda: checks(keeper) > before, "a check after the restore")
    else:
        assert operator("saved.list").details["rows"] == []
    assert operator.executor.explain_left_open(OPERATIONS) == []
    assert "interrupted" in operator.events()
    operator.trail.verify()


@pytest.mark.parametrize(
    "operation", ["domain.core-dump", "domain.managed-save", "domain.reboot", "domain.shutdown", "saved.restore"]
)
def test_killed_in_the_middle_of(
    operator: Operator, keeper: SectorGuest, hypervisor: PrivateHypervisor, operation: str
) -> None:
    """kill -9 between libvirt's being asked and its answer: the guest is whole, and the next start tells of the act."""
    reference = saved_once(operator) if operation == "saved.restore" else "keeper"
    before = checks(keeper)
    stopped = hypervisor.qemu_pid("keeper") if operation != "saved.restore" else None
    if stopped is not None:
        os.kill(stopped, signal.SIGSTOP)  # libvirt waits for QEMU, and virtgauge for libvirt
    try:
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED_AT_WORK, hypervisor.uri, str(operator.folders.state), operation, reference],
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"begun\n"
        child.kill()
        child.wait()
        child.stdout.close()
    finally:
        if stopped is not None:
            os.kill(stopped, signal.SIGCONT)
    eventually(lambda: not busy(operator), "the end of libvirt's part")
    begun = [record for record in operator.trail.records() if record["event"] == "begin"][-1]
    assert begun["operation"] == operation
    told = operator.executor.explain_left_open(OPERATIONS)
    if stopped is None and not told:
        assert operator.trail.records()[-1]["event"] == "end"  # it was faster than we
    else:
        assert re.search("interrupted.*(the domain is|the guest goes on|no dump|dump only)", str(told[0]["outcome"]))
        assert len(told) == 1
    assert operator.executor.explain_left_open(OPERATIONS) == []

    def goes_on() -> bool:
        # Libvirt may have begun late, and be at it still: paused, then off, with the memory kept.
        if operator.state("keeper") == "shutoff" and operation == "saved.restore":
            operator("saved.restore", reference)
        elif operator.state("keeper") == "shutoff":
            assert operator("domain.start", "keeper").details["started_from"] == "managed save"
        return operator.state("keeper") == "running" and checks(keeper) > before

    eventually(goes_on, "the guest goes on where it was")
    operator.trail.verify()


def busy(operator: Operator) -> bool:
    return operator("domain.show", "keeper").details.get("job") == "running"


IN_A_SMALL_FOLDER = ["unshare", "--mount", "--propagation", "private", "sh", "-c",
                     'mount -t tmpfs -o size=64k small "$0" && exec "$@"']  # fmt: skip
SAVES = """
import sys
from pathlib import Path
from tests.live.operating import Operator
Operator(sys.argv[1], Path(sys.argv[2]))("domain.save", "keeper")
"""

KILLED = """
import sys, threading, time
from pathlib import Path
from tests.live.operating import Operator
operator = Operator(sys.argv[1], Path(sys.argv[2]))
saves = operator.folders.saves
threading.Thread(target=operator, args=("domain.save", "keeper"), daemon=True).start()
while not list(saves.glob("*.img")):
    time.sleep(0.001)
print("saving", flush=True)
threading.Event().wait()
"""

KILLED_AT_WORK = """
import sys, threading, time
from pathlib import Path
from tests.live.operating import Operator
operator = Operator(sys.argv[1], Path(sys.argv[2]))
before = len(operator.trail.records())
threading.Thread(target=operator, args=(sys.argv[3], sys.argv[4]), daemon=True).start()
while "begin" not in [record["event"] for record in operator.trail.records()[before:]]:
    time.sleep(0.001)
print("begun", flush=True)
threading.Event().wait()
"""
