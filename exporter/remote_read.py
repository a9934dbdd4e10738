"""Prometheus's remote-read protocol: its protobuf messages, and matchers over label sets.

The messages are those of prometheus/prompb/remote.proto and types.proto: a snappy-compressed ReadRequest in, a
snappy-compressed ReadResponse (type SAMPLES) out. The protocol needs five small messages, so they are read and
written here instead of through a protobuf runtime; samples are written by numpy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache
from itertools import islice

import numpy as np
import numpy.typing as npt

from exporter.errors import UsageError
from exporter.expressions import Expression

MOST_REQUEST_BYTES = 1 << 20
"""A request is some label matchers; Prometheus's own are below 1 KiB."""
MOST_QUERIES = 100
MOST_MATCHERS = 100
"""Of one query. An empty one takes two bytes of a request, and each is tried against every series."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class MatchType(IntEnum):
    EQUAL = 0
    NOT_EQUAL = 1
    REGEX = 2
    NOT_REGEX = 3


@dataclass(frozen=True, slots=True)
class Matcher:
    """One condition on a label; a label that a series does not have counts as empty, as in PromQL."""

    type: MatchType
    name: str
    value: str

    def matches(self, value: str) -> bool:
        """Raises UsageError for a pattern that RE2 does not take."""
        if self.type in (MatchType.EQUAL, MatchType.NOT_EQUAL):
            return (value == self.value) is (self.type is MatchType.EQUAL)
        return _expression(self.value).fullmatch(value) is (self.type is MatchType.REGEX)


@dataclass(frozen=True, slots=True)
class Query:
    """`start_ms` and `end_ms`, both inclusive; the hints are 0 or empty where Prometheus gave none."""

    start_ms: int = 0
    end_ms: int = 0
    matchers: tuple[Matcher, ...] = ()
    step_ms: int = 0
    range_ms: int = 0
    function: str = ""

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether a series with these labels is asked for."""
        return all(matcher.matches(labels.get(matcher.name, "")) for matcher in self.matchers)


@dataclass(frozen=True, slots=True, eq=False)
class TimeSeries:
    """`times_ms` int64 and `values` float64 of one length, ascending in time."""

    labels: Mapping[str, str]
    times_ms: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]


def read_request(body: bytes) -> list[Query]:
    """The queries of a compressed ReadRequest; raises UsageError for anything that is none."""
    from cramjam import DecompressionError, snappy

    if len(body) > MOST_REQUEST_BYTES or _claimed_bytes(body) > MOST_REQUEST_BYTES:
        raise UsageError(f"the remote-read request is larger than {MOST_REQUEST_BYTES} bytes; ask for fewer series")
    try:
        message = bytes(snappy.decompress_raw(body))
        found = (value for number, value in _fields(message) if number == 1 and isinstance(value, bytes))
        queries = [_query(value) for value in islice(found, MOST_QUERIES + 1)]
    except (DecompressionError, ValueError) as error:
        raise UsageError(
            f"the body is no snappy-compressed remote-read request ({error}); "
            "point Prometheus's remote_read at this URL"
        ) from None
    if len(queries) > MOST_QUERIES:
        raise UsageError(f"the remote-read request has more than {MOST_QUERIES} queries; ask one after the other")
    return queries


def response(results: Sequence[Sequence[TimeSeries]]) -> bytes:
    """The compressed ReadResponse; one list of series for each query, in the request's order."""
    from cramjam import snappy

    return bytes(snappy.compress_raw(b"".join(_message(1, _query_result(series)) for series in results)))


@lru_cache(64)
def _expression(text: str) -> Expression:
    try:
        return Expression(text)
    except ValueError as error:
        raise UsageError(f"label pattern {text[:80]!r} is no RE2 expression: {error}") from None


def _claimed_bytes(body: bytes) -> int:
    """The size that a raw snappy block says it unpacks to: its leading varint."""
    try:
        return _varint(body, 0)[0]
    except ValueError:
        return 0


def _query(message: bytes) -> Query:
    numbers = {1: 0, 2: 0}
    matchers: list[Matcher] = []
    hints = _Hints()
    for number, value in _fields(message):
        if number in numbers and isinstance(value, int):
            numbers[number] = _signed(value)
        elif number == 3 and isinstance(value, bytes):
            matchers.append(_matcher(value))
            if len(matchers) > MOST_MATCHERS:
                raise UsageError(f"a remote-read query has more than {MOST_MATCHERS} matchers; join some in a pattern")
        elif number == 4 and isinstance(value, bytes):
            hints.read(value)
    return Query(numbers[1], numbers[2], tuple(matchers), hints.step_ms, hints.range_ms, hints.function)


@dataclass(slots=True)
class _Hints:
    step_ms: int = 0
    range_ms: int = 0
    function: str = ""
    _numbers: Mapping[int, str] = field(default_factory=lambda: {1: "step_ms", 7: "range_ms"})

    def read(self, message: bytes) -> None:
        for number, value in _fields(message):
            if number in self._numbers and isinstance(value, int):
                setattr(self, self._numbers[number], _signed(value))
            elif number == 2 and isinstance(value, bytes):
                self.function = value.decode()


def _matcher(message: bytes) -> Matcher:
    type_, name, text = 0, "", ""
    for number, value in _fields(message):
        if number == 1 and isinstance(value, int):
            type_ = value
        elif number == 2 and isinstance(value, bytes):
            name = value.decode()
        elif number == 3 and isinstance(value, bytes):
            text = value.decode()
    return Matcher(MatchType(type_), name, text)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field; fixed-width ones as their bytes. Raises ValueError where it is cut off."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if kind == _BYTES:
            length, at = _varint(message, at)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"protobuf wire type {kind}")
        if length > len(message) - at:
            raise ValueError("a protobuf field is cut off")
        yield key >> 3, message[at : at + length]
        at += length


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise ValueError("a protobuf number is cut off")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
    raise ValueError("a protobuf number is longer than 10 bytes")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _query_result(series: Sequence[TimeSeries]) -> bytes:
    return b"".join(_message(1, _time_series(one)) for one in series)


def _time_series(series: TimeSeries) -> bytes:
    # Prometheus wants the labels sorted by name.
    labels = b"".join(
        _message(1, _message(1, name.encode()) + _message(2, value.encode()))
        for name, value in sorted(series.labels.items())
        if value
    )
    return labels + _samples(series.times_ms, series.values)


# 2^35 ms is in 1971 and 2^42 ms in 2109: between them a time is a varint of six bytes, so a sample has 18 bytes.
_SAMPLE = np.dtype([("head", "S3"), ("value", "<f8"), ("time_tag", "u1"), ("time", "u1", (6,))])
_SAMPLE_HEAD = bytes((2 << 3 | _BYTES, _SAMPLE.itemsize - 2, 1 << 3 | _FIXED64))


def _samples(times_ms: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> bytes:
    usual = (times_ms >= 1 << 35) & (times_ms < 1 << 42)
    times_ms, values = times_ms[usual], values[usual]
    rows = np.empty(len(times_ms), dtype=_SAMPLE)
    rows["head"] = _SAMPLE_HEAD
    rows["value"] = values
    rows["time_tag"] = 2 << 3 | _VARINT
    digits = (times_ms[:, np.newaxis] >> np.arange(0, 42, 7)) & 0x7F
    digits[:, :5] |= 0x80
    rows["time"] = digits
    return rows.tobytes()


def _message(number: int, value: bytes) -> bytes:
    return _encoded(number << 3 | _BYTES) + _encoded(len(value)) + value


def _encoded(number: int) -> bytes:
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
