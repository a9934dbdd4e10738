"""Benchmark of reading: one field of one domain over 24 hours and 30 days, on the embedded server.

    python tests/benchmarks/bench_history.py [--domains 100] [--raw-hours 1] [--repeat 20] [--alone]

Each domain has 4 vCPUs, 2 disks and 2 NICs, sampled every 10 s. Every domain has a day of 5-minute points and
`--raw-hours` of samples, ten of them 30 days of 1-hour points. Prints medians and writes
tests/benchmarks/results/history.json. CPU is that of this process and of the server for one reading: on a busy
machine it says more than wall time. `--alone` (root) runs this process and the server before all others while it
measures (SCHED_RR), so that wall time is not that of the queue for a core.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from uuid import uuid4

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from collectors import COLLECTORS
from exporter.archive.connection import Address
from exporter.archive.documents import FIVE_MINUTES, HOURLY, RAW, Host, Object, RollUp, Window, window_origin
from exporter.archive.embedded import EmbeddedServer
from exporter.archive.history import History
from exporter.archive.history_fields import HistoryFields
from exporter.archive.partitions import prepare_partition
from exporter.archive.timespan import Span

RESULTS = Path(__file__).parent / "results"
DAY = 86400
EVERY_S = 10
VALUES = ("cpu_time_ns", "cpu_user_ns", "cpu_system_ns", "vcpu_count", "vcpu_maximum", "started_s",
          "memory_maximum_kib", "memory_current_kib", "memory_rss_kib", "memory_unused_kib", "memory_available_kib",
          "memory_usable_kib", "memory_disk_caches_kib", "memory_major_fault")
DEVICES = {
    "vcpus": (("0", "1", "2", "3"), ("time_ns", "wait_ns", "delay_ns")),
    "disks": (("vda", "vdb"), ("read_bytes", "write_bytes", "read_requests", "write_requests", "flush_requests",
                               "read_time_ns", "write_time_ns", "flush_time_ns", "capacity_bytes",
                               "allocation_bytes", "physical_bytes")),
    "interfaces": (("vnet0", "vnet1"), ("receive_bytes", "receive_packets", "receive_errors", "receive_drops",
                                        "transmit_bytes", "transmit_packets", "transmit_errors", "transmit_drops")),
}


def documents(subject: Object, now: int, raw_hours: int, days: int):
    """(collection, document) of one domain."""
    for start in range(now - raw_hours * 3600, now, 60):
        yield _raw(subject, start)
    for start in range(now - DAY, now, 3600):
        yield _rollup(subject, FIVE_MINUTES, start)
    for start in range(now // DAY * DAY - days * DAY, now // DAY * DAY, DAY):
        yield _rollup(subject, HOURLY, start)


def _raw(subject, start):
    count = 60 // EVERY_S

    def column():
        first = random.randrange(10**12)
        return [first + n * 7_000_000_000 for n in range(count)]

    window = Window(subject, start * 1000, [n * EVERY_S * 1000 for n in range(count)],
                    {name: column() for name in VALUES},
                    {group: {device: {name: column() for name in names} for device in devices}
                     for group, (devices, names) in DEVICES.items()}, "running")
    document = window.document(window_origin(b"bench", start))
    return RAW.collection(document["start"]), document


def _rollup(subject, resolution, start):
    count = resolution.span_s // resolution.step_s

    def column():
        values = [random.random() * 1e9 for _ in range(count)]
        return {"min": values, "max": values, "avg": values, "increase": [int(v * 300) for v in values]}

    document = RollUp(subject, resolution, start * 1000, [n * resolution.step_s * 1000 for n in range(count)],
                      [resolution.step_s // EVERY_S] * count, {name: column() for name in VALUES},
                      {group: {device: {name: column() for name in names} for device in devices}
                       for group, (devices, names) in DEVICES.items()}).document()
    return resolution.collection(document["start"]), document


def fill(database, subjects, now, raw_hours):
    """Fills the database; gives the number of documents."""
    total, prepared = 0, set()
    for place, subject in enumerate(subjects):
        batches: dict[str, list] = {}
        for name, document in documents(subject, now, raw_hours, 30 if place < 10 else 0):
            batches.setdefault(name, []).append(document)
        for name, batch in batches.items():
            if name not in prepared:
                prepare_partition(database, name, False)
                prepared.add(name)
            for first in range(0, len(batch), 200):
                database[name].insert_many(batch[first:first + 200], ordered=False)
            total += len(batch)
        print(f"\r{place + 1} of {len(subjects)} domains", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return total


def preferred(pid):
    """Runs this process and another one, with all their threads and those to come, before all others."""
    for process in (os.getpid(), pid):
        for task in Path(f"/proc/{process}/task").iterdir():
            os.sched_setscheduler(int(task.name), os.SCHED_RR, os.sched_param(1))


def server_cpu_ms(pid):
    """CPU that a process has used, in milliseconds."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) * 1000 / os.sysconf("SC_CLK_TCK")


def measured(history, subjects, field, span, repeat, pid):
    """Milliseconds of each reading (the first of each domain is cold), CPU of one reading, and what was read."""
    times = []
    server_ms, own_s = server_cpu_ms(pid), time.process_time()
    for place in range(repeat):
        subject = subjects[place % min(10, len(subjects))]
        started = time.perf_counter()
        reading = history.read(subject.uuid, [field], span)
        times.append((time.perf_counter() - started) * 1000)
    points = max(len(series.points) for series in reading.series)
    return {
        "median_ms": round(statistics.median(times), 1), "max_ms": round(max(times), 1),
        "server_cpu_ms": round((server_cpu_ms(pid) - server_ms) / repeat, 1),
        "own_cpu_ms": round((time.process_time() - own_s) * 1000 / repeat, 1),
        "points": points, "parts": [part.resolution for part in reading.parts],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--domains", type=int, default=100)
    parser.add_argument("--raw-hours", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--alone", action="store_true")
    options = parser.parse_args()
    random.seed(1)
    host = Host(uuid4(), "bench")
    subjects = [Object(host, "domain", uuid4(), f"guest{n}") for n in range(options.domains)]
    now = int(time.time()) // 3600 * 3600
    fields = HistoryFields(COLLECTORS)
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedServer(Path(folder))
        server.start()
        try:
            client = Address(server.uri(120.0), "bench", embedded=True).connect("bench")
            database = client["bench"]
            started = time.perf_counter()
            total = fill(database, subjects, now, options.raw_hours)
            result = {"domains": options.domains, "raw_hours": options.raw_hours, "documents": total,
                      "fill_s": round(time.perf_counter() - started, 1), "alone": options.alone}
            if options.alone:
                preferred(server.pid)
            result["load_1_min"] = round(os.getloadavg()[0], 1)
            history = History(database)
            spans = {"1 h": 3600, "24 h": DAY, "30 d": 30 * DAY}
            for label, seconds in spans.items():
                for name in ("cpu.usage", "disk.write"):
                    result[f"{label} {name}"] = measured(
                        history, subjects, fields.named(name), Span(now - seconds, now), options.repeat, server.pid)
                    print(label, name, result[f"{label} {name}"], file=sys.stderr, flush=True)
            result["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            client.close()
        finally:
            server.stop()
    print(json.dumps(result, indent=1))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "history.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
