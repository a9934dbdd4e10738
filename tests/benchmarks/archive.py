"""What the archive costs: `python -m tests.benchmarks.archive [--domains 2000] [--ticks 13] [--outage-ticks 60]`.

Spools and sends ticks of made-up domains (4 vCPU, 2 disks, 2 NICs), 10 s apart by their clock, on an embedded server.
CPU times are of the thread that does the work, so that they hold on a busy machine.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import bson

from exporter.archive.archive import Archive
from exporter.archive.connection import opened
from exporter.archive.documents import RAW, moment
from exporter.archive.rollups import roll_up_hour
from exporter.archive.spool import SAMPLES, Spool
from exporter.archive.ticks import TickEncoder
from exporter.archive.windows import groups
from exporter.config import ArchiveSettings
from tests.exporter.archive.archive_samples import HOST, Guests

START_S = 1_790_002_800


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--domains", type=int, default=2000)
    parser.add_argument("--ticks", type=int, default=13)
    parser.add_argument("--outage-ticks", type=int, default=60)
    asked = parser.parse_args()
    guests = Guests(asked.domains, vcpus=4, disks=2, nics=2)
    batches = [guests.batch(START_S + 10 * n, 1000 + 10 * n) for n in range(asked.ticks)]
    with tempfile.TemporaryDirectory() as folder:
        spooling(Path(folder) / "spool", batches, asked.domains)
        sending(Path(folder) / "sent", batches, asked.domains)
        outage(Path(folder) / "outage", guests, asked)


def spooling(folder: Path, batches: list, domains: int) -> None:
    spool, encoder = Spool(folder), TickEncoder(60)
    spent, sizes = [], []
    for batch in batches:
        begun_s = time.thread_time()
        payload, samples = encoder.encode(batch, HOST)
        spool.append(SAMPLES, payload, samples)
        spool.sync()
        spent.append((time.thread_time() - begun_s) * 1000)
        sizes.append(len(payload) / domains)
    print(f"spool: first tick {spent[0]:.0f} ms CPU, then {sorted(spent[1:])[len(spent) // 2]:.1f} ms a tick; "
          f"{sum(sizes) / len(sizes):.0f} B a domain sample")
    begun_s = time.thread_time()
    count = size = 0
    for group in groups(spool.frames(0)):
        for document in group.documents(spool.name):
            count += document["count"]
            size += len(bson.encode(document))
    print(f"documents: {(time.thread_time() - begun_s) * 1e6 / count:.0f} us a domain sample; {size / count:.0f} B")


def sending(state: Path, batches: list, domains: int) -> None:
    settings = ArchiveSettings(uri="embedded")
    archive = Archive(settings, state, lambda: HOST)
    archive.start()
    wait(lambda: archive._server._ready.is_set())
    for batch in batches:
        before = archive.spool.counts.spooled_samples
        archive.record(batch)
        wait(lambda before=before: archive.spool.counts.spooled_samples > before)
    begun_s, cpu_s = time.monotonic(), time.process_time()
    wait(archive.writer.drained)
    with opened(settings, state) as database:
        spent_s = time.process_time()
        count = roll_up_hour(database, HOST.uuid, START_S * 1000 // 3_600_000 * 3_600_000)
        print(f"roll-up: {count} objects, {(time.process_time() - spent_s) * 1e3 / max(count, 1):.1f} ms CPU an object")
        print(f"partition: {RAW.collection(moment(START_S * 1000))}")
    print(f"sent while waiting: {time.monotonic() - begun_s:.1f} s, {time.process_time() - cpu_s:.2f} s CPU")
    writer = thread_cpu_s("archive-writer")
    minutes = archive.writer.counts.samples / domains / 6
    print(f"sender: {writer:.2f} s CPU for {minutes:.1f} minutes of {domains} domains = {writer / minutes / 0.6:.2f} % "
          "of a core")
    archive.stop()


def outage(state: Path, guests: Guests, asked: argparse.Namespace) -> None:
    archive = Archive(ArchiveSettings(uri="mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=500"), state, lambda: HOST)
    before = resident_mib()
    archive.start()
    for number in range(asked.outage_ticks):
        spooled = archive.spool.counts.spooled_samples
        archive.record(guests.batch(START_S + 10 * number, 1000 + 10 * number))
        wait(lambda spooled=spooled: archive.spool.counts.spooled_samples > spooled)
        if number in (9, asked.outage_ticks - 1):
            print(f"outage: after {number + 1} ticks {resident_mib() - before:+.0f} MiB resident, "
                  f"{archive.spool.size_bytes >> 20} MiB spooled")
    archive.stop()
    print(f"peak resident {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB (with the test's own guests)")


def thread_cpu_s(name: str) -> float:
    """CPU seconds of this process's thread of that name; Linux."""
    import threading

    for thread in threading.enumerate():
        if thread.name == name:
            return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
    return 0.0


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def wait(condition) -> None:
    while not condition():
        time.sleep(0.01)


if __name__ == "__main__":
    main()
