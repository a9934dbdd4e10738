"""Limits, balloon and devices of a running Linux guest, changed while the exporter is scraped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from xml.etree import ElementTree

import pytest

from exporter.control.errors import NotFoundError, RefusedError, TimedOutError, UnsupportedError
from exporter.control.operation import Result
from exporter.demonstration.errors import DemonstrationError
from exporter.demonstration.guest_console import GuestConsole
from exporter.demonstration.guest_definition import Accelerator
from exporter.demonstration.guest_image import GuestImage
from exporter.demonstration.private_hypervisor import PrivateHypervisor
from exporter.demonstration.private_namespaces import BRIDGE
from tests.live.conftest import new_guest
from tests.live.operating import OPERATIONS, Operator, eventually
from tests.live.scraping import Scraper
from tests.live.sector_guests import define, saying
from tests.live.servers import exporter_server
from tests.live.watching import Watcher

GUEST = "plug"
MEMORY_MIB = 96


@pytest.fixture(scope="module")
def operator(hypervisor: PrivateHypervisor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    operator = Operator(
        hypervisor.uri, tmp_path_factory.mktemp("devices") / "control", (hypervisor.folder / "images",)
    )
    yield operator
    operator.close()


@pytest.fixture(scope="module")
def plug(
    hypervisor: PrivateHypervisor, operator: Operator, image: GuestImage, guest_accelerator: Accelerator
) -> Iterator[GuestConsole]:
    """A booted Linux guest with a definition: vda, one NIC, a balloon with statistics."""
    guest = new_guest(hypervisor, GUEST, guest_accelerator)
    console = hypervisor.console(GUEST)
    console.files.log.unlink(missing_ok=True)
    file = hypervisor.folder / "definitions" / f"{GUEST}.xml"
    file.write_text(with_room(hypervisor.definition(guest, image)))
    hypervisor.virsh("define", str(file))
    operator("domain.start", GUEST)
    console.wait_ready(120)
    yield console
    operator("domain.destroy", GUEST)
    operator("domain.undefine", GUEST, snapshots=True)


def with_room(xml: str, memory: bool = False) -> str:
    """The definition with room for a second vCPU, and for a memory module where wanted."""
    domain = ElementTree.fromstring(xml)
    vcpu = domain.find("vcpu")
    assert vcpu is not None
    vcpu.text, vcpu.attrib["current"] = "2", "1"
    if memory:
        most = ElementTree.Element("maxMemory", slots="1", unit="MiB")
        most.text = "512"
        domain.insert(0, most)
        cell = ElementTree.SubElement(ElementTree.SubElement(ElementTree.SubElement(domain, "cpu"), "numa"), "cell")
        cell.attrib.update({"id": "0", "cpus": "0-1", "memory": domain.findtext("memory") or "", "unit": "KiB"})
    return ElementTree.tostring(domain, encoding="unicode")


@pytest.fixture(scope="module")
def scraper(hypervisor: PrivateHypervisor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraper]:
    with ExitStack() as ending:
        server = ending.enter_context(
            exporter_server(tmp_path_factory.mktemp("scraped"), hypervisor.read_only_uri, ("--sampling.interval=1s",))
        )
        server.start()
        server.wait_ready()
        yield Scraper(server)


def undo(operator: Operator, result: Result) -> None:
    for step in result.details["reverse"]:  # type: ignore[union-attr]
        operator(step["operation"], GUEST, **step["parameters"])  # type: ignore[index,arg-type,call-overload]


def test_the_balloon_follows_and_is_set_back(operator: Operator, plug: GuestConsole, scraper: Scraper) -> None:
    lowered = operator("domain.set-memory", GUEST, memory_mib=MEMORY_MIB - 8)
    assert lowered.after["live"] == {
        "memory_kib": (MEMORY_MIB - 8) << 10, "maximum_memory_kib": MEMORY_MIB << 10
    }  # fmt: skip
    assert lowered.after["persistent"]["memory_kib"] == (MEMORY_MIB - 8) << 10
    eventually(
        lambda: value(scraper, "libvirt_domain_info_memory_usage_bytes") == (MEMORY_MIB - 8) << 20,
        "the exporter's word of it",
    )
    assert not operator("domain.set-memory", GUEST, memory_mib=MEMORY_MIB - 8).changed
    with pytest.raises(RefusedError, match=r"uses \d+ KiB, and would be left with 4096 KiB.*--force"):
        operator("domain.set-memory", GUEST, memory_mib=4)
    with pytest.raises(RefusedError, match="more than the maximum"):
        operator("domain.set-memory", GUEST, memory_mib=MEMORY_MIB + 1)
    undo(operator, lowered)
    assert operator.dry("domain.set-memory", GUEST, percent_of_maximum=100).plan.nothing_to_do


def limit_of(scraper: Scraper, disk: str) -> float | None:
    name = "libvirt_domain_block_stats_limit_write_bytes"
    return scraper.scrape().value(name, domain=GUEST, target_device=disk)


def test_a_block_limit_holds_and_is_lifted(operator: Operator, plug: GuestConsole, scraper: Scraper) -> None:
    limited = operator("domain.set-block-limit", GUEST, device="vda", write_bytes_sec=1 << 20)
    assert limited.after["live"] == limited.after["persistent"] == {"vda": {"write_bytes_sec": 1 << 20}}
    eventually(lambda: limit_of(scraper, "vda") == 1 << 20, "the exporter's word of the limit")
    both = operator("domain.set-block-limit", GUEST, total_iops_sec=500, apply_to="live")
    assert both.after["live"] == {"vda": {"write_bytes_sec": 1 << 20, "total_iops_sec": 500}}
    total = operator("domain.set-block-limit", GUEST, total_bytes_sec=2 << 20, apply_to="live")
    assert total.after["live"] == {"vda": {"total_bytes_sec": 2 << 20, "total_iops_sec": 500}}
    undo(operator, total)
    undo(operator, both)
    assert operator.dry("domain.lift-block-limit", GUEST).plan.state["live"] == limited.after["live"]
    lifted = operator("domain.lift-block-limit", GUEST)
    assert lifted.after["live"] == lifted.after["persistent"] == {"vda": {}}
    eventually(lambda: limit_of(scraper, "vda") is None, "the exporter's word that it is lifted")
    undo(operator, lifted)
    assert operator("domain.lift-block-limit", GUEST).before["live"] == limited.after["live"]


def test_a_burst_goes_with_its_limit(operator: Operator, plug: GuestConsole) -> None:
    limits = {"read_iops_sec": 100, "read_iops_sec_max": 200, "write_iops_sec": 50}
    limited = operator("domain.set-block-limit", GUEST, **limits)
    assert limited.after["live"] == {"vda": limits}
    assert operator("domain.lift-block-limit", GUEST).after["persistent"] == {"vda": {}}


def shapes_traffic(hypervisor: PrivateHypervisor) -> bool:
    """Whether the kernel has what libvirt limits received traffic with."""
    try:
        hypervisor.run("tc", "qdisc", "add", "dev", "lo", "root", "sfq")
    except DemonstrationError:
        return False
    hypervisor.run("tc", "qdisc", "del", "dev", "lo", "root")
    return True


def test_a_network_limit_is_set_and_lifted(
    operator: Operator, plug: GuestConsole, hypervisor: PrivateHypervisor
) -> None:
    received = {"inbound_average_kib": 2048, "inbound_peak_kib": 4096, "inbound_burst_kib": 1024}
    kept = operator("domain.set-interface-limit", GUEST, outbound_average_kib=1024, **received, apply_to="persistent")
    (mac,) = kept.after["persistent"]
    if shapes_traffic(hypervisor):
        sent = operator("domain.set-interface-limit", GUEST, device=mac, outbound_average_kib=1024, **received)
        assert sent.after["live"] == kept.after["persistent"]
        undo(operator, sent)
    else:
        for limits in (received, {"outbound_average_kib": 1024}):
            with pytest.raises(UnsupportedError, match=r"kernel cannot shape the traffic.*sch_sfq"):
                operator("domain.set-interface-limit", GUEST, **limits, apply_to="live")
    lifted = operator("domain.lift-interface-limit", GUEST)
    assert lifted.before["live"] == {mac: {}}
    assert lifted.after["live"] == lifted.after["persistent"] == {mac: {}}


def test_a_guest_that_does_not_follow_its_balloon(
    operator: Operator, hypervisor: PrivateHypervisor, plug: GuestConsole
) -> None:
    """Its memory is held by files, so that it cannot give it up: forced, and told."""
    with pytest.raises(TimedOutError, match=r"was asked to have 20480 KiB, and has \d+ KiB after 2 s"):
        operator("domain.set-memory", GUEST, memory_mib=20, apply_to="live", within_s=2, force=True)
    assert operator("domain.set-memory", GUEST, percent_of_maximum=100).changed
    assert Path(plug.files.log).exists()


def written(scraper: Scraper, disk: str) -> float | None:
    return scraper.scrape().value("libvirt_domain_block_stats_write_bytes_total", domain=GUEST, target_device=disk)


def test_a_disk_comes_and_goes_while_scraped(
    operator: Operator, hypervisor: PrivateHypervisor, plug: GuestConsole, scraper: Scraper
) -> None:
    image = hypervisor.folder / "images" / "more & <disk>.raw"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    watcher = Watcher(scraper, ())
    watcher.allowed = Everything()
    with watcher.watching(least_pages=5):
        attached = operator("domain.attach-disk", GUEST, file=str(image))
        assert attached.after["live"]["vdb"] == {"file": str(image), "format": "raw", "bus": "virtio"}
        assert attached.after["live"] == attached.after["persistent"]
        assert not operator("domain.attach-disk", GUEST, file=str(image)).changed
        eventually(lambda: plug.order("read 4096 4096 vdb").status == 0, "the guest's disk")
        assert plug.order("write 1048576 65536 vdb").status == 0
        eventually(lambda: written(scraper, "vdb") == 1 << 20, "the exporter's count of it")
        with pytest.raises(RefusedError, match="has another disk at vdb"):
            operator("domain.attach-disk", GUEST, file=str(image), device="vdb", serial="other")
        with pytest.raises(RefusedError, match=r"has .*raw in its disk vdb"):
            operator("domain.attach-disk", GUEST, file=str(image), device="vdc")
        detached = operator("domain.detach-disk", GUEST, device="vdb")
        assert set(detached.after["live"]) == set(detached.after["persistent"]) == {"vda"}
        eventually(lambda: written(scraper, "vdb") is None, "the end of its series")
    assert not operator("domain.detach-disk", GUEST, device="vdb").changed
    undo(operator, detached)
    eventually(lambda: written(scraper, "vdb") == 0, "its series, counted from zero")
    undo(operator, attached)


def value(scraper: Scraper, family: str) -> float | None:
    return scraper.scrape().value(family, domain=GUEST)


def count(scraper: Scraper, family: str) -> int:
    """How many series of a family the guest has."""
    return sum(name == family and ("domain", GUEST) in labels for name, labels in scraper.scrape().values)


class Everything(set[str]):
    """Other tests' guests may be there."""

    def __rsub__(self, _other: object) -> set[str]:  # type: ignore[override]
        return set()


