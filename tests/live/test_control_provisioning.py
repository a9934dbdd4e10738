"""Guests from fields to seen alive, on real QEMU: disk, ISO, direct kernel; and all that would hang without a word."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.control.errors import (
    BusyError,
    ControlError,
    InvalidError,
    NotFoundError,
    RefusedError,
    TimedOutError,
    UnsupportedError,
)
from exporter.demonstration.guest_definition import KERNEL_COMMAND_LINE
from exporter.demonstration.guest_image import GuestImage
from exporter.demonstration.private_hypervisor import PrivateHypervisor
from tests.live.operating import OPERATIONS, Operator, eventually
from tests.live.sector_guests import bootable_iso, define, saying

TINY = {"type": "qemu", "machine": "pc", "memory_mib": 16, "agent": False}


@pytest.fixture
def operator(hypervisor: PrivateHypervisor, image: GuestImage, tmp_path: Path) -> Iterator[Operator]:
    folders = (hypervisor.folder / "images", image.kernel.parent)
    operator = Operator(hypervisor.uri, tmp_path / "control", folders)
    yield operator
    operator.close()


@pytest.fixture
def images(hypervisor: PrivateHypervisor) -> Path:
    folder = hypervisor.folder / "images"
    (folder / "sector.raw").write_bytes(saying("DISK BOOT").ljust(1 << 20, b"\0"))
    (folder / "silent.raw").write_bytes(saying("").ljust(1 << 20, b"\0"))
    (folder / "boot.iso").write_bytes(bootable_iso(saying("CDROM BOOT")))
    (folder / "other.iso").write_bytes(bootable_iso(saying("OTHER BOOT")))
    return folder


@pytest.fixture
def name(operator: Operator) -> Iterator[str]:
    yield "fresh"
    if any(row["name"] == "fresh" for row in operator("domain.list").details["rows"]):
        operator("domain.destroy", "fresh")
        operator("domain.undefine", "fresh")


def test_a_disk_is_imported_and_seen(operator: Operator, images: Path, name: str) -> None:
    disks = [{"file": f"{images}/sector.raw", "bus": "ide"}]
    made = operator("domain.provision", name=name, disks=disks, expect_text="DISK BOOT", within_s=120, **TINY)
    assert (made.before, made.after["state"]) == ({"state": "not defined"}, "running")
    assert made.details["seen"]["text"] >= 0
    with pytest.raises(RefusedError, match="defined already"):
        operator("domain.provision", name=name, disks=disks, **TINY)


def test_an_iso_is_booted_changed_and_ejected(operator: Operator, images: Path, name: str) -> None:
    operator("domain.provision", name=name, cdrom=f"{images}/boot.iso", seed_hostname="fresh", expect_text="CDROM BOOT",
             within_s=120, **TINY)  # fmt: skip
    with pytest.raises(RefusedError, match="several CD-ROM drives"):
        operator("domain.cdrom-eject", name)
    drives = {"drive": "hda"}
    inserted = operator("domain.cdrom-insert", name, iso=f"{images}/other.iso", **drives)
    for side in ("live", "persistent"):
        assert inserted.before[side] == {"drive": "hda", "iso": f"{images}/boot.iso"}
        assert inserted.after[side] == {"drive": "hda", "iso": f"{images}/other.iso"}
    assert not operator("domain.cdrom-insert", name, iso=f"{images}/other.iso", **drives).changed
    # The running guest only, then back by what the answer says; the configuration keeps what it has.
    ejected = operator("domain.cdrom-eject", name, **drives, apply_to="live")
    assert ejected.after["live"]["iso"] == ""
    assert operator.dry("domain.cdrom-eject", name, **drives).plan.state["persistent"] == inserted.after["persistent"]
    for step in ejected.details["reverse"]:
        operator(step["operation"], name, **step["parameters"])
    assert operator.dry("domain.cdrom-eject", name, **drives).plan.state["live"] == inserted.after["live"]
    assert operator("domain.cdrom-eject", name, **drives).after["persistent"]["iso"] == ""
    assert not operator("domain.cdrom-eject", name, **drives).changed
    with pytest.raises(InvalidError, match="outside"):
        operator("domain.cdrom-insert", name, iso="/etc/shadow", **drives)
    operator("domain.destroy", name)
    with pytest.raises(RefusedError, match="is not running"):
        operator("domain.cdrom-insert", name, iso=f"{images}/boot.iso", **drives, apply_to="live")
    again = operator("domain.cdrom-insert", name, iso=f"{images}/boot.iso", **drives)
    assert again.details["reverse"] == [
        {"operation": "domain.cdrom-eject", "parameters": {**drives, "apply_to": "persistent"}}
    ]


def test_a_kernel_is_booted_directly_and_its_agent_seen(operator: Operator, image: GuestImage, name: str) -> None:
    made = operator("domain.provision", name=name, type="qemu", machine="pc", memory_mib=96, kernel=str(image.kernel),
                    initrd=str(image.initramfs), cmdline=f"{KERNEL_COMMAND_LINE} g.agent=1", expect_text="GUEST READY",
                    expect_agent=True, within_s=200)  # fmt: skip
    assert set(made.details["seen"]) == {"text", "agent"}
    assert operator("domain.compare", name).details["diff"] == ""
    changed = operator("domain.define", name=name, uuid=made.after["uuid"], type="qemu", machine="pc", memory_mib=128,
                       kernel=str(image.kernel), replace=True)  # fmt: skip
    assert "next boot" in changed.warnings[0]
    assert "131072" in operator("domain.compare", name).details["diff"]


def test_not_seen_is_kept_or_removed(operator: Operator, images: Path, name: str) -> None:
    disks = [{"file": f"{images}/silent.raw", "bus": "ide"}]
    with pytest.raises(TimedOutError, match="missing: text"):
        operator("domain.provision", name=name, disks=disks, expect_text="LOGIN", within_s=1.5, **TINY)
    assert operator.state(name) == "running"
    operator("domain.destroy", name)
    operator("domain.undefine", name)
    with pytest.raises(TimedOutError):
        operator("domain.provision", name=name, disks=disks, expect_text="LOGIN", within_s=1.5, if_not_seen="remove",
                 **TINY)  # fmt: skip
    with pytest.raises(NotFoundError):
        operator("domain.show", name)


def test_what_would_hang_without_a_word_is_refused(operator: Operator, images: Path, name: str) -> None:
    for wrong, kind, cause in (
        ({}, InvalidError, "nothing to boot from"),
        ({"kernel": f"{images}/sector.raw"}, InvalidError, "is no kernel"),
        ({"cdrom": f"{images}/sector.raw"}, InvalidError, "is no ISO image"),
        ({"interfaces": [{}]}, InvalidError, "user network"),
        ({"interfaces": [{"network": "missing"}]}, NotFoundError, "missing"),
        ({"disks": [{"file": f"{images}/missing.raw"}]}, InvalidError, "No such file"),
        ({"bootloader": "pygrub"}, UnsupportedError, "no host bootloader"),
        ({"cdrom": f"{images}/boot.iso", "expect_text": "x", "console_log": False}, InvalidError, "not kept"),
    ):
        with pytest.raises(kind, match=cause):
            operator("domain.provision", name=name, **wrong, **TINY)
        with pytest.raises(NotFoundError):
            operator("domain.show", name)


def test_uefi_where_there_is_none(operator: Operator, images: Path, name: str) -> None:
    disks = [{"file": f"{images}/sector.raw", "bus": "ide"}]
    efi = {"name": name, "disks": disks, "firmware": "efi", **{**TINY, "machine": "q35"}}
    try:
        operator.dry("domain.provision", **efi)
    except UnsupportedError as error:
        assert "ovmf" in str(error)  # noqa: PT017 - whether the host has a firmware is the host's matter


def test_a_network_without_a_boot_file_is_refused(hypervisor: PrivateHypervisor, operator: Operator, name: str) -> None:
    file = hypervisor.folder / "definitions" / "plain.xml"
    file.write_text("<network><name>plain</name><bridge name='vgplain0'/></network>")
    hypervisor.virsh("net-define", str(file))
    try:
        with pytest.raises(RefusedError, match="not active"):
            operator("domain.provision", name=name, interfaces=[{"network": "plain"}], **TINY)
    finally:
        hypervisor.virsh("net-undefine", "plain")


def test_outside_xml_meets_libvirts_own_schema(hypervisor: PrivateHypervisor, operator: Operator, name: str) -> None:
    xml = f"<domain type='qemu'><name>{name}</name><memory unit='MiB'>16</memory><os><type>hvm</type></os>{{}}</domain>"
    with pytest.raises(ControlError):
        operator("domain.define-xml", xml=xml.format("<devices><disk type='file' device='disk'>"
                 "<driver name='qemu' type='raw'/></disk></devices>"))  # fmt: skip
    marker = hypervisor.folder / "ran"
    script = hypervisor.folder / "script"
    script.write_text(f"#!/bin/sh\ntouch {marker}\n")
    script.chmod(0o755)
    with pytest.raises(InvalidError, match="<emulator>"):
        operator("domain.create-xml", xml=xml.format(f"<devices><emulator>{script}</emulator></devices>"))
    assert not marker.exists()
    assert operator("domain.define-xml", xml=xml.format("")).after["state"] == "shutoff"


def test_killed_in_the_middle_of_provisioning(
    hypervisor: PrivateHypervisor, operator: Operator, images: Path, name: str
) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, hypervisor.uri, str(operator.folders.state), str(images)], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"waiting\n"
    with pytest.raises(BusyError, match=r"domain\.provision"):
        operator("domain.provision", name=name, disks=[{"file": f"{images}/silent.raw"}], **TINY)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    (explained,) = operator.executor.explain_left_open(OPERATIONS)
    assert "defined and running" in str(explained["outcome"])
    operator.trail.verify()


KILLED = """
import sys, threading
from pathlib import Path
from exporter.control.executor import Actor, Request
from tests.live.operating import Operator
operator = Operator(sys.argv[1], Path(sys.argv[2]), (Path(sys.argv[3]),))
def told(step):
    if step.phase.startswith("waiting"):
        print("waiting", flush=True)
