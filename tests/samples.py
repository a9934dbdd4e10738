"""Records, Snapshots and pages for tests: captured from a real libvirt where one can be provoked, else marked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from collectors import COLLECTORS
from collectors.batch import Batch, Builder, Floats
from collectors.bulk import GROUP_BITS, group_bits, is_complete
from collectors.derived import derived
from collectors.domain_xml import constants, parse
from collectors.event_counts import EventCounts
from collectors.events import Event
from collectors.fields import Collector, Constant
from collectors.kvm import unnamed
from collectors.layout import Compiler
from collectors.rates import rates
from collectors.sampling import sampling
from collectors.snapshot import Record, Snapshot, Subject, Value
from collectors.support import UNSUPPORTED_INFO
from exporter.exposition import Exposition
from tests.written_stats import NEWER, beside

REPOSITORY = Path(__file__).parent.parent
FIXTURES = Path(__file__).parent / "fixtures"
WHOLE = group_bits(GROUP_BITS)

# What libvirt 9.0 cannot be made to say: it writes 0 for the wait time on this kernel, and the sampler or the
# kernel source adds the rest.
SYNTHETIC: Mapping[str, Value] = {
    "state.state": 1, "state.reason": 1, "process.start-time": 1_700_000_000.25, "vcpu.current": 2, "vcpu.maximum": 2,
    "vcpu.0.wait": 1_500_000_000, "vcpu.1.wait": 0, "vcpu.0.cpu": 3, "sample.complete": True, "monitor.busy": 0,
    "vcpu.0.guest": 1_250_000_000, "vcpu.0.timeslices": 4321, "process.major-faults": 17,
    "process.minor-faults": 12_000,
}
SYNTHETIC_LATER: Mapping[str, Value] = {**SYNTHETIC, "vcpu.0.wait": 2_500_000_000}


def subject(name: str = "guest", identity: str = "uuid-1", id: int = 1) -> Subject:
    return Subject("domain", (identity, id), (("domain", name),))


def record(stats: Mapping[str, Any], at_s: float = 0.0, name: str = "guest", identity: str = "uuid-1", id: int = 1,
           source: str = "bulk", constants: tuple[Constant, ...] = ()) -> Record:
    return Record(subject(name, identity, id), source, dict(stats), at_s, constants)


def snapshot(*records: Record, sequence: int = 1, up: bool = True) -> Snapshot:
    ended_s = max((r.sampled_at_s for r in records), default=0.0)
    return Snapshot(sequence, ended_s, ended_s, 1_700_000_000.0, up, records)


def builder(collectors: Iterable[Collector] | None = None) -> Builder:
    chosen = COLLECTORS if collectors is None else tuple(collectors)
    return Builder(Compiler([sampling(chosen), *chosen]))


def series(batch: Batch, computed: Floats | None = None) -> dict[str, float]:
    """Every series of the page of a Batch by its name with labels."""
    return values_of(text(batch, computed))


def text(batch: Batch, computed: Floats | None = None) -> str:
    exposition = Exposition(batch.plan.catalogue.families)
    exposition.update(batch, np.full(batch.plan.formulas, np.nan) if computed is None else computed)
    return exposition.text().decode()


def values_of(page: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for line in page.split("\n"):
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            assert name not in found, f"{name} stands twice"
            found[name] = float(value)
    return found


def computed_rows(previous: Batch, current: Batch) -> Floats:
    own = derived(current)
    return np.where(np.isnan(own), rates(previous, current), own)


@cache
def situations() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in (FIXTURES / "stats").glob("*.json")))


def captured(situation: str) -> list[tuple[Record, ...]]:
    """The samples of a captured situation, with what the sampler adds to libvirt's own keys."""
    document = json.loads((FIXTURES / "stats" / f"{situation}.json").read_text())
    return [tuple(record(_with_completeness(d["stats"]), sample["at_s"], d["name"], d["uuid"], d["id"])
                  for d in sample["domains"]) for sample in document["samples"]]


def _with_completeness(stats: dict[str, Value]) -> dict[str, Value]:
    if len(stats) < 3:  # a roster's entry: state and reason alone
        return stats
    complete = is_complete(stats, WHOLE)
    added: dict[str, Value] = {"sample.complete": complete, "monitor.busy": 0 if complete else 5.25}
    if not complete:
        added["sample.reason"] = "monitor"
    return {**stats, **added}


def captured_xml() -> list[Record]:
    """Inventory records of the domain XML fixtures."""
    found = []
    for path in sorted((FIXTURES / "xml").glob("*.xml")):
        definition = parse(path.read_text())
        found.append(record({}, 0.0, f"xml-{path.stem}", path.stem, 1, "inventory", constants(definition)))
    return found


def exporter_record(at_s: float, sequence: int = 1) -> Record:
    """A synthetic record of the program's own series."""
    declarations = sampling(COLLECTORS).declarations
    stats: dict[str, Value] = {d.source: 0 for d in declarations if re.fullmatch(r"[a-z_.]+", d.source)}
    for name in ("versions", "build", "support"):
        stats.pop(name, None)
    stats |= {"libvirt.up": True, "sampler.samples": sequence, "domains.running": 12, "domains.active": 12,
              "page.series": 100}
    stats |= {key: (True if key.endswith("success") else 0.0125) for key in stats if key.startswith("collector.")}
    own = (Constant("virtgauge_build_info", (("version", "0.0.0"), ("python_version", "3.11.2"))),
           Constant("libvirt_versions_info", (("hypervisor_running", "7.2.22"), ("libvirtd_running", "9.0.0"),
                                              ("libvirt_library", "9.0.0"))),
           Constant(UNSUPPORTED_INFO, (("call", "vcpus"),)))
    return Record(Subject("exporter", ("exporter",), ()), "sampling", stats, at_s, own)


def heard_events(at_s: float) -> list[Record]:
    """The event counts of one domain after a start and an I/O error."""
    counts = EventCounts()
    counts.records({"written": "written"}, 0.0)
    for kind, detail in (("lifecycle", (2, 0)), ("io_error_reason", ("/images/x", "virtio-disk0", 1, "enospc"))):
        counts.heard(Event("written", "written", kind, detail))
    return list(counts.records({"written": "written"}, at_s))


@cache
def golden_batches() -> tuple[Batch, Batch]:
    """Two samples of everything there is a fixture of; the first and the last of each situation."""
    first, last = [], []
    for situation in situations():
        samples = captured(situation)
        first.extend(samples[0])
        last.extend(samples[-1])
    constant = captured_xml()
    first.append(record(SYNTHETIC, 0.0, "synthetic", "synthetic"))
    last.append(record(SYNTHETIC_LATER, 5.0, "synthetic", "synthetic"))
    for samples in (first, last):
        samples.append(record(NEWER, 0.0 if samples is first else 5.0, "written", "written"))
        samples.append(record(unnamed(NEWER), 0.0, "written", "written", source="kvm.all"))
        samples.extend(beside(0.0 if samples is first else 5.0))
        samples.extend(heard_events(0.0 if samples is first else 5.0))
    made = builder()
    return (made.batch(snapshot(*first, *constant, exporter_record(0.0))),
            made.batch(snapshot(*last, *constant, exporter_record(5.0, 2), sequence=2)))
