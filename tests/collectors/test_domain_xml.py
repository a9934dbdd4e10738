"""domain_xml: XMLs of real guests give the right constants; hostile ones cost nothing but themselves."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.configuration import CONFIGURATION, CPU_INFO
from collectors.domain_xml import (
    BALLOON_PERIOD,
    BLOCK_INFO,
    BLOCK_LIMITS,
    DOMAIN_INFO,
    INTERFACE_INFO,
    XML_MOST_CHARACTERS,
    Definition,
    DomainXMLError,
    constants,
    parse,
)
from collectors.fields import Constant
from collectors.inventory import INVENTORY
from collectors.memory import MEMORY
from collectors.owner_metadata import LABEL_MOST_CHARACTERS, Owner

FIXTURES = Path(__file__).parent.parent / "fixtures" / "xml"


def fixture(name: str) -> Definition:
    return parse((FIXTURES / f"{name}.xml").read_text())


def by_device(series: tuple[Constant, ...], name: str) -> dict[str, dict[str, str]]:
    return {dict(c.labels)["target_device"]: dict(c.labels) for c in series if c.name == name}


def domain(inside: str, attributes: str = "type='kvm' id='1'") -> str:
    return f"<domain {attributes}><name>n</name><uuid>u</uuid>{inside}</domain>"


def test_nova_guest_definition() -> None:
    guest = fixture("nova")
    assert (guest.name, guest.id, guest.type, guest.os_type, guest.arch) == (
        "instance-0000000e", 1, "qemu", "hvm", "x86_64")
    assert (guest.vcpus_current, guest.vcpus_maximum) == (2, 4)
    assert guest.maximum_memory_bytes == guest.memory_bytes == 64 * 2**20
    assert (guest.balloon_model, guest.balloon_period_s) == ("virtio", 10)
    assert guest.owner == Owner("web-1", "m1.small", "shop", "9b1c7d20a5f84a3c9b4e2d6f10c8e573", "alice",
                                "1f6a4b1d6f3e4d5ab8a1c0e8f2b9d741", "image", "5f0c2d3e-7a61-4b58-9d34-c1e2f3a4b5c6")
    assert [(d.target_device, d.device) for d in guest.disks] == [
        ("vda", "disk"), ("vdb", "disk"), ("sda", "disk"), ("sdb", "cdrom"), ("sdc", "cdrom")]


def test_macvtap_is_marked_direct() -> None:
    assert [(n.target_device, n.direct) for n in fixture("nova").interfaces] == [
        ("tap5f0c2d3e-7a", False), ("tap6a1b2c3d-8b", False), ("", False), ("macvtap0", True)]


def test_domain_info_labels_in_order() -> None:
    info = next(c for c in constants(fixture("nova")) if c.name == DOMAIN_INFO)
    assert info.value == 1.0
    assert info.labels[:6] == (("uuid", "ff91d2dc-69a1-43ef-abde-c9e4e9a0305b"), ("type", "qemu"), ("os_type", "hvm"),
                               ("arch", "x86_64"), ("machine", "pc-q35-7.2"), ("title", 'Web "front" & cache'))


def test_disks_with_and_without_medium() -> None:
    disks = by_device(constants(fixture("nova")), BLOCK_INFO)
    assert disks["vda"] == {
        "target_device": "vda", "bus": "virtio", "disk_type": "file", "driver_type": "qcow2", "cache": "none",
        "discard": "unmap", "serial": "5f0c2d3e", "source_file": "/var/lib/libvirt/images/a.qcow2"}
    assert disks["vdb"]["source_file"] == "/dev/vg0/web-1-data"
    assert disks["sdb"]["source_file"] == disks["sdb"]["driver_type"] == ""
    assert disks["sdc"]["source_file"] == "/var/lib/libvirt/images/cd.iso"


def test_only_limits_that_are_set() -> None:
    limits = {(c.name.removeprefix("libvirt_domain_block_stats_"), dict(c.labels)["target_device"]): c.value
              for c in constants(fixture("nova")) if c.name in BLOCK_LIMITS.values()}
    assert limits == {
        ("limit_total_bytes", "vda"): 10485760, ("limit_burst_total_bytes", "vda"): 20971520,
        ("limit_burst_total_bytes_length_seconds", "vda"): 5, ("limit_read_requests", "vda"): 500,
        ("limit_write_requests", "vda"): 250, ("limit_burst_read_requests", "vda"): 1000,
        ("limit_burst_write_requests", "vda"): 600, ("limit_burst_length_read_requests_seconds", "vda"): 10,
        ("limit_burst_length_write_requests_seconds", "vda"): 20, ("size_iops_bytes", "vda"): 4096,
        ("limit_read_bytes", "vdb"): 1000000, ("limit_write_bytes", "vdb"): 2000000,
        ("limit_total_requests", "vdb"): 300}


def test_all_19_limits_of_the_family() -> None:
    inside = "".join(f"<{key}>{number}</{key}>" for number, key in enumerate(BLOCK_LIMITS, 1))
    disk = domain(f"<devices><disk><target dev='vda'/><iotune>{inside}</iotune></disk></devices>")
    found = {c.name for c in constants(parse(disk)) if "block_stats" in c.name}
    both, words = ("bytes", "requests"), ("total", "read", "write")
    prefix = "libvirt_domain_block_stats_"
    assert found == {f"{prefix}size_iops_bytes"} | {
        f"{prefix}limit_{name}" for word in words for name in (
            *(f"{word}_{what}" for what in both), *(f"burst_{word}_{what}" for what in both),
            f"burst_{word}_bytes_length_seconds", f"burst_length_{word}_requests_seconds")}


def test_user_mode_nic_stands_under_its_alias() -> None:
    nics = by_device(constants(fixture("nova")), INTERFACE_INFO)
    assert set(nics) == {"tap5f0c2d3e-7a", "tap6a1b2c3d-8b", "macvtap0", "net2"}
    assert nics["net2"]["type"] == "user"
    assert nics["tap5f0c2d3e-7a"] == {
        "target_device": "tap5f0c2d3e-7a", "mac": "fa:16:3e:00:00:01", "model": "virtio", "type": "bridge",
        "source_bridge": "br-tenant", "mtu": "1450", "virtual_interface": "8f1d0c52-6f0e-4a0c-9f0f-0d6b1c2a3e4f"}
    assert nics["tap6a1b2c3d-8b"]["virtual_interface"] == ""  # not on Open vSwitch


def test_a_real_device_called_like_an_alias_wins() -> None:
    xml = domain("<devices><interface type='user'><alias name='net0'/></interface>"
                 "<interface type='bridge'><target dev='net0'/><alias name='net1'/></interface></devices>")
    assert by_device(constants(parse(xml)), INTERFACE_INFO)["net0"]["type"] == "bridge"


def test_ovirt_s_vm_has_the_domain_s_name() -> None:
    assert fixture("ovirt").owner == Owner(instance_name="mail")


def test_description_of_several_lines() -> None:
    assert fixture("nova").description == "two lines\nof text"


def test_kubevirt_owner_comes_from_the_name() -> None:
    assert fixture("kubevirt").owner == Owner(instance_name="web-1", project_name="shop")


def test_bare_guest() -> None:
    guest = fixture("bare")
    assert (guest.balloon_model, guest.balloon_period_s, guest.owner, guest.disks) == ("none", 0, Owner(), ())
    assert [c.name for c in constants(guest)] == [DOMAIN_INFO, INTERFACE_INFO, CPU_INFO]


def test_a_domain_that_does_not_run_says_who_it_is_and_nothing_of_its_size() -> None:
    guest = parse((FIXTURES / "nova.xml").read_text().replace(" id='1'", "", 1))
    info, = constants(guest)
    assert info == constants(fixture("nova"))[0]


@pytest.mark.parametrize(("balloon", "period_s"), [
    ("<memballoon model='virtio'><stats period='10'/></memballoon>", 10.0), ("<memballoon model='virtio'/>", 0.0),
    ("<memballoon model='none'/>", None), ("", None)])
def test_how_often_the_guest_reports_its_memory(balloon: str, period_s: float | None) -> None:
    found = {c.name: c.value for c in constants(parse(domain(f"<devices>{balloon}</devices>")))}
    assert found.get(BALLOON_PERIOD) == period_s


@pytest.mark.parametrize(("source", "expected"), [
    ("<source protocol='rbd' name='pool/image'/>", "rbd:pool/image"),
    ("<source type='pci' managed='yes' namespace='1'><address domain='0x0000' bus='0x0a' slot='0x00' function='0x0'/>"
     "</source>", "nvme:0000:0a:00.0/1"),
    ("<source pool='fast' volume='v1'/>", "fast/v1"),
    ("<source type='unix' path='/run/disk.sock'/>", "/run/disk.sock"),
    ("<source dir='/srv/floppy'/>", "/srv/floppy"),
    ("<mirror><source file='/target'/></mirror>", ""),
])
def test_sources_that_are_no_file(source: str, expected: str) -> None:
    disk = parse(domain(f"<devices><disk>{source}<target dev='vda'/></disk></devices>")).disks[0]
    assert disk.source_file == expected


@pytest.mark.parametrize("name", ["nova", "bare", "kubevirt", "ovirt"])
def test_label_sets_are_those_declared_and_no_series_stands_twice(name: str) -> None:
    declared = {d.name: d.labels for c in (INVENTORY, MEMORY, CONFIGURATION) for d in c.declarations}
    series = constants(fixture(name))
    for constant in series:
        assert ("domain", *(label for label, _ in constant.labels)) == declared[constant.name]
    assert len({(c.name, c.labels) for c in series}) == len(series)


def test_entity_bomb_is_refused_before_it_is_expanded() -> None:
    levels = "".join(f"<!ENTITY e{n} '{f'&e{n - 1};' * 10}'>" for n in range(1, 12))
    bomb = f"<!DOCTYPE domain [<!ENTITY e0 'x'>{levels}]><domain><name>&e11;</name></domain>"
    started_s = time.monotonic()
    with pytest.raises(DomainXMLError, match="document type"):
        parse(bomb)
    assert time.monotonic() - started_s < 1


def test_external_entity_is_refused(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    with pytest.raises(DomainXMLError, match="document type"):
        parse(f"<!DOCTYPE domain [<!ENTITY x SYSTEM '{secret.as_uri()}'>]><domain><name>&x;</name></domain>")


@pytest.mark.parametrize("xml", ["", " ", "no xml", "<domain>", "<domain><a></b></domain>", "<network/>",
                                 "<domain>&undefined;</domain>", "<domain>\ud800</domain>", "<domain>\0</domain>",
                                 "<a:domain/>", "<domain/><domain/>"])
def test_what_is_no_domain_xml(xml: str) -> None:
    with pytest.raises(DomainXMLError):
        parse(xml)


def test_longer_than_libvirt_sends() -> None:
    with pytest.raises(DomainXMLError, match="characters"):
        parse(domain(f"<title>{'x' * XML_MOST_CHARACTERS}</title>"))


def test_megabyte_names_are_cut_on_the_page() -> None:
    long = "n" * 2**20
    xml = domain(f"<title>{long}</title><devices><disk><target dev='{long}a'/></disk>"
                 f"<disk><target dev='{long}b'/></disk></devices>")
    series = constants(parse(xml))
    assert all(len(value) <= LABEL_MOST_CHARACTERS for c in series for _, value in c.labels)
    assert len({(c.name, c.labels) for c in series}) == len(series) == 2


def test_wrong_numbers_are_absent() -> None:
    guest = parse(domain(
        "<memory unit='KiB'>many</memory><currentMemory unit='furlong'>4</currentMemory><vcpu current='-1'>٤</vcpu>"
        "<devices><disk><target dev='vda'/><iotune><total_bytes_sec>-5</total_bytes_sec>"
        "<read_bytes_sec>1e9</read_bytes_sec><write_bytes_sec>99999999999999999999999</write_bytes_sec>"
        "<total_iops_sec>0</total_iops_sec><group_name>7</group_name></iotune></disk>"
        "<memballoon model='virtio'><stats period='x'/></memballoon></devices>", "id='x'"))
    assert (guest.id, guest.memory_bytes, guest.maximum_memory_bytes, guest.vcpus_current, guest.vcpus_maximum) == (
        None, None, None, None, None)
    assert guest.disks[0].limits == ()
    assert guest.balloon_period_s == 0


def test_the_same_device_twice_gives_one_series() -> None:
    disk = ("<disk><target dev='vda' bus='{}'/><iotune><total_bytes_sec>1</total_bytes_sec>"
            "<total_bytes_sec>2</total_bytes_sec></iotune></disk>")
    series = constants(parse(domain(f"<devices>{disk.format('virtio')}{disk.format('scsi')}</devices>")))
    assert by_device(series, BLOCK_INFO)["vda"]["bus"] == "virtio"
    assert len({(c.name, c.labels) for c in series}) == len(series)


def test_deep_nesting() -> None:
    depth = 200_000
    assert parse(domain(f"<metadata>{'<a>' * depth}{'</a>' * depth}</metadata>")).name == "n"


@given(st.text(max_size=200))
def test_any_text_parses_or_is_refused(text: str) -> None:
    for xml in (text, domain(text)):
        with suppress(DomainXMLError):
            constants(parse(xml))
