"""Benchmark of whole scrapes: virtgauge against Debian's prometheus-libvirt-exporter, in turn, on one fleet.

    python tests/benchmarks/bench_exporters.py [--guests 50] [--pairs 7] [--type qemu|kvm] [--service]

Needs root and the Debian package.  CPU is that of the process, of libvirtd and of all QEMUs during a scrape.
--service adds a minute in service for each (a scrape each 15 s), ours without and with the embedded archive, and
collectd's virt plugin where it is installed.  Prints medians and ratios and writes them to
tests/benchmarks/results/exporters-N.json.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a script, it stands in tests/benchmarks

from exporter.demonstration.private_hypervisor import PrivateHypervisor
from tests.benchmarks.fleet import fleet
from tests.benchmarks.rivals import Collectd, go_exporter, has_collectd
from tests.live.servers import Server, free_port

RESULTS = Path(__file__).parent / "results"
AS_PROMETHEUS = {
    "Accept": "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
              "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
    "Accept-Encoding": "gzip", "X-Prometheus-Scrape-Timeout-Seconds": "10"}
"""What Debian's Prometheus sends with a scrape."""
WARM_UP_S = 80
"""Before a minute in service: the archive's first window has been sent by then, which notes each domain once."""


@dataclass
class Scrape:
    """One scrape: wall time and CPU in milliseconds, and what came."""

    wall_ms: float
    own_ms: float
    libvirtd_ms: float
    qemu_ms: float
    series: int
    measured: int  # neither a state set nor an info series
    counters: int
    bytes: int

    @property
    def whole_ms(self) -> float:
        return self.own_ms + self.libvirtd_ms + self.qemu_ms


def cpu_ms(pid: int) -> float:
    """CPU time of a process in ms, its ended threads included: the process's own clock (clock_getcpuclockid(3))."""
    return 1000 * time.clock_gettime((~pid << 3) | 2)


def fetch(url: str) -> bytes:
    """The page as it comes: compressed, as Prometheus asks for it."""
    with urllib.request.urlopen(urllib.request.Request(url, headers=AS_PROMETHEUS), timeout=60) as answer:
        body: bytes = answer.read()
    return body


def scrape(url: str, own: int, libvirtd: int, qemus: list[int]) -> Scrape:
    pids = [own, libvirtd, *qemus]
    before = [cpu_ms(pid) for pid in pids]
    started = time.monotonic()
    answer = fetch(url)
    wall_ms = 1000 * (time.monotonic() - started)
    time.sleep(0.2)  # what is finished after the answer belongs to the scrape
    used = [cpu_ms(pid) - was for pid, was in zip(pids, before, strict=True)]
    page = gzip.decompress(answer)
    lines = [line for line in page.decode().splitlines() if line.startswith("libvirt_")]
    families = [line.partition("{")[0].partition(" ")[0] for line in lines]
    measured = [name for name in families if not name.endswith(("_info", "_meta", "_state", "_state_reason"))]
    counters = [name for name in measured if name.endswith("_total")]
    return Scrape(wall_ms, used[0], used[1], sum(used[2:]), len(lines), len(measured), len(counters), len(page))


def qemu_pids(hypervisor: PrivateHypervisor) -> list[int]:
    return [process.pid for process in hypervisor.processes() if process.name.startswith("qemu-system")]


def our_exporter(hypervisor: PrivateHypervisor, interval: str, flags: Sequence[str] = ()) -> Server:
    port = free_port()
    program = str(Path(sys.executable).with_name("virtgauge"))
    return Server([program, "exporter", f"--libvirt.uri={hypervisor.read_only_uri}",
                   f"--web.listen-address=127.0.0.1:{port}", f"--sampling.interval={interval}", *flags],
                  port, hypervisor.folder / "ours.log", os.environ)


