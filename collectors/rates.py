"""Rates: two recorded Batches in, values of the computed rows out; numpy over all rows at once.

A rate exists only where both samples hold the value, time advanced and nothing of the same device or record
went back: a decrease of one counter means that its device began anew, a decrease of a domain's CPU time
that the domain did, and counters that happen to stand higher by then would give absurd rates.
"""

from __future__ import annotations

import numpy as np

from .batch import Batch, Booleans, Floats, Integers, Plan, ratio_number, row_ranges
from .fields import Ratio

_PER_SECOND = ratio_number(Ratio.PER_SECOND)
_PER_CHANGE = ratio_number(Ratio.PER_CHANGE)
_PER_SECOND_AND_VALUE = ratio_number(Ratio.PER_SECOND_AND_VALUE)


def rates(previous: Batch, current: Batch) -> Floats:
    """Values of ``current.plan``'s computed rows, NaN where there is none; base units.

    Rows of other kinds than rates (see ``derived``) are NaN.  Pure; any thread.
    """
    plan = current.plan
    earlier_raw, earlier_time = _aligned(previous, current)
    change = current.raw - earlier_raw
    elapsed_s = current.times_s[plan.placement_of_row] - earlier_time
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        change[(elapsed_s <= 0) | _reset(plan, change)] = np.nan
        values = np.full(plan.formulas, np.nan)
        for number, rows in ((n, plan.formula_ratio == n) for n in (_PER_SECOND, _PER_CHANGE, _PER_SECOND_AND_VALUE)):
            top, bottom = plan.numerator[rows], plan.denominator[rows]
            if number == _PER_CHANGE:
                result = change[top] / change[bottom]
            else:
                result = change[top] / elapsed_s[top]
                if number == _PER_SECOND_AND_VALUE:
                    result /= current.raw[bottom]
            values[rows] = result * plan.formula_scale[rows]
        values[~np.isfinite(values)] = np.nan
        np.minimum(values, plan.formula_at_most, out=values)
    values.flags.writeable = False
    return values


def carry(values: Floats, old: Plan, new: Plan) -> Floats:
    """Computed rows of ``old`` at their places in ``new``, NaN where ``old`` has no such series.

    A record that changed its shape (hot-plug, a part of an answer) keeps the rates of what stayed, by series.
    """
    if old is new:
        return values
    moved = np.full(new.formulas, np.nan)
    whole: list[tuple[int, int]] = []
    for before, place in _pairs(old, new):
        placement, same = new.placements[place], old.placements[before]
        if same.columns is placement.columns and same.names == placement.names:
            whole.append((before, place))
            continue
        start, first = int(old.formula_start[before]), int(new.formula_start[place])
        known = {series: start + offset for offset, series in enumerate(same.computed_series())}
        for offset, series in enumerate(placement.computed_series()):
            if series in known:
                moved[first + offset] = values[known[series]]
    source, target = row_ranges(whole, old.formula_start, new.formula_start, new.formula_counts)
    moved[target] = values[source]
    moved.flags.writeable = False
    return moved


def _reset(plan: Plan, change: Floats) -> Booleans:
    decreased = plan.counter & (change < 0)
    if not decreased.any():
        return decreased
    by_instance = np.zeros(plan.instances, dtype=np.bool_)
    by_instance[plan.instance[decreased]] = True
    by_record = np.zeros(len(plan.placements), dtype=np.bool_)
    by_record[plan.placement_of_row[decreased & plan.identity]] = True
    found: Booleans = decreased | by_record[plan.placement_of_row]
    # Instance 0 of a record is the record itself: its rows share no device, so each speaks for itself.
    of_device = plan.instance != plan.record_instance[plan.placement_of_row]
    found |= by_instance[plan.instance] & of_device
    return found


def _aligned(previous: Batch, current: Batch) -> tuple[Floats, Floats]:
    """``previous``'s raw values and times at ``current``'s measured rows, NaN where there was no such row."""
    old, new = previous.plan, current.plan
    if old is new:
        return previous.raw, previous.times_s[old.placement_of_row]
    rows = earlier_rows(old, new)
    raw = np.full(new.measured, np.nan)
    times = np.full(new.measured, np.nan)
    known = rows >= 0
    raw[known] = previous.raw[rows[known]]
    times[known] = previous.times_s[old.placement_of_row[rows[known]]]
    return raw, times


def _pairs(old: Plan, new: Plan) -> list[tuple[int, int]]:
    """Places in ``old`` and in ``new`` of the records of the same subject and source."""
    by_subject = {(p.subject.key, p.source): place for place, p in enumerate(old.placements)}
    found = ((by_subject.get((p.subject.key, p.source)), place) for place, p in enumerate(new.placements))
    return [(before, place) for before, place in found if before is not None]


def earlier_rows(old: Plan, new: Plan) -> Integers:
    """For each measured row of ``new`` its row in ``old``, -1 where there was none.

    Records of the same shape move as one piece; where a record changed its shape (hot-plug, state), rows are
    matched by series, so by device name and never by index.
    """
    rows = np.full(new.measured, -1, dtype=np.int64)
    whole: list[tuple[int, int]] = []
    for before, place in _pairs(old, new):
        placement, same = new.placements[place], old.placements[before]
        if same.columns is placement.columns and same.names == placement.names:
            whole.append((before, place))
            continue
        start = int(old.measured_start[before])
        known = {series: start + offset for offset, series in enumerate(same.series())}
        first = int(new.measured_start[place])
        for offset, series in enumerate(placement.series()):
            rows[first + offset] = known.get(series, -1)
    source, target = row_ranges(whole, old.measured_start, new.measured_start, new.measured_counts)
    rows[target] = source
    return rows
