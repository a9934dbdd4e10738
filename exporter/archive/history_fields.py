"""The names under which history is asked for, made from the collectors' tables.

A metric's name without `libvirt_domain_`, `info_` and `stats_`, with a dot behind the resource:
`libvirt_domain_block_read_bytes_per_second` is `block.read_bytes_per_second`. The metric's own name is understood
too, and so are the short words in ALIASES.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from collectors.fields import Collector, Computed, Field, Kind
from exporter.errors import UsageError
from exporter.nearest import nearest

ALIASES = {
    "cpu.usage": "cpu.usage_ratio",
    "cpu.cores": "cpu.usage_cores",
    "cpu.steal": "vcpu.steal_ratio",
    "memory.used": "memory.used_ratio",
    "memory.rss": "memory.rss_bytes",
    "disk.read": "block.read_bytes_per_second",
    "disk.write": "block.write_bytes_per_second",
    "disk.reads": "block.reads_per_second",
    "disk.writes": "block.writes_per_second",
    "network.receive": "interface.receive_bytes_per_second",
    "network.transmit": "interface.transmit_bytes_per_second",
}
"""Short words for what people ask most."""

_RESOURCES = ("cpu", "vcpu", "memory", "block", "interface")
_PREFIX = "libvirt_domain_"
_UNITS = (
    ("_bytes_per_second", "B/s"), ("_packets_per_second", "packets/s"), ("s_per_second", "requests/s"),
    ("_seconds_total", "s"), ("_bytes_total", "B"), ("_total", ""), ("_seconds", "s"), ("_bytes", "B"),
    ("_ratio", "ratio"), ("_cores", "cores"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class HistoryField:
    """One thing that can be asked for: a number of the archive, or a value made of two of them.

    `numerator` and `denominator` are the archived Fields that a computed value is made of; for an archived number
    `numerator` is that number. `unit` is empty for a plain count.
    """

    name: str
    declaration: Field | Computed
    numerator: Field
    denominator: Field | None = None

    @property
    def metric(self) -> str:
        """The Prometheus name."""
        return self.declaration.name

    @property
    def computed(self) -> Computed | None:
        return self.declaration if isinstance(self.declaration, Computed) else None

    @property
    def is_counter(self) -> bool:
        return self.declaration.kind is Kind.COUNTER

    @property
    def device_label(self) -> str:
        """`target_device`, `vcpu` or empty: what the field has one series for."""
        return self.declaration.label

    @property
    def resource(self) -> str:
        """`cpu`, `vcpu`, `memory`, `block`, `interface` or `domain`."""
        return self.name.partition(".")[0]

    @property
    def unit(self) -> str:
        return next((unit for ending, unit in _UNITS if self.metric.endswith(ending)), "")


class HistoryFields:
    """All that can be asked for, by name, alias and metric name. Frozen after construction; any thread."""

    def __init__(self, collectors: Iterable[Collector]) -> None:
        declarations = [d for c in collectors for d in c.declarations]
        archived = {d.source: d for d in declarations if isinstance(d, Field) and d.archive}
        self._by_name: dict[str, HistoryField] = {}
        for declaration in declarations:
            field = _history_field(declaration, archived)
            if field is not None:
                self._by_name.setdefault(field.name, field)
        self._by_metric = {field.metric: field for field in self._by_name.values()}

    def __iter__(self) -> Iterator[HistoryField]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    def named(self, name: str) -> HistoryField:
        """The field of a name, alias or metric name; raises UsageError naming the nearest."""
        wanted = name.strip()
        found = self._by_name.get(ALIASES.get(wanted, wanted)) or self._by_metric.get(wanted)
        if found is None:
            near = nearest(wanted, [*self._by_name, *ALIASES, *self._by_metric])
            raise UsageError(
                f"unknown history field {wanted[:80]!r}; the nearest is {near}; "
                "run 'virtgauge history --fields' for all"
            )
        return found

    def all_named(self, names: Sequence[str]) -> list[HistoryField]:
        """As `named` for several, each once; raises UsageError."""
        return list(dict.fromkeys(self.named(name) for name in names))


def _history_field(declaration: object, archived: dict[str, Field]) -> HistoryField | None:
    if isinstance(declaration, Field):
        # Two metrics may show one number (balloon.current): the archive holds it once, both names read it.
        numerator = archived.get(declaration.source)
        return HistoryField(short_name(declaration.name), declaration, numerator) if numerator else None
    if isinstance(declaration, Computed):
        numerator = archived.get(declaration.numerator)
        denominator = archived.get(declaration.denominator) if declaration.denominator else None
        if numerator is None or (declaration.denominator and denominator is None):
            return None
        return HistoryField(short_name(declaration.name), declaration, numerator, denominator)
    return None


def short_name(metric: str) -> str:
    """`block.read_bytes_total` for `libvirt_domain_block_stats_read_bytes_total`."""
    rest = re.sub(r"_?(stats|info)_", lambda found: "_" if found.group().startswith("_") else "",
                  metric.removeprefix(_PREFIX), count=1)
    resource, _, word = rest.partition("_")
    if resource in _RESOURCES and word:
        return f"{resource}.{word}"
    return f"domain.{rest}"
