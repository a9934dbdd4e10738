"""The guest's XML: every field arrives, and no text can break out of its place."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from exporter.demonstration.guest_definition import ConsoleFiles, Disk, Guest, Interface, domain_xml
from exporter.demonstration.guest_image import GuestImage

IMAGE = GuestImage(Path("/cache/kernel"), Path("/cache/initramfs"), "0")
CONSOLE = ConsoleFiles(Path("/state/console/a.sock"), Path("/state/console/a.log"))


def parsed(guest: Guest) -> ElementTree.Element:
    return ElementTree.fromstring(domain_xml(guest, IMAGE, CONSOLE))


def test_every_field_arrives() -> None:
    guest = Guest(
        "a",
        title="A <guest> & more",
        vcpus=2,
        memory_mib=128,
        disks=(Disk(Path("/images/a b.raw"), serial="a-vda"),),
        interfaces=(Interface("52:54:00:77:00:03", "guests0", "10.77.0.3/16"),),
        boot_orders={"cpu": "25"},
    )
    domain = parsed(guest)
    assert domain.findtext("title") == "A <guest> & more"
    assert (domain.findtext("vcpu"), domain.findtext("memory")) == ("2", "128")
    assert (domain.findtext("os/cmdline") or "").endswith("g.ip=10.77.0.3/16 g.cpu=25")
    assert [source.get("file") for source in domain.iterfind("devices/disk/source")] == ["/images/a b.raw"]
    assert [source.get("bridge") for source in domain.iterfind("devices/interface/source")] == ["guests0"]
    assert [log.get("file") for log in domain.iterfind("devices/serial/log")] == ["/state/console/a.log"]


def test_the_accelerator_decides_on_the_translation_cache() -> None:
    assert parsed(Guest("a")).find("features/tcg") is not None
    under_kvm = parsed(Guest("a", accelerator="kvm"))
    assert under_kvm.get("type") == "kvm"
    assert under_kvm.find("features/tcg") is None


def test_a_balloon_without_a_period_reports_no_statistics() -> None:
    assert parsed(Guest("a")).find("devices/memballoon/stats") is not None
    assert parsed(Guest("a", balloon_period_s=0)).find("devices/memballoon/stats") is None
