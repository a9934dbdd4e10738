"""What the command line shows of an operation's result: tables for people, JSON or YAML for programs.

Names come from guests and may hold anything: control characters are shown escaped, never sent to the terminal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any, TextIO


def render(result: Mapping[str, Any], output: str, file: TextIO | None = None) -> None:
    """Writes a Result (as JSON-ready mapping) or an error mapping as table, json or yaml; to standard output."""
    file = sys.stdout if file is None else file
    if output == "json":
        file.write(json.dumps(result, indent=2, ensure_ascii=True) + "\n")
    elif output == "yaml":
        import yaml

        file.write(yaml.safe_dump(dict(result), sort_keys=False, allow_unicode=False))
    else:
        from exporter.operation_tables import render_tables  # rich is loaded for tables only

        render_tables(result, file)


def printable(value: object) -> str:
    """A value for a person: control characters escaped, lists joined, absent empty."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(printable(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {printable(item)}" for name, item in value.items())
    if isinstance(value, float):
        return f"{value:g}"
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in str(value))


def uptime(seconds: float) -> str:
    """`3 d 4 h`, `12 min 5 s`: the two largest units."""
    parts, rest = [], int(seconds)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        number, rest = divmod(rest, size)
        if number:
            parts.append(f"{number} {unit}")
    return " ".join(parts[:2]) or "0 s"