def service_minute(server: Server, libvirtd: int, qemus: list[int], scraped: bool = True) -> dict[str, float]:
    """CPU ms of a minute with four scrapes, once the server has warmed up; children (the archive) count as its own.

    A server that is not ``scraped`` reads by its own clock.
    """
    if scraped:
        fetch(server.url("/metrics"))
    time.sleep(WARM_UP_S)
    own = [server.pid, *children(server.pid)]
    before = [sum(map(cpu_ms, own)), cpu_ms(libvirtd), sum(map(cpu_ms, qemus))]
    began = time.monotonic()
    for turn in range(4 if scraped else 0):
        time.sleep(max(0.0, began + 15 * turn - time.monotonic()))
        fetch(server.url("/metrics"))
    time.sleep(max(0.0, began + 60 - time.monotonic()))
    after = [sum(map(cpu_ms, own)), cpu_ms(libvirtd), sum(map(cpu_ms, qemus))]
    own_ms, libvirtd_ms, qemu_ms = (round(b - a, 1) for a, b in zip(before, after, strict=True))
    return {"own CPU ms": own_ms, "libvirtd CPU ms": libvirtd_ms, "QEMU CPU ms": qemu_ms,
            "whole CPU ms": round(own_ms + libvirtd_ms + qemu_ms, 1)}


def children(pid: int) -> list[int]:
    """Processes that this one started, and theirs."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    found = [int(word) for task in tasks for word in (task / "children").read_text().split()]
    return found + [further for child in found for further in children(child)]


def in_service(hypervisor: PrivateHypervisor, libvirtd: int, qemus: list[int]) -> dict[str, dict[str, float]]:
    """A minute of each, one after the other, with nothing else at work."""
    table: dict[str, dict[str, float]] = {}
    archive = [f"--state.directory={hypervisor.folder / 'state'}", "--archive.uri=embedded"]
    for name, flags in (("virtgauge", []), ("virtgauge with archive", archive)):
        with our_exporter(hypervisor, "15s", flags) as ours:
            ours.start()
            ours.wait_ready()
            table[name] = service_minute(ours, libvirtd, qemus)
    with go_exporter(hypervisor) as theirs:
        theirs.start()
        theirs.wait_up()
        table["prometheus-libvirt-exporter"] = service_minute(theirs, libvirtd, qemus)
    if has_collectd():
        with Collectd(hypervisor, 15) as collectd:
            collectd.start()
            collectd.wait_up()
            table["collectd virt"] = service_minute(collectd, libvirtd, qemus, scraped=False)
    return table


def two_at_once(ours: Server, libvirtd: int, qemus: list[int], turns: int) -> dict[str, dict[str, float]]:
    """Whole CPU ms and wall ms of one scrape and of two at the same time, in turn, and the ratios pair by pair."""
    pids = [ours.pid, libvirtd, *qemus]
    names = ("one, whole CPU ms", "two, whole CPU ms", "CPU ratio", "wall ratio")
    found: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(turns):
        cost: list[tuple[float, float]] = []
        for scrapers in (1, 2):
            time.sleep(1.2)
            before = sum(map(cpu_ms, pids))
            began = time.monotonic()
            with ThreadPoolExecutor(scrapers) as pool:
                list(pool.map(fetch, [ours.url("/metrics")] * scrapers))
            wall_ms = 1000 * (time.monotonic() - began)
            time.sleep(0.2)
            cost.append((sum(map(cpu_ms, pids)) - before, wall_ms))
        (one, one_wall), (two, two_wall) = cost
        for name, value in zip(names, (one, two, two / one, two_wall / one_wall), strict=True):
            found[name].append(value)
    return {name: summary(values) for name, values in found.items()}


def start_up(hypervisor: PrivateHypervisor, guests: int) -> dict[str, float]:
    """Seconds from starting ours to its readiness and to the first page with each guest's name; its CPU until then."""
    with our_exporter(hypervisor, "1h") as ours:
        began = time.monotonic()
        ours.start()
        ours.wait_ready(120)
        ready_s = time.monotonic() - began
        while ours.get("/metrics", timeout_s=60).count("\nlibvirt_domain_info{") < guests:
            time.sleep(0.1)
        return {"ready s": round(ready_s, 2), "whole page s": round(time.monotonic() - began, 2),
                "own CPU s": round(cpu_ms(ours.pid) / 1000, 2)}


