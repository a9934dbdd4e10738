"""Lifecycle operations on real guests: those that obey, ignore, are mute, panic and hang."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from exporter.control.connection import Session
from exporter.control.errors import (
    BusyError,
    ControlError,
    NotFoundError,
    RefusedError,
    TimedOutError,
    UnconfirmedError,
)
from exporter.control.executor import Actor, Request
from exporter.control.libvirt_jobs import job_in_words
from exporter.demonstration.guest_console import GuestConsole
from exporter.demonstration.guest_definition import Accelerator, Guest
from exporter.demonstration.guest_image import GuestImage
from exporter.demonstration.private_hypervisor import PrivateHypervisor
from tests.live.libvirt_answers import BOOTED, CRASHED, Heard
from tests.live.operating import Operator, eventually
from tests.live.sector_guests import SectorGuest, define, dirtying, panicking, saying, sector_xml


@pytest.fixture
def operator(hypervisor: PrivateHypervisor, tmp_path: Path) -> Iterator[Operator]:
    operator = Operator(hypervisor.uri, tmp_path / "control", (hypervisor.folder / "images",))
    yield operator
    operator.close()


@pytest.fixture
def deaf(hypervisor: PrivateHypervisor, operator: Operator) -> Iterator[SectorGuest]:
    """A defined guest that ignores the power button and has no agent."""
    guest = define(hypervisor, "deaf", saying("UP"))
    yield guest
    operator("domain.destroy", "deaf")
    hypervisor.virsh("undefine", "--managed-save", "deaf")


def test_states_and_what_they_allow(operator: Operator, deaf: SectorGuest) -> None:
    for refused in ("reboot", "reset", "suspend", "resume", "wake", "core-dump"):
        with pytest.raises(RefusedError, match="start it"):
            operator(f"domain.{refused}", "deaf")
    assert not operator("domain.destroy", "deaf").changed
    assert not operator("domain.shutdown", "deaf").changed

    started = operator("domain.start", "deaf", paused=True)
    assert (started.changed, started.after["state"]) == (True, "paused")
    assert not operator("domain.start", "deaf", paused=True).changed
    with pytest.raises(RefusedError, match="resume it"):
        operator("domain.start", "deaf")
    with pytest.raises(RefusedError, match="cannot hear"):
        operator("domain.shutdown", "deaf")
    assert operator("domain.resume", "deaf").after["state"] == "running"
    assert not operator("domain.resume", "deaf").changed
    assert not operator("domain.start", "deaf").changed
    with pytest.raises(RefusedError, match="suspend it"):
        operator("domain.start", "deaf", paused=True)
    assert not operator("domain.wake", "deaf").changed
    eventually(lambda: "UP" in deaf.said(), "the guest's word")

    assert operator("domain.suspend", "deaf").after["state"] == "paused"
    assert not operator("domain.suspend", deaf.uuid).changed
    operator("domain.resume", f"id:{operator('domain.show', 'deaf').details['id']}")
    before = len(deaf.said())
    reset = operator("domain.reset", "deaf")
    assert "reboot" in reset.details["events"]
    assert operator.trail.records()[-1]["events"] == reset.details["events"]
    eventually(lambda: "UP" in deaf.said()[before:], "the guest's word after the reset")

    shown = operator("domain.show", "deaf").details
    assert shown["uptime_s"] > 0
    disk, = shown["disks"]
    assert (disk["target"], disk["bus"], disk["format"], disk["source"]) == ("hda", "ide", "raw", str(deaf.disk))
    assert not {"interfaces", "agent", "graphics", "snapshots"} & set(shown)
    assert shown["maximum_memory_kib"] == 16384
    counts = operator("domain.list", which="active").details["counts"]
    assert counts["all"] == counts["active"] + counts["inactive"]
    assert operator("domain.autostart", "deaf").changed
    assert not operator("domain.autostart", "deaf").changed
    assert operator("domain.autostart", "deaf", enabled=False).changed


def test_a_guest_that_ignores_the_button(operator: Operator, deaf: SectorGuest) -> None:
    operator("domain.start", "deaf")
    with pytest.raises(TimedOutError, match=r"still running after.*ACPI.*destroy"):
        operator("domain.shutdown", "deaf", acpi_timeout_s=2, resend_s=0.5)
    with pytest.raises(TimedOutError, match="asked to reboot"):
        operator("domain.reboot", "deaf", timeout_s=1.5, resend_s=0.5)
    with pytest.raises(UnconfirmedError):
        operator.run("domain.shutdown", "deaf", {"force": True}, Request(Actor("tester", "api")))
    assert operator.state("deaf") == "running"
    forced = operator("domain.shutdown", "deaf", acpi_timeout_s=1.5, resend_s=0.5, force=True)
    assert forced.details["stopped_by"] == "force"
    assert sum("ACPI" in stage for stage in forced.details["stages"]) >= 2
    assert forced.after["state"] == "shutoff"
    assert operator.trail.verify() == len(operator.events())


def test_a_dry_run_tells_what_would_be_lost(operator: Operator, deaf: SectorGuest) -> None:
    operator("domain.start", "deaf")
    plan = operator.dry("domain.destroy", "deaf").plan
    assert plan is not None
    assert "memory" in plan.lost[0]
    assert operator.state("deaf") == "running"


def test_a_core_dump(operator: Operator, deaf: SectorGuest) -> None:
    operator("domain.start", "deaf")
    dumped = operator("domain.core-dump", "deaf")
    file = Path(str(dumped.details["file"]))
    assert file.read_bytes()[:4] == b"\x7fELF"
    assert file.stat().st_mode & 0o077 == 0
    assert file.stat().st_size >= 16 << 20
    assert operator.state("deaf") == "running"


def test_a_hung_qemu_keeps_only_its_own_domain(
    hypervisor: PrivateHypervisor, operator: Operator, deaf: SectorGuest
) -> None:
    """QEMU stopped as by a debugger: libvirt's call does not come back, the operation does."""
    operator("domain.start", "deaf")
    pid = hypervisor.qemu_pid("deaf")
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(TimedOutError) as caught:
            operator.run("domain.suspend", "deaf", {}, Request(Actor("tester", "api"), deadline_s=0.5))
        assert caught.value.outcome_unknown
        with pytest.raises(BusyError, match=r"busy with domain\.suspend"):
            operator("domain.reset", "deaf")
        assert operator.state("deaf") == "running"
        assert operator("domain.list").details["counts"]["active"] >= 1
    finally:
        os.kill(pid, signal.SIGCONT)
    eventually(lambda: "late" in operator.events(), "the late record")
    assert operator("domain.resume", "deaf").changed


