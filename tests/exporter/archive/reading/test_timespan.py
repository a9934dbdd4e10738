"""Spans of time as people write them."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.archive.timespan import iso, parse_moment, parse_span, parse_step
from exporter.errors import UsageError

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", "2026-11-22T12:00:00Z"),
        ("24h", "2026-11-21T12:00:00Z"),
        ("1h30m", "2026-11-22T10:30:00Z"),
        ("7d", "2026-11-15T12:00:00Z"),
        ("90", "2026-11-22T11:58:30Z"),
        ("2026-11-20", "2026-11-20T00:00:00Z"),
        ("2026-11-20T10:30", "2026-11-20T10:30:00Z"),
        ("2026-11-20T10:30:00.250Z", "2026-11-20T10:30:00.250Z"),
        ("2026-11-20T10:30+02:00", "2026-11-20T08:30:00Z"),
        ("1795132800", "2026-11-20T00:00:00Z"),
        ("1795132800000", "2026-11-20T00:00:00Z"),
    ],
)
def test_a_moment_is_read(text, expected):
    assert iso(parse_moment(text, NOW, UTC)) == expected


def test_a_time_without_a_zone_is_the_callers():
    east = timezone(timedelta(hours=5))
    assert iso(parse_moment("2026-11-20T10:00", NOW, east)) == "2026-11-20T05:00:00Z"


@pytest.mark.parametrize("text", ["", "yesterday", "2026-13-01", "-5h", "1e400", "24hh", "99999y", "nan", "inf"])
def test_anything_else_is_refused_with_the_form(text):
    with pytest.raises(UsageError, match="write it like 24h"):
        parse_moment(text, NOW, UTC)


@given(st.text(max_size=40))
def test_no_text_crashes_it(text):
    with contextlib.suppress(UsageError):
        assert 0 <= parse_moment(text, NOW, UTC) < 253_402_300_800


def test_a_span_that_ends_before_it_starts_is_refused_with_both_ends():
    with pytest.raises(UsageError, match="since '1h' is 2026-11-22T11:00:00Z, until '2h' is 2026-11-22T10:00:00Z"):
        parse_span("1h", "2h", NOW, UTC)
    with pytest.raises(UsageError, match="ends before it starts"):
        parse_span("now", "now", NOW, UTC)


@pytest.mark.parametrize("text", ["0", "0.5s", "500d", "soon", ""])
def test_a_step_that_is_none_is_refused(text):
    with pytest.raises(UsageError, match="step"):
        parse_step(text)
