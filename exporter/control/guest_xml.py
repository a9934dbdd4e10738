"""libvirt's XML of a guest made of typed fields; escaped by the XML library, never by string."""

from __future__ import annotations

import uuid
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from exporter.control.connection import Session
from exporter.control.errors import InvalidError
from exporter.control.folders import Folders
from exporter.control.guest_fields import GuestDisk, GuestFields, GuestInterface
from exporter.control.image_format import require_plain

TARGET_PREFIXES = {"virtio": "vd", "sata": "sd", "scsi": "sd", "ide": "hd"}
_BOOTLOADERS = {"pygrub": "/usr/bin/pygrub"}


def console_file(folders: Folders, guest_uuid: str) -> Path:
    """Where the guest's serial port is written to."""
    return folders.state / "consoles" / f"{guest_uuid}.log"


def host_type(session: Session) -> str:
    """The virtualization type for this host: the driver's own, for QEMU kvm where the host offers it."""
    driver = session.driver.lower()
    if driver != "qemu":
        return driver
    return "kvm" if "type='kvm'" in session.connection.getCapabilities() else "qemu"


def guest_xml(
    fields: GuestFields, folders: Folders, kind: str, guest_uuid: str | None = None, seed: Path | None = None
) -> str:
    """The domain XML; `seed` is a file of ours for a second CD-ROM drive.

    Raises InvalidError for a path outside the folders, missing, or an image with a backing file.
    """
    identity = fields.uuid or guest_uuid or str(uuid.uuid4())
    domain = Element("domain", type=fields.type or kind)
    _text(domain, "name", fields.name)
    _text(domain, "uuid", identity)
    for tag, text in (("title", fields.title), ("description", fields.description)):
        if text:
            _text(domain, tag, text)
    _text(domain, "memory", str(fields.memory_mib), unit="MiB")
    _text(domain, "vcpu", str(fields.vcpus))
    if fields.bootloader:
        _text(domain, "bootloader", _BOOTLOADERS[fields.bootloader])
        if fields.bootloader_args:
            _text(domain, "bootloader_args", fields.bootloader_args)
    domain.append(_boot(fields, folders))
    on_qemu = (fields.type or kind) in ("kvm", "qemu")
    if on_qemu:
        features = SubElement(domain, "features")
        SubElement(features, "acpi")
        SubElement(features, "apic")
    if fields.cpu_mode:
        SubElement(domain, "cpu", mode=fields.cpu_mode)
    SubElement(domain, "clock", offset="utc")
    for event, action in (("on_poweroff", "destroy"), ("on_reboot", "restart"), ("on_crash", fields.on_crash)):
        _text(domain, event, action)
    devices = _devices(fields, folders, identity, seed)
    if on_qemu and fields.on_crash != "destroy":
        SubElement(devices, "panic")  # of the machine's own model; without one libvirt never learns of a panic
    domain.append(devices)
    indent(domain)
    return tostring(domain, encoding="unicode")


def _boot(fields: GuestFields, folders: Folders) -> Element:
    boot = Element("os")
    if fields.firmware == "efi":
        boot.set("firmware", "efi")
        if fields.secure_boot is not None:
            boot.append(_secure_boot("yes" if fields.secure_boot else "no"))
    kind = _text(boot, "type", "hvm")
    if fields.machine:
        kind.set("machine", fields.machine)
    if fields.kernel:
        _text(boot, "kernel", str(folders.image(fields.kernel, "the kernel")))
        if fields.initrd:
            _text(boot, "initrd", str(folders.image(fields.initrd, "the initrd")))
        if fields.cmdline:
            _text(boot, "cmdline", fields.cmdline)
    for device in fields.boot or _natural_order(fields):
        SubElement(boot, "boot", dev=device)
    return boot


def _secure_boot(enabled: str) -> Element:
    """What libvirt is to choose: a firmware that checks signatures, with its keys enrolled, or one that does not."""
    firmware = Element("firmware")
    for name in ("secure-boot", "enrolled-keys"):
        SubElement(firmware, "feature", enabled=enabled, name=name)
    return firmware


def _natural_order(fields: GuestFields) -> tuple[str, ...]:
    there = (("hd", fields.disks), ("cdrom", fields.cdrom), ("network", fields.interfaces))
    return tuple(device for device, present in there if present)


def _devices(fields: GuestFields, folders: Folders, identity: str, seed: Path | None) -> Element:
    devices = Element("devices")
    used: dict[str, int] = {}
    for disk in fields.disks:
        devices.append(disk_element(disk, folders, used))
    bus = "ide" if fields.machine in (None, "pc") else "sata"
    if fields.cdrom is not None:
        iso = str(folders.image(fields.cdrom, "the ISO")) if fields.cdrom else ""
        devices.append(cdrom_element(iso, used, bus))
    if seed is not None:
        devices.append(cdrom_element(str(seed), used, bus))
    for interface in fields.interfaces:
        devices.append(interface_element(interface))
    serial = SubElement(devices, "serial", type="pty")
    if fields.console_log:
        log = console_file(folders, identity)
        SubElement(serial, "log", file=str(log), append="on")
    SubElement(serial, "target", port="0")
    if fields.agent:
        channel = SubElement(devices, "channel", type="unix")
        SubElement(channel, "target", type="virtio", name="org.qemu.guest_agent.0")
    if fields.vnc:
        SubElement(devices, "graphics", type="vnc", autoport="yes", listen="127.0.0.1")
    return devices


def disk_element(disk: GuestDisk, folders: Folders, used: dict[str, int]) -> Element:
    """One `<disk>`; `used` counts the target names already given, by their prefix."""
    path = folders.image(disk.file, "the disk")
    require_plain(path, disk.format)
    block = path.is_block_device()
    element = Element("disk", type="block" if block else "file", device="disk")
    SubElement(element, "driver", name="qemu", type=disk.format)
    SubElement(element, "source", {"dev" if block else "file": str(path)})
    SubElement(element, "target", dev=_target(disk.bus, used), bus=disk.bus)
    if disk.serial:
        _text(element, "serial", disk.serial)
    if disk.read_only:
        SubElement(element, "readonly")
    return element


def cdrom_element(iso: str, used: dict[str, int], bus: str) -> Element:
    """A CD-ROM drive with `iso` in it, or empty for ''."""
    element = Element("disk", type="file", device="cdrom")
    SubElement(element, "driver", name="qemu", type="raw")
    if iso:
        SubElement(element, "source", file=iso)
    SubElement(element, "target", dev=_target(bus, used), bus=bus)
    SubElement(element, "readonly")
    return element


def interface_element(interface: GuestInterface) -> Element:
    """One `<interface>`."""
    kind = "network" if interface.network else "bridge" if interface.bridge else "user"
    element = Element("interface", type=kind)
    if interface.mac:
        SubElement(element, "mac", address=interface.mac)
    if interface.network:
        SubElement(element, "source", network=interface.network)
    elif interface.bridge:
        SubElement(element, "source", bridge=interface.bridge)
    SubElement(element, "model", type=interface.model)
    return element


def _target(bus: str, used: dict[str, int]) -> str:
    prefix = TARGET_PREFIXES[bus]
    number = used.get(prefix, 0)
    used[prefix] = number + 1
    if number >= 26:
        raise InvalidError(f"there are more than 26 disks on {bus}", next_step="use another bus for some")
    return f"{prefix}{chr(ord('a') + number)}"


def _text(parent: Element, tag: str, text: str, **attributes: str) -> Element:
    element = SubElement(parent, tag, attributes)
    element.text = text
    return element
