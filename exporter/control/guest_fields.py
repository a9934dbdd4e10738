"""A guest as typed fields: checked and frozen; `exporter.control.guest_xml` turns them into libvirt's XML."""

from __future__ import annotations

import re
import uuid as uuids
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from exporter.control.operation import Parameters

_NAME_CHARACTERS = 128
_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")


def _domain_name(text: str) -> str:
    if not 0 < len(text) <= _NAME_CHARACTERS or not text.isprintable() or "/" in text or text != text.strip():
        raise ValueError(
            f"is no domain's name; that has 1 to {_NAME_CHARACTERS} printable characters, no '/', no blank at its ends"
        )
    if text.startswith("."):
        raise ValueError("begins with a dot, which libvirt does not take")
    return text


def _one_line(text: str) -> str:
    if text and not text.isprintable():
        raise ValueError("holds a character that cannot be printed; write one line of plain text")
    return text


def _uuid(text: str) -> str:
    try:
        return str(uuids.UUID(text))
    except ValueError:
        raise ValueError("is no UUID; write it like 6695eb01-f6a4-8304-79aa-97f2502e193f") from None


def mac_address(text: str) -> str:
    lower = text.strip().lower().replace("-", ":")
    if not _MAC.fullmatch(lower):
        raise ValueError("is no MAC address; it has six pairs of hexadecimal digits, like 52:54:00:1a:2b:3c")
    if int(lower[:2], 16) & 1 or lower == "00:00:00:00:00:00":
        raise ValueError("is a multicast or the zero address, which no interface may have")
    return lower


DomainName = Annotated[str, AfterValidator(_domain_name)]
OneLine = Annotated[str, AfterValidator(_one_line), Field(max_length=4096)]
MacAddress = Annotated[str, AfterValidator(mac_address)]
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:+\-]{1,64}$")]
HostPath = Annotated[str, AfterValidator(_one_line), Field(max_length=4096)]


class GuestDisk(Parameters):
    file: HostPath = Field(description="An existing image or block device in an image folder.")
    format: Literal["raw", "qcow2"] = Field(default="raw", description="Never guessed: a guest could choose it.")
    bus: Literal["virtio", "sata", "scsi", "ide"] = Field(default="virtio", description="What the guest sees it on.")
    read_only: bool = Field(default=False, description="The guest may not write to it.")
    serial: Annotated[OneLine, Field(max_length=20)] = Field(default="", description="The disk's serial number.")


class GuestInterface(Parameters):
    """Attached to a libvirt network, or a bridge of the host; with neither, QEMU's own user network."""

    network: DomainName | None = Field(default=None, description="A virtual network of libvirt.")
    bridge: Word | None = Field(default=None, description="A bridge of the host.")
    mac: MacAddress | None = Field(default=None, description="Made up where not given.")
    model: Word = Field(default="virtio", description="The network card the guest sees.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.network is not None and self.bridge is not None:
            raise ValueError("names both a network and a bridge; choose one")
        return self


class GuestFields(Parameters):
    """What a guest is made of. Sizes are MiB; paths are checked against the image folders when it is defined."""

    name: DomainName
    uuid: Annotated[str, AfterValidator(_uuid)] | None = Field(default=None, description="Made up where not given.")
    title: OneLine = Field(default="", description="A short text that people see beside the name.")
    description: OneLine = Field(default="", description="A longer text about the guest.")
    type: Literal["kvm", "qemu", "xen", "test"] | None = Field(
        default=None, description="Virtualization; kvm where the host offers it, else qemu (software)."
    )
    memory_mib: int = Field(ge=1, le=16 << 20, description="Memory.")
    vcpus: int = Field(default=1, ge=1, le=4096, description="Virtual CPUs.")
    machine: Word | None = Field(default=None, description="Machine type, like q35 or pc.")
    cpu_mode: Literal["host-model", "host-passthrough", "maximum"] | None = Field(
        default=None, description="The CPU the guest sees; the hypervisor's own choice where not given."
    )
    firmware: Literal["bios", "efi"] = Field(default="bios", description="What the guest boots with.")
    secure_boot: bool | None = Field(
        default=None, description="UEFI boots only what is signed; the host's own choice where not given."
    )
    boot: tuple[Literal["hd", "cdrom", "network"], ...] = Field(
        default=(), max_length=3, description="Boot order; by default what the guest has: disk, CD-ROM, network."
    )
    disks: tuple[GuestDisk, ...] = Field(default=(), max_length=24, description="Disks, as JSON objects.")
    cdrom: HostPath | None = Field(default=None, description="An ISO image; '' is an empty drive.")
    interfaces: tuple[GuestInterface, ...] = Field(default=(), max_length=24, description="As JSON objects.")
    kernel: HostPath | None = Field(default=None, description="A kernel to boot directly.")
    initrd: HostPath | None = Field(default=None, description="The initial file system of the kernel.")
    cmdline: OneLine = Field(default="", description="The kernel's command line.")
    # By name, not by path: it is a program that the host runs.
    bootloader: Literal["pygrub"] | None = Field(default=None, description="A host bootloader (Xen only).")
    bootloader_args: OneLine = Field(default="", description="Arguments of the host bootloader.")
    agent: bool = Field(default=True, description="A channel for the guest agent.")
    console_log: bool = Field(default=True, description="Keep what the guest says on its serial port in a file.")
    vnc: bool = Field(default=False, description="A VNC display on the loopback address.")
    on_crash: Literal["destroy", "restart", "preserve"] = Field(
        default="destroy",
        description="What becomes of the guest after a panic; all but destroy give it the device that tells of one.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if (self.initrd or self.cmdline) and not self.kernel:
            raise ValueError("an initrd or command line needs a kernel; give --kernel")
        if self.secure_boot is not None and self.firmware != "efi":
            raise ValueError("secure boot is UEFI's; give --firmware efi, or leave it out")
        if self.bootloader and self.kernel:
            raise ValueError("both a bootloader and a kernel are given; choose one")
        if len(set(self.boot)) != len(self.boot):
            raise ValueError("the boot order names a device twice")
        return self
