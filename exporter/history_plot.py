"""History as a picture: in the terminal with plotext, in a file with matplotlib. Both are loaded when asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from exporter.archive.history_fields import HistoryFields
from exporter.archive.history_question import Row
from exporter.archive.points import Floats
from exporter.errors import UsageError
from exporter.history_output import with_unit

PICTURES = (".png", ".svg")
_MOST_LINES = 12


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """One series of a picture; NaN where there is a gap."""

    field: str
    unit: str
    device: str
    times_s: Floats
    minimum: Floats
    average: Floats
    maximum: Floats


def lines_of(rows: Sequence[Row], fields: HistoryFields) -> list[Line]:
    """The series of flat rows, in their order."""
    units = {field.name: field.unit for field in fields}
    grouped: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        grouped.setdefault((str(row["field"]), str(row["device"])), []).append(row)
    return [
        Line(
            field,
            units.get(field, ""),
            device,
            np.array([datetime.fromisoformat(str(row["time"])).timestamp() for row in own]),
            *(np.array([row[name] for row in own], dtype=np.float64) for name in ("min", "avg", "max")),
        )
        for (field, device), own in grouped.items()
    ]


def terminal_plot(lines: Sequence[Line], title: str, width: int, height: int, color: bool) -> str:
    """One plot a field under each other: the mean as a line, the extremes as dots."""
    fields = list(dict.fromkeys(line.field for line in lines))
    each = max(10, height // max(1, len(fields)))
    return "\n".join(
        _plot([line for line in lines if line.field == field][:_MOST_LINES], f"{title} {field}", width, each, color)
        for field in fields
    )


def _plot(lines: Sequence[Line], title: str, width: int, height: int, color: bool) -> str:
    import plotext

    plotext.clear_figure()
    plotext.theme("pro" if color else "clear")
    plotext.limitsize(False, False)  # it would take the terminal that it sees for a bound
    plotext.plotsize(width, height)
    plotext.title(title)
    known = [line for line in lines if not np.isnan(line.average).all()]
    for line in known:
        for first, last in _runs(~np.isnan(line.average)):
            shown = slice(first, last)
            times, mean, high = line.times_s[shown], line.average[shown], line.maximum[shown]
            # A run's name stands once in the legend.
            label = line.device if first == _runs(~np.isnan(line.average))[0][0] and len(known) > 1 else None
            plotext.plot(times.tolist(), mean.tolist(), marker="braille", label=label)
            spikes = high > mean
            if spikes.any():
                plotext.scatter(times[spikes].tolist(), high[spikes].tolist(), marker="dot")
    if known:
        _axes(plotext, known)
    text = str(plotext.build())
    return text if color else plotext.uncolorize(text)


def _axes(plotext: Any, lines: Sequence[Line]) -> None:
    times = np.concatenate([line.times_s for line in lines])
    ticks = np.linspace(times.min(), times.max(), 5)
    length_s = float(np.ptp(times))
    form = "%H:%M:%S" if length_s < 600 else "%H:%M" if length_s < 86400 else "%m-%d %H:%M"
    plotext.xticks(ticks.tolist(), [datetime.fromtimestamp(t).strftime(form) for t in ticks])
    top = max(float(np.nanmax(line.maximum)) for line in lines)
    low = min(0.0, *(float(np.nanmin(line.minimum)) for line in lines))
    top = top if top > low else low + 1
    heights = np.linspace(low, top, 5)
    plotext.ylim(low, top)
    plotext.yticks(heights.tolist(), [with_unit(float(h), lines[0].unit) for h in heights])


def _runs(known: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(first, after last) of each run of true values: a line does not cross a gap."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], known, [False])).astype(np.int8)))
    return [(int(first), int(last)) for first, last in zip(edges[::2], edges[1::2], strict=True)]


def save_picture(lines: Sequence[Line], title: str, path: Path) -> None:
    """A PNG or SVG file, by the name's ending: the mean as a line within a band from minimum to maximum.

    Raises UsageError where matplotlib is missing or the file cannot be written.
    """
    try:
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("pictures need matplotlib: pip install 'virtgauge[pictures]', or take --format plot") from None
    fields = list(dict.fromkeys(line.field for line in lines)) or [""]
    figure = Figure(figsize=(10, 3.2 * len(fields)), layout="constrained")
    figure.suptitle(title)
    for place, field in enumerate(fields):
        axes = figure.add_subplot(len(fields), 1, place + 1)
        own = [line for line in lines if line.field == field]
        for line in own:
            times: Any = [datetime.fromtimestamp(t) for t in line.times_s]
            (drawn,) = axes.plot(times, line.average, linewidth=1, label=line.device or field)
            axes.fill_between(times, line.minimum, line.maximum, alpha=0.25, color=drawn.get_color(), linewidth=0)
        axes.set_ylabel(field)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(_in_unit(own[0].unit if own else ""))
        locator = AutoDateLocator()
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        axes.grid(alpha=0.3)
        if len(own) > 1:
            axes.legend(fontsize="small")
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise UsageError(f"picture {path}: {error.strerror or error}; choose another --output") from None


def _in_unit(unit: str) -> Callable[[float, float], str]:
    """An axis' numbers as a table has them: `12.5 %`."""
    return lambda value, _: with_unit(value, unit)
