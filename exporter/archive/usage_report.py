"""What guests used of what they have: the numbers of `virtgauge report`, out of the archive.

CPU in cores against vCPUs, memory in bytes against what the balloon leaves; p50 and p95 are of the points' means and
max is the highest sample, so that a spike shows. What the archive does not hold is None.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from exporter.archive.document_reader import Database
from exporter.archive.domain_lookup import ArchivedDomain
from exporter.archive.history import History, Series
from exporter.archive.history_fields import HistoryFields
from exporter.archive.points import Floats
from exporter.archive.timespan import Span

_FIELDS = (
    "cpu.usage_cores", "domain.virtual_cpus", "vcpu.steal_ratio", "memory.usage_bytes", "memory.available_bytes",
    "memory.usable_bytes", "memory.rss_bytes", "block.read_bytes_per_second", "block.write_bytes_per_second",
    "block.allocation_bytes", "block.capacity_bytes", "interface.receive_bytes_per_second",
    "interface.transmit_bytes_per_second",
)  # fmt: skip
_DAY_S = 86400.0
# A line through less than this says nothing about days.
_LEAST_GROWTH_S = 3600.0
_LEAST_GROWTH_POINTS = 10
# Never above half of what is allotted: it could do with less.
OVERSIZED_SHARE = 0.5
UNDERSIZED_SHARE = 0.9
# A guest that waits this share of the time for a pCPU has a noisy neighbour, or a host that is too small.
STEAL_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Of one quantity over the span, in its unit."""

    p50: float
    p95: float
    max: float


@dataclass(frozen=True, slots=True)
class DeviceTraffic:
    """`mean` and `max` in bytes a second, both directions together."""

    device: str
    mean: float
    max: float


@dataclass(frozen=True, slots=True)
class DiskGrowth:
    """`bytes_per_day` by a straight line through the span; `days_to_full` None where it does not grow."""

    device: str
    allocation_bytes: float
    capacity_bytes: float
    bytes_per_day: float
    days_to_full: float | None


@dataclass(frozen=True, slots=True)
class GuestReport:
    """One guest over the span. `steal` is the mean and the highest share over all its vCPUs."""

    domain: ArchivedDomain
    cpu_cores: Quantiles | None
    vcpus: float | None
    memory_bytes: Quantiles | None
    allotted_bytes: float | None
    steal: Quantiles | None
    disks: tuple[DeviceTraffic, ...]
    interfaces: tuple[DeviceTraffic, ...]
    growth: tuple[DiskGrowth, ...]

    @property
    def advice(self) -> list[str]:
        """What an operator could do, in words; empty where all is well or unknown."""
        return [
            *_size_advice("CPU", self.cpu_cores, self.vcpus),
            *_size_advice("memory", self.memory_bytes, self.allotted_bytes),
            *(["waits for pCPUs"] if self.steal and self.steal.p95 > STEAL_SHARE else []),
            *(f"{g.device} full in {g.days_to_full:.0f} d" for g in self.growth if (g.days_to_full or 1e9) < 30),
        ]


def guest_reports(
    database: Database, fields: HistoryFields, domains: Sequence[ArchivedDomain], span: Span
) -> Iterator[GuestReport]:
    """One report a domain, as they are read; raises HistoryError."""
    history = History(database)
    wanted = fields.all_named(_FIELDS)
    for domain in domains:
        reading = history.read(domain.uuid, wanted, span)
        found: dict[str, list[Series]] = {}
        for series in reading.series:
            found.setdefault(series.field.name, []).append(series)
        yield _report(domain, found)


def _report(domain: ArchivedDomain, found: dict[str, list[Series]]) -> GuestReport:
    return GuestReport(
        domain,
        _quantiles(found.get("cpu.usage_cores", ())),
        _latest(found.get("domain.virtual_cpus", ())),
        _memory(found),
        _latest(found.get("memory.usage_bytes", ())),
        _quantiles(found.get("vcpu.steal_ratio", ())),
        _traffic(found, "block.read_bytes_per_second", "block.write_bytes_per_second"),
        _traffic(found, "interface.receive_bytes_per_second", "interface.transmit_bytes_per_second"),
        _growth(found),
    )


def _quantiles(series: Sequence[Series]) -> Quantiles | None:
    means = [one.points.known().average for one in series]
    if not means or not sum(map(len, means)):
        return None
    p50, p95 = np.quantile(np.concatenate(means), (0.5, 0.95))
    return Quantiles(float(p50), float(p95), float(max(_top(one) for one in series if len(one.points.known()))))


def _top(series: Series) -> float:
    return float(np.max(series.points.known().maximum))


def _latest(series: Sequence[Series]) -> float | None:
    known = [one.points.known() for one in series]
    values = [float(points.average[-1]) for points in known if len(points)]
    return values[0] if values else None


def _memory(found: dict[str, list[Series]]) -> Quantiles | None:
    """What the guest says it uses; without its figures what QEMU holds resident."""
    seen, usable = found.get("memory.available_bytes"), found.get("memory.usable_bytes")
    if seen and usable and (available := _latest(seen)) is not None:
        points = usable[0].points.known()
        if len(points):
            p50, p95 = np.quantile(available - points.average, (0.5, 0.95))
            return Quantiles(float(p50), float(p95), float(available - points.minimum.min()))
    return _quantiles(found.get("memory.rss_bytes", ()))


def _traffic(found: dict[str, list[Series]], *names: str) -> tuple[DeviceTraffic, ...]:
    """The devices with any traffic, the busiest first."""
    means: dict[str, float] = {}
    tops: dict[str, float] = {}
    for name in names:
        for series in found.get(name, ()):
            points = series.points.known()
            if len(points):
                mean = float(np.average(points.average, weights=points.count))
                means[series.device] = means.get(series.device, 0.0) + mean
                tops[series.device] = tops.get(series.device, 0.0) + float(points.maximum.max())
    busy = [DeviceTraffic(device, mean, tops[device]) for device, mean in means.items() if mean > 0]
    return tuple(sorted(busy, key=lambda traffic: -traffic.mean))


def _growth(found: dict[str, list[Series]]) -> tuple[DiskGrowth, ...]:
    capacities = {series.device: _latest([series]) for series in found.get("block.capacity_bytes", ())}
    disks = []
    for series in found.get("block.allocation_bytes", ()):
        points, capacity = series.points.known(), capacities.get(series.device)
        if len(points) < _LEAST_GROWTH_POINTS or np.ptp(points.times_s) < _LEAST_GROWTH_S or not capacity:
            continue
        per_day = _slope(points.times_s, points.average) * _DAY_S
        now = float(points.average[-1])
        days = max(0.0, capacity - now) / per_day if per_day > 0 else None
        disks.append(DiskGrowth(series.device, now, capacity, per_day, days))
    return tuple(disks)


def _slope(times_s: Floats, values: Floats) -> float:
    return float(np.polynomial.polynomial.polyfit(times_s - times_s[0], values, 1)[1])


def _size_advice(what: str, used: Quantiles | None, allotted: float | None) -> list[str]:
    if used is None or not allotted:
        return []
    if used.p95 > UNDERSIZED_SHARE * allotted:
        return [f"{what} too small"]
    return [f"{what} too large"] if used.max < OVERSIZED_SHARE * allotted else []