def test_a_hung_qemu_can_be_destroyed(hypervisor: PrivateHypervisor, operator: Operator, deaf: SectorGuest) -> None:
    operator("domain.start", "deaf")
    os.kill(hypervisor.qemu_pid("deaf"), signal.SIGSTOP)
    assert operator("domain.destroy", "deaf").after["state"] == "shutoff"


@pytest.fixture
def bulky(hypervisor: PrivateHypervisor, operator: Operator) -> Iterator[SectorGuest]:
    """A running guest whose memory is more than a pipe and its reader's buffer take."""
    guest = define(hypervisor, "bulky", dirtying())
    operator("domain.start", "bulky")
    eventually(lambda: "." in guest.said(), "the guest's first round over its memory")
    yield guest
    operator("domain.destroy", "bulky")
    hypervisor.virsh("undefine", "bulky")


def test_a_question_to_a_hung_qemu_keeps_its_connection_to_itself(
    hypervisor: PrivateHypervisor, operator: Operator, bulky: SectorGuest, tmp_path: Path
) -> None:
    """A dump that nobody reads, begun elsewhere, whose QEMU then hangs: libvirt asks it how far it is, in vain."""
    session = Session(hypervisor.uri)
    handle = session.connection.lookupByName("bulky")
    with unread_dump(hypervisor, "bulky", tmp_path / "unread"):
        eventually(lambda: job_in_words(session, handle) == "dumping its memory", "the dump")
        assert not session.abandoned
        pid = hypervisor.qemu_pid("bulky")
        os.kill(pid, signal.SIGSTOP)
        try:
            assert "does not answer" in job_in_words(session, handle)
            assert session.abandoned
            # Whoever else asks, or waits, does not take it for free, and leaves no further connection in that call.
            with pytest.raises(BusyError, match="its QEMU, which does not answer"):
                operator.run("domain.reset", "bulky", {}, Request(Actor("tester", "api"), lock_wait_s=0.5))
            assert len([thread for thread in threading.enumerate() if thread.name == "control-job"]) == 1
        finally:
            os.kill(pid, signal.SIGCONT)
    eventually(lambda: job_in_words(session, handle) == "", "the end of the dump")
    assert operator("domain.suspend", "bulky").changed
    session.close()


@contextlib.contextmanager
def unread_dump(hypervisor: PrivateHypervisor, name: str, pipe: Path) -> Iterator[None]:
    """Someone else's dump of the guest into a full pipe, which goes on until the end."""
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    connection = libvirt.open(hypervisor.uri)
    handle = connection.lookupByName(name)
    dumping = threading.Thread(target=handle.coreDump, args=(str(pipe),), daemon=True)
    dumping.start()
    try:
        yield
    finally:
        os.set_blocking(reader, True)
        while os.read(reader, 1 << 16):
            pass
        os.close(reader)
        dumping.join()
        connection.close()


@pytest.fixture(scope="module")
def obedient(
    hypervisor: PrivateHypervisor, image: GuestImage, guest_accelerator: Accelerator
) -> Iterator[GuestConsole]:
    """A defined Linux guest with an agent, booted."""
    guest = Guest("obedient", accelerator=guest_accelerator, boot_orders={"agent": "1"})
    console = hypervisor.console("obedient")
    console.files.log.unlink(missing_ok=True)
    file = hypervisor.folder / "definitions" / "obedient.xml"
    file.write_text(hypervisor.definition(guest, image))
    hypervisor.virsh("define", str(file))
    yield console
    if "running" in hypervisor.virsh("domstate", "obedient"):
        hypervisor.virsh("destroy", "obedient")
    hypervisor.virsh("undefine", "obedient")


