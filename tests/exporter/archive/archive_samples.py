"""Batches of made-up but lifelike domains, through the real Builder; and what should be in the archive after them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from uuid import UUID

from collectors import COLLECTORS
from collectors.batch import Batch, Builder
from collectors.layout import Compiler
from collectors.sampling import sampling
from collectors.snapshot import Record, Snapshot, Subject
from exporter.archive.documents import VALUES, Host

HOST = Host(UUID("11111111-2222-4333-8444-555555555555"), "alpha")
Truth = dict[tuple[str, int, str, str, str], float]
"""(object's uuid, time in ms, group, device, column) to the value that was sampled."""


def uuid_of(number: int) -> str:
    return str(UUID(int=0xABC0_0000_0000_4000_8000_0000_0000_0000 + number))


class Guests:
    """Domains whose counters grow at random; ``batch`` samples them all at a wall and monotonic time."""

    def __init__(self, count: int, vcpus: int = 2, disks: int = 1, nics: int = 1, seed: int = 1) -> None:
        self.random = random.Random(seed)
        self.builder = Builder(Compiler([sampling(COLLECTORS), *COLLECTORS]))
        self.stats = {number: self._first(number, vcpus, disks, nics) for number in range(count)}
        self.run = dict.fromkeys(range(count), 1)
        self.sequence = 0

    def _first(self, number: int, vcpus: int, disks: int, nics: int) -> dict[str, int | str]:
        rnd = self.random
        stats: dict[str, int | str] = {
            "state.state": 1, "state.reason": 1, "vcpu.current": vcpus, "vcpu.maximum": vcpus, "cpu.time": 10**9,
            "cpu.user": 10**8, "cpu.system": 10**8, "balloon.current": 4 << 20, "balloon.maximum": 4 << 20,
            "block.count": disks, "net.count": nics}
        for word in ("rss", "unused", "available", "usable", "disk_caches", "swap_in", "swap_out", "major_fault",
                     "minor_fault"):
            stats[f"balloon.{word}"] = rnd.randrange(1 << 22)
        for vcpu in range(vcpus):
            stats |= {f"vcpu.{vcpu}.{word}": rnd.randrange(1, 1 << 40) for word in ("time", "wait", "delay")}
        for disk in range(disks):
            stats[f"block.{disk}.name"] = f"vd{chr(97 + disk)}"
            stats |= {f"block.{disk}.{way}.{word}": rnd.randrange(1 << 30) for way in ("rd", "wr", "fl")
                      for word in ("bytes", "reqs", "times") if (way, word) != ("fl", "bytes")}
            stats |= {f"block.{disk}.{word}": rnd.randrange(1 << 36) for word in ("capacity", "allocation", "physical")}
        for nic in range(nics):
            stats[f"net.{nic}.name"] = f"vnet{number * nics + nic}"
            stats |= {f"net.{nic}.{way}.{word}": rnd.randrange(1 << 30) for way in ("rx", "tx")
                      for word in ("bytes", "pkts", "errs", "drop")}
        return stats

    def grow(self) -> None:
        rnd = self.random
        for number, stats in self.stats.items():
            grown = dict(stats)
            for key, value in stats.items():
                if isinstance(value, int) and key.rpartition(".")[2] in (
                        "time", "wait", "delay", "user", "system", "bytes", "reqs", "times", "pkts"):
                    grown[key] = value + rnd.randrange(10**7)
            self.stats[number] = grown

    def batch(self, wall_s: float, monotonic_s: float, only: Iterable[int] | None = None,
              extra: Mapping[int, Mapping[str, int | str]] | None = None) -> Batch:
        """One sample of the domains ``only`` (all of them), each 3 ms after the other, then their counters grow."""
        self.sequence += 1
        records = [Record(Subject("exporter", ("exporter",), ()), "sampling", {"libvirt.up": True}, monotonic_s)]
        for number in (self.stats if only is None else only):
            subject = Subject("domain", (uuid_of(number), self.run[number]), (("domain", f"guest{number}"),))
            stats = {**self.stats[number], **(extra or {}).get(number, {})}
            records.append(Record(subject, "bulk", stats, monotonic_s + 0.003 * number))
        snapshot = Snapshot(self.sequence, monotonic_s, monotonic_s + 0.1, wall_s, True, tuple(records))
        batch = self.builder.batch(snapshot)
        self.grow()
        return batch


def truth_of(batch: Batch) -> Truth:
    """What the archive must hold of a Batch, read off its rows independently of the archive's code.

    Times are the wall clock of the sample plus each record's delay, rounded to ms.
    """
    found: Truth = {}
    begun_s = next(t for p, t in zip(batch.plan.placements, batch.times_s, strict=True) if p.subject.kind == "exporter")
    for place, placement in enumerate(batch.plan.placements):
        start = int(batch.plan.measured_start[place])
        at_ms = round(batch.wall_time_s * 1000) + round((float(batch.times_s[place]) - begun_s) * 1000)
        for number, row in enumerate(placement.layout.measured):
            value = float(batch.raw[start + number])
            column = row.declaration.archive
            if not column or value != value:
                continue
            head = row.declaration.source.split(".")[0]
            label = row.labels(tuple(map(str, placement.names)))
            group = {"vcpu": "vcpus", "block": "disks", "net": "interfaces"}[head] if label else VALUES
            device = label.split('"')[1] if label else ""
            found[str(placement.subject.key[0]), at_ms, group, device, column] = value
    return found


def stored_of(documents: Iterable[Mapping[str, object]]) -> tuple[Truth, int]:
    """(what raw documents say, how many values stood there more than once)."""
    found: Truth = {}
    doubled = 0
    for document in documents:
        uuid = str(document["uuid"].as_uuid() if hasattr(document["uuid"], "as_uuid") else document["uuid"])
        start_ms = round(document["start"].timestamp() * 1000)
        times = [start_ms + offset for offset in document["offsets_ms"]]
        groups = [(VALUES, "", document.get(VALUES, {}))]
        groups += [(group, entry["device"], entry) for group in ("vcpus", "disks", "interfaces")
                   for entry in document.get(group, [])]
        for group, device, columns in groups:
            for name, values in columns.items():
                if name == "device":
                    continue
                assert len(values) == document["count"] == len(times)
                for at_ms, value in zip(times, values, strict=True):
                    if value is not None:
                        key = (uuid, at_ms, group, device, name)
                        doubled += key in found
                        found[key] = value
    return found, doubled
