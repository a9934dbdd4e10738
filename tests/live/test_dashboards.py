"""Every expression of every dashboard, asked of a real Prometheus that scraped real guests at work.

One Prometheus scrapes the exporter while a guest with a pool and disk limits computes, writes, reads, flushes, sends
and is paused. A query is empty only where EMPTY_HERE names it and says why. (test_exported_monitoring.py starts a
Prometheus with the shipped configuration.)
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from exporter.demonstration.guest_console import GuestConsole
from exporter.demonstration.private_hypervisor import PrivateHypervisor
from exporter.demonstration.private_namespaces import BRIDGE_ADDRESS, BRIDGE_MAC
from tests.grafana.expressions import FILES, annotation_expressions, dashboard, plain, targets
from tests.live.servers import Prometheus, exporter_server, prometheus_server

WEEK_AGO = "the guest is minutes old, so that last week is empty"
NO_JOB = "no job runs or ran"
NO_CGROUP = "the private hypervisor has no cgroups and no tc, so that libvirt refuses such a limit"
TRANSIENT = "a raw disk of a transient guest takes no snapshot"
NO_GROWTH = "the guest's disk is written in place, and six hours of a pool are needed"
SUPPORTED = "this libvirt knows all the calls that are made"
WELL = "nothing is wrong: all guests answer in full and no rule is loaded (tests/grafana/test_causes.py makes it wrong)"
EMPTY_HERE = {
    # Each query by name; the list holds for the guest and host of this test.
    "virtgauge-domain: Write latency against last week B": WEEK_AGO,
    "virtgauge-domain: Use of all vCPUs B": WEEK_AGO,
    "virtgauge-fleet: CPU of the fleet, against last week B": WEEK_AGO,
    "virtgauge-host: CPU against last week B": WEEK_AGO,
    "virtgauge-domain: Job: bytes to go A": NO_JOB,
    "virtgauge-domain: Job: bytes to go B": NO_JOB,
    "virtgauge-domain: Job: memory written against memory moved A": NO_JOB,
    "virtgauge-domain: Job: memory written against memory moved B": NO_JOB,
    "virtgauge-domain: Settings and last job F": NO_JOB,
    "virtgauge-domain: Balloon, guest and host in one H": NO_CGROUP,
    "virtgauge-domain: CPU inside and around the guest F": NO_CGROUP,
    "virtgauge-domain: CPU inside and around the guest G": NO_CGROUP,
    "virtgauge-domain: Network throughput C": NO_CGROUP,
    "virtgauge-domain: Network throughput D": NO_CGROUP,
    "virtgauge-domain: Settings and last job D": TRANSIENT,
    "virtgauge-storage: Snapshots A": TRANSIENT,
    "virtgauge-storage: Snapshots B": TRANSIENT,
    "virtgauge-storage: Snapshots C": TRANSIENT,
    "virtgauge-storage: Snapshots D": TRANSIENT,
    "virtgauge-storage: Images that grow fastest A": NO_GROWTH,
    "virtgauge-storage: Time until an image is full A": NO_GROWTH,
    "virtgauge-storage: Pools now C": NO_GROWTH,
    "virtgauge-domain: Sample B": WELL,
    "virtgauge-domain: State and its reason B": WELL,
    "virtgauge-exporter: Guests answered in part A": WELL,
    "virtgauge-exporter: Guests answered in part B": WELL,
    "virtgauge-fleet: Alerts that fire A": WELL,
    **{f"virtgauge-fleet: Guests that are unwell {letter}": WELL for letter in "ABCDEFGHIJ"},
    "virtgauge-exporter: Calls that libvirt does not support A": SUPPORTED,
    "virtgauge-domain: Wait of each vCPU A": "this kernel does not tell, and absent is not zero",
    "virtgauge-host: Virtual networks A": "the private hypervisor has no virtual network",
}
ELSEWHERE = {
    "virtgauge_control_": "served by virtgauge control serve, which has live tests of its own",
    "libvirt_domain_agent_": "served by virtgauge control serve, too",
    "virtgauge_archive_": "the archive is off here",
}
@pytest.fixture(scope="module")
def scraped(hypervisor: PrivateHypervisor, load_guest: GuestConsole,
            tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus with a minute or so of a guest at work."""
    folder = tmp_path_factory.mktemp("dashboards")
    # Before the exporter starts, since pools are read once a minute. The limits are far above what the guest does.
    hypervisor.virsh("pool-create-as", "images", "dir", "--target", str(hypervisor.folder / "images"))
    limit_disk(hypervisor, 1 << 33, 100_000)
    with exporter_server(folder, hypervisor.read_only_uri, ["--sampling.interval=1s"]) as exporter:
        exporter.start()
        exporter.wait_ready()
        with prometheus_server(folder, [exporter.address]) as prometheus:
            prometheus.start()
            prometheus.wait_ready()
            work(load_guest)
            wait_for_rates(prometheus, load_guest)
            # Twice, since a counter that begins with its first event has no increase.
            for _ in range(2):
                hypervisor.virsh("suspend", load_guest.name)
                hypervisor.virsh("resume", load_guest.name)
                prometheus.wait_for('libvirt_domain_events_total{event="resumed"}')
            prometheus.wait_for('increase(libvirt_domain_events_total{event="resumed"}[1m]) > 0')
            yield prometheus
            load_guest.order("idle")
    limit_disk(hypervisor, 0, 0)
    hypervisor.virsh("pool-destroy", "images")


