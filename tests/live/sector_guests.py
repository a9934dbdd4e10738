"""Guests of one boot sector: no kernel, up in half a second, deaf to ACPI, without an agent.

The machine code is assembled by hand; the source is told where the bytes are.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, tostring

import libvirt

from exporter.demonstration.private_hypervisor import PrivateHypervisor

# xor ax,ax; mov ds,ax; mov si,7c15; mov dx,3f8; next: lodsb; test al,al; jz +3; out dx,al; jmp next; hlt; jmp hlt
_SAY = bytes.fromhex("31c08ed8be157cbaf803ac84c07403eeebf8f4ebfd")
# Fills 448 KiB from 0x10000 with (segment xor offset); then for ever: checks all of it, says "PATTERN OK " and the
# number of the check as four letters A to P, or "PATTERN BAD" and stops.
_PATTERN = bytes.fromhex(
    "31c08ed88ed0bc007cfcfbbb00108ec331ff89f831d8ab85ff75f781c3001081fb008075e931edbb00108ec331ff89f831d8af752e85ff"
    "75f581c3001081fb008075e745be787ce8220089e9b304c1c10488c8240f0441eefecb75f2b00aeef4f4ebc4be847ce80300f4ebfdbaf8"
    "03ac84c07403eeebf8c35041545445524e204f4b20005041545445524e204241440a00"
)
# Goes to 32-bit protected mode (flat segments); then for ever: the next number into each word of the 12 MiB from
# 0x100000, and "." on the serial port.
_DIRTYING = bytes.fromhex(
    "fafc31c08ed80f0116587c0f20c00c010f22c0ea187c080066b810008ed88ec031ed45bf00001000b90000300089e8f3ab66baf803b02e"
    "eeebe88db6000000000000000000000000ffff0000009acf00ffff00000092cf001700407c0000"
)
# For ever: writes one 16-bit number, the pass, over all of sectors 64 to 575 of the first disk, 16 sectors a request
# (INT 13h, AH=43h), says the pass's lowest four bits as a letter A to P, and goes on with the next; "!" stops it.
_WRITES = bytes.fromhex(
    "31c08ed88ec08ed0bc007c31ed45fcbf0080b9001089e8f3abc706557c4000be4d7cb80043b280cd1372198306557c10813e557c400272"
    "e7baf80389e8240f0441eeebc9baf803b021eef4ebfd10001000008000004000000000000000"
)
# mov dx,443; mov al,0e; out dx,al: the ib700 watchdog, set to two seconds; then halts for ever.
_WATCHDOG = bytes.fromhex("ba4304b00eeef4ebfd")
# mov dx,505; mov al,1; out dx,al: the guest tells its pvpanic device of a panic; then halts for ever.
_PANICS = bytes.fromhex("ba0505b001eef4ebfd")
WRITTEN_FROM, WRITTEN_TO = 64 * 512, 576 * 512
_SECTOR_BYTES = 512


def saying(text: str) -> bytes:
    """A boot sector that says `text` on the first serial port and halts for ever."""
    return _sector(_SAY + text.encode() + b"\r\n\0")


def pattern() -> bytes:
    """A boot sector that keeps its memory full of a pattern and keeps checking it."""
    return _sector(_PATTERN)


def dirtying() -> bytes:
    """A boot sector that writes to 12 MiB of memory without a pause: faster than a slow line can follow."""
    return _sector(_DIRTYING)


def writing() -> bytes:
    """A boot sector that fills 256 KiB of its disk with the number of the pass, over and over."""
    return _sector(_WRITES)


def setting_off_the_watchdog() -> bytes:
    """A boot sector that starts an ib700 watchdog and never feeds it."""
    return _sector(_WATCHDOG)


def panicking() -> bytes:
    """A boot sector that panics at once, at each boot; its guest needs a pvpanic device."""
    return _sector(_PANICS)


def _sector(code: bytes) -> bytes:
    assert len(code) <= _SECTOR_BYTES - 2
    return code.ljust(_SECTOR_BYTES - 2, b"\0") + b"\x55\xaa"


def bootable_iso(sector: bytes) -> bytes:
    """The smallest El Torito CD-ROM: volume descriptor, boot record, terminator, catalogue, the sector."""
    block = 2048
    volume = bytearray(block)
    volume[0:7] = b"\x01CD001\x01"
    volume[8:72] = b" " * 32 + b"SECTOR".ljust(32)
    volume[80:88] = (21).to_bytes(4, "little") + (21).to_bytes(4, "big")
    volume[128:132] = b"\0\x08\x08\0"
    record = bytearray(block)
    record[0:7], record[7:30] = b"\0CD001\x01", b"EL TORITO SPECIFICATION"
    record[71:75] = (19).to_bytes(4, "little")
    end = b"\xffCD001\x01".ljust(block, b"\0")
    validation = bytearray(32)
    validation[0], validation[30:32] = 1, b"\x55\xaa"
    total = sum(int.from_bytes(validation[at : at + 2], "little") for at in range(0, 32, 2))
    validation[28:30] = (-total & 0xFFFF).to_bytes(2, "little")
    entry = bytearray(32)
    entry[0], entry[6:8], entry[8:12] = 0x88, (4).to_bytes(2, "little"), (20).to_bytes(4, "little")
    catalogue = bytes(validation + entry).ljust(block, b"\0")
    return bytes(16 * block) + bytes(volume) + bytes(record) + end + catalogue + sector.ljust(block, b"\0")


@dataclass(frozen=True)
class SectorGuest:
    """A defined guest, its disk, and the file its serial port is written to."""

    name: str
    uuid: str
    disk: Path
    log: Path

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def sector_xml(hypervisor: PrivateHypervisor, name: str, sector: bytes) -> tuple[str, SectorGuest]:
    """The XML of a guest that boots `sector` from a disk made for it, and what there is to know of it."""
    folder = hypervisor.folder
    disk, log = folder / "images" / f"{name}.raw", folder / "console" / f"{name}.log"
    guest = SectorGuest(name, str(uuid.uuid4()), disk, log)
    guest.disk.write_bytes(sector.ljust(1 << 20, b"\0"))
    guest.log.unlink(missing_ok=True)
    domain = Element("domain", type="qemu")
    for tag, text in (("name", name), ("uuid", guest.uuid), ("vcpu", "1")):
        SubElement(domain, tag).text = text
    SubElement(domain, "memory", unit="MiB").text = "16"
    boot = SubElement(domain, "os")
    SubElement(boot, "type", arch="x86_64", machine="pc").text = "hvm"
    SubElement(boot, "boot", dev="hd")
    SubElement(SubElement(domain, "features"), "acpi")
    devices = SubElement(domain, "devices")
    SubElement(devices, "controller", type="usb", model="none")
    disk = SubElement(devices, "disk", type="file", device="disk")
    SubElement(disk, "driver", name="qemu", type="raw")
    SubElement(disk, "source", file=str(guest.disk))
    SubElement(disk, "target", dev="hda", bus="ide")
    serial = SubElement(devices, "serial", type="file")
    SubElement(serial, "source", path=str(guest.log), append="on")
    SubElement(devices, "memballoon", model="none")
    return tostring(domain, encoding="unicode"), guest


def define(hypervisor: PrivateHypervisor, name: str, sector: bytes) -> SectorGuest:
    """A persistent guest, not started."""
    xml, guest = sector_xml(hypervisor, name, sector)
    connection = libvirt.open(hypervisor.uri)
    try:
        connection.defineXML(xml)
    finally:
        connection.close()
    return guest
