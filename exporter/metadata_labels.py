"""Labels that the settings read from domains' metadata: an XPath to each, checked when the program starts.

The paths are those of Python's ElementTree: steps, ``//``, ``*``, predicates, ``{*}name`` for any namespace; an
attribute stands at the end, as ``/@name``.  They begin inside the <metadata> element.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from xml.etree.ElementTree import Element

OWN_LABELS = ("domain", "uuid", "type", "os_type", "arch", "machine", "title", "description", "instance_name", "flavor",
              "project_name", "project_uuid", "user_name", "user_uuid", "root_type", "root_uuid")
"""Labels that libvirt_domain_info has already."""
_PROMETHEUS = ("instance", "job", "le", "quantile")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,62}")
_NAMESPACE = re.compile(r"([A-Za-z_][A-Za-z0-9_.-]*)=([^\s{}]+)")
_ATTRIBUTE = re.compile(r"(?:(?P<path>.*)/)?@(?P<name>(?:\{[^{}]+\}|(?P<prefix>[A-Za-z_][\w.-]*):)?[A-Za-z_][\w.-]*)")
_INSIDE = re.compile(r"'[^']*'|\"[^\"]*\"|\{[^{}]*\}")
_PREDICATE = re.compile(r"\[[^\[\]]+\]")
_STEPS = re.compile(r"[\w.*:/-]*[\w.*-]")
_FORM = "write it like team=site:instance/site:team/@name"


@dataclass(frozen=True)
class MetadataLabel:
    """A label of ``libvirt_domain_info``: the text of the first element on ``path``, or that one's ``attribute``."""

    name: str
    path: str
    attribute: str
    namespaces: Mapping[str, str]

    def value(self, metadata: Element) -> str:
        """What it finds in a <metadata> element, empty for nothing."""
        found = metadata.find(self.path, dict(self.namespaces))
        if found is None:
            return ""
        return found.get(self.attribute, "") if self.attribute else found.text or ""


def parse_metadata_label(value: object) -> str:
    """`LABEL=XPATH` with a name that a label may have; raises ValueError.  The path is checked by `metadata_labels`."""
    name, equals, path = value.partition("=") if isinstance(value, str) else ("", "", "")
    name, path = name.strip(), path.strip()
    if not equals or not path:
        raise ValueError(f"maps no XPath to a label; {_FORM}")
    if not _LABEL.fullmatch(name) or name.startswith("__"):
        raise ValueError(f"has no label name ({name[:63]!r}): letters, digits and _, not a digit or __ in front; "
                         f"{_FORM}")
    if name in OWN_LABELS:
        raise ValueError(f"names a label that libvirt_domain_info has already ({name}); choose another")
    if name in _PROMETHEUS:
        raise ValueError(f"names a label that Prometheus sets itself ({name}); choose another")
    return f"{name}={path}"


def parse_namespace(value: object) -> str:
    """`PREFIX=URI`; raises ValueError."""
    found = _NAMESPACE.fullmatch(value.strip()) if isinstance(value, str) else None
    if found is None:
        raise ValueError("is no namespace with its prefix; write it like site=https://example.org/guests/1.0")
    return f"{found[1]}={found[2]}"


def metadata_labels(labels: Iterable[str], namespaces: Iterable[str]) -> tuple[MetadataLabel, ...]:
    """The labels, checked together.  Raises ValueError for a path that cannot be used, or a name given twice."""
    spaces = dict(text.split("=", 1) for text in namespaces)
    found: dict[str, MetadataLabel] = {}
    for text in labels:
        name, path = text.split("=", 1)
        if name in found:
            raise ValueError(f"metadata.labels names {name} twice; choose another name for one")
        found[name] = _label(name, path, spaces)
    return tuple(found.values())


def _label(name: str, path: str, spaces: Mapping[str, str]) -> MetadataLabel:
    attribute = _ATTRIBUTE.fullmatch(path)
    steps = (attribute["path"] or ".") if attribute else path.removesuffix("/text()")
    label = MetadataLabel(name, steps, _attribute_name(name, attribute, spaces) if attribute else "", spaces)
    try:
        # What ElementTree passes over, though it cannot do it: unions, functions, a path that ends in a slash.
        if not _STEPS.fullmatch(_PREDICATE.sub("", _INSIDE.sub("", steps) or ".") or "."):
            raise SyntaxError("it is more than steps and predicates")
        label.value(Element("metadata"))
    except (SyntaxError, KeyError, ValueError, TypeError, IndexError, StopIteration) as error:
        cause = str(error) or "it ends too early"
        raise ValueError(f"metadata.labels: the XPath of {name}, {path[:80]!r}, cannot be used ({cause[:120]}); begin "
                         "inside <metadata>, and name each prefix in metadata.namespaces") from error
    return label


def _attribute_name(name: str, found: re.Match[str], spaces: Mapping[str, str]) -> str:
    prefix = found["prefix"]
    if not prefix:
        return found["name"]
    if prefix not in spaces:
        raise ValueError(f"metadata.labels: the XPath of {name} has the prefix {prefix!r}, which metadata.namespaces "
                         "does not name; add it there")
    return f"{{{spaces[prefix]}}}{found['name'].partition(':')[2]}"