def test_a_disk_of_another_guest_is_refused(
    operator: Operator, hypervisor: PrivateHypervisor, plug: GuestConsole
) -> None:
    guest = define(hypervisor, "owner", saying("UP"))
    operator("domain.start", "owner")
    try:
        with pytest.raises(RefusedError, match="in use by domain owner"):
            operator("domain.attach-disk", GUEST, file=str(guest.disk))
        with pytest.raises(RefusedError, match=r"on sata cannot be given .* while it runs"):
            operator("domain.attach-disk", GUEST, file=str(guest.disk), bus="sata")
    finally:
        operator("domain.destroy", "owner")
        operator("domain.undefine", "owner")


def test_a_disk_grows_while_the_guest_uses_it(operator: Operator, plug: GuestConsole, scraper: Scraper) -> None:
    grown = operator("domain.set-disk-size", GUEST, device="vda", capacity_bytes=72 << 20)
    assert (grown.before["capacity_bytes"], grown.after["capacity_bytes"]) == (64 << 20, 72 << 20)
    assert not operator("domain.set-disk-size", GUEST, device="vda", capacity_bytes=72 << 20).changed
    # The guest reads all of it, the new end too.
    assert plug.order(f"read {72 << 20} 1048576 vda").status == 0
    name = "libvirt_domain_block_stats_capacity_bytes"
    eventually(lambda: scraper.scrape().value(name, domain=GUEST, target_device="vda") == 72 << 20, "the new size")
    with pytest.raises(RefusedError, match="has 75497472 bytes, and a smaller one would lose"):
        operator("domain.set-disk-size", GUEST, device="vda", capacity_bytes=64 << 20)
    with pytest.raises(NotFoundError, match="no disk 'vdz'"):
        operator("domain.set-disk-size", GUEST, device="vdz", capacity_bytes=64 << 20)


