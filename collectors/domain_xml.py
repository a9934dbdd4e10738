"""A domain's live XML, read once and turned into constant series.

The XML comes from the daemon, but parts of it (title, metadata) come from whoever owns the guest: a document type
is refused before any entity in it is expanded, numbers that are none are absent, and label values have a limit.
The metadata, of which libvirt checks least, are read apart (``owner_metadata``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from .configuration import configuration, pci_address
from .fields import Constant, Labels
from .limits import limits
from .owner_metadata import UNKNOWN_ENTITY, MappedLabel, Owner, cut, owner_of, split

XML_MOST_CHARACTERS = 4 * 1024 * 1024
"""Longest XML that is read: libvirt's own limit of a string on the wire."""

DOMAIN_INFO = "libvirt_domain_info"
BALLOON_PERIOD = "libvirt_domain_memory_stats_period_seconds"
BLOCK_INFO = "libvirt_domain_block_info"
INTERFACE_INFO = "libvirt_domain_interface_info"

_WORDS = ("total", "read", "write")
_LIMIT = "libvirt_domain_block_stats_limit_"
BLOCK_LIMITS: dict[str, str] = {
    **{f"{word}_bytes_sec": f"{_LIMIT}{word}_bytes" for word in _WORDS},
    **{f"{word}_iops_sec": f"{_LIMIT}{word}_requests" for word in _WORDS},
    **{f"{word}_bytes_sec_max": f"{_LIMIT}burst_{word}_bytes" for word in _WORDS},
    **{f"{word}_iops_sec_max": f"{_LIMIT}burst_{word}_requests" for word in _WORDS},
    **{f"{word}_bytes_sec_max_length": f"{_LIMIT}burst_{word}_bytes_length_seconds" for word in _WORDS},
    **{f"{word}_iops_sec_max_length": f"{_LIMIT}burst_length_{word}_requests_seconds" for word in _WORDS},
    "size_iops_sec": "libvirt_domain_block_stats_size_iops_bytes",
}
"""Element of <iotune> to the family's name; all of them are in base units already."""

_MEMORY_UNITS = {"b": 1, "bytes": 1, "KB": 10**3, "k": 2**10, "KiB": 2**10, "MB": 10**6, "M": 2**20, "MiB": 2**20,
                 "GB": 10**9, "G": 2**30, "GiB": 2**30, "TB": 10**12, "T": 2**40, "TiB": 2**40}
Device = TypeVar("Device")


