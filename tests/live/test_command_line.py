"""`virtgauge domain` and `virtgauge saved` as an operator types them, on real guests."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from exporter import cli
from exporter.control.audit import Trail
from exporter.control.operations import by_name
from exporter.control_reference import command_words
from exporter.demonstration.private_hypervisor import PrivateHypervisor
from tests.control_service import PROGRAM
from tests.live.operating import eventually
from tests.live.sector_guests import SectorGuest, bootable_iso, define, saying, sector_xml

SECRET = "Geheim47"
ENTITY = '<!DOCTYPE domain [<!ENTITY owned "x">]>'
METADATA = "<metadata><own:x xmlns:own='urn:own'>&owned;</own:x></metadata>"

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def flags(hypervisor: PrivateHypervisor, tmp_path: Path) -> list[str]:
    configuration = tmp_path / "virtgauge.yml"
    configuration.write_text(f"control: {{image_directory: ['{hypervisor.folder}/images']}}\n")
    return ["--libvirt.uri", hypervisor.uri, "--state.directory", f"{tmp_path}/state", "--config.file",
            str(configuration)]  # fmt: skip


@pytest.fixture
def virtgauge(flags: list[str], capfd: pytest.CaptureFixture[str]) -> Run:
    def run(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        status = cli.run([*words, *flags])
        return status, *capfd.readouterr()

    return run


@pytest.fixture
def connection(hypervisor: PrivateHypervisor) -> Iterator[Any]:
    """A connection; the guests called web1 or www1 go in the end."""
    connection = libvirt.open(hypervisor.uri)
    yield connection
    for left in connection.listAllDomains(0):
        if left.name() in ("web1", "www1"):
            persistent = left.isPersistent()
            if left.isActive():
                left.destroy()
            if persistent:
                left.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)
    connection.close()


@pytest.fixture
def web1(hypervisor: PrivateHypervisor, connection: Any) -> SectorGuest:
    guest = define(hypervisor, "web1", saying("UP"))
    connection.lookupByName("web1").create()
    return guest


@pytest.mark.parametrize(("answer", "status", "state"), [("n\n", 130, "running"), ("y\n", 0, "shut off")])
def test_destroy_asks_with_the_guests_name_and_how_long_it_has_run(
    hypervisor: PrivateHypervisor, flags: list[str], web1: SectorGuest, answer: str, status: int, state: str
) -> None:
    primary, secondary = pty.openpty()
    try:
        process = subprocess.Popen([*PROGRAM, "domain", "destroy", web1.uuid, *flags], stdin=secondary, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
        os.write(primary, answer.encode())
        _, err = process.communicate(timeout=120)
    finally:
        os.close(primary)
        os.close(secondary)
    assert process.returncode == status
    assert re.search(r"destroy of domain web1 \(running for (\d+ min )?\d+ s\) cannot be undone. Go on\? \[y/N\]", err)
    assert "would be lost: all that the guest holds in memory" in err
    assert hypervisor.virsh("domstate", "web1").strip() == state


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_asks_to_stop_and_the_outcome_is_told(
    hypervisor: PrivateHypervisor, flags: list[str], web1: SectorGuest, tmp_path: Path, number: signal.Signals
) -> None:
    """The guest ignores the button; the operation ends at once where it is asked to, in good order."""
    words = ["domain", "shutdown", "web1", "--mode", "acpi", "--acpi-timeout", "5m"]
    process = subprocess.Popen([*PROGRAM, *words, *flags], text=True, stderr=subprocess.PIPE)
    trail = Trail(tmp_path / "state/control/audit.jsonl")
    eventually(trail.records, "the act's beginning")
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 5
    assert err.splitlines()[0] == "virtgauge: stopping; once more leaves it to libvirt"
    # The signal may come between the record of the beginning and the first push.
    assert "web1 is still running after: 0.0 s: pushing the ACPI button" in err or "web1 was asked nothing" in err
    assert len(err.splitlines()) == 2
    assert [record["event"] for record in trail.records()] == ["begin", "end"]
    assert hypervisor.virsh("domstate", "web1").strip() == "running"


def test_a_closed_terminal_cuts_nothing_off(flags: list[str], web1: SectorGuest, tmp_path: Path) -> None:
    """SSH that breaks takes its terminal along: the save is finished, recorded and in the trail."""
    primary, secondary = pty.openpty()
    process = subprocess.Popen([*PROGRAM, "domain", "save", "web1", *flags], stdin=secondary, stdout=secondary,
                               stderr=secondary, start_new_session=True)  # fmt: skip
    os.close(secondary)
    trail = Trail(tmp_path / "state/control/audit.jsonl")
    eventually(trail.records, "the act's beginning")
    os.close(primary)
    process.send_signal(signal.SIGHUP)
    process.wait(120)
    assert [record["event"] for record in trail.records()] == ["begin", "end"]
    assert len(list((tmp_path / "state/control/saves").glob("*.json"))) == 1


def test_a_guest_is_shown_with_its_devices_and_without_its_secrets(
    virtgauge: Run, connection: Any, hypervisor: PrivateHypervisor
) -> None:
    display = f"<graphics type='vnc' autoport='yes' listen='127.0.0.1' passwd='{SECRET}'/>"
    cdrom = "<disk type='file' device='cdrom'><target dev='hdc' bus='ide'/><readonly/></disk>"
    nic = "<interface type='user'><mac address='52:54:00:12:34:56'/><model type='e1000'/></interface>"
    xml, guest = sector_xml(hypervisor, "web1", saying("UP"))
    connection.defineXML(xml.replace("<memballoon", f"{display}{cdrom}{nic}<memballoon")).create()
    assert SECRET in hypervisor.virsh("dumpxml", "--security-info", "web1")
    status, out, _ = virtgauge("domain", "show", "web1")
    lines = [line.split() for line in out.splitlines()]
    assert status == 0
    assert ["hda", "disk", "ide", "raw", str(guest.disk)] in lines
    assert ["hdc", "cdrom", "ide"] in [line[:3] for line in lines]
    assert ["52:54:00:12:34:56", "e1000", "user"] in [line[-3:] for line in lines]
    assert re.search(r"graphics +vnc 127\.0\.0\.1:59\d\d", out)
    assert re.search(r"maximum_memory_kib +16384 \(16 MiB\)", out)
    for words in (["domain", "xml", "web1"], ["domain", "xml", "web1", "--inactive"], ["domain", "compare", "web1"],
                  ["domain", "undefine", "web1", "--while-running", "--dry-run"]):  # fmt: skip
        for output in ("table", "json", "yaml"):
            status, out, err = virtgauge(*words, "--output", output)
            assert (status, SECRET in out + err) == (0, False), words
    assert "<graphics type='vnc'" in virtgauge("domain", "xml", "web1")[1]


def test_what_an_owner_wrote_into_the_metadata_stands_in_nobodys_way(
    virtgauge: Run, connection: Any, hypervisor: PrivateHypervisor
) -> None:
    """libvirt keeps a reference to an entity, but not what it stands for: its own XML then does not parse."""
    xml, _guest = sector_xml(hypervisor, "web1", saying("UP"))
    domain = connection.createXML(ENTITY + xml.replace("<vcpu>", METADATA + "<vcpu>"), 0)
    assert "&owned;" in domain.XMLDesc(0)
    for words, expected in (
        (["show", "web1"], 0),
        (["compare", "web1"], 3),
        (["shutdown", "web1", "--acpi-timeout", "1s", "--yes"], 5),
        (["cdrom-eject", "web1"], 3),
        (["set", "memory", "web1", "--memory-mib", "16", "--dry-run"], 0),
        (["save", "web1", "--allow-transient"], 1),  # libvirt itself cannot
        (["suspend", "web1"], 0),
        (["destroy", "web1", "--yes"], 0),
    ):
        status, out, err = virtgauge("domain", *words)
        assert (status, "defect" in err) == (expected, False), (words, out, err)


def test_the_examples_of_the_documentation_run(
    virtgauge: Run, connection: Any, hypervisor: PrivateHypervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that need no guest which obeys; each as docs/control-operations.md prints it, but the folder."""
    images = hypervisor.folder / "images"
    hypervisor.run("qemu-img", "create", "-q", "-f", "qcow2", f"{images}/web1.qcow2", "1M")
    (images / "rescue.iso").write_bytes(bootable_iso(saying("RESCUE")))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "web1.xml").write_text(
        "<domain type='qemu'><name>web1</name><memory unit='MiB'>16</memory><os><type>hvm</type></os></domain>"
    )
    hypervisor.virsh("net-create", _file(tmp_path, "<network><name>default</name><bridge name='vgdocs0'/></network>"))
    saved = ""

    def run(operation: str, *more: str) -> str:
        words = command_words(by_name()[operation])
        words = [re.sub(r"/var/lib/libvirt/images", str(images), word) for word in words]
        words = [saved if re.fullmatch(r"[0-9a-f-]{36}-\d{8}T\d{6}Z-[0-9a-f]{8}", word) else word for word in words]
        yes = [] if by_name()[operation].reads else ["--yes"]
        status, out, err = virtgauge(*words, *yes, *more)
        assert status == 0, (words, out, err)
        return out

    try:
        for verb in ("define", "autostart", "rename"):
            run(f"domain.{verb}")
        hypervisor.virsh("undefine", "www1")
        for verb in ("define-xml", "undefine", "create-xml", "destroy"):
            run(f"domain.{verb}")
        run("domain.create", "--type", "qemu", "--memory-mib", "32")
        for verb in ("make-persistent", "compare", "show", "xml", "list", "suspend", "resume", "reset", "core-dump"):
            run(f"domain.{verb}")
        saved = str(re.findall(r"saved +(\S+)", run("domain.save"))[0])
        for verb in ("list", "show", "restore", "adopt", "remove"):
            run(f"saved.{verb}")
        for verb in ("managed-save", "managed-save-remove", "start", "destroy"):
            run(f"domain.{verb}")
        hypervisor.virsh("undefine", "web1")
        run("domain.define", "--cdrom", "", "--replace")
        for verb in ("cdrom-insert", "cdrom-eject"):
            run(f"domain.{verb}")
    finally:
        hypervisor.virsh("net-destroy", "default")


def _file(folder: Path, text: str) -> str:
    file = folder / "network.xml"
    file.write_text(text)
    return str(file)