def test_an_interface_comes_and_goes_while_scraped(
    operator: Operator, hypervisor: PrivateHypervisor, plug: GuestConsole, scraper: Scraper
) -> None:
    def macs() -> int:
        return count(scraper, "libvirt_domain_interface_stats_receive_bytes_total")

    with pytest.raises(NotFoundError, match="there is no network 'nope'"):
        operator.dry("domain.attach-interface", GUEST, network="nope")
    before = macs()
    attached = operator("domain.attach-interface", GUEST, bridge=BRIDGE)
    (mac,) = set(attached.after["live"]) - set(attached.before["live"])
    assert attached.after["live"] == attached.after["persistent"]
    eventually(lambda: macs() == before + 1, "the series of the interface")
    detached = operator("domain.detach-interface", GUEST, device=mac.upper())
    assert mac not in detached.after["live"]
    assert mac not in detached.after["persistent"]
    eventually(lambda: macs() == before, "the end of its series")
    unchanged = operator("domain.detach-interface", GUEST, device=mac)
    assert not unchanged.changed
    assert "has no such interface" in unchanged.warnings[0]


def test_an_interface_that_cannot_come_or_go(operator: Operator, hypervisor: PrivateHypervisor) -> None:
    mac = "52:54:00:00:03:01"
    guest = define(hypervisor, "twins", saying("UP"))
    nic = f"<interface type='user'><mac address='{mac}'/><rom enabled='no'/></interface>"
    file = hypervisor.folder / "definitions" / "twins.xml"
    file.write_text(hypervisor.virsh("dumpxml", guest.name).replace("</devices>", f"{nic * 2}</devices>"))
    hypervisor.virsh("define", str(file))
    operator("network.define", name="asleep", forward="isolated", bridge="asleep0", address="203.0.113.1/24")
    try:
        operator("domain.start", "twins")
        with pytest.raises(RefusedError, match=r"network asleep is not active; start it \('network start asleep'\)"):
            operator.dry("domain.attach-interface", "twins", network="asleep")
        assert operator.dry("domain.attach-interface", "twins", network="asleep", apply_to="persistent").plan.steps
        for act in (operator.dry, operator):
            with pytest.raises(RefusedError, match=f"domain twins has 2 interfaces with {mac}; give them addresses"):
                act("domain.detach-interface", "twins", device=mac)
    finally:
        operator("domain.destroy", "twins")
        operator("domain.undefine", "twins")
        operator("network.undefine", "asleep")


