"""A disk that UEFI boots: a FAT file system with one program, which says a text on the serial port and halts.

Made here byte by byte, since neither a linker nor mkfs is to be installed. Sources: Microsoft's PE format; the FAT
specification (fatgen103); UEFI's removable media path, EFI/BOOT/BOOTX64.EFI.
"""

from __future__ import annotations

import struct

_SECTOR = 512
_SECTORS = 4096
_FAT_SECTORS, _ROOT_ENTRIES = 12, 64
_DATA_SECTOR = 1 + 2 * _FAT_SECTORS + _ROOT_ENTRIES * 32 // _SECTOR
_FOLDER, _FILE, _LABEL = 0x10, 0x20, 0x08
# lea rsi,[rip+15]; mov dx,3f8; next: lodsb; test al,al; jz +3; out dx,al; jmp next; hlt; jmp hlt
_SAY = bytes.fromhex("488d350f00000066baf803ac84c07403eeebf8f4ebfd")


def efi_disk(text: str) -> bytes:
    """The whole disk, 2 MiB."""
    program = _program(_SAY + text.encode() + b"\r\n\0")
    assert len(program) == 2 * _SECTOR
    disk = bytearray(_SECTORS * _SECTOR)
    disk[:_SECTOR] = _boot_record()
    # Clusters of one sector: the folders EFI and BOOT are 2 and 3, the program 4 and 5.
    table = _table(0xFF8, 0xFFF, 0xFFF, 0xFFF, 5, 0xFFF)
    for copy in range(2):
        start = (1 + copy * _FAT_SECTORS) * _SECTOR
        disk[start : start + len(table)] = table
    root = (1 + 2 * _FAT_SECTORS) * _SECTOR
    disk[root : root + 64] = _entry(b"VIRTGAUGE", _LABEL, 0) + _entry(b"EFI", _FOLDER, 2)
    _write(disk, 2, _entry(b".", _FOLDER, 2) + _entry(b"..", _FOLDER, 0) + _entry(b"BOOT", _FOLDER, 3))
    file = _entry(b"BOOTX64 EFI", _FILE, 4, len(program))
    _write(disk, 3, _entry(b".", _FOLDER, 3) + _entry(b"..", _FOLDER, 2) + file)
    _write(disk, 4, program)
    return bytes(disk)


def _write(disk: bytearray, cluster: int, content: bytes) -> None:
    start = (_DATA_SECTOR + cluster - 2) * _SECTOR
    disk[start : start + len(content)] = content


def _boot_record() -> bytes:
    record = struct.pack(
        "<3s8sHBHBHHBHHHIIBBBI11s8s", b"\xeb\x3c\x90", b"VIRTGAUG", _SECTOR, 1, 1, 2, _ROOT_ENTRIES, _SECTORS, 0xF8,
        _FAT_SECTORS, 32, 2, 0, 0, 0x80, 0, 0x29, 1, b"VIRTGAUGE  ", b"FAT12   ",
    )  # fmt: skip
    return record.ljust(_SECTOR - 2, b"\0") + b"\x55\xaa"


def _table(*clusters: int) -> bytes:
    """FAT12: two entries in three bytes."""
    pairs = zip(clusters[::2], clusters[1::2], strict=True)
    return b"".join((low | high << 12).to_bytes(3, "little") for low, high in pairs)


def _entry(name: bytes, attributes: int, cluster: int, size_bytes: int = 0) -> bytes:
    return struct.pack("<11sBBBHHHHHHHI", name.ljust(11), attributes, 0, 0, 0, 0, 0, 0, 0, 0x5A21, cluster, size_bytes)


def _program(code: bytes) -> bytes:
    """A PE32+ file of one section; the code runs wherever it is loaded, so that there are no relocations."""
    coff = struct.pack("<HHIIIHH", 0x8664, 1, 0, 0, 0, 240, 0x0022)
    optional = struct.pack(
        "<HBBIIIIIQIIHHHHHHIIIIHHQQQQII", 0x20B, 0, 0, _SECTOR, 0, 0, 0x1000, 0x1000, 0, 0x1000, _SECTOR, 0, 0, 0, 0,
        0, 0, 0, 0x2000, _SECTOR, 0, 10, 0, 1 << 16, 1 << 12, 1 << 16, 1 << 12, 0, 16,
    )  # fmt: skip
    section = struct.pack("<8sIIIIIIHHI", b".text", len(code), 0x1000, _SECTOR, _SECTOR, 0, 0, 0, 0, 0x60000020)
    header = b"MZ".ljust(60, b"\0") + (64).to_bytes(4, "little") + b"PE\0\0" + coff + optional.ljust(240, b"\0")
    return (header + section).ljust(_SECTOR, b"\0") + code.ljust(_SECTOR, b"\0")
