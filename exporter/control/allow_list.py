"""Which XML from outside may reach libvirt: what is listed here, and nothing else.

A read-write connection is root in effect: an `<emulator>` names a program that the host runs, a path opens a file of
the host. So everything that is not known to be harmless is refused, by name and line, all at once. The text is parsed
here (size limit, no document type, no entity) and written anew from the tree, so that libvirt never sees a byte
of it that was not understood. Facts: reference on control, security pitfalls; libvirt's formatdomain.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from exporter.control.errors import InvalidError
from exporter.control.folders import Folders
from exporter.control.image_format import require_plain

MOST_CHARACTERS = 1 << 20
"""Longest XML from outside; a large real definition has 20,000."""
_MOST_DEPTH = 24
_MOST_PROBLEMS = 10

Rule = Callable[[str, Folders], "str | None"]
"""The cause for which a value is refused, None where it is allowed."""


def _word(value: str, _folders: Folders) -> str | None:
    return None if re.fullmatch(r"[A-Za-z0-9_.:+\-]{1,64}", value) else "is not a plain word"


def _number(value: str, _folders: Folders) -> str | None:
    return None if re.fullmatch(r"-?[0-9]{1,18}", value) else "is not a whole number"


def _text(value: str, _folders: Folders) -> str | None:
    fine = len(value) <= 4096 and value.replace("\n", " ").replace("\t", " ").isprintable()
    return None if fine else "is not plain text"


def _name(value: str, _folders: Folders) -> str | None:
    fine = 0 < len(value) <= 128 and value.isprintable() and "/" not in value and value.strip() == value
    return None if fine else "is no name for a domain"


def _path(value: str, folders: Folders) -> str | None:
    try:
        folders.image(value, "the path")
    except InvalidError as error:
        return f"is refused ({error.cause})"
    return None


def _one_of(*words: str) -> Rule:
    return lambda value, _folders: None if value in words else f"must be {' or '.join(words)}"


_STATE = _one_of("on", "off", "yes", "no")
_ADDRESS = {name: _word for name in ("type", "domain", "bus", "slot", "function", "multifunction", "controller",
                                     "target", "unit", "port")}  # fmt: skip
_LIFE = _one_of("destroy", "restart", "preserve", "rename-restart")
_TUNE = tuple(
    f"{what}_{unit}{tail}"
    for what in ("total", "read", "write")
    for unit in ("bytes_sec", "iops_sec")
    for tail in ("", "_max", "_max_length")
)

# Path below <domain> -> attributes with their rules; "" is the rule of the element's text.
_ELEMENTS: dict[str, dict[str, Rule]] = {
    "domain": {"type": _one_of("kvm", "qemu", "test")},
    "name": {"": _name}, "uuid": {"": _word}, "title": {"": _text}, "description": {"": _text},
    "memory": {"": _number, "unit": _word}, "currentMemory": {"": _number, "unit": _word},
    "vcpu": {"": _number, "placement": _one_of("static", "auto"), "current": _number},
    "iothreads": {"": _number},
    "os": {"firmware": _one_of("bios", "efi")},
    "os/firmware": {}, "os/firmware/feature": {"enabled": _STATE, "name": _word},
    "os/type": {"": _one_of("hvm"), "arch": _word, "machine": _word},
    "os/boot": {"dev": _one_of("hd", "cdrom", "network", "fd")},
    "os/bootmenu": {"enable": _STATE, "timeout": _number},
    "os/bios": {"useserial": _STATE, "rebootTimeout": _number},
    "os/kernel": {"": _path}, "os/initrd": {"": _path}, "os/cmdline": {"": _text},
    "features": {}, "features/acpi": {}, "features/apic": {}, "features/pae": {},
    "features/vmport": {"state": _STATE}, "features/smm": {"state": _STATE},
    "features/tcg": {}, "features/tcg/tb-cache": {"": _number, "unit": _word},
    "cpu": {"mode": _one_of("custom", "host-model", "host-passthrough", "maximum"), "match": _word, "check": _word,
            "migratable": _STATE},
    "cpu/model": {"": _word, "fallback": _word},
    "cpu/topology": {name: _number for name in ("sockets", "dies", "cores", "threads")},
    "cpu/feature": {"policy": _word, "name": _word},
    "clock": {"offset": _one_of("utc", "localtime")},
    "clock/timer": {"name": _word, "tickpolicy": _word, "present": _STATE},
    "on_poweroff": {"": _LIFE}, "on_reboot": {"": _LIFE}, "on_crash": {"": _LIFE},
    "pm": {}, "pm/suspend-to-mem": {"enabled": _STATE}, "pm/suspend-to-disk": {"enabled": _STATE},
    "cputune": {}, **{f"cputune/{name}": {"": _number} for name in ("shares", "period", "quota")},
    "devices": {},
    "devices/disk": {"type": _one_of("file", "block"), "device": _one_of("disk", "cdrom")},
    "devices/disk/driver": {"name": _one_of("qemu"), "type": _one_of("raw", "qcow2"), "cache": _word, "io": _word,
                            "discard": _word, "detect_zeroes": _word},
    "devices/disk/source": {"file": _path, "dev": _path, "index": _number},
    "devices/disk/target": {"dev": _word, "bus": _word, "removable": _STATE},
    "devices/disk/serial": {"": _text}, "devices/disk/readonly": {}, "devices/disk/boot": {"order": _number},
    "devices/disk/iotune": {}, **{f"devices/disk/iotune/{name}": {"": _number} for name in _TUNE},
    "devices/controller": {"type": _word, "index": _number, "model": _word, "ports": _number},
    "devices/interface": {"type": _one_of("network", "bridge", "user")},
    "devices/interface/mac": {"address": _word},
    "devices/interface/source": {"network": _name, "bridge": _word},
    "devices/interface/model": {"type": _word}, "devices/interface/boot": {"order": _number},
    "devices/interface/link": {"state": _one_of("up", "down")}, "devices/interface/mtu": {"size": _number},
    "devices/interface/rom": {"enabled": _STATE},
    "devices/interface/bandwidth": {},
    **{f"devices/interface/bandwidth/{way}": {name: _number for name in ("average", "peak", "burst")}
       for way in ("inbound", "outbound")},
    "devices/serial": {"type": _one_of("pty")}, "devices/serial/target": {"type": _word, "port": _number},
    "devices/console": {"type": _one_of("pty")}, "devices/console/target": {"type": _word, "port": _number},
    "devices/channel": {"type": _one_of("unix", "spicevmc")},
    "devices/channel/target": {"type": _one_of("virtio"), "name": _word},
    "devices/input": {"type": _word, "bus": _word},
    "devices/graphics": {"type": _one_of("vnc", "spice"), "autoport": _one_of("yes"), "port": _one_of("-1"),
                         "keymap": _word},
    "devices/graphics/listen": {"type": _one_of("address", "none"), "address": _one_of("127.0.0.1", "::1")},
    "devices/video": {},
    "devices/video/model": {"type": _word, "primary": _STATE,
                            **{name: _number for name in ("vram", "ram", "vgamem", "heads")}},
    "devices/sound": {"model": _word}, "devices/audio": {"id": _number, "type": _one_of("none")},
    "devices/memballoon": {"model": _word, "autodeflate": _STATE, "freePageReporting": _STATE},
    "devices/memballoon/stats": {"period": _number},
    "devices/rng": {"model": _word},
    "devices/rng/backend": {"model": _one_of("random"), "": _one_of("/dev/urandom", "/dev/random")},
    "devices/watchdog": {"model": _word, "action": _one_of("reset", "shutdown", "poweroff", "pause", "none")},
    "devices/panic": {"model": _word},
}  # fmt: skip
_BARE = re.compile(r"\s*")


def checked_domain_xml(text: str, folders: Folders) -> Element:
    """The `<domain>` of a text from outside, with nothing in it but what is allowed.

    Raises InvalidError: every problem (ten at most) with its line, or where the text is no XML. Reads the header
    of each qcow2 image, to refuse one that leads to other files.
    """
    root, lines = parse(text)
    if root.tag != "domain":
        raise InvalidError(f"line 1: <{_shown(root.tag)}> is no domain", next_step="give libvirt's <domain> XML")
    problems = _Checking(folders, lines).problems(root)
    if problems:
        raise InvalidError(
            "; ".join(problems[:_MOST_PROBLEMS]),
            next_step="remove what is refused, or define it with libvirt's own tools as an administrator of the host",
        )
    return root


class _Checking:
    def __init__(self, folders: Folders, lines: dict[Element, int]) -> None:
        self._folders = folders
        self._lines = lines
        self._found: list[str] = []

    def problems(self, root: Element) -> list[str]:
        self._element(root, "domain")
        for child in root:
            self._below(child, child.tag)
        for disk in root.iterfind("devices/disk"):
            self._disk(disk)
        return self._found

    def _below(self, element: Element, path: str) -> None:
        if len(self._found) >= _MOST_PROBLEMS:
            return
        place = path.rpartition("/")
        if place[2] == "address" and place[0].startswith("devices/"):
            return self._attributes(element, _ADDRESS)
        if place[2] == "alias" and place[0].startswith("devices/"):
            return self._attributes(element, {"name": _word})
        if path not in _ELEMENTS:
            return self._problem(element, f"<{_shown(element.tag)}> is not allowed here")
        self._element(element, path)
        for child in element:
            self._below(child, f"{path}/{child.tag}")
        return None

    def _element(self, element: Element, path: str) -> None:
        rules = _ELEMENTS[path]
        self._attributes(element, rules)
        rule, text = rules.get(""), element.text or ""
        if rule is not None:
            self._value(element, f"<{element.tag}>", rule, text.strip())
        elif not _BARE.fullmatch(text):
            self._problem(element, f"<{element.tag}> holds text, which is not allowed")
        if any(not _BARE.fullmatch(child.tail or "") for child in element):
            self._problem(element, f"<{element.tag}> holds text between its elements, which is not allowed")

    def _attributes(self, element: Element, rules: Mapping[str, Rule]) -> None:
        for name, value in element.attrib.items():
            rule = rules.get(name) if name else None
            if rule is None:
                self._problem(element, f"<{element.tag} {_shown(name)}=...> is not allowed")
            else:
                self._value(element, f"<{element.tag} {name}=...>", rule, value)

    def _value(self, element: Element, where: str, rule: Rule, value: str) -> None:
        cause = rule(value, self._folders)
        if cause is not None:
            self._problem(element, f"{where} {_shown(value)!r} {cause}")

    def _disk(self, disk: Element) -> None:
        driver, source = disk.find("driver"), disk.find("source")
        form = driver.get("type") if driver is not None else None
        # Without it libvirt may look into the image, where the guest writes.
        if form is None:
            return self._problem(disk, "<disk> needs <driver type='raw'> or 'qcow2'; formats are never guessed")
        path = source.get("file") or source.get("dev") if source is not None else None
        if path is not None and form == "qcow2" and _path(path, self._folders) is None:
            try:
                require_plain(Path(path), form)
            except InvalidError as error:
                self._problem(disk, error.cause)
        return None

    def _problem(self, element: Element, cause: str) -> None:
        if len(self._found) < _MOST_PROBLEMS:
            self._found.append(f"line {self._lines[element]}: {cause}")


def parse(text: str) -> tuple[Element, dict[Element, int]]:
    """The tree of an XML text, and each element's line. Raises InvalidError; no entity is ever expanded."""
    if len(text) > MOST_CHARACTERS:
        raise InvalidError(f"the XML has {len(text)} characters, more than {MOST_CHARACTERS}", next_step="shorten it")
    try:
        return _Parsing().parse(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidError("the XML holds a character that is none", next_step="write it in UTF-8") from error
    except expat.ExpatError as error:
        cause = expat.ErrorString(error.code)
        raise InvalidError(f"line {error.lineno}: the XML is malformed: {cause}", next_step="correct it") from error


class _Parsing:
    def __init__(self) -> None:
        # The encoding given here wins over the one a declaration names.
        self._parser = expat.ParserCreate("utf-8")
        self._tree = TreeBuilder()
        self._lines: dict[Element, int] = {}
        self._depth = 0
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._tree.data
        self._parser.StartDoctypeDeclHandler = self._refused("a document type")
        self._parser.EntityDeclHandler = self._refused("an entity")
        self._parser.ProcessingInstructionHandler = self._refused("a processing instruction")

    def parse(self, text: bytes) -> tuple[Element, dict[Element, int]]:
        self._parser.Parse(text, True)
        return self._tree.close(), self._lines

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > _MOST_DEPTH:
            self._refused(f"more than {_MOST_DEPTH} elements in each other")()
        self._lines[self._tree.start(tag, attributes)] = self._parser.CurrentLineNumber

    def _end(self, tag: str) -> None:
        self._depth -= 1
        self._tree.end(tag)

    def _refused(self, what: str) -> Callable[..., None]:
        def refuse(*_arguments: object) -> None:
            raise InvalidError(f"line {self._parser.CurrentLineNumber}: the XML has {what}", next_step="remove it")

        return refuse


def _shown(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