def limit_disk(hypervisor: PrivateHypervisor, bytes_per_second: int, requests_per_second: int) -> None:
    """Limits of the guest's reads and writes; 0 takes them away."""
    hypervisor.virsh("blkdeviotune", "load", "vda", "--live",
                     *(f"--{way}-bytes-sec={bytes_per_second}" for way in ("read", "write")),
                     *(f"--{way}-iops-sec={requests_per_second}" for way in ("read", "write")))


def work(guest: GuestConsole) -> None:
    """CPU in the background, and some of everything else in front."""
    for order in ("cpu 30", "write 4194304", "read 2097152 4096", "flush",
                  f"ping {BRIDGE_ADDRESS} {BRIDGE_MAC} 10 500"):
        assert guest.order(order).status == 0, order


def wait_for_rates(prometheus: Prometheus, guest: GuestConsole) -> None:
    """Until the rates that need two samples with work between them are there."""
    deadline = time.monotonic() + 120
    wanted = ("libvirt_domain_cpu_usage_cores", "libvirt_domain_block_write_latency_seconds",
              "libvirt_domain_block_read_latency_seconds", "libvirt_domain_block_flush_latency_seconds",
              "libvirt_domain_memory_used_ratio",
              "libvirt_domain_interface_receive_bytes_per_second", "libvirt_domain_vcpu_steal_ratio",
              "rate(libvirt_domain_memory_stats_swap_in_bytes_total[1m])")
    while missing := [name for name in wanted if not prometheus.query(f'last_over_time({name}[2m])'
                                                                      if "(" not in name else name)]:
        assert time.monotonic() < deadline, f"never had {missing}"
        work(guest)


def be_refused(prometheus: Prometheus) -> None:
    """By the exporter, for what is no HTTP."""
    host, _, port = str(prometheus.query("virtgauge_build_info")[0]["metric"]["instance"]).rpartition(":")
    with socket.create_connection((host, int(port)), timeout=60) as client:
        client.sendall(b"no HTTP at all\r\n\r\n")
        while client.recv(4096):
            pass
    prometheus.wait_for('rate(virtgauge_http_refused_total{reason="bad_request"}[1m]) > 0', 60)


def test_every_query_has_data_or_is_named_with_its_reason(scraped: Prometheus, load_guest: GuestConsole) -> None:
    work(load_guest)
    be_refused(scraped)
    asked = [target for file in FILES for target in targets(file)
             if not any(family in target.expr for family in ELSEWHERE)]
    empty = {str(target) for target in asked if not has_data(scraped, plain(target.expr, rate="1m"))}
    assert not empty - set(EMPTY_HERE), "\n".join(sorted(empty - set(EMPTY_HERE)))
    assert set(EMPTY_HERE) - {str(target) for target in asked} == set(), "excuses of queries that are no more"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_variables_and_annotations_are_answered(scraped: Prometheus, file: Path) -> None:
    document = dashboard(file)
    for variable in document["templating"]["list"]:
        if variable["type"] == "query" and "virtgauge_control" not in variable["query"]["query"]:
            metric = variable["query"]["query"].removeprefix("label_values(").rpartition(", ")[0]
            assert scraped.query(plain(metric)), variable["name"]
    for expr in annotation_expressions(document):
        assert "ALERTS" in expr or "virtgauge_control" in expr or scraped.query(plain(expr)), expr


def has_data(prometheus: Prometheus, expr: str) -> bool:
    """Whether the last two minutes have anything."""
    now_s = time.time()
    query = urlencode({"query": expr, "start": now_s - 120, "end": now_s, "step": 1})
    return '"values"' in prometheus.get(f"/api/v1/query_range?{query}")
