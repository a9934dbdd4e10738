"""What a domain is configured with besides what it uses: CPU model and topology, host devices, graphics.

From the live XML that the inventory keeps, so that it costs no call; constant series, off by default.
"""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree.ElementTree import Element

from .fields import Collector, Constant, Info

CPU_INFO = "libvirt_domain_cpu_info"
HOST_DEVICE_INFO = "libvirt_domain_host_device_info"
GRAPHICS_INFO = "libvirt_domain_graphics_info"
_MOST_CHARACTERS = 256

CONFIGURATION = Collector(
    name="configuration",
    help="CPU model and topology, host devices and graphics of each running domain, from its XML.",
    declarations=(
        Info(CPU_INFO, "Always 1; the CPU that the guest sees (domain XML <cpu>, text).",
             ("domain", "mode", "model", "sockets", "dies", "cores", "threads"), source="domain XML <cpu>",
             since="0.7.5"),
        Info(HOST_DEVICE_INFO,
             "Always 1; a device of the host, or a part of one as a vGPU is, that the guest has to itself (domain "
             "XML <hostdev>, text).", ("domain", "device", "type", "address", "model", "driver"),
             source="domain XML <hostdev>", since="0.4.4"),
        Info(GRAPHICS_INFO,
             "Always 1; where the guest's display is served (domain XML <graphics>, text); the port is empty for none.",
             ("domain", "number", "type", "listen", "port", "tls_port"), source="domain XML <graphics>", since="0.4.1"),
    ),
    default=False,
)


def configuration(root: Element) -> tuple[Constant, ...]:
    """The series of a domain's live XML, without the subject's label.  Never raises."""
    return (*_cpu(root), *_host_devices(root), *_graphics(root))


def _cpu(root: Element) -> Iterable[Constant]:
    cpu = root.find("cpu")
    if cpu is None:
        return
    topology = cpu.find("topology")
    sizes = {word: topology.get(word, "") if topology is not None else ""
             for word in ("sockets", "dies", "cores", "threads")}
    yield Constant(CPU_INFO, _labels(mode=cpu.get("mode", ""), model=(cpu.findtext("model") or "").strip(), **sizes))


def _host_devices(root: Element) -> Iterable[Constant]:
    seen: set[str] = set()
    for number, device in enumerate(root.iterfind("devices/hostdev")):
        alias = device.find("alias")
        name = (alias.get("name") if alias is not None else None) or f"hostdev{number}"
        if name in seen:
            continue
        seen.add(name)
        driver = device.find("driver")
        yield Constant(HOST_DEVICE_INFO, _labels(
            device=name, type=device.get("type", ""), address=_address(device), model=device.get("model", ""),
            driver=driver.get("name", "") if driver is not None else ""))


def _address(device: Element) -> str:
    """Where the device is on the host, 0000:01:00.0, USB's vendor:product or bus.device, a UUID."""
    address, vendor, product, adapter = (device.find(f"source/{tag}") for tag in (
        "address", "vendor", "product", "adapter"))
    if vendor is not None and product is not None:
        return f"{_hexadecimal(vendor.get('id'))}:{_hexadecimal(product.get('id'))}"
    if address is None:
        return adapter.get("name", "") if adapter is not None else ""
    if adapter is not None:
        return ":".join([adapter.get("name", ""), *(address.get(word, "") for word in ("bus", "target", "unit"))])
    if address.get("uuid"):
        return address.get("uuid", "")
    if address.get("slot"):
        return pci_address(address)
    return f"{address.get('bus', '')}.{address.get('device', '')}"


def pci_address(address: Element) -> str:
    """0000:01:00.0, of an <address> with a slot."""
    domain, bus, slot = (_hexadecimal(address.get(word)) for word in ("domain", "bus", "slot"))
    return f"{domain.zfill(4)}:{bus.zfill(2)}:{slot.zfill(2)}.{_hexadecimal(address.get('function'))}"


def _hexadecimal(text: str | None) -> str:
    return (text or "0").removeprefix("0x") or "0"


def _graphics(root: Element) -> Iterable[Constant]:
    for number, graphics in enumerate(root.iterfind("devices/graphics")):
        ports = {label: "" if graphics.get(word) in (None, "-1") else graphics.get(word, "")
                 for label, word in (("port", "port"), ("tls_port", "tlsPort"))}
        yield Constant(GRAPHICS_INFO, _labels(
            number=str(number), type=graphics.get("type", ""), listen=_listen(graphics), **ports))


def _listen(graphics: Element) -> str:
    """An address, a socket's path or, without either, how it listens."""
    listen = graphics.find("listen")
    found = graphics.get("listen")
    if not found and listen is not None:
        found = listen.get("address") or listen.get("socket") or listen.get("type")
    return found or ""


def _labels(**labels: str) -> tuple[tuple[str, str], ...]:
    return tuple((name, value[:_MOST_CHARACTERS]) for name, value in labels.items())