class DomainXMLError(ValueError):
    """The text is no domain XML, or one that is refused; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Disk:
    """A <disk>.  ``source_file`` is a file, a block device, ``protocol:name``, ``pool/volume`` or
    ``nvme:address/namespace``; empty without a medium.  ``limits`` are pairs of a key of BLOCK_LIMITS and its number,
    only those that are set.  ``images`` are QEMU's numbers of the images in its backing chain, the one on top first;
    empty where one has no number."""

    target_device: str
    device: str
    bus: str
    disk_type: str
    driver_type: str
    cache: str
    discard: str
    serial: str
    source_file: str
    limits: tuple[tuple[str, int], ...] = ()
    images: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Interface:
    """An <interface>.  ``target_device`` is the host's device, empty where it has none (user mode, passthrough).

    ``direct`` (macvtap): libvirt gives this one's counters unswapped, as the host's device has them.
    ``virtual_interface`` is Open vSwitch's id of it, which in OpenStack is the port's.
    """

    target_device: str
    alias: str
    type: str
    mac: str
    model: str
    source_bridge: str
    mtu: str
    direct: bool
    virtual_interface: str = ""


@dataclass(frozen=True, slots=True)
class Definition:
    """What a running domain's XML says of it.  Sizes in bytes; None where the XML does not tell.

    ``id`` is the one it was read for (None: not running); ``balloon_period_s`` is 0 without guest statistics.
    """

    uuid: str
    id: int | None
    name: str
    title: str
    description: str
    type: str
    os_type: str
    arch: str
    machine: str
    vcpus_current: int | None
    vcpus_maximum: int | None
    memory_bytes: int | None
    maximum_memory_bytes: int | None
    balloon_model: str
    balloon_period_s: int
    owner: Owner
    disks: tuple[Disk, ...]
    interfaces: tuple[Interface, ...]
    limits: tuple[Constant, ...] = ()
    configuration: tuple[Constant, ...] = ()
    metadata_problem: str = ""


def parse(xml: str, labels: Sequence[MappedLabel] = ()) -> Definition:
    """The Definition in a domain's XML (XMLDesc without flags).  Raises DomainXMLError.  Any thread.

    ``labels`` are read from the metadata; what is wrong with these is told in ``metadata_problem`` and costs no
    more than the labels it concerns.
    """
    if len(xml) > XML_MOST_CHARACTERS:
        raise DomainXMLError(f"it has {len(xml)} characters, more than {XML_MOST_CHARACTERS}")
    text, metadata = split(xml)
    root = _tree(text)
    if root.tag != "domain":
        raise DomainXMLError(f"the root element is <{root.tag[:80]}>, not <domain>")
    os_type = root.find("os/type")
    vcpu = root.find("vcpu")
    maximum = _number(_text(root, "vcpu"))
    current = _number(vcpu.get("current", "")) if vcpu is not None else None
    balloon = root.find("devices/memballoon")
    name = _text(root, "name")
    owner, problem = owner_of(metadata, name, labels)
    return Definition(
        uuid=_text(root, "uuid"), id=_number(root.get("id", "")), name=name,
        title=cut(_text(root, "title")), description=cut(_text(root, "description")),
        type=root.get("type", ""), os_type=_text(root, "os/type"),
        arch=os_type.get("arch", "") if os_type is not None else "",
        machine=os_type.get("machine", "") if os_type is not None else "",
        vcpus_current=current if current is not None else maximum, vcpus_maximum=maximum,
        memory_bytes=_memory(root, "currentMemory"), maximum_memory_bytes=_memory(root, "memory"),
        balloon_model=balloon.get("model", "") if balloon is not None else "",
        balloon_period_s=_number(_attribute(root, "devices/memballoon/stats", "period")) or 0,
        owner=owner, disks=tuple(_disks(root)), interfaces=tuple(_interfaces(root)),
        limits=limits(root), configuration=configuration(root), metadata_problem=problem)


def element_tree(xml: str) -> Element:
    """The root of any XML that libvirt hands out of a guest, metadata included; from libvirt only, of any length.

    References to entities that its owner wrote into the metadata are left out, on which a parser would give up.
    """
    return ElementTree.fromstring(UNKNOWN_ENTITY.sub("", xml))


def _tree(xml: str) -> Element:
    """The root element.  expat is driven by hand, since ElementTree's parser cannot refuse a document type."""
    builder = TreeBuilder()
    parser = expat.ParserCreate(namespace_separator="}")
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = _refuse
    parser.StartElementHandler = lambda tag, attributes: builder.start(_tag(tag), attributes)
    parser.EndElementHandler = lambda tag: builder.end(_tag(tag))
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(xml, True)
        root: Element = builder.close()
    except (expat.ExpatError, UnicodeError) as error:
        raise DomainXMLError(f"it does not parse: {error}") from error
    return root


def _tag(tag: str) -> str:
    return "{" + tag if "}" in tag else tag


def _refuse(*_declaration: object) -> None:
    raise DomainXMLError("it has a document type declaration, which libvirt never writes")