def rss_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def summary(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    p95 = statistics.quantiles(ordered, n=20, method="inclusive")[-1] if len(ordered) > 1 else ordered[0]
    return {"median": round(statistics.median(ordered), 2), "p95": round(p95, 2), "min": round(ordered[0], 2),
            "max": round(ordered[-1], 2)}


def compare(ours: list[Scrape], theirs: list[Scrape]) -> dict[str, object]:
    """Medians of each, and the ratio pair by pair."""
    columns: dict[str, Callable[[Scrape], float]] = {
        "own CPU ms": lambda s: s.own_ms, "libvirtd CPU ms": lambda s: s.libvirtd_ms,
        "QEMU CPU ms": lambda s: s.qemu_ms, "whole CPU ms": lambda s: s.whole_ms, "wall ms": lambda s: s.wall_ms}
    table: dict[str, object] = {}
    for name, value in columns.items():
        ratios = [value(a) / value(b) for a, b in zip(ours, theirs, strict=True) if value(b)]
        own, other = summary([value(s) for s in ours]), summary([value(s) for s in theirs])
        table[name] = {"virtgauge": own, "prometheus-libvirt-exporter": other, "ratio": summary(ratios),
                       "ratio of p95": round(own["p95"] / other["p95"], 2) if other["p95"] else None}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--guests", type=int, default=int(os.environ.get("BENCH_GUESTS", "50")))
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--type", choices=("qemu", "kvm"), default="kvm" if os.path.exists("/dev/kvm") else "qemu")
    parser.add_argument("--service", action="store_true", help="add a minute in service of each")
    arguments = parser.parse_args()
    began = time.monotonic()
    with fleet(arguments.guests, arguments.type) as hypervisor:
        print(f"{arguments.guests} guests ({arguments.type}) after {time.monotonic() - began:.0f} s", flush=True)
        ours, theirs = our_exporter(hypervisor, "1h"), go_exporter(hypervisor)
        try:
            ours.start()
            theirs.start()
            ours.wait_ready()
            theirs.wait_up()
            libvirtd, qemus = hypervisor.daemon_pid, qemu_pids(hypervisor)
            pairs: list[tuple[Scrape, Scrape]] = []
            for turn in range(arguments.pairs + 1):
                time.sleep(1.2)  # older than sampling.max_age: each scrape is a sampling
                pair = (scrape(ours.url("/metrics"), ours.pid, libvirtd, qemus),
                        scrape(theirs.url("/metrics"), theirs.pid, libvirtd, qemus))
                if turn:  # the first warms up
                    pairs.append(pair)
                    print(f"  pair {turn}: {pair[0].wall_ms:.0f} ms against {pair[1].wall_ms:.0f} ms", flush=True)
            result: dict[str, object] = {
                "guests": arguments.guests, "type": arguments.type, "pairs": arguments.pairs,
                "table": compare([a for a, _ in pairs], [b for _, b in pairs]),
                "rss MiB": {"virtgauge": round(rss_mib(ours.pid), 1), "go": round(rss_mib(theirs.pid), 1)},
                "two scrapers at once": two_at_once(ours, libvirtd, qemus, arguments.pairs),
                "last": {"virtgauge": asdict(pairs[-1][0]), "go": asdict(pairs[-1][1])}}
        except BaseException:
            subprocess.run(["tail", "-n", "5", ours.log, theirs.log], check=False)
            raise
        finally:
            ours.stop()
            theirs.stop()
        result["start-up"] = start_up(hypervisor, arguments.guests)
        if arguments.service:
            result["a minute in service"] = in_service(hypervisor, libvirtd, qemus)
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(result, indent=1)
    (RESULTS / f"exporters-{arguments.guests}.json").write_text(text + "\n")
    print(text)
    print(f"the whole took {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
