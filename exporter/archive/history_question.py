"""A question for history in words, as the command line and the HTTP API get it, and its answer as flat rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from exporter.archive.document_reader import Database, Unsealed
from exporter.archive.domain_lookup import ArchivedDomain, find_domain
from exporter.archive.history import MOST_ASKED_POINTS, MOST_POINTS, History, Reading, resolution_text
from exporter.archive.history_fields import HistoryFields
from exporter.archive.timespan import iso, parse_moment, parse_span, parse_step
from exporter.errors import UsageError

DEFAULT_FIELD = "cpu.usage"
DEFAULT_SINCE = "1h"

Row = dict[str, str | float | None]
"""`time`, `domain`, `host`, `field`, `device`, `min`, `avg`, `max`; None in a gap."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, unchecked; `step` and `points` empty where nothing is said."""

    domain: str
    fields: tuple[str, ...] = ()
    since: str = ""
    until: str = ""
    step: str = ""
    points: str = ""
    host: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """`domain` and what was read of it."""

    domain: ArchivedDomain
    reading: Reading

    @property
    def resolution(self) -> str:
        """What was read from, for people."""
        return resolution_text(self.reading)

    @property
    def row_count(self) -> int:
        """How many rows there are."""
        return sum(len(series.points) for series in self.reading.series)

    def rows(self) -> Iterator[Row]:
        """One flat row a point, series by series."""
        for series in self.reading.series:
            points = series.points
            for time_s, low, mean, high in zip(
                points.times_s.tolist(),
                points.minimum.tolist(),
                points.average.tolist(),
                points.maximum.tolist(),
                strict=True,
            ):
                yield {
                    "time": iso(time_s),
                    "domain": self.domain.name,
                    "host": self.domain.host_name,
                    "field": series.field.name,
                    "device": series.device,
                    "min": _number(low),
                    "avg": _number(mean),
                    "max": _number(high),
                }


def absolute(question: Question, now_s: float) -> Question:
    """The question with its times in seconds since the epoch, so that it means the same later and elsewhere.

    Raises UsageError where they are not understood; one that ends before it starts is left for whoever answers it.
    """
    since = parse_moment(question.since or DEFAULT_SINCE, now_s)
    until = parse_moment(question.until or "now", now_s)
    if since >= until:
        return question
    return replace(question, since=f"{since:.3f}", until=f"{until:.3f}")


def ask(
    database: Database,
    fields: HistoryFields,
    question: Question,
    now_s: float,
    unsealed: Unsealed | None = None,
    may_be_named: Callable[[str], bool] = lambda _: True,
) -> Answer:
    """The answer; raises UsageError for a question that makes no sense, HistoryError where the database fails.

    `may_be_named` tells of a domain's name whether an error may hold it.
    """
    span = parse_span(question.since or DEFAULT_SINCE, question.until or "now", now_s)
    wanted = fields.all_named(question.fields or (DEFAULT_FIELD,))
    step_s = parse_step(question.step) if question.step else None
    most_points = _points(question.points)
    domain = find_domain(database, question.domain, span, question.host or None, may_be_named)
    return Answer(domain, History(database, unsealed).read(domain.uuid, wanted, span, step_s, most_points))


def _points(text: str) -> int:
    if not text:
        return MOST_POINTS
    if not (text.isascii() and text.isdigit() and 2 <= int(text[:9]) <= MOST_ASKED_POINTS and len(text) < 9):
        raise UsageError(f"points {text[:60]!r} is not a number from 2 to {MOST_ASKED_POINTS}")
    return int(text)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