def _text(element: Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _attribute(element: Element, path: str, name: str) -> str:
    found = element.find(path)
    return found.get(name, "") if found is not None else ""


def _number(text: str) -> int | None:
    """A natural number as libvirt writes it; None for anything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _memory(root: Element, path: str) -> int | None:
    number = _number(_text(root, path))
    unit = _MEMORY_UNITS.get(_attribute(root, path, "unit") or "KiB")
    return None if number is None or unit is None else number * unit


def _disks(root: Element) -> Iterator[Disk]:
    for disk in root.iterfind("devices/disk"):
        yield Disk(
            _attribute(disk, "target", "dev"), disk.get("device", "disk"), _attribute(disk, "target", "bus"),
            disk.get("type", ""), _attribute(disk, "driver", "type"), _attribute(disk, "driver", "cache"),
            _attribute(disk, "driver", "discard"), _text(disk, "serial"), _source(disk),
            tuple(_limits(disk)), _images(disk))


def _limits(disk: Element) -> Iterator[tuple[str, int]]:
    for element in disk.iterfind("iotune/*"):
        number = _number((element.text or "").strip())
        if element.tag in BLOCK_LIMITS and number:  # libvirt's 0 is no limit
            yield element.tag, number


def _images(disk: Element) -> tuple[int, ...]:
    found: list[int] = []
    image: Element | None = disk
    while image is not None and image.find("source") is not None:
        number = _number(_attribute(image, "source", "index"))
        if number is None:
            return ()
        found.append(number)
        image = image.find("backingStore")
    return tuple(found)


def _source(disk: Element) -> str:
    source = disk.find("source")
    if source is None:
        return ""
    if source.get("protocol"):
        return f"{source.get('protocol')}:{source.get('name', '')}"
    if source.get("pool"):
        return f"{source.get('pool')}/{source.get('volume', '')}"
    address = source.find("address")
    if source.get("namespace") and address is not None:
        return f"nvme:{pci_address(address)}/{source.get('namespace')}"
    return source.get("file") or source.get("dev") or source.get("dir") or source.get("path") or ""


def _interfaces(root: Element) -> Iterator[Interface]:
    for nic in root.iterfind("devices/interface"):
        kind = nic.get("type", "")
        yield Interface(
            _attribute(nic, "target", "dev"), _attribute(nic, "alias", "name"), kind,
            _attribute(nic, "mac", "address"), _attribute(nic, "model", "type"),
            _attribute(nic, "source", "bridge"), _attribute(nic, "mtu", "size"), kind == "direct",
            _attribute(nic, "virtualport/parameters", "interfaceid"))


def constants(definition: Definition) -> tuple[Constant, ...]:
    """The series of a Definition, without the subject's ``domain`` label; no series twice.

    Of a domain that does not run only who it is: what it would have, sums over domains must not count.
    An interface without a host device stands under its alias (net0): it is one of the guest's devices, the alias
    is libvirt's own name for it, and no counter carries that name, so that nothing is joined to it by mistake.
    """
    owner = definition.owner
    series = [Constant(DOMAIN_INFO, _labels(
        uuid=definition.uuid, type=definition.type, os_type=definition.os_type, arch=definition.arch,
        machine=definition.machine, title=definition.title, description=definition.description,
        instance_name=owner.instance_name, flavor=owner.flavor, project_name=owner.project_name,
        project_uuid=owner.project_uuid, user_name=owner.user_name, user_uuid=owner.user_uuid,
        root_type=owner.root_type, root_uuid=owner.root_uuid, **dict(owner.mapped)))]
    if definition.id is None:
        return tuple(series)
    if definition.balloon_model not in ("", "none"):
        series.append(Constant(BALLOON_PERIOD, (), float(definition.balloon_period_s)))
    for name, disk in _once((disk.target_device, disk) for disk in definition.disks):
        series.append(Constant(BLOCK_INFO, _labels(
            target_device=name, bus=disk.bus, disk_type=disk.disk_type, driver_type=disk.driver_type,
            cache=disk.cache, discard=disk.discard, serial=disk.serial, source_file=disk.source_file)))
        series += [Constant(BLOCK_LIMITS[key], _labels(target_device=name), float(number))
                   for key, number in dict(disk.limits).items()]
    hosted = sorted(definition.interfaces, key=lambda nic: not nic.target_device)  # real devices before aliases
    for name, nic in _once((nic.target_device or nic.alias, nic) for nic in hosted):
        series.append(Constant(INTERFACE_INFO, _labels(
            target_device=name, mac=nic.mac, model=nic.model, type=nic.type, source_bridge=nic.source_bridge,
            mtu=nic.mtu, virtual_interface=nic.virtual_interface)))
    return (*series, *definition.limits, *definition.configuration)


def _once(devices: Iterable[tuple[str, Device]]) -> Iterator[tuple[str, Device]]:
    """Devices with a name, the first of each: a series given twice would cost the whole page."""
    seen: dict[str, Device] = {}
    for name, device in devices:
        seen.setdefault(cut(name), device)
    return ((name, device) for name, device in seen.items() if name)


def _labels(**labels: str) -> Labels:
    return tuple((name, cut(value)) for name, value in labels.items())
