"""Remote read's messages: what Prometheus sends, whatever else somebody sends, and what would cost too much."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import pytest
from cramjam import snappy
from hypothesis import given
from hypothesis import strategies as st

from exporter.errors import UsageError
from exporter.remote_read import (
    MOST_MATCHERS,
    MOST_QUERIES,
    MOST_REQUEST_BYTES,
    Matcher,
    MatchType,
    Query,
    read_request,
)


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def message(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def packed(content: bytes) -> bytes:
    return bytes(snappy.compress_raw(content))


def a_query(matchers: Sequence[bytes] = (), end_ms: int = 1000) -> bytes:
    return message(1, b"\x10" + varint(end_ms) + b"".join(message(3, matcher) for matcher in matchers))


def test_what_prometheus_sends() -> None:
    matcher = b"\x08\x02" + message(2, b"__name__") + message(3, b"libvirt_.*")
    (found,) = read_request(packed(a_query([matcher])))
    assert found == Query(0, 1000, (Matcher(MatchType.REGEX, "__name__", "libvirt_.*"),))


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        # A block that says it unpacks to 4 GiB, and one that does so to 64 MiB.
        (varint(2**32 - 1) + b"\x00a", "larger than"),
        (packed(b"\x00" * (64 << 20)), "larger than"),
        (b"x" * (MOST_REQUEST_BYTES + 1), "larger than"),
        (packed(b"\x0a\x00" * (MOST_QUERIES + 1)), "more than 100 queries"),
        (packed(b"\x0a\x00" * 500_000), "more than 100 queries"),
        (packed(a_query([b""] * (MOST_MATCHERS + 1))), "more than 100 matchers"),
        (packed(a_query([b""] * 300_000)), "more than 100 matchers"),
        (packed(a_query([b"\x08\x07"])), "no snappy-compressed remote-read request"),
        (packed(b"\x0a\xff\xff\xff\xff\x7f"), "cut off"),
        (packed(b"\x80" * 11), "longer than 10 bytes"),
        (b"", "no snappy-compressed"),
        (b"not snappy", "no snappy-compressed"),
    ],
)  # fmt: skip
def test_what_is_refused(body: bytes, cause: str) -> None:
    with pytest.raises(UsageError, match=cause):
        read_request(body)


def test_as_many_as_are_allowed() -> None:
    assert len(read_request(packed(a_query([b""] * MOST_MATCHERS) * MOST_QUERIES))) == MOST_QUERIES


PIECES = st.sampled_from([bytes([number]) for number in b"\x0a\x10\x1a\x22\x08\x00\x01\x80\xffa\x07"])
BODIES = st.binary(max_size=100) | st.lists(PIECES, max_size=30).map(b"".join)


@given(BODIES | BODIES.map(packed) | BODIES.map(lambda body: packed(a_query([body]))))
def test_any_body_is_queries_or_a_usage_error(body: bytes) -> None:
    with suppress(UsageError):
        for query in read_request(body):
            assert isinstance(query, Query)
