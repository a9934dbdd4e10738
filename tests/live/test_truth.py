"""The page against the truth: a guest does an exactly known amount of work, and the page must agree."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from exporter.demonstration.guest_console import GuestConsole
from exporter.demonstration.private_hypervisor import PrivateHypervisor
from exporter.demonstration.private_namespaces import BRIDGE_ADDRESS, BRIDGE_MAC
from tests.live.conftest import StartExporter
from tests.live.servers import Server

CPU_PERCENT = 40
CPU_SPAN_S = 10.0
SOURCES = pytest.mark.parametrize("kernel", ["auto", "off"])


def page(server: Server) -> dict[str, float]:
    """Values by 'name label=value ...', for the guest `load` only."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(server.get("/metrics")):
        for sample in family.samples:
            labels = dict(sample.labels)
            if labels.pop("domain", "") == "load":
                found[" ".join([sample.name, *(f"{name}={value}" for name, value in labels.items())])] = sample.value
    return found


def grown(before: dict[str, float], after: dict[str, float], prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix).split(" ")[0]: after[name] - before[name] for name in after
            if name.startswith(prefix) and name.split(" ")[0].endswith("_total")}


@SOURCES
def test_bytes_requests_and_packets_are_exact(hypervisor: PrivateHypervisor, load_guest: GuestConsole,
                                              start_exporter: StartExporter, kernel: str) -> None:
    server = start_exporter(hypervisor.read_only_uri, [f"--sampling.kernel={kernel}", "--sampling.max-age=0s"])
    assert load_guest.order("idle").status == 0
    assert load_guest.order(f"ping {BRIDGE_ADDRESS} {BRIDGE_MAC} 2 100").status == 0  # the first one asks for a MAC
    time.sleep(1)
    before = page(server)
    for order in ("write 20971520", "read 2097152 4096", f"ping {BRIDGE_ADDRESS} {BRIDGE_MAC} 30 500"):
        assert load_guest.order(order).status == 0, order
    after = page(server)
    block = grown(before, after, "libvirt_domain_block_stats_")
    assert (block["write_bytes_total"], block["write_requests_total"]) == (20971520, 320)
    assert (block["read_bytes_total"], block["read_requests_total"]) == (2097152, 512)
    assert block["write_time_seconds_total"] > 0
    nic = grown(before, after, "libvirt_domain_interface_stats_")
    assert (nic["transmit_packets_total"], nic["transmit_bytes_total"]) == (30, 30 * 542)
    assert (nic["receive_packets_total"], nic["receive_bytes_total"]) == (30, 30 * 542)
    assert nic["receive_errors_total"] == nic["transmit_drops_total"] == 0


def vcpu_thread(pid: int) -> Path:
    """The schedstat file of the guest's only vCPU."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        if (task / "comm").read_text().startswith("CPU 0/"):
            return task / "schedstat"
    pytest.fail(f"process {pid} has no vCPU thread")


@SOURCES
def test_a_known_share_of_a_vcpu(hypervisor: PrivateHypervisor, load_guest: GuestConsole,
                                 start_exporter: StartExporter, kernel: str) -> None:
    server = start_exporter(hypervisor.read_only_uri, [f"--sampling.kernel={kernel}", "--sampling.max-age=0s"])
    schedstat = vcpu_thread(hypervisor.qemu_pid("load"))
    assert load_guest.order(f"cpu {CPU_PERCENT}").status == 0
    try:
        time.sleep(1.5)
        name = "libvirt_domain_vcpu_time_seconds_total vcpu=0"
        asked_s = [time.monotonic()]
        pages = [page(server)]
        ran_ns, waited_ns = map(int, schedstat.read_text().split()[:2])
        time.sleep(CPU_SPAN_S)
        asked_s.append(time.monotonic())
        pages.append(page(server))
        ran_after_ns, waited_after_ns = map(int, schedstat.read_text().split()[:2])
    finally:
        assert load_guest.order("idle").status == 0
    span_s = asked_s[1] - asked_s[0]
    counted_s = pages[1][name] - pages[0][name]
    assert counted_s == pytest.approx((ran_after_ns - ran_ns) / 1e9, abs=0.02 * span_s)
    if (waited_after_ns - waited_ns) / 1e9 < 0.02 * span_s:  # else the guest did not get what it asked for
        assert counted_s == pytest.approx(CPU_PERCENT / 100 * span_s, abs=0.02 * span_s)
    domain_s = grown(pages[0], pages[1], "libvirt_domain_info_")["cpu_time_seconds_total"]
    assert counted_s - 0.05 <= domain_s <= counted_s + 0.15 * span_s


def test_rates_on_the_page_are_those_of_the_counters(hypervisor: PrivateHypervisor, load_guest: GuestConsole,
                                                     start_exporter: StartExporter) -> None:
    server = start_exporter(hypervisor.read_only_uri, ["--sampling.interval=1s", "--sampling.max-age=0s"])
    assert load_guest.order(f"cpu {CPU_PERCENT}").status == 0
    try:
        deadline = time.monotonic() + 30
        usage = 0.0
        while not 0.2 < usage <= 1.0:
            assert time.monotonic() < deadline, usage
            time.sleep(0.5)
            usage = page(server).get("libvirt_domain_vcpu_usage_ratio vcpu=0", 0.0)
    finally:
        assert load_guest.order("idle").status == 0
    found = page(server)
    assert 0 < found["libvirt_domain_memory_used_ratio"] < 1
    assert "libvirt_domain_block_read_latency_seconds target_device=vda" not in found


def test_both_sources_agree(hypervisor: PrivateHypervisor, load_guest: GuestConsole,
                            start_exporter: StartExporter) -> None:
    servers = [start_exporter(hypervisor.read_only_uri, [f"--sampling.kernel={kernel}", "--sampling.max-age=0s"])
               for kernel in ("auto", "off")]
    assert load_guest.order("idle").status == 0
    kernel, bulk = (page(server) for server in servers)
    assert set(bulk) - set(kernel) == set()
    assert {name.split(" ")[0] for name in set(kernel) - set(bulk)} == {
        "libvirt_domain_start_timestamp_seconds", "libvirt_domain_vcpu_cpu", "libvirt_domain_vcpu_guest_seconds_total",
        "libvirt_domain_vcpu_timeslices_total", "libvirt_domain_process_major_faults_total",
        "libvirt_domain_process_minor_faults_total"}
    for name in bulk:
        counter = name.split(" ")[0]
        if "interface_stats" in counter:
            assert kernel[name] == bulk[name], name
        elif counter.endswith("_seconds_total") and ("cpu_" in counter):
            assert kernel[name] == pytest.approx(bulk[name], abs=0.3), name
