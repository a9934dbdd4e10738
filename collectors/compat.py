"""Names of other exporters beside ours, only where they differ; where the same name has other labels, ours stays.

Three families: ``tinkoff`` (also AlexZzz, rumanzo), ``inovex``, ``kumina`` (also Debian's package).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from .connection import Session
from .domain import STATES
from .domain_xml import BLOCK_INFO, DOMAIN_INFO, INTERFACE_INFO
from .fields import (
    KIBIBYTE,
    MILLISECOND,
    NANOSECOND,
    Collector,
    Computed,
    Constant,
    Declaration,
    Field,
    Info,
    Kind,
    Ratio,
    StateNumber,
)
from .jobs import JOB_INFO, JOB_TYPES
from .periodic import Part, Scope, Source
from .snapshot import Record, Subject

_USED_PERCENT = Computed(
    "libvirt_domain_memory_stats_used_percent", Ratio.COMPLEMENT, "balloon.usable",
    "Old name: percent of its memory that the guest uses; use libvirt_domain_memory_used_ratio.",
    denominator="balloon.available", scale=100.0)


def _old(source: str, name: str, new: str, scale: float = 1.0, kind: Kind = Kind.GAUGE, label: str = "",
         label_key: str = "", subject: str = "domain") -> Field:
    return Field(source, f"libvirt_{name}", kind, f"Old name; use {new}.", scale, label, label_key,
                 subject_labels=(subject,))


def _state(name: str) -> Field:
    return _old("state.state", name, "libvirt_domain_state")


def _disk(name: str, source: str, new: str) -> Field:
    return _old(f"block.<n>.{source}", f"domain_block_stats_{name}", f"libvirt_domain_block_stats_{new}",
                NANOSECOND if source.endswith("times") else 1.0, Kind.COUNTER if name.endswith("_total") else
                Kind.GAUGE, "target_device", "block.<n>.name")


_PROTOCOL = "protocol of a network disk"
_VCPU_TIME = re.compile(r"vcpu\.[0-9]+\.time")
_VCPU_STATE = _old("vcpu.<n>.state", "domain_vcpu_state", "libvirt_domain_vcpu_time_seconds_total's rate", 1.0,
                   Kind.GAUGE, "vcpu")
_POOL_WORDS = ("state", "capacity", "allocation", "available")
_JOB_WORDS = (("data", "data"), ("memory", "memory"), ("file", "disk"))

FIELDS: Mapping[str, tuple[Declaration, ...]] = {
    "tinkoff": (
        _state("domain_info_vstate"), _VCPU_STATE, _USED_PERCENT,
        _disk("allocation", "allocation", "allocation_bytes")),
    "inovex": (
        StateNumber("state.state", "libvirt_domain_info_state", "Old name; use libvirt_domain_state.", STATES,
                    label="state_desc"),
        _VCPU_STATE, _USED_PERCENT,
        _old("vcpu.current", "domain_vcpu_current", "libvirt_domain_info_virtual_cpus"),
        _old("balloon.current", "domain_memory_stats_current_balloon_bytes",
             "libvirt_domain_memory_stats_actual_balloon_bytes", KIBIBYTE),
        _old("balloon.maximum", "domain_memory_stats_maximum_bytes", "libvirt_domain_info_maximum_memory_bytes",
             KIBIBYTE),
        _old("balloon.disk_caches", "domain_memory_stats_disk_caches_bytes",
             "libvirt_domain_memory_stats_disk_cache_bytes", KIBIBYTE),
        _old("sample.timed-out", "domain_timed_out", "libvirt_domain_sample_complete"),
        _old("job.type", "domain_job_info_type", "libvirt_domain_job_info"),
        *(_old(f"job.time_{word}", f"domain_job_info_time_{word}_seconds", f"libvirt_domain_job_{word}_seconds",
               MILLISECOND) for word in ("elapsed", "remaining")),
        *(_old(f"job.{ours}_{word}", f"domain_job_info_{theirs}_{word}_bytes",
               f"libvirt_domain_job_{ours}_{word}_bytes")
          for theirs, ours in _JOB_WORDS for word in ("total", "processed", "remaining")),
        *(_old(f"storage_pool.{word}", f"storage_pool_{word}" + ("" if word == "state" else "_bytes"),
               "libvirt_pool_state" if word == "state" else f"libvirt_pool_info_{word}_bytes",
               subject="storage_pool") for word in _POOL_WORDS)),
    "kumina": (
        _state("domain_state_code"),
        Field("domains.active", "libvirt_domains_number", Kind.GAUGE, "Old name; use libvirt_domains.",
              subject_labels=()),
        *(_disk(f"{word}_seconds_total", f"{short}.times", f"{word}_time_seconds_total")
          for short, word in (("rd", "read"), ("wr", "write"), ("fl", "flush")))),
}
"""Numbers under another name, by family."""


@dataclass(frozen=True, slots=True)
class OldInfo:
    """A constant series under another name: ``labels`` are theirs, each with ours, or ``_PROTOCOL``."""

    source: str
    name: str
    labels: tuple[tuple[str, str], ...]


INFOS: Mapping[str, tuple[OldInfo, ...]] = {
    "tinkoff": (
        OldInfo(DOMAIN_INFO, "libvirt_domain_info_meta", (
            ("uuid", "uuid"), ("instance_name", "instance_name"), ("flavor", "flavor"), ("user_name", "user_name"),
            ("user_uuid", "user_uuid"), ("project_name", "project_name"), ("project_uuid", "project_uuid"),
            ("root_type", "root_type"), ("root_uuid", "root_uuid"))),
        OldInfo(BLOCK_INFO, "libvirt_domain_block_meta", tuple((word, word) for word in (
            "target_device", "source_file", "serial", "bus", "disk_type", "driver_type", "cache", "discard"))),
        OldInfo(INTERFACE_INFO, "libvirt_domain_interface_meta", (
            ("source_bridge", "source_bridge"), ("target_device", "target_device"),
            ("virtual_interface", "virtual_interface")))),
    "inovex": (
        OldInfo(DOMAIN_INFO, "libvirt_domain_openstack_info", (
            ("instance_name", "instance_name"), ("instance_id", "uuid"), ("flavor_name", "flavor"),
            ("user_name", "user_name"), ("user_id", "user_uuid"), ("project_name", "project_name"),
            ("project_id", "project_uuid"))),
        OldInfo(BLOCK_INFO, "libvirt_domain_block_stats_info", (
            ("target_device", "target_device"), ("disk_type", "disk_type"), ("driver_type", "driver_type"),
            ("driver_cache", "cache"), ("driver_discard", "discard"), ("serial", "serial"),
            ("source_file", "source_file"), ("source_protocol", _PROTOCOL), ("target_bus", "bus"))),
        OldInfo(INTERFACE_INFO, "libvirt_domain_interface_stats_info", (
            ("target_device", "target_device"), ("source_bridge", "source_bridge"), ("interface_type", "type"),
            ("mac_address", "mac"), ("model_type", "model"), ("mtu_size", "mtu")))),
    "kumina": (),
}
"""Constant series under another name, by family."""


def compat_collector(families: Iterable[str]) -> Collector | None:
    """The declarations of the families' names, None where none is asked for.  A name two share stands once."""
    chosen = tuple(families)
    by_name: dict[str, Declaration] = {}
    for family in chosen:
        for declaration in FIELDS[family]:
            by_name.setdefault(declaration.name, declaration)
        for old in INFOS[family]:
            help_text = f"Old name, always 1; use {old.source}."
            by_name.setdefault(old.name, Info(old.name, help_text, ("domain", *(label for label, _ in old.labels))))
    return Collector("compat", "Other exporters' names.", tuple(by_name.values())) if by_name else None