def test_a_guest_that_ignores_an_unplug(operator: Operator, hypervisor: PrivateHypervisor) -> None:
    """A boot sector has no driver for anything."""
    define(hypervisor, "ignorant", saying("UP"))
    file = hypervisor.folder / "definitions" / "ignorant.xml"
    file.write_text(with_room(hypervisor.virsh("dumpxml", "ignorant"), memory=True))
    hypervisor.virsh("define", str(file))
    image = hypervisor.folder / "images" / "stuck.raw"
    image.write_bytes(bytes(1 << 20))
    operator("domain.start", "ignorant")
    try:
        operator("domain.attach-disk", "ignorant", file=str(image), apply_to="live")
        with pytest.raises(TimedOutError, match=r"still has disk vda after 1 s.*has not answered.*ignores"):
            operator("domain.detach-disk", "ignorant", device="vda", apply_to="live", within_s=1)
        assert operator.dry("domain.detach-disk", "ignorant", device="vda", apply_to="live").plan.lost
        with pytest.raises(RefusedError, match="more than its <maxMemory>"):
            operator("domain.attach-memory", "ignorant", size_mib=1024)
        more = operator("domain.attach-memory", "ignorant", size_mib=128)
        assert more.after["live"] == more.after["persistent"] == {"modules": ["128 MiB on node 0"]}
        with pytest.raises(RefusedError, match="all its 1 slots"):
            operator("domain.attach-memory", "ignorant", size_mib=128)
        with pytest.raises((TimedOutError, RefusedError), match="memory module dimm0"):
            operator("domain.detach-memory", "ignorant", size_mib=128, within_s=1)
        assert operator("domain.detach-memory", "ignorant", size_mib=128, apply_to="persistent").changed
        with pytest.raises(RefusedError, match="it has: none"):
            operator("domain.detach-memory", "ignorant", size_mib=128, apply_to="persistent")
    finally:
        operator("domain.destroy", "ignorant")
        operator("domain.undefine", "ignorant")


