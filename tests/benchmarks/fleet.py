"""Many tiny guests to measure on: each starts from a 64 KiB firmware that halts at once, so it burns nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from xml.etree.ElementTree import Element, SubElement, tostring

import libvirt

from exporter.demonstration.private_hypervisor import PrivateHypervisor

_HALT = b"\xfa\xf4\xeb\xfd"  # cli; hlt; jmp -1


def firmware() -> bytes:
    """A firmware image whose reset vector holds only a halt: no BIOS runs, no disk is read."""
    image = bytearray(b"\xf4" * 65536)
    image[0xFFF0:0xFFF0 + len(_HALT)] = _HALT
    return bytes(image)


def domain_xml(hypervisor: PrivateHypervisor, number: int, kind: str) -> str:
    """A guest of 2 vCPUs, 2 disks, 2 taps, 32 MiB and a balloon."""
    name = f"fleet-{number}"
    domain = Element("domain", type=kind)
    SubElement(domain, "name").text = name
    SubElement(domain, "memory", unit="MiB").text = "32"
    SubElement(domain, "vcpu").text = "2"
    system = SubElement(domain, "os")
    SubElement(system, "type", arch="x86_64", machine="pc").text = "hvm"
    SubElement(system, "loader", readonly="yes", type="rom").text = str(hypervisor.folder / "images/halt.rom")
    SubElement(SubElement(domain, "features"), "acpi")
    devices = SubElement(domain, "devices")
    SubElement(devices, "controller", type="usb", model="none")
    for target in ("vda", "vdb"):
        disk = SubElement(devices, "disk", type="file", device="disk")
        SubElement(disk, "driver", name="qemu", type="raw")
        path = hypervisor.folder / f"images/{name}-{target}.raw"
        with path.open("wb") as file:
            file.truncate(1 << 20)
        SubElement(disk, "source", file=str(path))
        SubElement(disk, "target", dev=target, bus="virtio")
    for nic in range(2):
        interface = SubElement(devices, "interface", type="ethernet")
        SubElement(interface, "mac", address=f"52:54:00:{number >> 8:02x}:{number & 255:02x}:{nic:02x}")
        SubElement(interface, "target", dev=f"flt{number}n{nic}")
        SubElement(interface, "model", type="virtio")
        SubElement(interface, "rom", enabled="no")
    SubElement(devices, "memballoon", model="virtio")
    return tostring(domain, encoding="unicode")


@contextlib.contextmanager
def fleet(count: int, kind: str) -> Iterator[PrivateHypervisor]:
    """A private hypervisor with ``count`` such guests of domain type ``kind``; all is gone afterwards."""
    with PrivateHypervisor() as hypervisor:
        (hypervisor.folder / "images/halt.rom").write_bytes(firmware())
        connection = libvirt.open(hypervisor.uri)
        try:
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(lambda number: connection.createXML(domain_xml(hypervisor, number, kind)), range(count)))
            yield hypervisor
        finally:
            connection.close()
