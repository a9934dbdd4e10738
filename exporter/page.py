"""The whole page of one target: a fresh sample's series, the process's own, in the format asked for."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import generate_latest as text_of
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics_of
from prometheus_client.registry import Collector

from collectors.fields import Family
from collectors.target import Target, View

from .exposition import Exposition, header
from .negotiation import Format
from .refusals import Refusals

log = logging.getLogger(__name__)

_SHARED_FOR_S = 0.5
"""How long one rendered page serves further requests of the same sample, so that its age stays true."""
_END = b"# EOF\n"


def process_registry(refusals: Refusals | None = None) -> CollectorRegistry:
    """A registry of its own with this process's metrics, as prometheus-client makes them, and what HTTP refused."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    if refusals is not None:
        registry.register(RefusedRequests(refusals))
    return registry


class RefusedRequests(Collector):
    """Shows Refusals as virtgauge_http_refused_total."""

    def __init__(self, refusals: Refusals) -> None:
        self._refusals = refusals

    def collect(self) -> Iterator[Metric]:
        """One counter a reason; called in the page's thread."""
        family = CounterMetricFamily(
            "virtgauge_http_refused", "Requests and connections that were refused, by reason.", labels=["reason"]
        )
        for reason, count in self._refusals:
            family.add_metric([reason], count)
        yield family


class TargetPage:
    """Renders a Target's page; implements ``metrics_app.PageSource``.

    Pages are rendered one at a time in a thread of their own, since an Exposition keeps what it showed last; the
    event loop stays free for other clients.
    """

    def __init__(self, target: Target, families: Iterable[Family], families_of: Mapping[str, frozenset[str]],
                 registry: CollectorRegistry | None) -> None:
        self._target = target
        self._families = tuple(families)
        self._families_of = families_of
        self._registry = registry
        self._expositions: dict[frozenset[str] | None, Exposition] = {}
        self._shown: dict[frozenset[str] | None, View] = {}
        self._rendered: dict[tuple[str, frozenset[str] | None], tuple[View, float, bytes]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="page")

    def ready(self) -> bool:
        """Whether libvirt has answered at least once."""
        return self._target.answered

    async def page(self, format: Format, timeout_s: float, collect: frozenset[str] | None) -> bytes:
        """The page, with ``collect``'s collectors only where given.  Never raises for a libvirt failure."""
        started_s = time.monotonic()
        future = asyncio.wrap_future(self._target.request(max(0.05, 0.9 * timeout_s)))
        try:
            view = await asyncio.wait_for(future, timeout_s)
        except TimeoutError:
            log.error("no sample within the scrape's time", extra={"timeout_s": timeout_s})
            return self._without_sample(format)
        loop = asyncio.get_running_loop()
        page = await loop.run_in_executor(self._thread, self._render, view, format, collect)
        log.debug("page served", extra={"seconds": round(time.monotonic() - started_s, 4), "bytes": len(page)})
        return page

    def close(self) -> None:
        """End the rendering thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _render(self, view: View, format: Format, collect: frozenset[str] | None) -> bytes:
        now_s = time.monotonic()
        key = (format.name, collect)
        known = self._rendered.get(key)
        if known is not None and known[0] is view and now_s - known[1] < _SHARED_FOR_S:
            return known[2]
        exposition = self._exposition(view, collect)
        body = exposition.openmetrics() if format.openmetrics else exposition.text()
        page = body + self._tail(format, max(0.0, now_s - view.batch.ended_s))
        if len(self._rendered) > 16:
            self._rendered.clear()
        self._rendered[key] = (view, now_s, page)
        return page

    def _exposition(self, view: View, collect: frozenset[str] | None) -> Exposition:
        exposition = self._expositions.get(collect)
        if exposition is None:
            if len(self._expositions) > 8:  # collect[] is the client's: at most so many pages are kept
                self._expositions.clear()
                self._shown.clear()
            exposition = self._expositions[collect] = Exposition(self._families, self._only(collect))
        if self._shown.get(collect) is not view:
            exposition.update(view.batch, view.computed)
            self._shown[collect] = view
            if collect is None:
                self._target.page_series(exposition.series)
        return exposition

    def _only(self, collect: frozenset[str] | None) -> frozenset[str] | None:
        if collect is None:
            return None
        wanted = [names for collector, names in self._families_of.items() if collector in collect | {"sampling"}]
        return frozenset().union(*wanted)

    def _tail(self, format: Format, age_s: float) -> bytes:
        own = self._own_series("virtgauge_sample_age_seconds", f"{age_s:.6f}", format)
        if self._registry is None:
            return own + (_END if format.openmetrics else b"")
        if format.openmetrics:
            return own + bytes(openmetrics_of(self._registry))  # type: ignore[no-untyped-call]
        return own + bytes(text_of(self._registry))

    def _without_sample(self, format: Format) -> bytes:
        return self._own_series("libvirt_up", "0", format) + (_END if format.openmetrics else b"")

    def _own_series(self, name: str, value: str, format: Format) -> bytes:
        """A family of one series without labels that no sample carries, under its declared header."""
        family = next(family for family in self._families if family.name == name)
        return f"{header(family, format.openmetrics)}\n{name} {value}\n".encode()[1:]
