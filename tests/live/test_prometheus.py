"""A real Prometheus scrapes the exporter on real guests."""

from __future__ import annotations

import subprocess

from exporter.demonstration.guest_console import GuestConsole
from exporter.demonstration.private_hypervisor import PrivateHypervisor
from tests.live.conftest import StartExporter, StartPrometheus

SERIES = (
    'libvirt_domain_state{domain="load",state="running"} == 1', 'libvirt_domain_info{domain="load"}',
    'libvirt_domain_vcpu_time_seconds_total{domain="load",vcpu="0"}',
    'libvirt_domain_block_stats_read_bytes_total{domain="load",target_device="vda"}',
    'libvirt_domain_interface_stats_receive_bytes_total{domain="load"}',
    'libvirt_domain_memory_stats_usable_bytes{domain="load"}', 'libvirt_domain_cpu_usage_cores{domain="load"}',
    'libvirt_domain_start_timestamp_seconds{domain="load"} > 1.6e9', "libvirt_versions_info", "virtgauge_build_info",
    'libvirt_scrape_collector_success{collector="block"} == 1', "process_resident_memory_bytes",
)
BAD_LOGS = ("out of order", "duplicate", "Error on ingesting", "unsupported", "Append failed")


def test_prometheus_scrapes_without_a_warning(hypervisor: PrivateHypervisor, load_guest: GuestConsole,
                                              start_exporter: StartExporter,
                                              start_prometheus: StartPrometheus) -> None:
    exporter = start_exporter(hypervisor.read_only_uri, ["--sampling.interval=1s"])
    prometheus = start_prometheus([exporter.address])
    prometheus.wait_for("libvirt_up == 1")
    for expression in SERIES:
        prometheus.wait_for(expression)
    (target,) = prometheus.targets()
    assert (target["health"], target["lastError"]) == ("up", "")
    text = prometheus.log.read_text()
    assert [word for word in BAD_LOGS if word in text] == []


def test_promtool_finds_nothing_to_say_of_the_page(hypervisor: PrivateHypervisor, load_guest: GuestConsole,
                                                   start_exporter: StartExporter) -> None:
    page = start_exporter(hypervisor.read_only_uri).get("/metrics")
    checked = subprocess.run(["promtool", "check", "metrics"], input=page, text=True, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_an_exporter_that_starts_first_waits_for_libvirt(fresh_hypervisor: PrivateHypervisor,
                                                         start_prometheus: StartPrometheus,
                                                         start_exporter: StartExporter) -> None:
    exporter = start_exporter(fresh_hypervisor.read_only_uri)
    fresh_hypervisor.stop_daemon()
    prometheus = start_prometheus([exporter.address])
    prometheus.wait_for("libvirt_up == 0")
    fresh_hypervisor.start_daemon()
    prometheus.wait_for("libvirt_up == 1")
