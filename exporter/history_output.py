"""History for people and programs: a table with units, CSV, JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from datetime import datetime

from rich.console import Console
from rich.table import Table

from exporter.archive.history_fields import HistoryFields
from exporter.archive.history_question import Row

COLUMNS = ("time", "domain", "host", "field", "device", "min", "avg", "max")


def as_csv(rows: Iterable[Row]) -> str:
    """RFC 4180 with a heading; a gap's numbers are empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def as_json(rows: Sequence[Row]) -> str:
    """One array, one row a line, so that it can be read and compared by line."""
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    return f"[\n{lines}\n]\n" if rows else "[]\n"


def as_table(rows: Sequence[Row], fields: HistoryFields, width: int | None = None) -> str:
    """A table of known points, times in the reader's zone, numbers with units."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("time", no_wrap=True)
    for name in ("field", "device"):
        table.add_column(name, no_wrap=True)
    for name in ("min", "avg", "max"):
        table.add_column(name, justify="right", no_wrap=True)
    units = {field.name: field.unit for field in fields}
    for row in rows:
        unit = units.get(str(row["field"]), "")
        numbers = [with_unit(row[name], unit) for name in ("min", "avg", "max")]
        table.add_row(local_time(str(row["time"])), str(row["field"]), str(row["device"]), *numbers)
    console = Console(file=io.StringIO(), width=width or 120, color_system=None)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def local_time(text: str) -> str:
    """`2026-11-22 10:00:15` in the reader's zone."""
    return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def with_unit(value: object, unit: str) -> str:
    """`12.5 %`, `3.4 MiB/s`, `150 ms`; a dash where it is unknown."""
    if not isinstance(value, int | float):
        return "-"
    if unit == "ratio":
        return f"{100 * value:.1f} %"
    if unit in ("B", "B/s"):
        return _scaled(float(value), 1024.0, ("", "Ki", "Mi", "Gi", "Ti", "Pi"), unit)
    if unit == "s" and 0 < abs(value) < 1:
        return f"{value * 1000:.3g} ms" if abs(value) >= 0.001 else f"{value * 1e6:.3g} us"
    return f"{value:.6g} {unit}".rstrip()


def _scaled(value: float, base: float, prefixes: Sequence[str], unit: str) -> str:
    place = 0
    while abs(value) >= base and place + 1 < len(prefixes):
        value, place = value / base, place + 1
    return f"{value:.{0 if place == 0 else 1}f} {prefixes[place]}{unit}"
