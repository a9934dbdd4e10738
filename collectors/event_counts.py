"""Domain events as counters, by name: nothing is polled, the listener tells."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from .event_names import names_of
from .events import Event
from .fields import Collector, Field, Kind
from .snapshot import Record, Subject, Value

EVENTS = Collector(
    name="events",
    help="Events of each domain, counted by name and detail while virtgauge runs.",
    declarations=(
        Field("events.<n>.<m>.count", "libvirt_domain_events_total", Kind.COUNTER,
              "Events of the domain since virtgauge started, by libvirt's name and detail; what happened while libvirt "
              "did not answer is missed (virConnectDomainEventRegisterAny, events.<n>.<m>.count, count).",
              label="event", label_key="events.<n>.name", inner_label="detail", inner_label_key="events.<n>.<m>.name",
              since="0.8.0"),
    ),
)

FROM_ZERO = (("crashed", "panicked"), ("stopped", "crashed"), ("stopped", "failed"), ("suspended", "io_error"),
             ("suspended", "watchdog"))
"""Counted from 0 for each domain, so that an alert on an increase sees the first one, too."""
MOST_PAIRS = 200
"""Most names with details that are kept of a domain; more would be somebody's odd driver."""
_NO_DETAIL = "none"

_Kept = tuple[Subject, Mapping[str, Value]]


class EventCounts:
    """Counts what an EventListener tells (``heard``, in its thread) and gives it to the sampler (``records``).

    ``connected`` says whether the listener hears anything.  Domains that are gone are forgotten, with their counts.
    """

    collector = EVENTS.name

    def __init__(self, connected: Callable[[], bool] = lambda: True) -> None:
        self._connected = connected
        self._lock = threading.Lock()
        self._counts: dict[str, dict[tuple[str, str], int]] = {}
        self._kept: dict[str, _Kept] = {}  # what the page says of each domain, until an event or another name

    def heard(self, event: Event) -> None:
        """Count an event.  Any thread."""
        name, detail = names_of(event)
        pair = (name, detail or _NO_DETAIL)
        with self._lock:
            counts = self._counts.setdefault(event.uuid, dict.fromkeys(FROM_ZERO, 0))
            if pair in counts or len(counts) < MOST_PAIRS:
                counts[pair] = counts.get(pair, 0) + 1
                self._kept.pop(event.uuid, None)

    def succeeded(self) -> bool:
        """Whether events are heard at present."""
        return self._connected()

    def records(self, domains: Mapping[str, str], at_s: float) -> Iterable[Record]:
        """A Record for each domain (uuid to name), with counts of what happened to it by monotonic time ``at_s``."""
        with self._lock:
            self._counts = {uuid: self._counts.get(uuid) or dict.fromkeys(FROM_ZERO, 0) for uuid in domains}
            self._kept = {uuid: self._known(uuid, name) for uuid, name in domains.items()}
            kept = tuple(self._kept.values())
        return [Record(subject, "events", stats, at_s) for subject, stats in kept]

    def _known(self, uuid: str, name: str) -> _Kept:
        labels = (("domain", name),)
        known = self._kept.get(uuid)
        if known is not None and known[0].labels == labels:
            return known
        return Subject("domain", (uuid, "events"), labels), _stats(dict(sorted(self._counts[uuid].items())))


def _stats(pairs: Mapping[tuple[str, str], int]) -> dict[str, Value]:
    stats: dict[str, Value] = {}
    places: dict[str, int] = {}
    details: Counter[str] = Counter()
    for (name, detail), count in pairs.items():
        place = places.setdefault(name, len(places))
        stats[f"events.{place}.name"] = name
        stats[f"events.{place}.{details[name]}.name"] = detail
        stats[f"events.{place}.{details[name]}.count"] = count
        details[name] += 1
    return stats
