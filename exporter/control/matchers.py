"""Alertmanager's matchers: `alertname = X`, `reason =~ "a|b"`, read as Alertmanager reads them. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from exporter.expressions import Expression

_MATCHER = re.compile(r'\s*([A-Za-z_][A-Za-z0-9_]*)\s*(=~|!~|!=|=)\s*(?:"((?:[^"\\]|\\.)*)"|([^"\s]\S*))?\s*', re.S)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


@lru_cache(256)
def _expression(text: str) -> Expression:
    return Expression(text, over_lines=False)


@dataclass(frozen=True)
class Matcher:
    """One matcher. A label that is absent is the empty text; expressions match the whole value."""

    label: str
    sign: str
    value: str

    def matches(self, labels: Mapping[str, str]) -> bool:
        found = labels.get(self.label, "")
        if self.sign in ("=", "!="):
            return (found == self.value) is (self.sign == "=")
        return _expression(self.value).fullmatch(found) is (self.sign == "=~")

    def __str__(self) -> str:
        return f"{self.label} {self.sign} {json.dumps(self.value)}"


def read_matcher(text: object) -> object:
    """A Matcher of a text; what is no text as it is, for who checks its type. Raises ValueError with the cause."""
    if not isinstance(text, str):
        return text
    found = _MATCHER.fullmatch(text)
    if found is None:
        raise ValueError('is no matcher; write it like alertname = "X", reason =~ "a|b"')
    label, sign, quoted, plain = found.groups()
    value = _unescaped(quoted if quoted is not None else plain or "")
    if "~" in sign:
        try:
            _expression(value)
        except ValueError as error:
            raise ValueError(f"{value!r} is no regular expression ({error})") from None
    return Matcher(label, sign, value)


def _unescaped(text: str) -> str:
    r"""Alertmanager knows \n, \" and \\; a backslash before anything else stands for itself."""
    known = {"n": "\n", '"': '"', "\\": "\\"}
    return _ESCAPED.sub(lambda found: known.get(found[1], found[0]), text)
