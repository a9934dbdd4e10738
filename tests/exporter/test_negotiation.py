"""Which format and encoding a scraper gets."""

from __future__ import annotations

import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter import negotiation
from exporter.negotiation import Exposition, Format, accepts_gzip, negotiate_format

TEXT, OM1, OM0 = Exposition.TEXT_0_0_4, Exposition.OPENMETRICS_1_0_0, Exposition.OPENMETRICS_0_0_1
OM = "application/openmetrics-text"
PROMETHEUS_2 = f"{OM};version=1.0.0,{OM};version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
PROMETHEUS_3 = (
    f"{OM};version=1.0.0;escaping=allow-utf-8;q=0.5,{OM};version=0.0.1;q=0.4,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)


@pytest.mark.parametrize(
    ("accept", "exposition"),
    [
        (None, TEXT),
        ("", TEXT),
        ("garbage", TEXT),
        (";;;,,,=", TEXT),
        ("*/*", TEXT),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", TEXT),
        ("application/json", TEXT),
        (PROMETHEUS_2, OM1),
        (PROMETHEUS_3, OM1),
        (f"{OM};version=1.0.0;q=0.1,text/plain;version=0.0.4;q=0.9", TEXT),
        (f"text/plain;q=0.9, {OM};q=0.1", TEXT),
        (f"{OM};version=7.0.0", TEXT),
        (f"{OM};version=7.0.0,text/plain;version=0.0.4;q=0.1", TEXT),
        (f"{OM};version=2.0.0,{OM};version=0.0.1;q=0.5", OM0),
        (OM, OM1),
        ("application/*", OM1),
        ("text/*;q=0.5,application/*", OM1),
        (f"{OM};version=1.0.0;q=0,{OM};q=0.5", OM0),
        (f"{OM};q=0,*/*", TEXT),
        ("text/plain;q=0,*/*", OM1),
        ("text/plain;q=0", TEXT),
        (f"{OM};version=1.0.0;q=2,text/plain;q=0.1", TEXT),
        (f"{OM};version=1.0.0;q=abc", TEXT),
        (f'{OM}; version="1.0.0" ; q=1.000', OM1),
        (f"{OM.upper()}; VERSION=1.0.0", OM1),
        (f"*/*,{OM};version=0.0.1", OM0),
        (f"{OM},text/plain", OM1),
        (f"text/plain,{OM}", TEXT),
        ("text/plain;version=1.0.0", TEXT),
        (f'x/y;a="b,{OM}"', TEXT),
    ],
)
def test_formats(accept, exposition):
    assert negotiate_format(accept).exposition is exposition


@pytest.mark.parametrize("scheme", ["allow-utf-8", "underscores", "dots", "values"])
def test_the_escaping_asked_for_is_echoed(scheme):
    answer = negotiate_format(f"{OM};version=1.0.0;escaping={scheme};q=0.5,text/plain;version=0.0.4;q=0.2")
    assert answer.content_type == f"{OM}; version=1.0.0; charset=utf-8; escaping={scheme}"


def test_an_unknown_escaping_is_not_echoed():
    assert negotiate_format("text/plain;version=0.0.4;escaping=rot13") == Format()


def test_content_types():
    assert Format().content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert Format(OM0).content_type == f"{OM}; version=0.0.1; charset=utf-8"
    assert [Format(exposition).openmetrics for exposition in (TEXT, OM1, OM0)] == [False, True, True]


@pytest.mark.parametrize(
    ("header", "gzip"),
    [
        (None, False),
        ("", False),
        ("gzip", True),
        ("x-gzip", True),
        ("GZIP;q=0.5", True),
        ("gzip;q=0", False),
        ("gzip;q=0.0, *", False),
        ("*", True),
        ("*;q=0", False),
        ("identity", False),
        ("identity, gzip", True),
        ("identity;q=1, gzip;q=0.5", False),
        ("br, zstd, deflate", False),
        ("deflate, gzip;q=1.0, *;q=0.5", True),
        ("gzip;q=high", False),
    ],
)
def test_gzip(header, gzip):
    assert accepts_gzip(header) is gzip


HOSTILE = [",", "a;", '",', 'a,"', 'a;b="', '"', 'x="a,"']


@pytest.mark.parametrize("piece", HOSTILE)
def test_a_hostile_header_takes_work_in_proportion_to_its_length(piece):
    """An expression that looks ahead from each comma took up to 13 s, in which nobody else was served."""

    def steps(header):
        counted = 0

        def count(_frame, _event, _argument):
            nonlocal counted
            counted += 1
            return count

        sys.settrace(count)
        try:
            negotiate_format(header)
            accepts_gzip(header)
        finally:
            sys.settrace(None)
        return counted

    few, many = (steps(piece * (length // len(piece))) for length in (1000, 16_000))
    assert many < 20 * few


def test_no_expression_of_the_negotiation_looks_ahead():
    """What goes on inside an expression is in no trace."""
    expressions = [value.pattern for value in vars(negotiation).values() if isinstance(value, re.Pattern)]
    assert expressions
    assert not [pattern for pattern in expressions if "(?" in pattern or "*" in pattern]


@given(st.text(alphabet='*/;=,."q01 gziptexplan', max_size=200))
def test_any_header_gets_an_answer(header):
    assert negotiate_format(header).content_type
    assert accepts_gzip(header) in (True, False)
