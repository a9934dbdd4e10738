"""Which domains and devices are watched, and how many series there may be.

Regular expressions match whole names, as Prometheus's do.  Domains are left out by name or UUID before anything is
asked of them; by metadata once their XML is known; devices, and domains beyond the caps, before the page is made.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from .domain_xml import Definition
from .snapshot import Record, Subject, Value

log = logging.getLogger(__name__)

Details = Callable[[str, int], Definition | None]
_DEVICE_KINDS = ("block.", "net.", "blockjob.", "backing.")
_DEVICE_LABEL = "target_device"
MOST_NAMED = 5


class Pattern(Protocol):
    """A regular expression: Python's own, or another that matches whole texts."""

    def fullmatch(self, string: str, /) -> object:
        """Something true where all of the text matches."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A pair of patterns: what does not match ``include``, where there is one, or matches ``exclude`` is left out."""

    include: Pattern | None = None
    exclude: Pattern | None = None

    def __bool__(self) -> bool:
        return self.include is not None or self.exclude is not None

    def takes(self, texts: Iterable[str]) -> bool:
        """Whether something with these texts is chosen: one that matches speaks for all."""
        given = list(texts)
        if self.include is not None and not any(map(self.include.fullmatch, given)):
            return False
        return self.exclude is None or not any(map(self.exclude.fullmatch, given))


@dataclass(frozen=True, slots=True)
class Filters:
    """The settings' choices; ``metadata`` matches texts like ``project_name=blue`` (labels of libvirt_domain_info)."""

    domain: Choice = Choice()
    uuid: Choice = Choice()
    metadata: Choice = Choice()
    device: Choice = Choice()

    def wants(self, uuid: str, name: str) -> bool:
        """Whether a domain is to be asked for anything."""
        return self.domain.takes((name,)) and self.uuid.takes((uuid,))

    def chosen(self, records: Sequence[Record], details: Details) -> list[Record]:
        """The Records of chosen domains, without those of other devices."""
        found = list(records)
        if self.metadata:
            keys = {record.subject.key for record in found if record.subject.kind == "domain"}
            owned = {uuid for uuid, id_ in keys if isinstance(id_, int) and self.owned(details(str(uuid), id_))}
            found = [r for r in found if r.subject.kind != "domain" or r.subject.key[0] in owned]
        if self.device:
            found = [self._with_devices(record) for record in found]
        return found

    def owned(self, definition: Definition | None) -> bool:
        """Whether a domain's metadata match; where they are unknown, only a choice by exclusion takes it."""
        return self.metadata.takes(() if definition is None else metadata_texts(definition))

    def _with_devices(self, record: Record) -> Record:
        if record.subject.kind != "domain":
            return record
        hidden = tuple(key[:-len("name")] for key, name in record.stats.items()
                       if key.endswith(".name") and key.startswith(_DEVICE_KINDS) and not self._device(name))
        constants = record.constants
        kept = tuple(c for c in constants if all(self._device(v) for label, v in c.labels if label == _DEVICE_LABEL))
        if not hidden and len(kept) == len(constants):
            return record
        stats = {key: value for key, value in record.stats.items() if not key.startswith(hidden)} if hidden else (
            record.stats)
        return replace(record, stats=stats, constants=constants if len(kept) == len(constants) else kept)

    def _device(self, name: Value) -> bool:
        return self.device.takes((str(name),))


def metadata_texts(definition: Definition) -> list[str]:
    """``label=value`` of what a domain's XML says of its title, description and owner (mapped labels, too)."""
    owner = definition.owner
    values = {"title": definition.title, "description": definition.description,
              "instance_name": owner.instance_name, "flavor": owner.flavor, "project_name": owner.project_name,
              "project_uuid": owner.project_uuid, "user_name": owner.user_name, "user_uuid": owner.user_uuid,
              "root_type": owner.root_type, "root_uuid": owner.root_uuid,
              **dict(owner.mapped)}
    return [f"{label}={value}" for label, value in values.items()]


class Cap:
    """At most so many series of a domain and of all; 0 is no limit.  Whole domains are cut, never parts of one.

    Domains stay in the order of their names, so that the same ones are cut at each sample.  One thread.
    """

    def __init__(self, per_domain: int = 0, all_series: int = 0) -> None:
        self._per_domain = per_domain
        self._all_series = all_series
        self._cut: Mapping[str, tuple[str, ...]] = {"domain": (), "all": ()}

    def cut(self, counts: Mapping[str, int], others: int) -> frozenset[str]:
        """Names of the domains to leave out, of those with so many series; ``others`` is all else on the page."""
        large = [name for name, count in counts.items() if 0 < self._per_domain < count]
        over: list[str] = []
        total = others
        for name in sorted(counts.keys() - set(large)) if self._all_series else ():
            if total + counts[name] > self._all_series:
                over.append(name)
            else:
                total += counts[name]
        self._tell({"domain": tuple(sorted(large)), "all": tuple(over)})
        return frozenset((*large, *over))

    def own_record(self, at_s: float) -> Record:
        """How many domains were cut from the last page."""
        stats: dict[str, Value] = {f"cut.{limit}": len(names) for limit, names in self._cut.items()}
        return Record(Subject("exporter", ("exporter", "cut"), ()), "cut", stats, at_s)

    def _tell(self, cut: Mapping[str, tuple[str, ...]]) -> None:
        for limit, most in (("domain", self._per_domain), ("all", self._all_series)):
            names = cut[limit]
            if names and names != self._cut[limit]:
                few = ", ".join(name[:100] for name in names[:MOST_NAMED])
                log.warning("%d domains are not on the page, since filter.max_series%s is %d: %s%s", len(names),
                            "_per_domain" if limit == "domain" else "", most, few,
                            ", ..." if len(names) > MOST_NAMED else "")
        self._cut = cut