def test_killed_in_the_middle_of_hot_plug(operator: Operator, hypervisor: PrivateHypervisor) -> None:
    """kill -9 while libvirt waits for QEMU, and while the guest is waited for: told at the next start, with undo."""
    define(hypervisor, "victim", saying("UP"))
    image = hypervisor.folder / "images" / "plugged.raw"
    image.write_bytes(bytes(1 << 20))
    operator("domain.start", "victim")
    qemu = hypervisor.qemu_pid("victim")
    try:
        os.kill(qemu, signal.SIGSTOP)
        killed(operator, "domain.attach-disk", f"{{'file': '{image}', 'apply_to': 'live'}}")
        os.kill(qemu, signal.SIGCONT)
        eventually(lambda: operator("domain.show", "victim").details["job"] == "none", "the end of libvirt's job")
        (told,) = operator.executor.explain_left_open(OPERATIONS)
        assert "interrupted; the running guest has" in str(told["outcome"])
        assert '"operation": "domain.detach-disk"' in str(told["outcome"])
        assert operator.state("victim") == "running"

        operator("domain.attach-disk", "victim", file=str(image))
        killed(operator, "domain.detach-disk", "{'device': 'vda', 'within_s': 120}")
        (told,) = operator.executor.explain_left_open(OPERATIONS)
        assert '"operation": "domain.attach-disk"' in str(told["outcome"])
        # The guest has not let go of it, and so the configuration was not touched.
        state = operator.dry("domain.detach-disk", "victim", device="vda").plan.state
        assert "vda" in state["live"]
        assert "vda" in state["persistent"]
        assert operator.state("victim") == "running"
    finally:
        os.kill(qemu, signal.SIGCONT)
        operator("domain.destroy", "victim")
        operator("domain.undefine", "victim")


def killed(operator: Operator, operation: str, parameters: str) -> None:
    """Has another process do it to `victim`, and kills that one once libvirt or the guest is waited for."""
    words = [str(operator.executor.session.uri), str(operator.folders.state), str(operator.folders.images[0])]
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, *words, operation, parameters], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    begun = operator.events().count("begin")
    eventually(lambda: operator.events().count("begin") > begun or child.poll() is not None, "the beginning of the act")
    assert child.poll() is None, child.communicate()
    lock = operator.folders.locks / f"domain-{operator('domain.show', 'victim').details['uuid']}.lock"
    eventually(lambda: b'"reverse"' in lock.read_bytes(), "the act with its undo on disk")
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()


KILLED = """
import ast, sys
from pathlib import Path
from tests.live.operating import Operator
uri, state, images, operation, parameters = sys.argv[1:]
Operator(uri, Path(state), (Path(images),))(operation, "victim", **ast.literal_eval(parameters))
"""


def test_vcpus_come_and_go(operator: Operator, plug: GuestConsole, scraper: Scraper) -> None:
    """The last one here: this guest's kernel does not let a vCPU go again."""

    def seen() -> int:
        return count(scraper, "libvirt_domain_vcpu_time_seconds_total")

    more = operator("domain.set-vcpus", GUEST, vcpus=2)
    assert more.after["live"] == more.after["persistent"] == {"vcpus": 2, "maximum_vcpus": 2}
    eventually(lambda: seen() == 2, "the second vCPU's series")
    with pytest.raises(RefusedError, match="at most 2 vCPUs"):
        operator("domain.set-vcpus", GUEST, vcpus=3)
    try:
        undo(operator, more)
        eventually(lambda: seen() == 1, "the end of its series")
    except TimedOutError as error:
        assert "has not let go of a vCPU" in str(error)  # noqa: PT017 - which of both depends on the guest's kernel
        assert operator("domain.set-vcpus", GUEST, vcpus=1, apply_to="persistent").changed
