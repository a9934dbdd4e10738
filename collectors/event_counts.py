"""Domain events as counters, by name: nothing is polled, the listener tells."""

from __future__ import annotations

import threading
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


class EventCounts:
    """Counts what an EventListener tells (``heard``, in its thread) and gives it to the sampler (``records``).

    ``connected`` says whether the listener hears anything.  Domains that are gone are forgotten, with their counts.
    """

    collector = EVENTS.name

    def __init__(self, connected: Callable[[], bool] = lambda: True) -> None:
        self._connected = connected
        self._lock = threading.Lock()
        self._counts: dict[str, dict[tuple[str, str], int]] = {}

    def heard(self, event: Event) -> None:
        """Count an event.  Any thread."""
        name, detail = names_of(event)
        pair = (name, detail or _NO_DETAIL)
        with self._lock:
            counts = self._counts.setdefault(event.uuid, dict.fromkeys(FROM_ZERO, 0))
            if pair in counts or len(counts) < MOST_PAIRS:
                counts[pair] = counts.get(pair, 0) + 1

    def succeeded(self) -> bool:
        """Whether events are heard at present."""
        return self._connected()

    def records(self, domains: Mapping[str, str], at_s: float) -> Iterable[Record]:
        """A Record for each domain (uuid to name), with counts of what happened to it by monotonic time ``at_s``."""
        with self._lock:
            self._counts = {uuid: self._counts.get(uuid) or dict.fromkeys(FROM_ZERO, 0) for uuid in domains}
            counts = {uuid: dict(sorted(pairs.items())) for uuid, pairs in self._counts.items()}
        for uuid, pairs in counts.items():
            subject = Subject("domain", (uuid, "events"), (("domain", domains[uuid]),))
            yield Record(subject, "events", _stats(pairs), at_s)


def _stats(pairs: Mapping[tuple[str, str], int]) -> dict[str, Value]:
    stats: dict[str, Value] = {}
    places: dict[str, int] = {}
    for (name, detail), count in pairs.items():
        place = places.setdefault(name, len(places))
        stats[f"events.{place}.name"] = name
        number = sum(1 for key in stats if key.startswith(f"events.{place}.") and key.endswith(".count"))
        stats[f"events.{place}.{number}.name"] = detail
        stats[f"events.{place}.{number}.count"] = count
    return stats
