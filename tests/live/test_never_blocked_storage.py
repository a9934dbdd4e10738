"""Never blocked, by storage that hangs: a guest whose disk lies on it, and a storage pool on it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.demonstration.private_hypervisor import PrivateHypervisor
from tests.live.conftest import StartExporter
from tests.live.fleet import Fleet, wait_until
from tests.live.hanging_storage import HangingStorage
from tests.live.scraping import Page, Scraper

pytestmark = pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="this kernel has no FUSE (/dev/fuse)")

POOL = """<pool type='dir'><name>nfs</name><target><path>{folder}</path></target></pool>"""


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[HangingStorage]:
    with HangingStorage(tmp_path / "mount") as made:
        yield made


@pytest.fixture
def fleet(storage: HangingStorage) -> Iterator[Fleet]:
    """Two guests, one with its disk on the storage; and a pool there."""
    with PrivateHypervisor() as private:
        made = Fleet(private)
        made.start(["dry"])
        with made.connected() as connection:
            xml = made.xml("drowned")
            connection.createXML(xml.replace(f"{private.folder}/images/drowned-vda.raw", str(storage.disk)), 0)
            pool = connection.storagePoolDefineXML(POOL.format(folder=storage.folder))
            pool.create()
        yield made
        storage.go_on()


def pools(page: Page) -> set[str]:
    return page.labelled("libvirt_pool_info_capacity_bytes", "pool")


@pytest.mark.parametrize("collector", ["storage", pytest.param("volumes", marks=pytest.mark.soak)])
def test_storage_that_hangs_costs_what_lies_on_it(storage: HangingStorage, fleet: Fleet,
                                                  start_exporter: StartExporter, collector: str) -> None:
    """The volumes have a minute's time, so that they take long."""
    flags = ["--sampling.max-age=0.5", f"--collector.{collector}"]
    scraper = Scraper(start_exporter(fleet.hypervisor.read_only_uri, flags))
    both = {"dry": True, "drowned": True}
    wait_until(lambda: scraper.scrape().complete == both, "both guests whole")
    wait_until(lambda: pools(scraper.scrape()) == {"nfs"}, "the pool")
    before = scraper.scrape()
    storage.hang()
    try:
        time.sleep(0.6)
        for _ in range(10):
            page = scraper.scrape()
            assert page.up
            assert page.complete["drowned"] is False
            assert page.value("libvirt_domain_block_stats_read_bytes_total", domain="drowned",
                              target_device="vda") is None
            assert page.value("libvirt_domain_state", domain="drowned", state="running") == 1
            time.sleep(0.6)
        wait_until(lambda: scraper.scrape().value(
            "libvirt_domain_sample_incomplete_reason", domain="drowned", reason="storage") == 1, "storage is named", 20)
        page = scraper.scrape()
        assert page.complete["dry"]
        assert before.of_domain("dry") - page.of_domain("dry") == set()
        late = exporter_that_starts_now(fleet, start_exporter, flags, collector)
    finally:
        storage.go_on()
    wait_until(lambda: scraper.scrape().complete == both, "both whole again", 20)
    wait_until(lambda: late.scrape().complete == both, "both whole again", 20)
    if collector == "volumes":  # a pool is read once a minute
        wait_until(lambda: pools(late.scrape()) == {"nfs"}, "the pool", 150, 0.5)
    wait_until(lambda: scraper.scrape().value("virtgauge_sampler_calls", state="stuck") == 0, "no call stuck", 40)
    scraper.report("storage under a guest and a pool hung")


def exporter_that_starts_now(fleet: Fleet, start_exporter: StartExporter, flags: list[str],
                             collector: str) -> Scraper:
    """While somebody's refresh of the pool hangs, which holds the pool: no figure of a pool, but the guests'."""
    refresh = subprocess.Popen(["virsh", "-c", fleet.hypervisor.uri, "pool-refresh", "nfs"],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(0.5)
        scraper = Scraper(start_exporter(fleet.hypervisor.read_only_uri, flags))
        wait_until(lambda: scraper.scrape().value("libvirt_scrape_collector_success", collector=collector) == 0,
                   f"{collector} is late", 120, 0.5)
        page = scraper.scrape()
        assert page.up
        assert page.complete == {"dry": True, "drowned": False}
        assert pools(page) == page.labelled("libvirt_volume_capacity_bytes", "pool") == set()
        return scraper
    finally:
        refresh.kill()
        refresh.wait()