fields = dict(name="fresh", type="qemu", machine="pc", memory_mib=16, agent=False, expect_text="LOGIN",
              disks=[dict(file=sys.argv[3] + "/silent.raw", bus="ide")])
operator.run("domain.provision", None, fields, Request(Actor("tester", "test"), progress=told))
"""


def test_many_at_once_on_one_guest(hypervisor: PrivateHypervisor, operator: Operator) -> None:
    """Processes as command lines are, and threads as a service has: one at a time acts, the others hear "busy"."""
    define(hypervisor, "shared", saying("UP"))
    try:
        operator("domain.start", "shared")
        children = [
            subprocess.Popen([sys.executable, "-c", TOGGLES, hypervisor.uri, str(operator.folders.state)])
            for _ in range(2)
        ]
        answers: list[str] = []
        toggles(operator, answers)
        other = threading.Thread(target=toggles, args=(operator, answers))
        other.start()
        toggles(operator, answers)
        other.join()
        assert [child.wait(120) for child in children] == [0, 0]
        assert set(answers) <= {"done", "busy"}
        assert "done" in answers
        records = operator.trail.records()
        assert operator.trail.verify() == len(records)
        open_acts: set[object] = set()
        for record in records:
            if record["event"] == "begin":
                assert not open_acts, "two acts at once on one domain"
                open_acts.add(record["act"])
            elif record["event"] == "end":
                open_acts.remove(record["act"])
        assert not open_acts
    finally:
        eventually(lambda: operator("domain.destroy", "shared"), "the end of the shared guest")
        operator("domain.undefine", "shared")


def toggles(operator: Operator, answers: list[str]) -> None:
    for verb in ("suspend", "resume") * 5:
        try:
            operator(f"domain.{verb}", "shared")
            answers.append("done")
        except BusyError:
            answers.append("busy")


TOGGLES = """
import sys
from pathlib import Path
from tests.live.operating import Operator
from tests.live.test_control_provisioning import toggles
toggles(Operator(sys.argv[1], Path(sys.argv[2])), [])
"""
