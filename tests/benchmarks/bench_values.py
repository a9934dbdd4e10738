"""Benchmark of what happens in Python: batch, rates, page, compression and start-up, on synthetic records.

    python tests/benchmarks/bench_values.py [--domains 890] [--growth]

890 domains of 4 vCPUs, 2 disks and 2 NICs are some 88,000 series.  Prints CPU milliseconds (best and median of the
repetitions) and writes them to tests/benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from collectors import COLLECTORS
from collectors.batch import Batch, Builder, Floats
from collectors.derived import derived
from collectors.layout import Compiler
from collectors.rates import rates
from collectors.snapshot import Record, Snapshot, Subject, Value
from exporter.compression import fastest_gzip, zlib_gzip
from exporter.exposition import Exposition

RESULTS = Path(__file__).parent / "results"
REPETITIONS = 7


def domain_stats(number: int) -> dict[str, Value]:
    """A domain of 4 vCPUs, 2 disks and 2 NICs."""
    source = random.Random(number)

    def counter() -> int:
        return source.randrange(10**9, 10**12)

    stats: dict[str, Value] = {
        "state.state": 1, "state.reason": 1, "cpu.time": counter(), "cpu.user": counter(), "cpu.system": counter(),
        "vcpu.current": 4, "vcpu.maximum": 4, "balloon.current": 1048576, "balloon.maximum": 1048576,
        "balloon.rss": counter(), "balloon.available": 1000000, "balloon.usable": 500000, "balloon.unused": 400000,
        "net.count": 2, "block.count": 2, "sample.complete": True, "monitor.busy": 0}
    for vcpu in range(4):
        stats.update({f"vcpu.{vcpu}.state": 1, f"vcpu.{vcpu}.time": counter(), f"vcpu.{vcpu}.delay": counter()})
    for device in range(2):
        stats[f"block.{device}.name"] = f"vd{chr(97 + device)}"
        stats[f"net.{device}.name"] = f"vnet{2 * number + device}"
        for way in ("rd", "wr", "fl"):
            for word in ("reqs", "bytes", "times")[:: 2 if way == "fl" else 1]:
                stats[f"block.{device}.{way}.{word}"] = counter()
        for word in ("allocation", "capacity", "physical"):
            stats[f"block.{device}.{word}"] = counter()
        for way in ("rx", "tx"):
            for word in ("bytes", "pkts", "errs", "drop"):
                stats[f"net.{device}.{way}.{word}"] = counter()
    return stats


class Source:
    """Snapshots of ``domains`` domains in which ``share`` of the counters move each time."""

    def __init__(self, domains: int) -> None:
        self._random = random.Random(7)
        self._stats = [domain_stats(number) for number in range(domains)]
        self._subjects = [Subject("domain", (f"uuid-{n}", n), (("domain", f"instance-{n:08x}"),))
                          for n in range(domains)]
        self._moving = [key for key, value in self._stats[0].items()
                        if isinstance(value, int) and value > 10**8 and not key.endswith(".name")]
        self._sequence = 0

    def snapshot(self, share: float) -> Snapshot:
        self._sequence += 1
        for stats in self._stats:
            for key in self._moving:
                if self._random.random() < share:
                    stats[key] = int(stats[key]) + self._random.randrange(1, 10**6)
        at_s = 15.0 * self._sequence
        records = tuple(Record(subject, "bulk", dict(stats), at_s)
                        for subject, stats in zip(self._subjects, self._stats, strict=True))
        return Snapshot(self._sequence, at_s, at_s, 1.7e9 + at_s, True, records)


def measure(domains: int) -> dict[str, dict[str, float]]:
    """CPU ms of each step, all values changed and a tenth changed."""
    source, builder = Source(domains), Builder(Compiler(COLLECTORS))
    exposition, gzip = Exposition(builder.catalogue.families), fastest_gzip()
    times: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[..., Any], *arguments: object) -> Any:
        started = time.thread_time()
        result = work(*arguments)
        times.setdefault(name, []).append(1000 * (time.thread_time() - started))
        return result

    def page(word: str, batch: Batch, computed: Floats) -> bytes:
        """Both formats, each with the update that goes before it."""
        timed("update", exposition.update, batch, computed)
        text: bytes = timed("text", exposition.text)
        timed("OpenMetrics", exposition.openmetrics)
        for name in ("text", "OpenMetrics"):
            times.setdefault(f"page, {name}, {word}", []).append(times["update"][-1] + times[name][-1])
        return text

    previous: Batch | None = None
    last = b""
    for turn in range(2 * REPETITIONS + 1):
        word = "all" if turn <= REPETITIONS else "tenth"
        snapshot = source.snapshot(1.0 if word == "all" else 0.1)
        first = previous is None
        batch = timed("first batch" if first else f"batch, {word} changed", builder.batch, snapshot)
        computed = derived(batch)
        if previous is not None:
            found_rates = timed(f"rates, {word} changed", rates, previous, batch)
            computed = np.where(np.isnan(computed), found_rates, computed)
        last = page("first" if first else f"{word} changed", batch, computed)
        timed("gzip, isal where installed", gzip, last)
        timed("gzip, zlib level 1", zlib_gzip, last)
        times.setdefault(f"values formatted, {word} changed", []).append(exposition.formatted)
        previous = batch
    found = {name: {"best": round(min(values), 2), "median": round(statistics.median(values), 2)}
             for name, values in times.items()}
    found["series"] = {"best": exposition.series, "median": exposition.series}
    found["bytes"] = {"best": len(last), "median": len(last)}
    return found


def memory_bytes(domains: int) -> int:
    """Traced memory that a further ``domains`` domains take: batch, plan, kept pieces (not the records)."""
    builder = Builder(Compiler(COLLECTORS))
    exposition = Exposition(builder.catalogue.families)
    source = Source(domains)
    snapshot = source.snapshot(1.0)
    tracemalloc.start()
    batch = builder.batch(snapshot)
    exposition.update(batch, np.full(batch.plan.formulas, 1.5))
    exposition.text()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--domains", type=int, default=890)
    parser.add_argument("--growth", action="store_true", help="also 100, 300, 1000, 3000 and 10000 domains")
    arguments = parser.parse_args()
    sizes = [100, 300, 1000, 3000, 10000] if arguments.growth else [arguments.domains]
    results = {str(size): measure(size) for size in sizes}
    for size, steps in results.items():
        print(f"{size} domains")
        for name, value in steps.items():
            print(f"  {name:36} {value['best']:12.2f} {value['median']:12.2f}")
    if not arguments.growth:
        results["memory_mib"] = {"1000 domains": {"best": round(memory_bytes(1000) / 2**20, 1)}}
        print(f"memory of 1000 domains: {results['memory_mib']['1000 domains']['best']} MiB")
    RESULTS.mkdir(exist_ok=True)
    name = "growth.json" if arguments.growth else "values.json"
    (RESULTS / name).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
