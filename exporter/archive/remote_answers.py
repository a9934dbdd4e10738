"""Answers Prometheus's remote-read queries out of the archive.

A series has the name and labels of the page (`domain`, `target_device`, `vcpu`) and `job` and `instance`, so that it
goes on where Prometheus's own ends. Where only roll-ups are left, a gauge's mean is repeated within its point and a
counter's growth is drawn as a line, since PromQL finds no sample older than five minutes.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

import numpy as np

from exporter.archive.document_reader import ANSWER_S, Database, Unsealed, Unsent
from exporter.archive.documents import FIVE_MINUTES, HOURLY, RAW, RESOLUTIONS, Column, Resolution
from exporter.archive.domain_lookup import ArchivedDomain, all_domains
from exporter.archive.history import History
from exporter.archive.history_fields import HistoryField, HistoryFields
from exporter.archive.history_parts import Part
from exporter.archive.points import Floats, Points
from exporter.archive.timespan import Span
from exporter.archive.unsent import MOST_S
from exporter.errors import UsageError
from exporter.remote_read import Query, TimeSeries

MOST_SAMPLES = 5_000_000
"""In one answer; a sample is 18 bytes in it."""
DEFAULT_LABELS = {"job": "virtgauge", "instance": "{host}"}
"""`{host}` becomes the host's name. Those of the URL's query come on top, an empty one leaves its label out."""
# Below PromQL's look-back of 300 s, which Prometheus 3 counts without its older end.
_REPEAT_S = 240.0
_NEWEST_S = 600.0


@dataclass(frozen=True, slots=True)
class RemoteAnswers:
    """Answers from one database. Any thread; blocks.

    `waiting_since_s` is the time of the oldest sample that the database does not have: while it takes none, it does
    not learn either which guests are still there.
    """

    database: Database
    fields: HistoryFields
    unsealed: Unsealed | None = None
    in_scope: Callable[[str], bool] = lambda _: True
    waiting_since_s: float = float("inf")

    def answer(self, queries: Sequence[Query], labels: Mapping[str, str]) -> list[list[TimeSeries]]:
        """The series of each query; `labels` are added to all.

        Raises UsageError where a query asks for too much, HistoryError where the database fails.
        """
        budget = _Budget()
        return [list(self._series(query, {**DEFAULT_LABELS, **labels}, budget)) for query in queries]

    def _series(self, query: Query, labels: Mapping[str, str], budget: _Budget) -> Iterator[TimeSeries]:
        budget.check_time()
        if query.end_ms < query.start_ms or query.end_ms < 0:
            return
        # Both ends of a query are inclusive.
        span = Span(max(0, query.start_ms) / 1000, (query.end_ms + 1) / 1000)
        fields = [field for field in self.fields if _may_match(query, {"__name__": field.metric}, ())]
        if not fields:
            return
        for domain in all_domains(self.database):
            budget.check_time()
            if not self.in_scope(domain.name):
                continue
            own = _domain_labels(domain, labels)
            wanted = [f for f in fields if _may_match(query, {"__name__": f.metric, **own}, (f.device_label,))]
            if wanted and (domain.seen_in(span) or domain.may_wait(span, self.waiting_since_s)):
                yield from self._domain_series(query, domain, wanted, own, span, budget)

    def _domain_series(
        self,
        query: Query,
        domain: ArchivedDomain,
        fields: Sequence[HistoryField],
        own: Mapping[str, str],
        span: Span,
        budget: _Budget,
    ) -> Iterator[TimeSeries]:
        resolution = wanted_resolution(query)
        # A counter's value stands at the end of its point: the first one is that of the point before.
        earlier = Span(max(0.0, span.start_s - resolution.step_s), span.end_s)
        found = History(self.database, budget.within(self.unsealed)).parts(domain.uuid, fields, earlier, resolution)
        for (field, device), points in found.points.items():
            labels = {"__name__": field.metric, **own}
            if field.device_label:
                labels[field.device_label] = device
            if query.matches(labels):
                times_s, values = _samples(field, points, found.parts, query.function)
                inside = (times_s >= span.start_s) & (times_s < span.end_s)
                times_s, values = times_s[inside], values[inside]
                budget.spend(len(values))
                if len(values):
                    yield TimeSeries(labels, np.rint(times_s * 1000).astype(np.int64), values)


@dataclass(slots=True)
class _Budget:
    """What all queries of one request may still give."""

    left: int = MOST_SAMPLES
    until_s: float = dataclasses.field(default_factory=lambda: time.monotonic() + ANSWER_S)
    spool_s: float = MOST_S

    def within(self, unsealed: Unsealed | None) -> Unsealed | None:
        """What the spool holds of the whole span, until that took too long: then of its newest minutes only."""
        def bounded(uuid: UUID, span: Span, columns: Sequence[Column]) -> Unsent:
            assert unsealed is not None
            begun_s = time.monotonic()
            if self.spool_s <= 0:
                end_s = min(span.end_s, time.time())
                span = Span(max(span.start_s, end_s - _NEWEST_S), span.end_s)
            found = unsealed(uuid, span, columns)
            self.spool_s -= time.monotonic() - begun_s
            return found

        return bounded if unsealed is not None else None

    def check_time(self) -> None:
        if time.monotonic() > self.until_s:
            raise UsageError(
                f"the remote-read query took longer than {ANSWER_S:g} s; name a domain or ask for a shorter span"
            )

    def spend(self, samples: int) -> None:
        self.left -= samples
        if self.left < 0:
            raise UsageError(
                f"the remote-read query asks for more than {MOST_SAMPLES} samples; "
                "name a domain, ask for a shorter span or take a longer step"
            )


def wanted_resolution(query: Query) -> Resolution:
    """Raw, unless the range or step that Prometheus hints at holds two coarser points."""
    window_s = query.range_ms / 2000 if query.range_ms else query.step_ms / 1000
    if window_s >= HOURLY.step_s:
        return HOURLY
    return FIVE_MINUTES if window_s >= FIVE_MINUTES.step_s else RAW


def _may_match(query: Query, labels: Mapping[str, str], unknown: Iterable[str]) -> bool:
    """Whether a series can match of which only these labels are known; `unknown` are labels it will have."""
    return all(
        matcher.matches(labels.get(matcher.name, ""))
        for matcher in query.matchers
        if matcher.name in labels or (unknown and matcher.name not in unknown)
    )


def _domain_labels(domain: ArchivedDomain, labels: Mapping[str, str]) -> dict[str, str]:
    added = {name: text.replace("{host}", domain.host_name) for name, text in labels.items()}
    return {"domain": domain.name, **{name: text for name, text in added.items() if text}}


def _samples(
    field: HistoryField, points: Points, parts: Sequence[Part], function: str
) -> tuple[Floats, Floats]:
    """Times and values of one series, ascending."""
    times: list[Floats] = []
    values: list[Floats] = []
    for part in parts:
        step_s = next(r.step_s for r in RESOLUTIONS if r.name == part.resolution)
        # A point in whose middle a part begins belongs to it.
        mine = points.between(part.start_s - max(0.0, step_s - 0.001), part.end_s).known()
        chosen = _chosen(mine, function)
        if step_s:
            more = _as_line if field.is_counter else _repeated
            found = more(mine.times_s, chosen, float(step_s))
        else:
            found = mine.times_s, chosen
        after = times[-1][-1] if times and len(times[-1]) else -np.inf
        later = found[0] > after
        times.append(found[0][later])
        values.append(found[1][later])
    return (np.concatenate(times), np.concatenate(values)) if times else (np.empty(0), np.empty(0))


def _chosen(points: Points, function: str) -> Floats:
    """The extreme where PromQL looks for it, so that a spike within a roll-up's point is found."""
    if function == "max_over_time":
        return points.maximum
    return points.minimum if function == "min_over_time" else points.average


def _repeated(times_s: Floats, values: Floats, step_s: float) -> tuple[Floats, Floats]:
    offsets = np.arange(0.0, step_s, _REPEAT_S)
    return (times_s[:, np.newaxis] + offsets).ravel(), np.repeat(values, len(offsets))


def _as_line(times_s: Floats, values: Floats, step_s: float) -> tuple[Floats, Floats]:
    """A counter's value stands at the end of its point; between two ends it grows evenly, across a gap not at all."""
    if not len(times_s):
        return times_s, values
    ends_s = times_s + step_s
    inner = np.arange(_REPEAT_S, step_s, _REPEAT_S)
    near = np.flatnonzero(np.diff(ends_s) <= 1.5 * step_s)
    between_s = (ends_s[near, np.newaxis] + inner).ravel()
    every_s = np.sort(np.concatenate((ends_s, between_s)))
    return every_s, np.interp(every_s, ends_s, values)
