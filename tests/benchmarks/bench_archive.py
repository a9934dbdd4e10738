"""Benchmark of writing: what the archive costs our process, sample by sample, in an outage and after it.

    python tests/benchmarks/bench_archive.py [--domains 2000] [--minutes 4] [--outage-hours 2] [--replay-s 45]

Made-up domains of 4 vCPUs, 2 disks and 2 NICs, 10 s apart by their own clock, the embedded server. Each part runs in
a process of its own. Prints and writes tests/benchmarks/results/archive.json. CPU is that of the thread that does
the work: on a busy machine it says more than wall time.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

RESULTS = Path(__file__).parent / "results"
START_S = 1_790_002_800  # a whole hour
EVERY_S = 10
KEPT = 6  # Batches that are made and sent again and again, later each time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--domains", type=int, default=2000)
    parser.add_argument("--minutes", type=int, default=4)
    parser.add_argument("--outage-hours", type=float, default=2)
    parser.add_argument("--replay-s", type=float, default=45)
    parser.add_argument("--part", choices=list(PARTS), help="only this one, without writing the results")
    asked = parser.parse_args()
    if asked.part:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(PARTS[asked.part](asked, Path(folder))))
        return
    result: dict[str, Any] = {"domains": asked.domains}
    for part in PARTS:
        begun_s = time.monotonic()
        ran = subprocess.run([sys.executable, "-B", __file__, *sys.argv[1:], "--part", part],
                             check=True, stdout=subprocess.PIPE, text=True)
        result[part] = json.loads(ran.stdout.splitlines()[-1])
        print(part, json.dumps(result[part]), f"({time.monotonic() - begun_s:.0f} s)", file=sys.stderr, flush=True)
    print(json.dumps(result, indent=1))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "archive.json").write_text(json.dumps(result, indent=1) + "\n")


def spooling(asked: argparse.Namespace, folder: Path) -> dict[str, float]:
    """A tick's way into the spool: the first one, the usual one, one after guests came and went."""
    import bson

    from exporter.archive.spool import Spool
    from exporter.archive.spool_frames import SAMPLES
    from exporter.archive.ticks import TickEncoder
    from exporter.archive.windows import groups
    from tests.exporter.archive.archive_samples import HOST, Guests

    guests = Guests(asked.domains, vcpus=4, disks=2, nics=2)
    batches = [guests.batch(START_S + EVERY_S * n, 1000 + EVERY_S * n) for n in range(7)]
    for number in range(3):
        guests.run[number] += 1  # three guests restart, a tenth is gone
        batches.append(guests.batch(START_S + 70 + EVERY_S * number, 1070 + EVERY_S * number,
                                    range(asked.domains // 10 * (10 - number))))
    spool, encoder = Spool(folder / "spool"), TickEncoder(60)
    spent, sizes = [], []
    for batch in batches:
        begun_s = time.thread_time()
        payload, samples = encoder.encode(batch, HOST)
        spool.append(SAMPLES, payload, samples)
        spool.sync()
        spent.append((time.thread_time() - begun_s) * 1000)
        sizes.append(len(payload) / samples)
    begun_s = time.thread_time()
    samples = size = 0
    for group in groups(spool.frames(0)):
        for document in group.documents(spool.name):
            samples += document["count"]
            size += len(bson.encode(document))
    return {
        "first_tick_cpu_ms": round(spent[0], 1), "tick_cpu_ms": round(statistics.median(spent[1:7]), 1),
        "changed_tick_cpu_ms": round(max(spent[7:]), 1), "spool_bytes_a_sample": round(statistics.mean(sizes)),
        "document_bytes_a_sample": round(size / samples),
        "documents_cpu_us_a_sample": round((time.thread_time() - begun_s) * 1e6 / samples, 1),
    }


def sending(asked: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Our process's threads while samples of some minutes are spooled, sent and rolled up."""
    from exporter.archive.archive import Archive
    from exporter.archive.connection import Address
    from exporter.archive.documents import FIVE_MINUTES, RAW
    from exporter.archive.embedded import EmbeddedServer
    from exporter.archive.rollups import roll_up_hour
    from exporter.config import ArchiveSettings
    from tests.exporter.archive.archive_samples import HOST

    server = EmbeddedServer(folder / "server")
    server.start()
    try:
        uri = server.uri(120.0)
        archive = Archive(ArchiveSettings(uri=uri), folder, lambda: HOST)
        archive.start()
        ticks = later(asked.domains)
        cpu = {"archive-writer": [0.0], "archive-spool": [0.0]}
        for minute in range(asked.minutes + 1):
            for _ in range(6):
                recorded(archive, next(ticks))
            if minute:  # the tick that begins the next minute ends this one
                wait(archive.writer.drained)
                for name, seconds in cpu.items():
                    seconds.append(thread_cpu_s(name))
        stored = archive.writer.counts.samples
        server_ms = process_cpu_ms(server.pid)
        archive.stop()
        share = {name: [(after - before) / 0.6 for before, after in pairwise(seconds)]
                 for name, seconds in cpu.items()}
        with Address(uri, "virtgauge", embedded=True).connect("bench") as client:
            database = client["virtgauge"]
            names = [name for name in database.list_collection_names() if name.startswith(RAW.name)]
            begun_s = time.thread_time()
            objects = roll_up_hour(database, HOST.uuid, START_S * 1000)
            rolled_s = time.thread_time() - begun_s
            points = database[FIVE_MINUTES.collection(_moment())].count_documents({})
        return {
            "sender_percent_of_a_core": round(statistics.median(share["archive-writer"][1:]), 2),
            "sender_first_minute_percent": round(share["archive-writer"][0], 2),
            "spooler_percent_of_a_core": round(statistics.median(share["archive-spool"][1:]), 2),
            "rollup_cpu_ms_an_object": round(rolled_s * 1000 / max(objects, 1), 2),
            "rollup_percent_of_a_core": round(rolled_s / 36, 2), "rolled_up": points, "partitions": len(names),
            "stored_samples": stored, "server_cpu_us_a_sample": round(server_ms * 1000 / max(stored, 1)),
        }
    finally:
        server.stop()


def memory(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """RSS that the archive adds: its code, then at work, in an outage of hours and while that is replayed."""
    import exporter.command_exporter
    import exporter.server
    import exporter.service

    assert "pymongo" not in sys.modules
    bare = resident_mib()
    import exporter.archive.archive
    from exporter.archive.embedded import EmbeddedServer
    from exporter.config import ArchiveSettings
    from tests.exporter.archive.archive_samples import HOST

    code = resident_mib() - bare
    ticks = later(asked.domains)
    held = next(ticks)
    gc.collect()
    before = resident_mib()

    def added() -> float:
        return round(resident_mib() - before + code, 1)

    server = EmbeddedServer(folder / "server")
    server.start()
    pid = None
    try:
        uri = server.uri(120.0) + "&serverSelectionTimeoutMS=1000&connectTimeoutMS=1000&socketTimeoutMS=20000"
        archive = exporter.archive.archive.Archive(ArchiveSettings(uri=uri), folder, lambda: HOST)
        archive.start()
        recorded(archive, held)
        for _ in range(12):
            recorded(archive, next(ticks))
        wait(archive.writer.drained)
        at_work = added()
        pid = server.pid
        os.kill(pid, signal.SIGSTOP)
        total = int(asked.outage_hours * 360)
        outage = []
        for number in range(total):
            recorded(archive, next(ticks))
            if number % max(1, total // 4) == max(1, total // 4) - 1:
                outage.append(added())
        spooled_mib = archive.spool.size_bytes >> 20
        sent = archive.writer.counts.samples
        os.kill(pid, signal.SIGCONT)
        wait(lambda: archive.writer.counts.samples > sent)
        replay, until_s = [], time.monotonic() + asked.replay_s
        while time.monotonic() < until_s and not archive.writer.drained():
            time.sleep(asked.replay_s / 9)
            replay.append(added())
        result = {"code_mib": round(code, 1), "at_work_mib": at_work, "outage_mib": outage, "replay_mib": replay,
                  "highest_mib": max([at_work, *outage, *replay]), "spooled_mib": spooled_mib,
                  "replayed_samples": archive.writer.counts.samples - sent,
                  "dropped_samples": sum(archive.spool.counts.dropped_samples.values())}
        archive.stop()
        return result
    finally:
        if pid is not None:
            os.kill(pid, signal.SIGCONT)
        server.stop()


PARTS = {"spooling": spooling, "sending": sending, "memory": memory}


def later(domains: int) -> Iterator[Any]:
    """Batches without end, EVERY_S apart, of KEPT ones: making them anew would cost more than what is measured."""
    from tests.exporter.archive.archive_samples import Guests

    guests = Guests(domains, vcpus=4, disks=2, nics=2)
    kept = [guests.batch(START_S + EVERY_S * n, 1000 + EVERY_S * n) for n in range(KEPT)]
    del guests
    number = 0
    while True:
        batch, shift_s = kept[number % KEPT], number // KEPT * KEPT * EVERY_S
        yield replace(batch, times_s=batch.times_s + shift_s, wall_time_s=batch.wall_time_s + shift_s)
        number += 1


def recorded(archive: Any, batch: Any) -> None:
    """Records a Batch and waits until it is safe."""
    before = archive.spool.counts.spooled_samples
    archive.record(batch)
    wait(lambda: archive.spool.counts.spooled_samples > before)


def thread_cpu_s(name: str) -> float:
    """CPU seconds of this process's thread of that name; Linux."""
    thread = next(thread for thread in threading.enumerate() if thread.name == name)
    assert thread.ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


def process_cpu_ms(pid: int | None) -> float:
    """CPU that a process has used, in milliseconds."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) * 1000 / os.sysconf("SC_CLK_TCK")


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def _moment() -> Any:
    from exporter.archive.documents import moment

    return moment(START_S * 1000)


def wait(condition: Callable[[], object]) -> None:
    limit_s = time.monotonic() + 300
    while not condition():
        if time.monotonic() > limit_s:
            raise SystemExit("bench_archive: waited 300 s in vain; see the server's log")
        time.sleep(0.002)


if __name__ == "__main__":
    main()
