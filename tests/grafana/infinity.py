"""What the Infinity data source does with a query of ours: variables in, the address asked, a wide frame out.

Only what our queries use: JSON from an address, parser "backend", no root selector, columns of rows, the format
"timeseries" made wide (a field for each number column and set of strings) or "table".
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

Wide = dict[tuple[str, tuple[tuple[str, str], ...]], list[tuple[float, float | None]]]
"""By name and labels: points of time (seconds since 1970) and value."""


def interpolated(text: str, variables: Mapping[str, str]) -> str:
    for name, value in variables.items():
        text = text.replace(f"${{{name}}}", value)
    assert "$" not in text, text
    return text


def asked(target: Mapping[str, Any], base: str, token: str, variables: Mapping[str, str]) -> list[dict[str, Any]]:
    """The rows, with their columns named and typed as the query says. Raises HTTPError for any status but 200."""
    assert (target["type"], target["source"], target["parser"]) == ("json", "url", "backend")
    assert target["root_selector"] == ""
    assert target["url_options"]["method"] == "GET"
    parameters = [(one["key"], interpolated(one["value"], variables)) for one in target["url_options"]["params"]]
    request = urllib.request.Request(f"{base}{target['url']}?{urlencode(parameters)}",
                                     headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        rows = json.load(answer)
    return [{column["text"]: typed(row[column["selector"]], column["type"]) for column in target["columns"]}
            for row in rows]


def typed(value: Any, kind: str) -> Any:
    """As Infinity reads a cell; raises ValueError where the value is not of that kind."""
    if value is None:
        return None
    if kind == "timestamp":
        return datetime.fromisoformat(value).timestamp()
    if kind == "number":
        return float(value)
    return ", ".join(value) if isinstance(value, list) else str(value)


def wide(target: Mapping[str, Any], rows: list[dict[str, Any]]) -> Wide:
    """The rows as Grafana's LongToWide makes fields of them."""
    assert target["format"] == "timeseries"
    kinds = {column["text"]: column["type"] for column in target["columns"]}
    (time,) = (name for name, kind in kinds.items() if kind == "timestamp")
    found: Wide = {}
    for row in rows:
        labels = tuple((name, row[name]) for name, kind in kinds.items() if kind == "string")
        for name, kind in kinds.items():
            if kind == "number":
                found.setdefault((name, labels), []).append((row[time], row[name]))
    return found
