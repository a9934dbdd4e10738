"""Every expression of every dashboard, asked of a real Prometheus that scraped real guests at work.

One Prometheus, started with the shipped configuration, scrapes the exporter while a guest computes, writes, reads,
flushes and sends. A panel is empty only where EMPTY_HERE says why.
"""

from __future__ import annotations

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

WEEK_AGO = "the guests are minutes old, so that last week is empty"
NOT_SET = "the guest has no such limit"
EMPTY_HERE = {
    # part of an expression: why it gives nothing on this host
    "offset 1w": WEEK_AGO,
    "_limit_": NOT_SET,
    "libvirt_domain_vcpu_wait_seconds_total": "this kernel does not tell, and absent is not zero",
    "libvirt_domain_sample_incomplete_reason": "all guests answer in full",
    "libvirt_domain_monitor_busy_seconds{job=~\"$job\",instance=~\"$instance\"} > 0": "no monitor is busy",
    "ALERTS{": "no alert fires",
    "libvirt_pool_": "the private hypervisor has no storage pool",
    "libvirt_network_": "nor a virtual network",
    "libvirt_domain_job_": "no job runs",
    "libvirt_domain_block_job_": "no disk's job runs",
    "libvirt_domain_snapshot": "no snapshot was made",
    "libvirt_domain_checkpoints": "nor a checkpoint",
    "libvirt_domain_events_total": "nothing happened to the guest since the exporter started",
    "deriv(libvirt_domain_block_stats_physicalsize_bytes": "no image grows: the guest's disk is written in place",
}
ELSEWHERE = {
    "virtgauge_control_": "served by virtgauge control serve, which has live tests of its own",
    "virtgauge_archive_": "the archive is off here",
}
MOST_EMPTY = 0.2
"""Share of all queries that may be empty here: a longer list would hide mistakes."""


@pytest.fixture(scope="module")
def scraped(hypervisor: PrivateHypervisor, load_guest: GuestConsole,
            tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus with a minute or so of a guest at work."""
    folder = tmp_path_factory.mktemp("dashboards")
    with exporter_server(folder, hypervisor.read_only_uri, ["--sampling.interval=1s"]) as exporter:
        exporter.start()
        exporter.wait_ready()
        with prometheus_server(folder, [exporter.address]) as prometheus:
            prometheus.start()
            prometheus.wait_ready()
            work(load_guest)
            wait_for_rates(prometheus, load_guest)
            yield prometheus
            load_guest.order("idle")


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


def test_every_panel_has_data_or_a_reason(scraped: Prometheus, load_guest: GuestConsole) -> None:
    work(load_guest)
    empty: list[str] = []
    asked = [target for file in FILES for target in targets(file)]
    for target in asked:
        if has_data(scraped, plain(target.expr, rate="1m")):
            continue
        if not any(part in target.expr for part in (*EMPTY_HERE, *ELSEWHERE)):
            empty.append(f"{target}: {target.expr}")
    assert empty == []


def test_the_list_of_empty_panels_is_short() -> None:
    asked = [target for file in FILES for target in targets(file)]
    excused = [target for target in asked if any(part in target.expr for part in EMPTY_HERE)]
    assert len(excused) < MOST_EMPTY * len(asked)
    unneeded = [part for part in (*EMPTY_HERE, *ELSEWHERE) if not any(part in target.expr for target in asked)]
    assert unneeded == []


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
