"""Collectors against a real libvirt: a guest with an operating system, pools; the rest is in test_collected.py."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from exporter.demonstration.guest_console import GuestConsole
from exporter.demonstration.private_hypervisor import PrivateHypervisor
from tests.live.conftest import StartExporter
from tests.live.servers import Server
from tests.samples import values_of

ALL = ["kvm", "kvm.all", "perf", "iothread", "bandwidth", "dirtyrate", "volumes", "backing"]
FLAGS = ["--sampling.max-age=0s", *(f"--collector.{name}" for name in ALL)]


def shown(server: Server, part: str) -> dict[str, float]:
    return {name: value for name, value in values_of(server.get("/metrics")).items() if part in name}


def wait_for(server: Server, part: str, true: Callable[[dict[str, float]], bool],
             span_s: float = 90) -> dict[str, float]:
    """The series whose name holds ``part``, once they are as wanted."""
    deadline_s = time.monotonic() + span_s
    while not true(found := shown(server, part)):
        assert time.monotonic() < deadline_s, found
        time.sleep(0.5)
    return found


def test_every_collector_succeeds_and_an_idle_guest_has_no_series_of_optional_parts(
        hypervisor: PrivateHypervisor, load_guest: GuestConsole, start_exporter: StartExporter) -> None:
    server = start_exporter(hypervisor.read_only_uri, FLAGS)
    wait_for(server, "libvirt_scrape_collector_success", lambda found: len(found) >= 20 and set(found.values()) == {1})
    own = shown(server, 'domain="load"')
    optional = ("job", "snapshot", "checkpoint", "perf", "bandwidth", "cache_occupancy", "limit", "iothread",
                "affinity", "request_duration", "interval")
    assert [name for name in own if any(f"_{word}" in name.partition("{")[0] for word in optional)] == []
    assert own['libvirt_domain_persistent{domain="load"}'] == 0
    status = 'libvirt_domain_dirtyrate_status{domain="load",status="unstarted"}'
    wait_for(server, status, lambda found: found.get(status) == 1)
    node = shown(server, "libvirt_node_")
    assert node["libvirt_node_vcpus_allocated"] >= 1
    total = int(next(line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines()
                     if line.startswith("MemTotal"))) * 1024
    assert node["libvirt_node_memory_total_bytes"] == pytest.approx(total, rel=0.01)


def test_pools_and_volumes(hypervisor: PrivateHypervisor, start_exporter: StartExporter) -> None:
    folder = hypervisor.folder / "pool"
    folder.mkdir()
    hypervisor.virsh("pool-create-as", "images", "dir", "--target", str(folder))
    hypervisor.virsh("vol-create-as", "images", "a.raw", "1MiB")
    try:
        server = start_exporter(hypervisor.read_only_uri, FLAGS)
        wait_for(server, "libvirt_volume_", lambda found: len(found) == 2)
        found = wait_for(server, "libvirt_pool_", lambda found: len(found) >= 10)
        assert found['libvirt_pool_state{pool="images",state="running"}'] == 1
        assert found['libvirt_pool_volumes{pool="images"}'] == 1
        capacity = hypervisor.virsh("pool-info", "images", "--bytes").split("Capacity:")[1].split()[0]
        assert found['libvirt_pool_info_capacity_bytes{pool="images"}'] == int(capacity)
    finally:
        hypervisor.virsh("pool-destroy", "images")


def test_the_balloon_that_a_guest_s_driver_moves(hypervisor: PrivateHypervisor, load_guest: GuestConsole,
                                                 start_exporter: StartExporter) -> None:
    server = start_exporter(hypervisor.read_only_uri, FLAGS)
    memory = 'libvirt_domain_info_memory_usage_bytes{domain="load"}'
    event = 'libvirt_domain_events_total{domain="load",event="balloon_change",detail="none"}'
    whole_kib = wait_for(server, "libvirt_domain_info_memory", lambda found: memory in found)[memory] // 1024
    events = 0.0
    for kib in (whole_kib - 4096, whole_kib):
        hypervisor.virsh("setmem", "load", f"{kib:.0f}", "--live")
        wait_for(server, "libvirt_domain_info_memory", lambda found, kib=kib: found[memory] == kib * 1024)
        found = wait_for(server, "libvirt_domain_events_total",
                         lambda found, events=events: found.get(event, 0) > events)
        events = found[event]
