"""A quiesced snapshot by Debian's guest agent: the image shows whether the guest's file system was at rest."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import pytest

from collectors.agent_reading import AgentSource
from collectors.periodic import Scope
from exporter.control import quiescing
from exporter.control.errors import ControlError, RefusedError
from exporter.control.executor import Actor, Request
from exporter.control.guest_agent import reading_turn
from exporter.control.operation import Progress
from exporter.demonstration.guest_console import GuestConsole
from exporter.demonstration.guest_definition import Guest
from exporter.demonstration.guest_image import GuestImage
from exporter.demonstration.private_hypervisor import PrivateHypervisor
from exporter.demonstration.programs import run_program
from tests.live.agent_guest import agent_image
from tests.live.operating import Operator, eventually

NAME = "filing"
DISK_BYTES = 16 << 20


@pytest.fixture(scope="module")
def operator(hypervisor: PrivateHypervisor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    operator = Operator(hypervisor.uri, tmp_path_factory.mktemp("quiet") / "control", (hypervisor.folder / "images",))
    yield operator
    operator.close()


@pytest.fixture(scope="module")
def guest(
    hypervisor: PrivateHypervisor, operator: Operator, image: GuestImage, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GuestConsole]:
    """A Linux guest with the agent, and an ext4 on its disk that is mounted."""
    disk = hypervisor.new_disk(NAME, DISK_BYTES)
    run_program(["mkfs.ext4", "-q", str(disk.file)])
    orders = {"agent": "1", "mount": "vda"}
    guest = Guest(NAME, accelerator="qemu", memory_mib=128, disks=(disk,), boot_orders=orders)
    file = hypervisor.folder / "definitions" / f"{NAME}.xml"
    file.write_text(hypervisor.definition(guest, agent_image(image, tmp_path_factory.mktemp("agent"))))
    hypervisor.virsh("define", str(file))
    operator("domain.start", NAME)
    console = hypervisor.console(NAME)
    console.wait_ready(240)
    yield console
    operator("domain.destroy", NAME)
    operator("domain.undefine", NAME, snapshots=True)


def unwritten(image: Path) -> bool:
    """Whether the journal holds what the file system lacks: ext4 takes this mark away while it is frozen."""
    told = run_program(["dumpe2fs", "-h", str(image)]).decode()
    (features,) = re.findall(r"^Filesystem features:\s+(.*)$", told, re.MULTILINE)
    return "needs_recovery" in features


def test_its_file_system_is_at_rest_in_the_image(
    operator: Operator, hypervisor: PrivateHypervisor, guest: GuestConsole, tmp_path: Path
) -> None:
    disk = hypervisor.folder / "images" / f"{NAME}-vda.raw"
    assert guest.order("file 1048576").status == 0
    eventually(lambda: agent_answers(hypervisor), "the agent")
    quiet = operator("snapshot.create", NAME, name="quiet", quiesce=True)
    assert not unwritten(disk), "the image was taken of a file system at work"
    # It goes on: a frozen one would hold this for ever.
    assert guest.order("file 524288").status == 0
    # The same without the agent, of the file that it now writes to.
    overlay = Path(str(quiet.details["files"]["vda"]))
    operator("snapshot.create", NAME, name="loud")
    loud = tmp_path / "loud.raw"
    run_program(["qemu-img", "convert", "-U", "-O", "raw", str(overlay), str(loud)])
    assert unwritten(loud), "the comparison shows nothing"
    # libvirt tells their times in whole seconds, so that their order does not tell which came first.
    assert {row["name"] for row in operator("snapshot.list", NAME).details["rows"]} == {"quiet", "loud"}


def test_a_mute_agent_leaves_everything_as_it_was(operator: Operator, guest: GuestConsole) -> None:
    guest.order("agent mute")
    files = chain(operator)
    try:
        with pytest.raises(RefusedError, match="agent in domain filing does not answer"):
            operator("snapshot.create", NAME, name="never", quiesce=True)
    finally:
        guest.order("agent 1")
    assert chain(operator) == files
    assert not [file for file in os.listdir(Path(files[0]).parent) if "never" in file]
    assert guest.order("file 4096").status == 0
    assert operator.state(NAME) == "running"


def test_what_somebody_else_holds_stays_held(
    operator: Operator, hypervisor: PrivateHypervisor, guest: GuestConsole
) -> None:
    eventually(lambda: agent_answers(hypervisor), "the agent")
    files = chain(operator)
    asked = {"name": "never", "quiesce": True}

    def freeze(step: Progress) -> None:
        if "holding" in step.phase:
            hypervisor.virsh("domfsfreeze", NAME)

    request = Request(Actor("tester", "test"), progress=freeze)
    held = "file systems in domain filing are held already.*virsh domfsthaw filing"
    # Held by another between the look and the act, and before it.
    with pytest.raises(RefusedError, match=held):
        operator.run("snapshot.create", NAME, asked, request)
    with pytest.raises(RefusedError, match=held):
        operator.dry("snapshot.create", NAME, **asked)
    assert let_go(operator) == 1
    assert chain(operator) == files


def test_an_agent_that_falls_mute_on_the_way(
    operator: Operator, hypervisor: PrivateHypervisor, guest: GuestConsole, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it was asked it does when it wakes, so the error tells how to undo it. The metrics' reading keeps out."""
    monkeypatch.setattr(quiescing, "FREEZE_LIMIT_S", 2)
    eventually(lambda: agent_answers(hypervisor), "the agent")
    uuid = hypervisor.virsh("domuuid", NAME).strip()
    source = AgentSource(turn=partial(reading_turn, operator.folders))
    (part,) = [part for part in source.parts(operator.executor.session, Scope()) if part.uuid == uuid]  # type: ignore
    read: list[int] = []

    def mute(step: Progress) -> None:
        if "holding" in step.phase:
            read.append(len(list(source.read(operator.executor.session, part))))  # type: ignore
            guest.order("agent mute")

    request = Request(Actor("tester", "test"), progress=mute)
    try:
        with pytest.raises(RefusedError, match=r"not responding.*may hold.*'virsh domfsthaw filing' then lets go"):
            operator.run("snapshot.create", NAME, {"name": "never", "quiesce": True}, request)
    finally:
        guest.order("agent 1")
    assert let_go(operator) == 1
    assert guest.order("file 4096").status == 0
    assert (read, len(list(source.read(operator.executor.session, part)))) == ([0], 1)  # type: ignore


