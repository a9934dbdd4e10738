"""Target: which rates a page has between two recorded samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from collectors.snapshot import Snapshot
from collectors.target import RECORD_AFTER, Target, timer_due_s
from tests.samples import builder, record, series, snapshot

INTERVAL_S = 100.0
SECOND = 1_000_000_000
CORES = 'libvirt_domain_cpu_usage_cores{domain="guest"}'


def reads(device: str) -> str:
    return f'libvirt_domain_block_reads_per_second{{domain="guest",target_device="{device}"}}'


class Scripted:
    """In the sampler's place: gives the Snapshots that the test says, each at the time that the test says."""

    page_series = 0
    next: Snapshot

    def sample(self, _deadline: object) -> Snapshot:
        return self.next


class Page:
    """The rates on the page of a guest with these disks (name to read requests) at a time."""

    def __init__(self) -> None:
        self.sampler = Scripted()
        self.sampler.next = snapshot(up=False)
        made: Any = self.sampler
        self.target = Target(made, builder(), 0.0, INTERVAL_S)

    def rates(self, at_s: float, id: int = 1, **disks: int) -> dict[str, float]:
        stats: dict[str, Any] = {"cpu.time": int(at_s * SECOND / 2)}
        for number, (name, requests) in enumerate(disks.items()):
            stats |= {f"block.{number}.name": name, f"block.{number}.rd.reqs": requests}
        return self._shown(snapshot(record(stats, at_s, id=id)))

    def down(self, at_s: float) -> dict[str, float]:
        return self._shown(Snapshot(1, at_s, at_s, 1.7e9, False))

    def _shown(self, given: Snapshot) -> dict[str, float]:
        self.sampler.next = given
        view = self.target.request(10).result(10)
        found = series(view.batch, view.computed)
        return {name: value for name, value in found.items() if name == CORES or "_per_second" in name}


@pytest.fixture
def page() -> Iterator[Page]:
    made = Page()
    made.target.start()
    yield made
    made.target.stop()


def test_a_rate_is_lost_only_where_it_must_be(page: Page) -> None:
    assert page.rates(1000, vda=0, vdb=0) == {}
    whole = {CORES: 0.5, reads("vda"): 2, reads("vdb"): 3}
    assert page.rates(1100, vda=200, vdb=300) == whole
    assert page.rates(1101, vda=200, vdb=300) == whole  # not recorded: those of the last pair
    assert page.rates(1102, vda=200, vdb=300, vdc=5) == whole  # a new disk has none yet
    assert page.rates(1103, vdb=300, vdc=5) == {CORES: 0.5, reads("vdb"): 3}  # one is gone
    assert page.rates(1104) == {CORES: 0.5}  # an answer in part
    assert page.rates(1105, vda=200, vdb=300) == whole  # and all is there again
    # Recorded: each disk's rate is of what the two recorded samples hold.
    assert page.rates(1200, vda=300, vdb=300, vdc=100) == {CORES: 0.5, reads("vda"): 1, reads("vdb"): 0}
    assert page.rates(1300, vda=300, vdb=300, vdc=200) == {
        CORES: 0.5, reads("vda"): 0, reads("vdb"): 0, reads("vdc"): 1}


def test_no_rate_outlives_what_it_is_of(page: Page) -> None:
    page.rates(1000, vda=0)
    assert page.rates(1100, vda=100) == {CORES: 0.5, reads("vda"): 1}
    assert page.rates(1101, id=2, vda=100) == {}  # started anew
    assert page.rates(1102, vda=100) != {}
    assert page.down(1103) == {}
    assert page.rates(1104, vda=100) == {}  # libvirt was away
    assert page.rates(1200, vda=200) == {CORES: 0.5, reads("vda"): 1}


def samplings(scrapes_s: list[float], until_s: float) -> tuple[int, float]:
    """How many samplings there are, timer's and scrapes', and the longest time between two recorded ones."""
    scrapes = [*scrapes_s, float("inf")]
    recorded_s, asked_s, count, longest_s = 0.0, float("-inf"), 1, 0.0
    while (now_s := min(scrapes[0], timer_due_s(recorded_s, asked_s, INTERVAL_S))) < until_s:
        count += 1
        if now_s == scrapes[0]:
            asked_s = scrapes.pop(0)
        if now_s - recorded_s >= RECORD_AFTER * INTERVAL_S:
            longest_s, recorded_s = max(longest_s, now_s - recorded_s), now_s
    return count, longest_s


@pytest.mark.parametrize("phase", range(0, 100, 5))
@pytest.mark.parametrize("late", [0, 5])
def test_a_scraper_of_the_same_interval_costs_its_own_samplings_only(phase: int, late: int) -> None:
    scrapes_s = [phase + number * INTERVAL_S + late * (number % 2) for number in range(1, 41)]
    count, longest_s = samplings(scrapes_s, 41 * INTERVAL_S)
    assert count <= 41 + 2
    assert longest_s < 2 * INTERVAL_S


@pytest.mark.parametrize("every", [30.0, 100.0, 200.0, 400.0, 1000.0])
def test_recorded_samples_keep_the_interval_whoever_asks(every: float) -> None:
    scrapes_s = [37 + number * every for number in range(int(4000 / every))]
    count, longest_s = samplings(scrapes_s, 4000)
    assert count <= 4000 / min(every, INTERVAL_S) * 1.5 + 2
    assert longest_s < 2 * INTERVAL_S


def test_without_a_scraper_the_timer_keeps_the_interval() -> None:
    assert samplings([], 10 * INTERVAL_S) == (10, INTERVAL_S)
