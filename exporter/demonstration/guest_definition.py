"""The demonstration guest as typed fields, and the libvirt XML made of them."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple
from xml.etree.ElementTree import Element, SubElement

from exporter.demonstration.guest_image import GuestImage

Accelerator = Literal["kvm", "qemu"]

KERNEL_COMMAND_LINE = (
    "console=ttyS0 loglevel=3 mitigations=off cryptomgr.notests no_timer_check random.trust_cpu=on "
    "i8042.noaux i8042.nokbd ipv6.disable=1 panic=0 oops=panic"
)


@dataclass(frozen=True)
class Disk:
    """A virtio disk backed by a raw file."""

    file: Path
    target: str = "vda"
    serial: str = ""


@dataclass(frozen=True)
class Interface:
    """A virtio network interface on a bridge of the private network."""

    mac: str
    bridge: str
    address: str = ""


@dataclass(frozen=True)
class Guest:
    """A guest to start: its size, devices and the loads it starts with.

    `boot_orders` are the g.KEY=VALUE words of guest-init.sh, e.g. {"cpu": "25"}. 96 MiB is what the guest
    needs to boot; `balloon_period_s` 0 leaves the guest's memory statistics out.
    """

    name: str
    title: str = ""
    accelerator: Accelerator = "qemu"
    vcpus: int = 1
    memory_mib: int = 96
    disks: tuple[Disk, ...] = ()
    interfaces: tuple[Interface, ...] = ()
    balloon_period_s: int = 1
    boot_orders: Mapping[str, str] = field(default_factory=dict)


class ConsoleFiles(NamedTuple):
    """Where a guest's serial line is reached: a socket for orders, a log of all it ever printed."""

    socket: Path
    log: Path


def domain_xml(guest: Guest, image: GuestImage, console: ConsoleFiles) -> str:
    """The libvirt domain definition of `guest`, for `virsh create` or `define`."""
    domain = Element("domain", type=guest.accelerator)
    _text(domain, "name", guest.name)
    if guest.title:
        _text(domain, "title", guest.title)
    _text(domain, "memory", str(guest.memory_mib), unit="MiB")
    _text(domain, "vcpu", str(guest.vcpus))
    domain.append(_boot(guest, image))
    features = SubElement(domain, "features")
    SubElement(features, "acpi")
    SubElement(features, "apic")
    if guest.accelerator == "qemu":
        # QEMU would set aside 1 GiB of address space, of which a running guest touches 100 MiB and more.
        _text(SubElement(features, "tcg"), "tb-cache", "32", unit="MiB")
    SubElement(domain, "clock", offset="utc")
    for event, action in (("on_poweroff", "destroy"), ("on_reboot", "restart"), ("on_crash", "destroy")):
        _text(domain, event, action)
    domain.append(_devices(guest, console))
    return ElementTree.tostring(domain, encoding="unicode")


def disk_xml(disk: Disk) -> str:
    """The XML of one disk, also for attaching it to a running guest."""
    element = Element("disk", type="file", device="disk")
    SubElement(element, "driver", name="qemu", type="raw")
    SubElement(element, "source", file=str(disk.file))
    SubElement(element, "target", dev=disk.target, bus="virtio")
    if disk.serial:
        _text(element, "serial", disk.serial)
    return ElementTree.tostring(element, encoding="unicode")


def interface_xml(interface: Interface) -> str:
    """The XML of one network interface, also for attaching it to a running guest."""
    element = Element("interface", type="bridge")
    SubElement(element, "mac", address=interface.mac)
    SubElement(element, "source", bridge=interface.bridge)
    SubElement(element, "model", type="virtio")
    # No network boot ROM: reading one costs boot time, and it sends packets of its own.
    SubElement(element, "rom", enabled="no")
    return ElementTree.tostring(element, encoding="unicode")


def _boot(guest: Guest, image: GuestImage) -> Element:
    orders = {**({"ip": guest.interfaces[0].address} if _has_address(guest) else {}), **guest.boot_orders}
    words = [KERNEL_COMMAND_LINE, *(f"g.{key}={value}" for key, value in orders.items())]
    boot = Element("os")
    _text(boot, "type", "hvm", arch="x86_64", machine="pc")
    _text(boot, "kernel", str(image.kernel))
    _text(boot, "initrd", str(image.initramfs))
    _text(boot, "cmdline", " ".join(words))
    return boot


def _has_address(guest: Guest) -> bool:
    return bool(guest.interfaces and guest.interfaces[0].address)


def _devices(guest: Guest, console: ConsoleFiles) -> Element:
    devices = Element("devices")
    SubElement(devices, "controller", type="usb", model="none")
    SubElement(devices, "controller", type="virtio-serial", index="0")
    devices.extend(ElementTree.fromstring(disk_xml(disk)) for disk in guest.disks)
    devices.extend(ElementTree.fromstring(interface_xml(interface)) for interface in guest.interfaces)
    serial = SubElement(devices, "serial", type="unix")
    SubElement(serial, "source", mode="bind", path=str(console.socket))
    SubElement(serial, "log", file=str(console.log), append="on")
    SubElement(serial, "target", port="0")
    channel = SubElement(devices, "channel", type="unix")
    SubElement(channel, "target", type="virtio", name="org.qemu.guest_agent.0")
    balloon = SubElement(devices, "memballoon", model="virtio")
    if guest.balloon_period_s:
        SubElement(balloon, "stats", period=str(guest.balloon_period_s))
    SubElement(devices, "panic", model="isa")
    return devices


def _text(parent: Element, tag: str, text: str, **attributes: str) -> Element:
    element = SubElement(parent, tag, attributes)
    element.text = text
    return element
