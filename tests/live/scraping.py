"""Scrapes of an exporter under test: pages read by prometheus-client's parser, each scrape timed, the worst kept."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.live.servers import Server

TIMEOUT_S = 2.0
"""The scrape's deadline in these tests, as Prometheus tells it."""
MARGIN_S = 3.0
"""What a loaded machine may take besides until this process has the page: its own scheduling, not the exporter's."""

# Values computed from two samples: not there at first, nor where nothing moved.
_COMPUTED = ("_usage_cores", "_usage_ratio", "_steal_ratio", "_per_second", "_latency_seconds", "_used_ratio")

Series = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True)
class Page:
    """A page's values by series: (name, sorted labels)."""

    values: dict[Series, float]
    seconds: float

    def value(self, name: str, **labels: str) -> float | None:
        return self.values.get((name, tuple(sorted(labels.items()))))

    def labelled(self, name: str, label: str) -> set[str]:
        """The values of a label on a family's series."""
        return {dict(labels).get(label, "") for found, labels in self.values if found == name}

    def labelled_of(self, domain: str, label: str) -> set[str]:
        """The values of a label on all of a domain's series."""
        return {value for _, labels in self.values if ("domain", domain) in labels
                for name, value in labels if name == label}

    def of_domain(self, domain: str, computed: bool = False) -> set[Series]:
        """The series of a domain; ``computed`` includes rates and ratios."""
        return {(name, labels) for name, labels in self.values if ("domain", domain) in labels
                and (computed or not name.endswith(_COMPUTED))}

    def rates(self) -> dict[Series, float]:
        return {series: value for series, value in self.values.items() if series[0].endswith(_COMPUTED)}

    @property
    def up(self) -> bool:
        return self.value("libvirt_up") == 1

    @property
    def complete(self) -> dict[str, bool]:
        """Each running domain's completeness, by name."""
        return {dict(labels)["domain"]: value == 1 for (name, labels), value in self.values.items()
                if name == "libvirt_domain_sample_complete"}


@dataclass
class Scraper:
    """Scrapes one exporter; every scrape must be answered within the deadline (and the margin)."""

    server: Server
    timeout_s: float = TIMEOUT_S
    times_s: list[float] = field(default_factory=list)

    def scrape(self) -> Page:
        text, took_s = self.text()
        values = {(sample.name, tuple(sorted(sample.labels.items()))): sample.value
                  for family in text_string_to_metric_families(text) for sample in family.samples}
        return Page(values, took_s)

    def text(self) -> tuple[str, float]:
        """The page as it is, and the seconds it took."""
        start_s = time.monotonic()
        headers = {"X-Prometheus-Scrape-Timeout-Seconds": str(self.timeout_s)}
        text = self.server.get("/metrics", headers, timeout_s=self.timeout_s + MARGIN_S)
        took_s = time.monotonic() - start_s
        self.times_s.append(took_s)
        return text, took_s

    @property
    def worst_s(self) -> float:
        return max(self.times_s)

    def report(self, what: str) -> None:
        """Print the worst scrape, for docs/never-blocked.md; shown by pytest -rP and by make soak."""
        print(f"never-blocked: {what}: {len(self.times_s)} scrapes, worst {self.worst_s:.2f} s, "  # noqa: T201
              f"median {sorted(self.times_s)[len(self.times_s) // 2]:.3f} s")
        assert self.worst_s < self.timeout_s + MARGIN_S


@dataclass(frozen=True)
class Footprint:
    """What a process holds: RSS in MiB, threads, descriptors, and of these the sockets."""

    rss_mib: float
    threads: int
    descriptors: int
    sockets: int

    @classmethod
    def of(cls, pid: int) -> Footprint:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        sockets = descriptors = 0
        for entry in os.scandir(f"/proc/{pid}/fd"):
            try:
                sockets += os.readlink(entry.path).startswith("socket:")
            except OSError:
                continue
            descriptors += 1
        return cls(int(status["VmRSS"].split()[0]) / 1024, int(status["Threads"]), descriptors, sockets)