def boots(console: GuestConsole) -> int:
    return console.log().count("GUEST READY")


def started(operator: Operator, console: GuestConsole) -> None:
    before = boots(console)
    if operator("domain.start", "obedient").changed:
        eventually(lambda: boots(console) > before, "the guest's READY", 120)


def test_reboot_and_shutdown_of_a_guest_that_obeys(operator: Operator, obedient: GuestConsole) -> None:
    started(operator, obedient)
    before = boots(obedient)
    # The button does nothing until the guest's driver listens: sent again until it is seen.
    assert operator("domain.reboot", "obedient", mode="acpi", resend_s=5).details["asked"] == "acpi"
    eventually(lambda: boots(obedient) > before, "the guest's second boot", 120)
    stopped = operator("domain.shutdown", "obedient", agent_timeout_s=30)
    assert stopped.details["stopped_by"] in ("agent", "acpi")
    assert stopped.after["state"] == "shutoff"


def test_a_mute_agent_is_passed_over(operator: Operator, obedient: GuestConsole) -> None:
    started(operator, obedient)
    obedient.order("agent mute")
    stopped = operator("domain.shutdown", "obedient", agent_timeout_s=3, resend_s=5)
    assert stopped.details["stopped_by"] == "acpi", stopped.details
    assert any("agent did not answer" in stage for stage in stopped.details["stages"]), stopped.details


def test_a_panic_is_seen_and_started_again(operator: Operator, obedient: GuestConsole) -> None:
    started(operator, obedient)
    obedient_line = obedient.log()
    with pytest.raises(Exception, match="obedient"):
        obedient.order("panic", timeout_s=5)
    assert len(obedient.log()) >= len(obedient_line)
    eventually(lambda: operator.state("obedient") == "shutoff", "the end of the panicked guest")
    assert operator("domain.show", "obedient").details["reason"] == "crashed"
    assert not operator("domain.shutdown", "obedient").changed


def test_a_panic_with_on_crash_restart_boots_the_same_qemu_again(
    hypervisor: PrivateHypervisor, operator: Operator
) -> None:
    """A guest of typed fields, which give it the device that tells libvirt of its panics; it panics at each boot."""
    _, sector = sector_xml(hypervisor, "restless", panicking())
    operator("domain.define", name="restless", type="qemu", machine="pc", memory_mib=16, agent=False,
             disks=[{"file": str(sector.disk), "bus": "ide"}], on_crash="restart")  # fmt: skip
    connection = operator.executor.session.connection
    domain = connection.lookupByName("restless")
    try:
        with Heard(connection, domain) as heard:
            domain.create()
            heard.until(CRASHED, "reboot", CRASHED, "reboot")
        eventually(lambda: operator("domain.show", "restless").details["reason"] == "crashed", "why it runs again")
        assert len([event for event in heard.events if event == BOOTED]) == 1  # libvirt started it once only
        assert operator("domain.destroy", "restless").after["state"] == "shutoff"
    finally:
        with contextlib.suppress(libvirt.libvirtError):
            domain.destroy()
        domain.undefine()


def test_a_disk_that_qemu_may_not_read_is_named_with_what_to_do(
    hypervisor: PrivateHypervisor, operator: Operator
) -> None:
    """Its QEMU runs as nobody, since root reads any file."""
    xml, sector = sector_xml(hypervisor, "unread", saying("UP"))
    label = "<seclabel type='static' model='dac' relabel='no'><label>+65534:+65534</label></seclabel>"
    domain = operator.executor.session.connection.defineXML(xml.replace("</domain>", f"{label}</domain>"))
    sector.disk.chmod(0)
    try:
        with pytest.raises(ControlError) as caught:
            operator("domain.start", "unread")
    finally:
        domain.undefine()
    told = str(caught.value)
    assert told.startswith("start of domain unread failed (libvirt error ")
    assert f"Could not open '{sector.disk}': Permission denied" in told
    assert told.endswith("give the account that QEMU runs as the right to the file named, and to the folders above it")


def test_a_transient_one_is_gone_with_its_definition(
    hypervisor: PrivateHypervisor, operator: Operator, deaf: SectorGuest
) -> None:
    operator("domain.start", "deaf")
    hypervisor.virsh("undefine", "deaf")
    try:
        with pytest.raises(UnconfirmedError):
            operator.run("domain.shutdown", "deaf", {}, Request(Actor("tester", "api")))
        with pytest.raises(RefusedError, match="transient"):
            operator("domain.autostart", "deaf")
        assert operator("domain.destroy", "deaf").after == {"state": "gone"}
        with pytest.raises(NotFoundError):
            operator("domain.show", "deaf")
    finally:
        define(hypervisor, "deaf", saying("UP"))
