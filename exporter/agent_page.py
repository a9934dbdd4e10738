"""The guest agents' part of the control service's metrics page: reads them beside everything else."""

from __future__ import annotations

import threading
import time

import numpy as np

from collectors.agent import AGENT
from collectors.agent_reading import AgentSource
from collectors.background import Background
from collectors.batch import Builder
from collectors.events import Event, EventListener
from collectors.fields import Collector
from collectors.periodic import Scope
from collectors.sampling import sampling
from collectors.snapshot import Record, Snapshot, Subject, Value

from .exposition import Exposition

# What makes a domain's agent be asked at once: it may have come, gone, or begun to answer.
HASTENING = ("lifecycle", "agent_lifecycle")


def agent_declarations() -> tuple[Collector, ...]:
    """The agent's own families, and of the sampling's those that tell how its reading went."""
    told = tuple(d for d in sampling((AGENT,)).declarations if d.name.startswith("libvirt_scrape_collector_"))
    return Collector("sampling", "How the reading of the agents went.", told), AGENT


class AgentEvents:
    """What domain events mean for the reading: an agent that may have come or gone is asked at once."""

    def __init__(self, source: AgentSource, background: Background) -> None:
        self._source = source
        self._background = background

    def invalidate(self, uuid: str) -> None:
        """Nothing: most events (a balloon's, a disk's) say nothing of the agent; see ``heard``."""

    def invalidate_all(self) -> None:
        """Events may have been missed."""
        self._source.invalidate_all()
        self._background.hasten(AGENT.name)

    def heard(self, event: Event) -> None:
        """One event, in the listener's thread."""
        if event.kind in HASTENING:
            self._source.invalidate(event.uuid)
            self._background.hasten(AGENT.name)


class AgentPage:
    """Renders what the agents told. ``start`` and ``stop`` from the main thread; ``page`` from any, never waits."""

    def __init__(self, background: Background, builder: Builder, events: EventListener) -> None:
        self._background = background
        self._builder = builder
        self._events = events
        self._lock = threading.Lock()
        self._exposition = Exposition(builder.catalogue.families)
        self._sequence = 0

    def start(self) -> None:
        """Start the threads; libvirt need not be there yet."""
        self._events.start()
        self._background.start()
        self._background.saw(Scope())

    def stop(self) -> None:
        """End the threads; waits for no call."""
        self._background.stop()
        self._events.stop(1.0)

    def page(self, openmetrics: bool) -> bytes:
        """The families' text, without an end mark."""
        with self._lock:
            batch = self._builder.batch(self._snapshot())
            self._exposition.update(batch, np.full(batch.plan.formulas, np.nan))
            return self._exposition.openmetrics() if openmetrics else self._exposition.text()

    def _snapshot(self) -> Snapshot:
        now_s = time.monotonic()
        self._sequence += 1
        records = [*self._background.kept(), *self._own(now_s)]
        return Snapshot(self._sequence, now_s, now_s, time.time(), True, tuple(records))

    def _own(self, now_s: float) -> list[Record]:
        stats: dict[str, Value] = {}
        for name, (success, duration_s) in self._background.status().items():
            stats[f"collector.{name}.success"] = success
            stats[f"collector.{name}.duration_seconds"] = duration_s
        return [Record(Subject("exporter", (), ()), "sampling", stats, now_s)]