def let_go(operator: Operator) -> int:
    """How many file systems were held."""
    return int(operator.executor.session.connection.lookupByName(NAME).fsThaw())


def chain(operator: Operator) -> list[str]:
    (row,) = operator("domain.block-jobs", NAME).details["rows"]
    return list(row["chain"])


def agent_answers(hypervisor: PrivateHypervisor, name: str = NAME) -> bool:
    return "org.qemu.guest_agent.0' state='connected'" in hypervisor.virsh("dumpxml", name)


def test_an_agent_that_does_not_let_go(
    operator: Operator, hypervisor: PrivateHypervisor, image: GuestImage, tmp_path: Path
) -> None:
    """libvirt fails with the snapshot taken, and forgets it: the caller is told where the disks go on.

    The guest stands on a template, as others may: the way back that is told leaves it as it is.
    """
    name = "clutching"
    disk = hypervisor.new_disk(name, DISK_BYTES)
    run_program(["mkfs.ext4", "-q", str(disk.file)])
    own = disk.file.with_suffix(".qcow2")
    run_program(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(disk.file), str(own)])
    template = disk.file.read_bytes()
    guest = Guest(name, accelerator="qemu", memory_mib=128, disks=(disk,), boot_orders={"agent": "1", "mount": "vda"})
    file = hypervisor.folder / "definitions" / f"{name}.xml"
    xml = hypervisor.definition(guest, agent_image(image, tmp_path, without="guest-fsfreeze-thaw"))
    root = ElementTree.fromstring(xml)
    (element,) = root.iterfind(f"devices/disk/source[@file='{disk.file}']/..")
    for part, attribute, value in (("source", "file", str(own)), ("driver", "type", "qcow2")):
        found = element.find(part)
        assert found is not None
        found.set(attribute, value)
    file.write_text(ElementTree.tostring(root, encoding="unicode"))
    hypervisor.virsh("define", str(file))
    operator("domain.start", name)
    try:
        hypervisor.console(name).wait_ready(240)
        eventually(lambda: agent_answers(hypervisor, name), "the agent")
        with pytest.raises(ControlError, match="guest-fsfreeze-thaw") as caught:
            operator("snapshot.create", name, name="kept", quiesce=True)
        (row,) = operator("domain.block-jobs", name).details["rows"]
        overlay, *below = row["chain"]
        assert (below, operator("snapshot.list", name).details["rows"]) == ([str(own), str(disk.file)], [])
        told = str(caught.value)
        assert f"disks go on in the new files (vda in {overlay}), and the snapshot is not in its list" in told
        assert f"'domain block-commit {name} --device vda --base {own}'" in told
        assert f"'virsh domfsthaw {name}'" in told
        assert operator("domain.block-commit", name, device="vda", base=str(own)).after["chain"] == below
        assert disk.file.read_bytes() == template
    finally:
        operator("domain.destroy", name)
        operator("domain.undefine", name, snapshots=True)