def renamed(families: Iterable[str]) -> Callable[[tuple[Constant, ...]], tuple[Constant, ...]]:
    """What adds the families' constant series to a domain's own."""
    olds = tuple(old for family in families for old in INFOS[family])

    def both(constants: tuple[Constant, ...]) -> tuple[Constant, ...]:
        found = list(constants)
        for constant in constants:
            values = dict(constant.labels)
            values[_PROTOCOL] = values["source_file"].partition(":")[0] if values.get("disk_type") == "network" else ""
            found += [Constant(old.name, tuple((theirs, values.get(ours, "")) for theirs, ours in old.labels))
                      for old in olds if old.source == constant.name]
        return tuple(found)

    return both


OLD_NUMBERS = frozenset({"tinkoff", "inovex"})
"""Families whose names need ``with_old_numbers``."""


def with_old_numbers(records: Sequence[Record]) -> list[Record]:
    """The Records with what the old names ask for and ours do not.

    A domain's time-out, its job's type as a number, and the state of vCPUs that the kernel tells of: libvirt says 1
    (running) of each that is plugged in.
    """
    return [_with_old_numbers(record) for record in records]


def _with_old_numbers(record: Record) -> Record:
    if record.source == "kernel":
        return replace(record, stats={**record.stats, **_vcpu_states(tuple(record.stats))})
    if "sample.complete" in record.stats:
        return replace(record, stats={**record.stats, "sample.timed-out": not record.stats["sample.complete"]})
    for constant in record.constants:
        kind = dict(constant.labels).get("type") if constant.name == JOB_INFO else None
        if kind in JOB_TYPES:
            return replace(record, stats={**record.stats, "job.type": JOB_TYPES.index(kind)})
    return record


@functools.lru_cache(4096)
def _vcpu_states(keys: tuple[str, ...]) -> Mapping[str, int]:
    """The states of the vCPUs whose times are among the keys, which stay the same from sample to sample."""
    return {f"{key.removesuffix('time')}state": 1 for key in keys if _VCPU_TIME.fullmatch(key)}


class OldPools:
    """A pool Source that gives each pool under inovex's label ``storage_pool``, too."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.collector = source.collector
        self.period_s = source.period_s
        self.deadline_s = source.deadline_s

    def parts(self, session: Session, scope: Scope) -> Sequence[Part]:
        return self._source.parts(session, scope)

    def read(self, session: Session, part: Part) -> Iterable[Record]:
        for record in self._source.read(session, part):
            yield record
            stats = {f"storage_{key}": value for key, value in record.stats.items()
                     if key.removeprefix("pool.") in _POOL_WORDS}
            subject = Subject("storage_pool", record.subject.key, (("storage_pool", record.subject.name),))
            yield replace(record, subject=subject, stats=stats)
