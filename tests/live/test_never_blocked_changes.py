"""Never blocked, by change: guests that start, end, crash, move, are saved, renamed and rebuilt while being scraped."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import libvirt
import pytest

from exporter.demonstration.guest_definition import Guest, disk_xml, interface_xml
from exporter.demonstration.guest_image import GuestImage
from exporter.demonstration.private_hypervisor import PrivateHypervisor
from tests.live.conftest import StartExporter
from tests.live.fleet import Fleet, wait_until
from tests.live.scraping import Page, Scraper
from tests.live.watching import Watcher

# Every scrape a sample of its own, and rates over a second.
FLAGS = ("--sampling.max-age=0", "--sampling.interval=1")


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with PrivateHypervisor() as private:
        made = Fleet(private)
        made.start(["stays", "spins"], spin=["spins"])
        yield made


@pytest.fixture
def scraper(fleet: Fleet, start_exporter: StartExporter) -> Scraper:
    return Scraper(start_exporter(fleet.hypervisor.read_only_uri, FLAGS))


def watcher(scraper: Scraper, *names: str) -> Watcher:
    return Watcher(scraper, {"stays", "spins", *names})


def wait_page(scraper: Scraper, condition: Callable[[Page], bool], what: str) -> None:
    wait_until(lambda: condition(scraper.scrape()), what, 40, 0.2)


def gone(name: str) -> Callable[[Page], bool]:
    return lambda page: not page.of_domain(name, computed=True)


def test_domains_that_start_and_stop_as_fast_as_libvirt_allows(fleet: Fleet, scraper: Scraper) -> None:
    names = [f"short{number}" for number in range(3)]
    watch = watcher(scraper, *names)
    watch.restarting.update(names)
    ended = threading.Event()
    counts = {name: 0 for name in names}

    def churn(name: str) -> None:
        while not ended.is_set():
            fleet.start([name], spin=[name])
            fleet.end([name])
            counts[name] += 1

    threads = [threading.Thread(target=churn, args=(name,)) for name in names]
    with watch.watching(least_pages=200):
        for thread in threads:
            thread.start()
        wait_until(lambda: watch.pages >= 200 or bool(watch.faults), "200 scrapes", 240)
        ended.set()
        for thread in threads:
            thread.join(60)
    assert sum(counts.values()) >= 3
    wait_page(scraper, lambda page: all(gone(name)(page) for name in names), "no series of ended domains")
    scraper.report(f"{sum(counts.values())} starts and stops during {watch.pages} scrapes")


def test_qemus_killed_in_the_middle_of_a_call(fleet: Fleet, scraper: Scraper) -> None:
    names = [f"victim{number}" for number in range(4)]
    fleet.start(names)
    wait_page(scraper, lambda page: all(page.complete.get(name) for name in names), "victims whole")
    pids = {name: fleet.pid(name) for name in names}
    watch = watcher(scraper, *names)
    with watch.watching():
        for name in names[:2]:
            os.kill(pids[name], signal.SIGKILL)
            time.sleep(0.5)
        for name in names[2:]:  # for certain in the middle of one: its call waits while it is stopped
            os.kill(pids[name], signal.SIGSTOP)
            time.sleep(1.0)
            os.kill(pids[name], signal.SIGKILL)
            time.sleep(0.5)
    wait_page(scraper, lambda page: all(gone(name)(page) for name in names), "no series of killed domains")
    wait_page(scraper, lambda page: page.complete == {"stays": True, "spins": True}, "the others whole")
    wait_page(scraper, lambda page: page.value("virtgauge_sampler_calls", state="stuck") == 0, "no call stuck")
    scraper.report("4 QEMUs killed, 2 of them in the middle of a call")


def test_devices_and_vcpus_plugged_and_unplugged(fleet: Fleet, scraper: Scraper, image: GuestImage) -> None:
    """With a guest that has a kernel: one without never lets go of a device."""
    private, name = fleet.hypervisor, "plugged"
    console = private.start_guest(Guest(name, disks=(private.new_disk(name, 1 << 20),),
                                        interfaces=(private.new_interface(),)), image)
    console.wait_ready()
    devices = [disk_xml(private.new_disk(name, 1 << 20, "vdb")), interface_xml(private.new_interface())]
    watch = watcher(scraper, name, "grows")
    watch.restarting.add(name)  # a device plugged again under its old name counts from 0
    fleet.start(["grows"])
    with watch.watching(), fleet.connected() as connection:
        domain = connection.lookupByName(name)
        for _ in range(2):
            for device in devices:
                domain.attachDevice(device)
            wait_page(scraper, lambda page: disks(page, name) == {"vda", "vdb"} and len(taps(page, name)) == 2,
                      "plugged")
            time.sleep(1)  # the guest ignores an unplug while it still takes the device in
            for device in devices:
                domain.detachDevice(device)
            wait_page(scraper, lambda page: disks(page, name) == {"vda"} and len(taps(page, name)) == 1, "unplugged")
        connection.lookupByName("grows").setVcpus(2)
        wait_page(scraper, lambda page: page.labelled("libvirt_domain_vcpu_time_seconds_total", "vcpu") >= {"0", "1"}
                  and page.value("libvirt_domain_vcpu_time_seconds_total", domain="grows", vcpu="1") is not None,
                  "two vCPUs")
    fleet.end([name, "grows"])
    wait_page(scraper, lambda page: gone(name)(page) and gone("grows")(page), "no series of ended domains")
    scraper.report("disk, NIC and vCPU hot-plug")


def disks(page: Page, name: str) -> set[str]:
    return devices_of(page, "libvirt_domain_block_stats_read_bytes_total", name)


def taps(page: Page, name: str) -> set[str]:
    return devices_of(page, "libvirt_domain_interface_stats_receive_bytes_total", name)


def devices_of(page: Page, family: str, name: str) -> set[str]:
    return {dict(labels)["target_device"] for found, labels in page.values
            if found == family and ("domain", name) in labels}


def test_a_domain_saved_restored_reset_and_renamed(fleet: Fleet, scraper: Scraper) -> None:
    watch = watcher(scraper, "before", "after")
    watch.restarting.update(["before", "after"])
    with fleet.connected() as connection:
        domain = connection.defineXML(fleet.xml("before", spin=True))
        try:
            with watch.watching():
                domain.create()
                wait_page(scraper, lambda page: page.complete.get("before", False), "started")
                watch.restarting.discard("before")
                domain.reset()
                time.sleep(2.5)
                watch.restarting.add("before")
                domain.managedSave()
                wait_page(scraper, lambda page: page.value("libvirt_domain_state_reason", domain="before",
                                                           state="shutoff", reason="saved") == 1, "saved")
                domain.create()
                wait_page(scraper, lambda page: page.complete.get("before", False), "restored")
                time.sleep(2.5)
                domain.destroy()
                domain.rename("after")
                wait_page(scraper, lambda page: gone("before")(page) and page.value(
                    "libvirt_domain_state", domain="after", state="shutoff") == 1, "renamed")
                domain.create()
                wait_page(scraper, lambda page: page.complete.get("after", False), "started under the new name")
                time.sleep(2.5)
        finally:
            if domain.isActive():
                domain.destroy()
            domain.undefine()
    wait_page(scraper, gone("after"), "no series of an undefined domain")
    scraper.report("reset, save, restore, rename")


def test_a_live_migration_out_and_in(fleet: Fleet, scraper: Scraper, start_exporter: StartExporter) -> None:
    name = "moves"
    flags = libvirt.VIR_MIGRATE_PEER2PEER | libvirt.VIR_MIGRATE_TUNNELLED | libvirt.VIR_MIGRATE_LIVE \
        | libvirt.VIR_MIGRATE_UNSAFE
    with PrivateHypervisor() as other:
        there = Scraper(start_exporter(other.read_only_uri, FLAGS))
        fleet.start([name], spin=[name])
        wait_page(scraper, lambda page: page.complete.get(name, False), "whole at home")
        here_watch, there_watch = watcher(scraper, name), Watcher(there, [name])
        here_watch.restarting.add(name)
        there_watch.restarting.add(name)
        with here_watch.watching(), there_watch.watching():
            for source, target, shown, left in ((fleet.hypervisor, other, there, scraper),
                                                (other, fleet.hypervisor, scraper, there)):
                connection = libvirt.open(source.uri)
                try:
                    connection.lookupByName(name).migrateToURI3(target.uri, {}, flags)
                finally:
                    connection.close()
                wait_page(shown, lambda page: page.complete.get(name, False), "whole where it went")
                wait_page(left, gone(name), "no series where it left")
                time.sleep(2)
        fleet.end([name])
        scraper.report("live migration, the first host")
        there.report("live migration, the second host")
