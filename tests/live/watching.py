"""A watcher that scrapes without a pause while a test changes the guests, and checks what must hold on every page."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from tests.live.scraping import Page, Scraper, Series

_MOST_CORES = (os.cpu_count() or 1) + 1.0
_MOST_PER_SECOND = 1e9
_MOST_RATIO = 1.1  # clocks of two sources differ by a tick


class Watcher:
    """Checks pages one after the other; ``faults`` says what was wrong with which scrape."""

    def __init__(self, scraper: Scraper, names: Iterable[str]) -> None:
        self.scraper = scraper
        self.allowed = set(names)
        """Domains that may be on a page."""
        self.restarting: set[str] = set()
        """Domains whose counters may begin anew at any time."""
        self.pages = 0
        self.faults: list[str] = []
        self._last: dict[Series, float] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher")

    @contextmanager
    def watching(self, least_pages: int = 0) -> Iterator[None]:
        """Scrape for the time of the block, and until there are ``least_pages``; then fail for any fault."""
        self._thread.start()
        try:
            yield
            while self.pages < least_pages and not self.faults:
                time.sleep(0.05)
        finally:
            self._stop.set()
            self._thread.join(60)
        assert not self._thread.is_alive()
        assert not self.faults, f"{len(self.faults)} faults on {self.pages} pages: {self.faults[:5]}"
        assert self.pages > 0

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.check(self.scraper.scrape())
            except Exception as error:  # noqa: BLE001 - whatever it is, the scrape failed
                self.faults.append(f"scrape failed: {error!r}")
            self._stop.wait(0.02)

    def check(self, page: Page) -> None:
        self.pages += 1
        if not page.up:
            self.faults.append(f"page {self.pages}: libvirt_up is not 1")
        strangers = page.labelled("libvirt_domain_state", "domain") - self.allowed
        if strangers:
            self.faults.append(f"page {self.pages}: series of {strangers}")
        for series, value in page.rates().items():
            if not 0 <= value <= _most(series[0]):
                self.faults.append(f"page {self.pages}: {series} is {value}")
        for series, value in page.values.items():
            domain = dict(series[1]).get("domain")
            if domain and series[0].endswith("_total"):
                before = self._last.get(series)
                if before is not None and value < before and domain not in self.restarting:
                    self.faults.append(f"page {self.pages}: {series} fell from {before} to {value}")
        self._last.update(page.values)


def _most(name: str) -> float:
    if name.endswith(("_usage_cores", "domain_cpu_usage_ratio")):
        return _MOST_CORES
    return _MOST_RATIO if name.endswith("_ratio") else _MOST_PER_SECOND
