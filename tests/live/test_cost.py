"""What a scrape costs the guests: monitor commands are counted in libvirtd's own log, never timed."""

from __future__ import annotations

import re
import time
from collections import Counter
from pathlib import Path

import pytest

from exporter.demonstration.guest_definition import Guest
from exporter.demonstration.guest_image import GuestImage
from exporter.demonstration.private_hypervisor import PrivateHypervisor
from tests.live.conftest import StartExporter

LOGGING = 'log_filters = "1:qemu.qemu_monitor 1:libvirt.domain"\nlog_outputs = "1:file:/var/log/libvirt/monitor.log"\n'
READ_XML = "virDomainGetXMLDesc:"
SENT = re.compile(r'QEMU_MONITOR_SEND_MSG: .*"execute":"([a-z-]+)"')
BLOCK = {"query-blockstats": 2, "query-named-block-nodes": 1}
BALLOON = {"query-balloon": 1, "qom-get": 1}


@pytest.fixture
def logging_hypervisor(fresh_hypervisor: PrivateHypervisor) -> PrivateHypervisor:
    """A private hypervisor whose daemon logs each monitor command."""
    fresh_hypervisor.stop_daemon()
    with (fresh_hypervisor.folder / "etc/libvirtd.conf").open("a") as file:
        file.write(LOGGING)
    fresh_hypervisor.start_daemon()
    return fresh_hypervisor


def start(hypervisor: PrivateHypervisor, image: GuestImage, name: str, balloon_period_s: int) -> None:
    disk = hypervisor.new_disk(name, 1 << 20)
    guest = Guest(name, disks=(disk,), interfaces=(hypervisor.new_interface(),), balloon_period_s=balloon_period_s)
    hypervisor.start_guest(guest, image)


class MonitorLog:
    """Commands sent to the monitors since the last look."""

    def __init__(self, hypervisor: PrivateHypervisor) -> None:
        self._file: Path = hypervisor.folder / "log/monitor.log"
        self._seen = self._file.stat().st_size

    def commands(self) -> Counter[str]:
        """Commands by name, and under READ_XML how often a domain's XML was read."""
        with self._file.open(errors="replace") as file:
            file.seek(self._seen)
            text = file.read()
            self._seen = file.tell()
        return Counter(SENT.findall(text)) + Counter({READ_XML: text.count(READ_XML)})


def test_monitor_commands_of_the_default_page(logging_hypervisor: PrivateHypervisor, image: GuestImage,
                                              start_exporter: StartExporter) -> None:
    start(logging_hypervisor, image, "plain", balloon_period_s=0)
    start(logging_hypervisor, image, "reporting", balloon_period_s=5)
    exporter = start_exporter(logging_hypervisor.read_only_uri, ["--sampling.max-age=0s", "--sampling.interval=1h"])
    exporter.get("/metrics")
    time.sleep(2)  # what belongs to the start (libvirt's own questions, events) is over
    log = MonitorLog(logging_hypervisor)
    for _ in range(4):
        exporter.get("/metrics")
    found = log.commands()
    assert {name: found[name] for name in BLOCK} == {name: 4 * 2 * count for name, count in BLOCK.items()}
    assert found["query-stats"] == 0, "vCPU and CPU figures come from the kernel"
    # Balloon is asked of the one guest that reports, at most once in these few seconds.
    assert all(found[name] <= count for name, count in BALLOON.items())
    unexpected = found.keys() - BLOCK.keys() - BALLOON.keys()
    assert not unexpected, found  # nor is the XML read, where names and limits come from: it is kept

    logging_hypervisor.virsh("blkdeviotune", "plain", "vda", "--total-bytes-sec", "1048576")
    limit = 'libvirt_domain_block_stats_limit_total_bytes{domain="plain",target_device="vda"} 1048576'
    until_s = time.monotonic() + 30
    while limit not in exporter.get("/metrics"):
        assert time.monotonic() < until_s
        time.sleep(0.1)
    time.sleep(1)
    told = log.commands()
    assert 1 <= told[READ_XML] <= 2, "the event has it read once; it may come while it is being read"
    exporter.get("/metrics")
    assert READ_XML not in log.commands()


def test_without_the_kernel_the_bulk_groups_are_asked(logging_hypervisor: PrivateHypervisor, image: GuestImage,
                                                      start_exporter: StartExporter) -> None:
    start(logging_hypervisor, image, "plain", balloon_period_s=0)
    flags = ["--sampling.max-age=0s", "--sampling.interval=1h", "--sampling.kernel=off"]
    exporter = start_exporter(logging_hypervisor.read_only_uri, flags)
    exporter.get("/metrics")
    log = MonitorLog(logging_hypervisor)
    exporter.get("/metrics")
    found = log.commands()
    assert found["query-blockstats"] == 2
    assert found["query-stats"] <= 2


def test_disabled_collectors_are_not_asked_for(logging_hypervisor: PrivateHypervisor, image: GuestImage,
                                               start_exporter: StartExporter) -> None:
    start(logging_hypervisor, image, "plain", balloon_period_s=0)
    exporter = start_exporter(logging_hypervisor.read_only_uri, ["--sampling.max-age=0s", "--no-collector.block"])
    exporter.get("/metrics")
    time.sleep(2)
    log = MonitorLog(logging_hypervisor)
    page = exporter.get("/metrics")
    assert not log.commands()
    assert "libvirt_domain_block_stats" not in page
