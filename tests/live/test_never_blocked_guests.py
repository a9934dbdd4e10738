"""Never blocked, by hung guests: QEMUs stopped in the middle of everything, and killed in the middle of a call."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator

import pytest

from exporter.demonstration.private_hypervisor import PrivateHypervisor
from tests.live.conftest import StartExporter
from tests.live.fleet import Fleet, wait_until
from tests.live.scraping import Page, Scraper

NAMES = [f"guest{number}" for number in range(10)]
# The short form; make soak takes 15 s with a scrape each 3 s.
SCRAPE_EVERY_S = 2.0
HANG_S = 7.0


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with PrivateHypervisor() as private:
        made = Fleet(private)
        made.start(NAMES, spin=[NAMES[9]])
        yield made


@pytest.fixture
def scraper(fleet: Fleet, start_exporter: StartExporter) -> Scraper:
    made = Scraper(start_exporter(fleet.hypervisor.read_only_uri))
    wait_until(lambda: whole(made.scrape(), NAMES), "all guests whole")
    return made


def whole(page: Page, names: list[str]) -> bool:
    return page.up and all(page.complete.get(name) for name in names)


def other_clients_work(fleet: Fleet, healthy: str) -> None:
    """virsh as anybody else would use it, on connections of its own."""
    uri = fleet.hypervisor.read_only_uri
    for words in (["list"], ["domstats", healthy]):
        done = subprocess.run(["virsh", "-r", "-c", uri, *words], capture_output=True, text=True, timeout=20,
                              check=True)
        assert healthy in done.stdout


def scrapes_while_hung(scraper: Scraper, seconds: float, every_s: float) -> list[Page]:
    pages = []
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        start_s = time.monotonic()
        pages.append(scraper.scrape())
        time.sleep(max(0.0, every_s - (time.monotonic() - start_s)))
    return pages


@pytest.mark.soak
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_hung_guests_for_15_s(fleet: Fleet, scraper: Scraper, count: int) -> None:
    hang(fleet, scraper, count, 15.0, 3.0)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_hung_guests_cost_their_own_series_only(fleet: Fleet, scraper: Scraper, count: int) -> None:
    hang(fleet, scraper, count, HANG_S, SCRAPE_EVERY_S)


def hang(fleet: Fleet, scraper: Scraper, count: int, hang_s: float, every_s: float) -> None:
    hung, healthy = NAMES[:count], NAMES[count:]
    before = scraper.scrape()
    assert whole(before, NAMES)
    with fleet.hung(hung):
        time.sleep(1.1)  # the last sample may be shown for sampling.max-age
        pages = scrapes_while_hung(scraper, hang_s, every_s)
        other_clients_work(fleet, healthy[-1])
    time.sleep(every_s)
    scraper.scrape()
    time.sleep(every_s)
    after = scraper.scrape()

    assert len(pages) >= 3  # the loop below looks at the third and on
    for number, page in enumerate(pages):
        assert page.up
        assert page.value("virtgauge_sampler_calls", state="stuck") <= 6
        for name in hung:  # from the very first: no block counter of an earlier sample
            assert page.complete.get(name) is False, f"scrape {number}: {name}"
            assert page.value("libvirt_domain_block_stats_read_bytes_total", domain=name, target_device="vda") is None
            assert page.value("libvirt_domain_state", domain=name, state="running") == 1
            assert page.value("libvirt_domain_cpu_usage_cores", domain=name) in (None, 0) or number == 0
    for number, page in enumerate(pages[2:], 3):
        for name in healthy:
            missing = before.of_domain(name) - page.of_domain(name)
            assert not missing, f"scrape {number} lacks {missing} of the healthy {name}; complete: {page.complete}"
            assert page.complete[name]
        reasons = [page.value("libvirt_domain_sample_incomplete_reason", domain=name, reason="monitor")
                   for name in hung]
        assert reasons == [1.0] * len(hung)
    # Of those that hold a call; the others were not asked, so that nobody knows since when they hang.
    busy = [pages[-1].value("libvirt_domain_monitor_busy_seconds", domain=name) for name in hung]
    assert sum(1 for seconds in busy if seconds and seconds > 1) >= min(count, 4)
    assert whole(after, NAMES), after.complete
    assert {name: before.of_domain(name) - after.of_domain(name) for name in NAMES} == {name: set() for name in NAMES}
    wait_until(lambda: scraper.scrape().value("virtgauge_sampler_calls", state="stuck") == 0, "no call stuck", 10)
    scraper.report(f"{count} of {len(NAMES)} QEMUs stopped for {hang_s:g} s")
