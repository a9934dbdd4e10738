"""Tests of what a domain's XML says of its CPU, host devices and graphics."""

from __future__ import annotations

from pathlib import Path

from collectors.configuration import CPU_INFO, GRAPHICS_INFO, HOST_DEVICE_INFO
from collectors.domain_xml import constants, parse

FIXTURES = Path(__file__).parent.parent / "fixtures" / "xml"


def found(xml: str, name: str) -> list[dict[str, str]]:
    return [dict(c.labels) for c in constants(parse(xml)) if c.name == name]


TUNED = (FIXTURES / "tuned.xml").read_text()


def test_the_cpu_and_its_topology() -> None:
    assert found(TUNED, CPU_INFO) == [
        {"mode": "host-passthrough", "model": "", "sockets": "1", "dies": "1", "cores": "3", "threads": "1"}]
    nova = (FIXTURES / "nova.xml").read_text()
    assert found(nova, CPU_INFO) == [
        {"mode": "custom", "model": "qemu64", "sockets": "", "dies": "", "cores": "", "threads": ""}]
    assert found("<domain id='1'><name>n</name></domain>", CPU_INFO) == []


def test_host_devices_by_their_place_on_the_host() -> None:
    devices = found(TUNED, HOST_DEVICE_INFO)
    assert [(d["device"], d["type"], d["address"]) for d in devices] == [
        ("hostdev0", "pci", "0000:3b:00.1"), ("hostdev1", "mdev", "9a1d4e52-7d1f-4b5e-8c31-2b8f00d1c0de"),
        ("hostdev2", "usb", "1d6b:0002"), ("hostdev3", "usb", "1.5"), ("hostdev4", "scsi", "scsi_host2:0:1:3")]
    assert [(d["driver"], d["model"]) for d in devices[:2]] == [("vfio", ""), ("", "vfio-pci")]


def test_where_the_display_is_served() -> None:
    assert found(TUNED, GRAPHICS_INFO) == [
        {"number": "0", "type": "vnc", "listen": "127.0.0.1", "port": "5907", "tls_port": ""},
        {"number": "1", "type": "spice", "listen": "/run/spice.sock", "port": "", "tls_port": "5908"}]
    none = "<domain id='1'><devices><graphics type='vnc'><listen type='none'/></graphics></devices></domain>"
    assert found(none, GRAPHICS_INFO) == [{"number": "0", "type": "vnc", "listen": "none", "port": "", "tls_port": ""}]


def test_oddities_cost_nothing() -> None:
    odd = ("<domain id='1'><devices><hostdev/><hostdev><alias name='hostdev0'/></hostdev><hostdev type='pci'><source>"
           "<address slot='x' bus=''/></source></hostdev></devices></domain>")
    assert [d["device"] for d in found(odd, HOST_DEVICE_INFO)] == ["hostdev0", "hostdev2"]
