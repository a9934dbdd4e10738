"""What control counts of itself: virtgauge_control_* on the control service's own metrics page."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from exporter.control.folders import Folders
from exporter.control.interface_change import ChangeFile

# From an answer out of libvirtd's memory to a guest that saves its memory.
_BUCKETS_S = (0.01, 0.05, 0.25, 1.0, 5.0, 15.0, 60.0, 300.0)
OUTCOMES = ("changed", "unchanged", "read", "dry-run", "failed")


class ControlMetrics(Collector):
    """Counts operations by outcome and time. Any thread. An operation's series begin when it is first run."""

    def __init__(self, folders: Folders) -> None:
        self._change = ChangeFile(folders)
        self._lock = threading.Lock()
        self._outcomes: Counter[tuple[str, str]] = Counter()
        self._buckets: dict[str, list[int]] = {}
        self._seconds: dict[str, float] = {}
        self._running = 0

    def began(self) -> None:
        """An operation that may change something began."""
        with self._lock:
            self._running += 1

    def ended(self) -> None:
        """It ended."""
        with self._lock:
            self._running -= 1

    def count(self, operation: str, outcome: str, seconds: float) -> None:
        """One run of `operation`; `outcome` is of OUTCOMES or an error's kind."""
        with self._lock:
            self._outcomes[operation, outcome] += 1
            row = self._buckets.setdefault(operation, [0] * (len(_BUCKETS_S) + 1))
            row[sum(seconds > bound for bound in _BUCKETS_S)] += 1
            self._seconds[operation] = self._seconds.get(operation, 0.0) + seconds

    def collect(self) -> Iterator[Metric]:
        """The families; called by the page."""
        with self._lock:
            outcomes, running = dict(self._outcomes), self._running
            rows = {name: list(row) for name, row in self._buckets.items()}
            seconds = dict(self._seconds)
        yield _counters(outcomes)
        yield _histograms(rows, seconds)
        yield GaugeMetricFamily(
            "virtgauge_control_operations_running", "Operations that may change something, running now.", running
        )
        change = self._change.load()
        yield GaugeMetricFamily(
            "virtgauge_control_interface_change_open",
            "Whether an interface change waits for its confirmation.",
            0 if change is None else 1,
        )


def _counters(outcomes: dict[tuple[str, str], int]) -> Metric:
    family = CounterMetricFamily(
        "virtgauge_control_operations",
        "Operations run, by outcome: changed, unchanged, read, dry-run, or the kind of the error.",
        labels=["operation", "outcome"],
    )
    for (operation, outcome), count in sorted(outcomes.items()):
        family.add_metric([operation, outcome], count)
    return family


def _histograms(rows: dict[str, list[int]], seconds: dict[str, float]) -> Metric:
    family = HistogramMetricFamily(
        "virtgauge_control_operation_duration_seconds", "Time an operation took, in seconds.", labels=["operation"]
    )
    for operation, row in sorted(rows.items()):
        family.add_metric([operation], list(_cumulative(row)), seconds[operation])
    return family


def _cumulative(row: Iterable[int]) -> Iterator[tuple[str, float]]:
    total = 0
    for bound, count in zip((*map(str, _BUCKETS_S), "+Inf"), row, strict=True):
        total += count
        yield bound, total
