"""A field's Points from columns: what the page computes from two samples, computed for a whole history at once."""

from __future__ import annotations

import numpy as np

from collectors.fields import Computed, Field, Ratio
from exporter.archive.documents import Column, column_of
from exporter.archive.history_fields import HistoryField
from exporter.archive.points import Floats, Points, gauge, of_samples, rate, ratio_of_changes
from exporter.archive.raw_columns import RawColumns
from exporter.archive.rollup_columns import RollUpColumns, Statistics


def columns_of(field: HistoryField) -> tuple[Column, ...]:
    """The archived columns that a field is made of: one or two."""
    found = (column_of(declared) for declared in (field.numerator, field.denominator) if declared is not None)
    return tuple(column for column in found if column is not None)


def rollup_paths(field: HistoryField) -> tuple[tuple[Column, str], ...]:
    """Which statistics of its columns a field's roll-up points are made of: what is not asked for costs nothing."""
    top, *rest = columns_of(field)
    if field.is_counter or (field.computed is not None and field.computed.ratio is Ratio.PER_CHANGE):
        return tuple((column, "increase") for column in (top, *rest))
    return (*((top, word) for word in ("min", "avg", "max")), *((column, "avg") for column in rest))


def raw_points(field: HistoryField, raw: RawColumns) -> dict[str, Points]:
    """Points in the field's unit by device name ('' for the object itself), from raw samples."""
    top, *rest = columns_of(field)
    found = {}
    for device in raw.devices(top.group, top.name):
        values = raw.column(top.group, device, top.name)
        below = raw.column(rest[0].group, device, rest[0].name) if rest else values
        points = _raw(field.declaration, raw, values, below)
        # A clock that was set back leaves documents that overlap.
        order = np.argsort(points.times_s, kind="stable")
        found[device] = points.rows(order) if np.any(np.diff(points.times_s) < 0) else points
    return found


def _raw(declared: Field | Computed, raw: RawColumns, values: Floats, below: Floats) -> Points:
    if isinstance(declared, Field):
        return gauge(raw.times_s, scaled(values, declared.scale))
    if declared.ratio is Ratio.COMPLEMENT:
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.clip(1 - values / below, 0.0, 1.0)
        share[~np.isfinite(share)] = np.nan
        return gauge(raw.times_s, share)
    if declared.ratio is Ratio.PER_CHANGE:
        points = ratio_of_changes(raw.times_s, values, below, raw.lives)
    else:
        points = rate(raw.times_s, values, raw.lives)
        if declared.ratio is Ratio.PER_SECOND_AND_VALUE:
            points = _divided(points, _last_known(raw.times_s, below, points.times_s))
    return of_samples(points.times_s, np.minimum(scaled(points.average, declared.scale), declared.at_most))


def rollup_points(field: HistoryField, rolled: RollUpColumns) -> dict[str, Points]:
    """As `raw_points`, from 5-minute or 1-hour points.

    A counter's points are its growth since the first of them. A latency's three figures are all the mean of its
    point, since extremes of a quotient do not follow from those of its parts.
    """
    top, *rest = columns_of(field)
    found = {}
    for device in rolled.devices(top.group, top.name):
        above = rolled.column(top.group, device, top.name)
        below = rolled.column(rest[0].group, device, rest[0].name) if rest else above
        with np.errstate(invalid="ignore", divide="ignore"):
            low, mean, high = _rolled(field.declaration, above, below)
        unknown = ~np.isfinite(mean)
        for column in (low, mean, high):
            column[unknown] = np.nan
        found[device] = Points(rolled.times_s, low, mean, high, np.where(unknown, 0.0, rolled.samples))
    return found


def _rolled(declared: Field | Computed, above: Statistics, below: Statistics) -> tuple[Floats, Floats, Floats]:
    three = above.minimum, above.average, above.maximum
    if isinstance(declared, Field):
        if np.isnan(above.increase).all():
            low, mean, high = (scaled(column, declared.scale) for column in three)
            return low, mean, high
        grown = scaled(np.cumsum(np.nan_to_num(above.increase)), declared.scale)
        grown[np.isnan(above.increase)] = np.nan
        return grown.copy(), grown, grown.copy()
    if declared.ratio is Ratio.COMPLEMENT:
        return (
            np.clip(1 - above.maximum / below.average, 0.0, 1.0),
            np.clip(1 - above.average / below.average, 0.0, 1.0),
            np.clip(1 - above.minimum / below.average, 0.0, 1.0),
        )
    if declared.ratio is Ratio.PER_CHANGE:
        mean = np.where(below.increase > 0, above.increase / below.increase * declared.scale, np.nan)
        return mean.copy(), mean, mean.copy()
    divisor = below.average if declared.ratio is Ratio.PER_SECOND_AND_VALUE else 1.0
    low, mean, high = (
        np.minimum(scaled(column / divisor, declared.scale), declared.at_most) for column in three
    )
    return low, mean, high


def scaled(values: Floats, scale: float) -> Floats:
    """In the field's unit; divided where the scale is a fraction, so that it is rounded once, as on the page."""
    result: Floats = values / round(1 / scale) if scale < 1 else values * scale
    return result


def _divided(points: Points, by: Floats) -> Points:
    with np.errstate(invalid="ignore", divide="ignore"):
        values = points.average / by
    values[~np.isfinite(values)] = np.nan
    return of_samples(points.times_s, values)


def _last_known(times_s: Floats, values: Floats, at_s: Floats) -> Floats:
    """The last known value at or before each time; the first known one before it."""
    known = ~np.isnan(values)
    if not known.any():
        return np.full(len(at_s), np.nan)
    place = np.searchsorted(times_s[known], at_s, side="right") - 1
    result: Floats = values[known][np.maximum(place, 0)]
    return result
