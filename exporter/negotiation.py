"""Content negotiation of the metrics page: which format and which encoding the scraper asked for (RFC 9110).

Only formats the page can really be written in are answered; a header that asks for nothing known gets text 0.0.4,
since a scraper can do more with that than with a 406.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

_QVALUE = re.compile(r"0(\.\d{0,3})?|1(\.0{0,3})?")

# A header longer than this is not from a scraper; what is past it is not looked at.
_MOST_RANGES = 64

# The schemes of Prometheus 3. Our names are plain ASCII, which every scheme leaves as they are.
ESCAPINGS = frozenset({"allow-utf-8", "underscores", "dots", "values"})


class Exposition(Enum):
    """The formats the page is written in, in the order that breaks a tie between wildcards."""

    TEXT_0_0_4 = ("text/plain", "0.0.4")
    OPENMETRICS_1_0_0 = ("application/openmetrics-text", "1.0.0")
    OPENMETRICS_0_0_1 = ("application/openmetrics-text", "0.0.1")

    @property
    def media_type(self) -> str:
        return self.value[0]

    @property
    def version(self) -> str:
        return self.value[1]


@dataclass(frozen=True, slots=True)
class Format:
    """What to answer with: a format, and the escaping scheme the scraper asked for, if any."""

    exposition: Exposition = Exposition.TEXT_0_0_4
    escaping: str | None = None

    @property
    def openmetrics(self) -> bool:
        """True where the body must be OpenMetrics (other headers, `# EOF` at the end)."""
        return self.exposition is not Exposition.TEXT_0_0_4

    @property
    def name(self) -> str:
        """The exposition's name, for logs and caches; the escaping changes headers only."""
        return self.exposition.name

    @property
    def content_type(self) -> str:
        """The answer's Content-Type."""
        kind = f"{self.exposition.media_type}; version={self.exposition.version}; charset=utf-8"
        return f"{kind}; escaping={self.escaping}" if self.escaping else kind


class _Range(NamedTuple):
    """One element of Accept."""

    media_type: str
    parameters: dict[str, str]
    quality: float


class _Match(NamedTuple):
    """How well a format fits: compared field by field, the greatest wins."""

    quality: float
    specificity: int
    earliness: int


def negotiate_format(accept: str | None) -> Format:
    """The format for an Accept header; text 0.0.4 where it is absent, garbage or names nothing known.

    The highest q wins; among equals what is asked for by name before a wildcard, then what comes first.
    """
    ranges = [parsed for part in _split(accept or "", ",")[:_MOST_RANGES] if (parsed := _parse_range(part))]
    best: tuple[_Match, Format] | None = None
    for exposition in Exposition:
        matched = _best_range(exposition, ranges)
        if matched is None or matched[0].quality <= 0:
            continue
        match, parameters = matched
        if best is None or match > best[0]:
            escaping = parameters.get("escaping")
            best = match, Format(exposition, escaping if escaping in ESCAPINGS else None)
    return best[1] if best else Format()


def accepts_gzip(accept_encoding: str | None) -> bool:
    """Whether gzip is welcome: named or by `*` with q above 0, and not less welcome than identity."""
    qualities: dict[str, float] = {}
    for part in _split(accept_encoding or "", ",")[:_MOST_RANGES]:
        if parsed := _parse_range(part):
            coding = "gzip" if parsed.media_type == "x-gzip" else parsed.media_type
            qualities.setdefault(coding, parsed.quality)
    gzip = qualities.get("gzip", qualities.get("*", 0.0))
    return gzip > 0 and gzip >= qualities.get("identity", 0.0)


def _split(text: str, separator: str) -> list[str]:
    """The parts between separators outside quotes: version="1,0" is one parameter.

    In one pass: an expression that looks ahead for the closing quote takes seconds for a header of 16 KiB.
    """
    parts: list[str] = []
    begin, quoted = 0, False
    for at, character in enumerate(text):
        if character == '"':
            quoted = not quoted
        elif character == separator and not quoted:
            parts.append(text[begin:at])
            begin = at + 1
    return [*parts, text[begin:]]


def _parse_range(text: str) -> _Range | None:
    """One element of a header; None for an empty one or one whose q is no qvalue."""
    media_type, *rest = _split(text.strip().lower(), ";")
    parameters: dict[str, str] = {}
    for part in rest:
        name, _, value = part.partition("=")
        parameters[name.strip()] = value.strip().strip('"')
    quality = parameters.pop("q", "1")
    if not media_type.strip() or not _QVALUE.fullmatch(quality):
        return None
    return _Range(media_type.strip(), parameters, float(quality))


def _best_range(exposition: Exposition, ranges: list[_Range]) -> tuple[_Match, dict[str, str]] | None:
    """The most specific element that covers a format decides its q, wherever it stands in the header."""
    found: tuple[_Match, dict[str, str]] | None = None
    for position, (media_type, parameters, quality) in enumerate(ranges):
        specificity = _specificity(exposition, media_type, parameters)
        if specificity and (found is None or specificity > found[0].specificity):
            found = _Match(quality, specificity, -position), parameters
    return found


def _specificity(exposition: Exposition, media_type: str, parameters: dict[str, str]) -> int:
    """0 where the element does not cover the format, more the closer it names it."""
    if media_type == exposition.media_type:
        version = parameters.get("version")
        if version is None:
            return 3
        return 4 if version == exposition.version else 0
    if media_type == exposition.media_type.split("/")[0] + "/*":
        return 2
    return 1 if media_type == "*/*" else 0
