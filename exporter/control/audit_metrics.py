"""How far the archive of the audit trail is: virtgauge_control_audit_* on the control service's metrics page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector


class TrailNumbers(Protocol):
    """Records spooled and stored since the start, those that wait, and why where the database takes none."""

    @property
    def spooled(self) -> int: ...
    @property
    def stored(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def fault(self) -> str | None: ...


class AuditMetrics(Collector):
    """Registered where the trail is archived. `state` gives the numbers now; any thread."""

    def __init__(self, state: Callable[[], TrailNumbers]) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        """The families; called by the page."""
        state = self._state()
        yield CounterMetricFamily(
            "virtgauge_control_audit_spooled_records",
            "Records of the audit trail that are in the spool for the archive.", state.spooled,
        )  # fmt: skip
        yield CounterMetricFamily(
            "virtgauge_control_audit_stored_records",
            "Records of the audit trail that the archive's database acknowledged.", state.stored,
        )  # fmt: skip
        yield GaugeMetricFamily(
            "virtgauge_control_audit_waiting_records",
            "Records of the audit trail that the archive's database does not have, at most.", state.waiting,
        )  # fmt: skip
        yield GaugeMetricFamily(
            "virtgauge_control_audit_archive_ok",
            "Whether the archive's database takes the audit trail.", 0 if state.fault else 1,
        )  # fmt: skip
