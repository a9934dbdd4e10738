"""Never blocked, by libvirtd: stopped, killed and started again, absent at first; with guests and without."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from exporter.demonstration.private_hypervisor import PrivateHypervisor
from tests.live.fleet import Fleet, wait_until
from tests.live.scraping import MARGIN_S, Footprint, Page, Scraper
from tests.live.servers import Server, exporter_server

NAMES = ["north", "south", "west"]
BACK_WITHIN_S = 5.0
MAX_AGE_S = 0.2


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with PrivateHypervisor() as private:
        yield Fleet(private)


@pytest.fixture
def server(fleet: Fleet, tmp_path: Path) -> Iterator[Server]:
    """An exporter that is not started: some tests break its daemon first."""
    with exporter_server(tmp_path, fleet.hypervisor.read_only_uri, [f"--sampling.max-age={MAX_AGE_S}"]) as made:
        yield made


def start(server: Server) -> Scraper:
    server.start()
    wait_until(lambda: answers(server), f"the exporter listens: {server.log.read_text()}")
    return Scraper(server)


def answers(server: Server) -> bool:
    try:
        return server.get("/-/healthy") != ""
    except OSError:
        return False


def whole(page: Page, names: list[str]) -> bool:
    return page.up and sorted(page.complete) == sorted(names) and all(page.complete.values())


def settled(scraper: Scraper, names: list[str]) -> Footprint:
    """What the exporter holds once it serves whole pages; its first samples open what it needs."""
    wait_until(lambda: whole(scraper.scrape(), names), "whole pages")
    for _ in range(6):
        time.sleep(MAX_AGE_S + 0.05)
        assert whole(scraper.scrape(), names)
    return Footprint.of(scraper.server.pid)


def comes_back(scraper: Scraper, names: list[str]) -> None:
    took_s = wait_until(lambda: whole(scraper.scrape(), names), "whole again", BACK_WITHIN_S + MARGIN_S)
    print(f"never-blocked: whole again after {took_s:.1f} s")  # noqa: T201


def nothing_left_behind(scraper: Scraper, before: Footprint) -> None:
    def same() -> bool:
        time.sleep(MAX_AGE_S + 0.05)
        scraper.scrape()
        now = Footprint.of(scraper.server.pid)
        return (now.threads <= before.threads and now.descriptors <= before.descriptors
                and now.sockets <= before.sockets)

    try:
        wait_until(same, f"threads, descriptors and sockets of {before}", 30)
    except AssertionError as error:
        raise AssertionError(f"{error}; now {Footprint.of(scraper.server.pid)}") from None


def scrapes_say_down(scraper: Scraper, seconds: float) -> None:
    """Scrapes twice a second; from the age of the last good sample on, each says that libvirt is down."""
    time.sleep(MAX_AGE_S + 0.1)
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        page = scraper.scrape()
        assert not page.up
        assert page.complete == {}
        assert not [name for name, _ in page.values if name.startswith("libvirt_domain_")]
        time.sleep(0.5)


@pytest.fixture(params=[[], NAMES], ids=["no guests", "three guests"])
def names(request: pytest.FixtureRequest, fleet: Fleet) -> Iterator[list[str]]:
    wanted: list[str] = request.param
    fleet.start(wanted)
    yield wanted
    fleet.end(wanted)


def stopped(fleet: Fleet) -> Callable[[], None]:
    """Stop libvirtd; what lets it go on."""
    pid = fleet.hypervisor.daemon_pid
    os.kill(pid, signal.SIGSTOP)
    return lambda: os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("seconds", [3.0, pytest.param(40.0, marks=pytest.mark.soak)])
def test_a_stopped_daemon(fleet: Fleet, server: Server, names: list[str], seconds: float) -> None:
    """40 s is longer than keepalive takes to cut the connections."""
    scraper = start(server)
    before = settled(scraper, names)
    go_on = stopped(fleet)
    try:
        scrapes_say_down(scraper, seconds)
    finally:
        go_on()
    comes_back(scraper, names)
    nothing_left_behind(scraper, before)
    scraper.report(f"libvirtd stopped for {seconds:g} s, {len(names)} guests")


def test_a_killed_daemon(fleet: Fleet, server: Server, names: list[str]) -> None:
    scraper = start(server)
    before = settled(scraper, names)
    fleet.hypervisor.kill_daemon()
    try:
        scrapes_say_down(scraper, 3.0)
    finally:
        fleet.hypervisor.start_daemon()
    comes_back(scraper, names)
    nothing_left_behind(scraper, before)
    scraper.report(f"libvirtd killed, {len(names)} guests")


@pytest.mark.parametrize("way", ["stopped", "absent"])
def test_a_daemon_that_does_not_answer_at_first(fleet: Fleet, server: Server, way: str) -> None:
    fleet.start(NAMES)
    try:
        if way == "stopped":
            back = stopped(fleet)
        else:
            fleet.hypervisor.kill_daemon()
            back = fleet.hypervisor.start_daemon
        try:
            scraper = start(server)
            scrapes_say_down(scraper, 3.0)
        finally:
            back()
        comes_back(scraper, NAMES)
        scraper.report(f"libvirtd {way} before the exporter starts")
    finally:
        fleet.end(NAMES)
