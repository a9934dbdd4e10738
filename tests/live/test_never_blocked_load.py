"""Never blocked, by use: many scrapers at once, thousands of scrapes, and a wall clock that jumps."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from exporter.demonstration.private_hypervisor import PrivateHypervisor
from tests.live.conftest import StartExporter
from tests.live.fleet import Fleet, wait_until
from tests.live.scraping import Footprint, Page, Scraper

NAMES = ["stays", "spins"]
SCRAPERS = 20
GROWTH_MIB = 12.0
"""RSS that an allocator may keep besides after thousands of scrapes; a leak of 10 KiB a scrape is more."""


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with PrivateHypervisor() as private:
        made = Fleet(private)
        made.start(NAMES, spin=["spins"])
        yield made


def ready(scraper: Scraper) -> Scraper:
    wait_until(lambda: scraper.scrape().complete == dict.fromkeys(NAMES, True), "both guests whole")
    return scraper


def samples(page: Page) -> float:
    value = page.value("virtgauge_sampler_samples_total")
    assert value is not None
    return value


def burst(scraper: Scraper) -> list[Page]:
    """20 scrapes that start together."""
    barrier = threading.Barrier(SCRAPERS)

    def scrape() -> Page:
        barrier.wait(30)
        return scraper.scrape()

    with ThreadPoolExecutor(SCRAPERS) as threads:
        return list(threads.map(lambda _: scrape(), range(SCRAPERS)))


@pytest.mark.parametrize("hung", [[], ["stays"]], ids=["healthy", "one hung"])
def test_concurrent_scrapers_share_one_sampling(fleet: Fleet, start_exporter: StartExporter, hung: list[str]) -> None:
    # Pages stay good for so long that a slow machine cannot need a second one, and no timer samples meanwhile.
    flags = ("--sampling.max-age=5", "--sampling.interval=3600")
    scraper = ready(Scraper(start_exporter(fleet.hypervisor.read_only_uri, flags)))
    before = samples(scraper.scrape())
    with fleet.hung(hung):
        time.sleep(5.2)
        pages = burst(scraper)
    assert {samples(page) for page in pages} == {before + 1}
    assert all(page.up and page.complete["spins"] for page in pages)
    scraper.report(f"{SCRAPERS} concurrent scrapers, {len(hung)} of 2 guests hung")


def churn(fleet: Fleet, starts: int, ended: threading.Event) -> None:
    """Start and stop guests, two at a time."""
    for _ in range(0, starts, 2):
        if ended.is_set():
            return
        fleet.start(["short0", "short1"])
        fleet.end(["short0", "short1"])


@pytest.mark.parametrize(("scrapes", "starts"), [
    (2_000, 40), pytest.param(20_000, 2_000, marks=[pytest.mark.soak, pytest.mark.timeout(0)])])
def test_endurance(fleet: Fleet, start_exporter: StartExporter, scrapes: int, starts: int) -> None:
    scraper = ready(Scraper(start_exporter(fleet.hypervisor.read_only_uri, ("--sampling.max-age=0.1",))))
    footprints: list[Footprint] = []
    for _part in range(10):
        ended = threading.Event()
        changing = threading.Thread(target=churn, args=(fleet, starts // 10, ended))
        changing.start()
        try:
            done = 0
            while done < scrapes // 10 or changing.is_alive():
                text, _ = scraper.text()
                assert "\nlibvirt_up 1\n" in text
                done += 1
                time.sleep(0.01)
        finally:
            ended.set()
            changing.join(60)
        footprints.append(quiet(scraper))
        print(f"never-blocked: endurance, {len(scraper.times_s)} scrapes: {footprints[-1]}")  # noqa: T201
    first, last = footprints[0], footprints[-1]
    # A background lane (a thread with a connection of two descriptors) may be at work at either moment.
    assert last.threads <= first.threads + 1
    assert last.sockets <= first.sockets + 1
    assert last.descriptors <= first.descriptors + 4
    assert last.rss_mib < first.rss_mib + GROWTH_MIB
    scraper.report(f"{scrapes} scrapes with {starts} starts and stops")


def quiet(scraper: Scraper) -> Footprint:
    """What the exporter holds when nothing has changed for some samples."""
    wait_until(lambda: scraper.scrape().complete == dict.fromkeys(NAMES, True), "only the guests that stay")
    for _ in range(8):
        time.sleep(0.15)
        scraper.scrape()
    return Footprint.of(scraper.server.pid)


# Stands for a wall clock that somebody sets a day back and forth, every 1.3 s.
JUMPING_CLOCK = """\
import time

_time, _time_ns, _monotonic = time.time, time.time_ns, time.monotonic


def _jump_s():
    return 86400 * (int(_monotonic() / 1.3) % 3 - 1)


time.time = lambda: _time() + _jump_s()
time.time_ns = lambda: _time_ns() + _jump_s() * 10**9
"""


def test_wall_clock_changes_touch_neither_rates_nor_deadlines(
        fleet: Fleet, start_exporter: StartExporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "clock"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(JUMPING_CLOCK)
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    flags = ("--sampling.max-age=0.1", "--sampling.interval=1")
    scraper = ready(Scraper(start_exporter(fleet.hypervisor.read_only_uri, flags)))
    usage = ("libvirt_domain_cpu_usage_cores",)
    wait_until(lambda: scraper.scrape().value(*usage, domain="spins") is not None, "a first rate")
    seen = []
    for hung in ([], ["stays"]):
        with fleet.hung(hung):
            for _ in range(10):
                page = scraper.scrape()
                seen.append(page.value(*usage, domain="spins"))
                age_s = page.value("virtgauge_sample_age_seconds")
                assert age_s is not None
                assert 0 <= age_s < 2
                time.sleep(0.5)
    # A day more or less between two samples would make the rate 0, negative or absent.
    assert all(cores is not None and 0.02 < cores < (os.cpu_count() or 1) + 1 for cores in seen), seen
    scraper.report("wall clock set back and forth by a day, every 1.3 s")
