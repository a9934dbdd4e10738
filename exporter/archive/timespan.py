"""Spans of time as people write them: `24h`, `2026-11-22`, `2026-11-22T10:00`, `now`, seconds since the epoch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo

from exporter.errors import UsageError
from exporter.setting_types import parse_duration

# 2000-01-01: a number below it is a duration in seconds, one above it a time.
_OLDEST_EPOCH_S = 946_684_800.0
# 9999-12-31, the last day that a date can hold.
_LATEST_EPOCH_S = 253_402_300_799.0
_FORM = "write it like 24h, 7d, 2026-11-22T10:00, 2026-11-22T10:00Z or now"


@dataclass(frozen=True, slots=True)
class Span:
    """From `start_s` up to but without `end_s`, seconds since the epoch."""

    start_s: float
    end_s: float

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s


def parse_moment(text: str, now_s: float, zone: tzinfo | None = None) -> float:
    """Seconds since the epoch; a duration counts back from `now_s`, a time without a zone is in `zone`.

    `zone` None is the system's own. Raises UsageError for anything else.
    """
    word = text.strip()
    if word == "now":
        return now_s
    if re.fullmatch(r"\d+(\.\d+)?", word) and float(word) >= _OLDEST_EPOCH_S:
        # Grafana and JavaScript write milliseconds.
        return _bounded(float(word) / (1000 if float(word) > _LATEST_EPOCH_S else 1), text)
    try:
        return _bounded(now_s - parse_duration(word), text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(word)
    except ValueError:
        raise UsageError(f"time {text[:60]!r} is not understood; {_FORM}") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=zone) if zone else moment.astimezone()
    return _bounded(moment.timestamp(), text)


def parse_span(since: str, until: str, now_s: float, zone: tzinfo | None = None) -> Span:
    """The span; raises UsageError where it ends before it starts, or a part of it is not understood."""
    span = Span(parse_moment(since, now_s, zone), parse_moment(until, now_s, zone))
    if span.start_s >= span.end_s:
        raise UsageError(
            f"the span ends before it starts: since {since[:60]!r} is {iso(span.start_s)}, "
            f"until {until[:60]!r} is {iso(span.end_s)}; exchange them or move one"
        )
    return span


def parse_step(text: str) -> float:
    """Seconds between points; raises UsageError for anything that is not a duration of at least 1 s."""
    try:
        step_s = parse_duration(text)
    except ValueError as error:
        raise UsageError(f"step {text[:60]!r} {error}") from None
    if not 1 <= step_s <= 366 * 86400:
        raise UsageError(f"step {text[:60]!r} is not between 1s and 366d; write it like 30s, 5m or 1h")
    return step_s


def iso(epoch_s: float) -> str:
    """ISO 8601 in UTC, to the millisecond where there are any: `2026-11-22T10:00:00Z`."""
    moment = datetime.fromtimestamp(round(epoch_s, 3), UTC)
    return moment.isoformat(timespec="milliseconds" if moment.microsecond else "seconds").replace("+00:00", "Z")


def _bounded(epoch_s: float, text: str) -> float:
    if not 0 <= epoch_s <= _LATEST_EPOCH_S:
        raise UsageError(f"time {text[:60]!r} is not between 1970 and 9999; {_FORM}")
    return epoch_s
