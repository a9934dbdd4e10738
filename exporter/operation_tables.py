"""An operation's result as tables for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TextIO

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from exporter.operation_output import printable, uptime

# Wide enough that nothing is cut where no terminal sets the width.
_NO_TERMINAL_COLUMNS = 4096
_LONG_TEXTS = ("xml", "diff", "content")
_SIZES = {"_bytes": 1, "_kib": 1 << 10, "_mib": 1 << 20}


def render_tables(result: Mapping[str, Any], file: TextIO) -> None:
    """Writes a Result or an error mapping: a table of its rows, else one of its names and values."""
    console = _console(file)
    plan = result.get("plan")
    if result.get("dry_run") and plan:
        _render_plan(result, plan, console)
        return
    details = dict(result.get("details") or {})
    rows = details.pop("rows", None)
    if rows is not None:
        console.print(_rows(rows))
        if details:
            console.print(Text("; ".join(f"{name}: {printable(value)}" for name, value in details.items())))
        return
    if result.get("after") is not None or result.get("before") is not None:
        _line(console, f"{_subject(result)}: {_verb(result)}{'' if result.get('changed') else ', nothing to change'}")
    _pairs({**(result.get("after") or {}), **details}, console)


def _console(file: TextIO) -> Console:
    """A console for results: plain and uncut where it is not a terminal."""
    if file.isatty():
        return Console(file=file, highlight=False, markup=False, emoji=False)
    return Console(
        file=file, highlight=False, markup=False, emoji=False, width=_NO_TERMINAL_COLUMNS, color_system=None
    )


def _render_plan(result: Mapping[str, Any], plan: Mapping[str, Any], console: Console) -> None:
    if plan.get("nothing_to_do"):
        _line(console, f"{_subject(result)}: nothing to change")
    else:
        _line(console, f"{_subject(result)}: {_verb(result)} would do this:")
        for number, step in enumerate(plan.get("steps") or (), 1):
            _line(console, f"  {number}. {step}")
    for title, lines in (("would be lost", plan.get("lost")), ("warnings", plan.get("warnings"))):
        for line in lines or ():
            _line(console, f"{title}: {line}")
    _pairs(plan.get("state") or {}, console)
    if plan.get("diff"):
        _text(console, str(plan["diff"]))


def _subject(result: Mapping[str, Any]) -> str:
    subject = result.get("subject") or {}
    return " ".join(str(subject[name]) for name in ("kind", "name") if subject.get(name))


def _verb(result: Mapping[str, Any]) -> str:
    return str(result.get("operation", "")).rpartition(".")[2]


def _columns(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """All names, each behind the one that it follows in its row: what only some rows have keeps its place."""
    columns: list[str] = []
    for row in rows:
        place = 0
        for name in row:
            if name in columns:
                place = columns.index(name) + 1
            else:
                columns.insert(place, name)
                place += 1
    return columns


def _rows(rows: Iterable[Mapping[str, Any]]) -> Table | Text:
    listed = list(rows)
    if not listed:
        return Text("none")
    names = _columns(listed)
    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name)
    for row in listed:
        table.add_row(*(Text(printable(row.get(name))) for name in names))
    return table


def _pairs(values: Mapping[str, Any], console: Console) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column("name")
    table.add_column("value")
    lists = {name: value for name, value in values.items() if _is_table(value)}
    for name, value in values.items():
        if name not in _LONG_TEXTS and name not in lists:
            table.add_row(Text(name), Text(printable(value) + _readable(name, value)))
    if table.row_count:
        console.print(table)
    for name, value in lists.items():
        _line(console, f"{name}:")
        console.print(Padding(_rows(value), (0, 0, 0, 2), expand=False))
    for name in _LONG_TEXTS:
        if values.get(name):
            _text(console, str(values[name]))


def _is_table(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, Mapping) for row in value)


def _readable(name: str, value: object) -> str:
    """A large number once more for people: ` (2 GiB)`, ` (3 d 4 h)`; by the unit in its name."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return ""
    unit_bytes = next((size for ending, size in _SIZES.items() if name.endswith(ending)), None)
    if unit_bytes is not None and value >= 1024:
        return f" ({_size(value * unit_bytes)})"
    return f" ({uptime(value)})" if name.endswith("_s") and value >= 60 else ""


def _size(size_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size_bytes < 1024 or unit == "TiB":
            return f"{size_bytes:.4g} {unit}"
        size_bytes /= 1024
    raise AssertionError


def _line(console: Console, text: str) -> None:
    console.print(Text(printable(text)))


def _text(console: Console, text: str) -> None:
    for line in text.splitlines():
        console.file.write(printable(line) + "\n")
