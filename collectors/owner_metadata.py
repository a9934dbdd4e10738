"""Who a domain belongs to: what clouds write into the <metadata> of its XML, and what the settings map to labels.

The metadata are the owner's own text, of which libvirt checks only that it parses: references to entities whose
document type it does not keep, a megabyte in a name, 300,000 elements.  So they are taken out of the domain's XML
before that is parsed, and read apart; whatever is wrong with them costs the field, or the element, that it is in.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

LABEL_MOST_CHARACTERS = 1024
"""Longest label value; the rest is cut, so that one title cannot fill a page."""
MOST_ELEMENTS = 10_000
"""Most elements that are read of what one namespace says; oVirt writes a few for each device."""

_BEGIN = re.compile(r"<metadata\s*>")
_END = "</metadata>"
UNKNOWN_ENTITY = re.compile(r"&(?!(?:lt|gt|amp|quot|apos|#[0-9]{1,7}|#x[0-9A-Fa-f]{1,6});)")
"""An entity that XML does not know by itself.  libvirt keeps the reference, but not what it stood for."""
_MARK = "\ufdd0"  # a character that Unicode keeps for a program's own use: stands where an entity stood
_NOVA = "{http://openstack.org/xmlns/libvirt/nova/1."
_KUBEVIRT = "{http://kubevirt.io}kubevirt"
_OVIRT = "{http://ovirt.org/vm/1.0}vm"


@dataclass(frozen=True, slots=True)
class Owner:
    """Who the domain belongs to, as a cloud's metadata tells; empty where it does not.

    OpenStack nova 1.x fills all of it; ``root_type`` and ``root_uuid`` say what it was made from, an image mostly.
    KubeVirt: ``instance_name`` is the VM's name and ``project_name`` its namespace.  oVirt's metadata names no
    owner, and its VM's name is the domain's.  ``mapped`` are the labels of the settings, in their order.
    """

    instance_name: str = ""
    flavor: str = ""
    project_name: str = ""
    project_uuid: str = ""
    user_name: str = ""
    user_uuid: str = ""
    root_type: str = ""
    root_uuid: str = ""
    mapped: tuple[tuple[str, str], ...] = ()


class MappedLabel(Protocol):
    """A label that the settings read from the metadata."""

    @property
    def name(self) -> str: ...
    def value(self, metadata: Element) -> str:
        """The text it finds in a <metadata> element, empty for none.  Never raises."""


def cut(value: str) -> str:
    """A label value of at most LABEL_MOST_CHARACTERS."""
    return value if len(value) <= LABEL_MOST_CHARACTERS else value[:LABEL_MOST_CHARACTERS - 1] + "…"


def split(xml: str) -> tuple[str, str]:
    """A domain's XML with its metadata taken out, and these, empty for none.

    Before them libvirt writes only name, UUID, title and description, behind them nothing of the owner's, all of it
    escaped: so the first beginning and the last end in the text are theirs, whatever stands between.
    """
    begin = _BEGIN.search(xml)
    end = xml.rfind(_END)
    if begin is None or end < begin.end():
        return xml, ""
    end += len(_END)
    return xml[:begin.start()] + xml[end:], xml[begin.start():end]


def owner_of(metadata: str, domain: str, labels: Sequence[MappedLabel] = ()) -> tuple[Owner, str]:
    """The owner by the text of a <metadata> element, and what was wrong with it, empty for nothing.

    ``domain`` is the domain's name.  Never raises; any thread.
    """
    text, entities = UNKNOWN_ENTITY.subn(_MARK, metadata)
    reading = _Reading()
    if text:
        reading.read(text)
    root = reading.root
    name, project = _instance(root, domain)
    mapped = tuple((label.name, _clean(label.value(root))) for label in labels)
    problem = reading.problem or (f"it refers to {entities} entities that it does not define" if entities else "")
    for element in root:
        if element.tag.startswith(_NOVA) and element.tag.endswith("}instance"):
            space = element.tag[:-len("instance")]
            user, project_path = f"{space}owner/{space}user", f"{space}owner/{space}project"
            return Owner(_text(element, f"{space}name"), _attribute(element, f"{space}flavor", "name"),
                         _text(element, project_path), _attribute(element, project_path, "uuid"),
                         _text(element, user), _attribute(element, user, "uuid"),
                         _attribute(element, f"{space}root", "type"), _attribute(element, f"{space}root", "uuid"),
                         mapped), problem
    return Owner(instance_name=name, project_name=project, mapped=mapped), problem


def _instance(root: Element, domain: str) -> tuple[str, str]:
    """The VM's name and its namespace, where a cloud names the domain by them."""
    tags = {element.tag for element in root}
    if _KUBEVIRT in tags:  # the domain is namespace_name; neither may hold an underscore
        namespace, _, instance = domain.partition("_")
        return (cut(instance), cut(namespace)) if instance else ("", "")
    return (cut(domain), "") if _OVIRT in tags else ("", "")


def _text(element: Element, path: str) -> str:
    return _clean(element.findtext(path) or "")


def _attribute(element: Element, path: str, name: str) -> str:
    found = element.find(path)
    return _clean(found.get(name, "")) if found is not None else ""


def _clean(value: str) -> str:
    """A value as a label may have it; nothing of one with an entity in it, since nobody knows the whole."""
    return "" if _MARK in value else cut(value.strip())


class _Reading:
    """Reads metadata into ``root``, child by child; a child that is too large, or broken, is left out."""

    def __init__(self) -> None:
        self.root = Element("metadata")
        self.problem = ""
        self._builder: TreeBuilder | None = None
        self._depth = 0
        self._count = 0

    def read(self, text: str) -> None:
        """Reads a <metadata> element; one that does not parse is kept up to its last whole child."""
        parser = expat.ParserCreate(namespace_separator="}")
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._data
        try:
            parser.Parse(text, True)
        except (expat.ExpatError, UnicodeError) as error:
            self.problem = f"it does not parse: {error}"

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth == 2:
            self._builder, self._count = TreeBuilder(), 0
        self._count += 1
        if self._builder is None:
            return
        if self._count > MOST_ELEMENTS:
            self.problem = f"one part of it has more than {MOST_ELEMENTS} elements"
            self._builder = None
        elif self._depth >= 2:
            self._builder.start(_tag(tag), {_tag(name): value for name, value in attributes.items()})

    def _end(self, tag: str) -> None:
        self._depth -= 1
        if self._builder is None or not self._depth:
            return
        self._builder.end(_tag(tag))
        if self._depth == 1:
            self.root.append(self._builder.close())
            self._builder = None

    def _data(self, text: str) -> None:
        if self._builder is not None:
            self._builder.data(text)


def _tag(tag: str) -> str:
    return "{" + tag if "}" in tag else tag
