"""XML compared: any two as a difference; a running domain's with its next boot's, without what libvirt adds to it."""

from __future__ import annotations

import difflib
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import libvirt

from collectors.domain_xml import element_tree

_LIVE_ELEMENTS = (
    (".", "resource"), (".", "seclabel"), ("devices/*", "alias"), ("devices/disk", "backingStore"),
    ("devices/serial", "source"), ("devices/console", "source"), ("devices/channel", "source"),
    ("devices/interface", "target"),
)  # fmt: skip
_LIVE_ATTRIBUTES = (
    (".", "id"), ("devices/disk/source", "index"), ("devices/console", "tty"), ("devices/channel/target", "state"),
    ("devices/graphics", "port"), ("devices/interface/source", "portid"),
)  # fmt: skip


def comparable_pair(running: str, next_boot: str) -> tuple[str, str]:
    """Both as indented text; equal where a boot would change nothing."""
    live, later = _comparable(running), _comparable(next_boot)
    _same_cpu(live, later)
    return _text(live), _text(later)


def _comparable(xml: str) -> Element:
    root = element_tree(xml)
    for path, tag in _LIVE_ELEMENTS:
        for parent in root.findall(path):
            for element in parent.findall(tag):
                parent.remove(element)
    for path, name in _LIVE_ATTRIBUTES:
        for element in root.iterfind(path):
            element.attrib.pop(name, None)
    for source in root.iterfind("devices/interface[@type='network']/source"):
        source.attrib.pop("bridge", None)
    return root


def _same_cpu(live: Element, later: Element) -> None:
    """libvirt writes the model it chose, and the features QEMU has in it, into the running one (`check='full'`)."""
    now, then = live.find("cpu"), later.find("cpu")
    if now is None or (now.get("check") != "full" and then is not None):
        return
    if then is None or then.get("mode") in ("host-model", "host-passthrough", "maximum"):
        live.remove(now)
        if then is not None:
            later.remove(then)
        return
    wanted = {feature.get("name") for feature in then.iterfind("feature")}
    for feature in now.findall("feature"):
        if feature.get("name") not in wanted:
            now.remove(feature)
    for cpu in (now, then):
        cpu.attrib.pop("check", None)


def _text(root: Element) -> str:
    for element in root.iter():
        if element.text is not None and not element.text.strip():
            element.text = None
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode")


def inactive_xml(handle: Any) -> str:
    """The XML of the next boot, without secrets."""
    return str(handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))


def unified(now: str, wanted: str, was: str = "now", then: str = "then") -> str:
    """The difference, empty for none."""
    lines = difflib.unified_diff(now.splitlines(), wanted.splitlines(), was, then, lineterm="")
    return "\n".join(lines)
