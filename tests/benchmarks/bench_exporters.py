"""Benchmark of whole scrapes: virtgauge against Debian's prometheus-libvirt-exporter, in turn, on one fleet.

    python tests/benchmarks/bench_exporters.py [--guests 50] [--pairs 7] [--type qemu|kvm]

Needs root and the Debian package.  CPU is that of the process, of libvirtd and of all QEMUs during a scrape.
Prints medians and ratios and writes tests/benchmarks/results/exporters-N.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from fleet import fleet
from live.servers import Server, free_port

from exporter.demonstration.private_hypervisor import PrivateHypervisor

RESULTS = Path(__file__).parent / "results"
TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")


@dataclass
class Scrape:
    """One scrape: wall time and CPU in milliseconds, and what came."""

    wall_ms: float
    own_ms: float
    libvirtd_ms: float
    qemu_ms: float
    series: int
    counters: int
    bytes: int

    @property
    def whole_ms(self) -> float:
        return self.own_ms + self.libvirtd_ms + self.qemu_ms


def cpu_ms(pid: int) -> float:
    """CPU time of a process in ms, to the nanosecond where its threads' schedstat can be read."""
    total_ns = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total_ns += int((task / "schedstat").read_text().split()[0])
        except OSError:
            continue
    return total_ns / 1e6


def scrape(url: str, own: int, libvirtd: int, qemus: list[int]) -> Scrape:
    pids = [own, libvirtd, *qemus]
    before = [cpu_ms(pid) for pid in pids]
    started = time.monotonic()
    with urllib.request.urlopen(url, timeout=60) as answer:
        page = answer.read()
    wall_ms = 1000 * (time.monotonic() - started)
    time.sleep(0.2)  # what is finished after the answer belongs to the scrape
    used = [cpu_ms(pid) - was for pid, was in zip(pids, before, strict=True)]
    lines = [line for line in page.decode().splitlines() if line.startswith("libvirt_")]
    counters = [line for line in lines if line.partition("{")[0].endswith(("_total", "_seconds_total"))]
    return Scrape(wall_ms, used[0], used[1], sum(used[2:]), len(lines), len(counters), len(page))


def qemu_pids(hypervisor: PrivateHypervisor) -> list[int]:
    return [process.pid for process in hypervisor.processes() if process.name.startswith("qemu-system")]


class GoExporter(Server):
    """Debian's exporter has no readiness page: any answer will do."""

    def wait_up(self) -> None:
        deadline = time.monotonic() + 30
        while self._status("/") == 0:
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)


def start(hypervisor: PrivateHypervisor) -> tuple[Server, GoExporter]:
    port, other = free_port(), free_port()
    program = str(Path(sys.executable).with_name("virtgauge"))
    ours = Server([program, "exporter", f"--libvirt.uri={hypervisor.read_only_uri}",
                   f"--web.listen-address=127.0.0.1:{port}", "--sampling.interval=1h"],
                  port, hypervisor.folder / "ours.log", os.environ)
    theirs = GoExporter(["prometheus-libvirt-exporter", f"--libvirt.uri={hypervisor.uri}",
                         f"--web.listen-address=127.0.0.1:{other}"], other, hypervisor.folder / "go.log", os.environ)
    ours.start()
    theirs.start()
    ours.wait_ready()
    theirs.wait_up()
    return ours, theirs


def rss_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def summary(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {"median": round(statistics.median(ordered), 2), "min": round(ordered[0], 2),
            "max": round(ordered[-1], 2)}


def compare(ours: list[Scrape], theirs: list[Scrape]) -> dict[str, object]:
    """Medians of each, and the ratio pair by pair."""
    columns: dict[str, Callable[[Scrape], float]] = {
        "own CPU ms": lambda s: s.own_ms, "libvirtd CPU ms": lambda s: s.libvirtd_ms,
        "QEMU CPU ms": lambda s: s.qemu_ms, "whole CPU ms": lambda s: s.whole_ms, "wall ms": lambda s: s.wall_ms}
    table: dict[str, object] = {}
    for name, value in columns.items():
        ratios = [value(a) / value(b) for a, b in zip(ours, theirs, strict=True) if value(b)]
        table[name] = {"virtgauge": summary([value(s) for s in ours]),
                       "prometheus-libvirt-exporter": summary([value(s) for s in theirs]), "ratio": summary(ratios)}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--guests", type=int, default=int(os.environ.get("BENCH_GUESTS", "50")))
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--type", choices=("qemu", "kvm"), default="kvm" if os.path.exists("/dev/kvm") else "qemu")
    arguments = parser.parse_args()
    began = time.monotonic()
    with fleet(arguments.guests, arguments.type) as hypervisor:
        print(f"{arguments.guests} guests ({arguments.type}) after {time.monotonic() - began:.0f} s", flush=True)
        ours, theirs = start(hypervisor)
        try:
            libvirtd, qemus = hypervisor.daemon_pid, qemu_pids(hypervisor)
            pairs: list[tuple[Scrape, Scrape]] = []
            for turn in range(arguments.pairs + 1):
                time.sleep(1.2)  # older than sampling.max_age: each scrape is a sampling
                pair = (scrape(ours.url("/metrics"), ours.pid, libvirtd, qemus),
                        scrape(theirs.url("/metrics"), theirs.pid, libvirtd, qemus))
                if turn:  # the first warms up
                    pairs.append(pair)
                    print(f"  pair {turn}: {pair[0].wall_ms:.0f} ms against {pair[1].wall_ms:.0f} ms", flush=True)
            result = {
                "guests": arguments.guests, "type": arguments.type, "pairs": arguments.pairs,
                "table": compare([a for a, _ in pairs], [b for _, b in pairs]),
                "rss MiB": {"virtgauge": round(rss_mib(ours.pid), 1), "go": round(rss_mib(theirs.pid), 1)},
                "last": {"virtgauge": asdict(pairs[-1][0]), "go": asdict(pairs[-1][1])}}
        except BaseException:
            subprocess.run(["tail", "-n", "5", ours.log, theirs.log], check=False)
            raise
        finally:
            ours.stop()
            theirs.stop()
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(result, indent=1)
    (RESULTS / f"exporters-{arguments.guests}.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
