"""Arithmetic of history: counters to rates, gaps, and many samples to few points. Pure numpy; any thread.

Times are float64 seconds since the epoch, ascending; an unknown value is NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

GAP_INTERVALS = 3.0
"""A hole longer than so many usual intervals is a gap: no line and no rate goes across it."""
_SLOWEST_S = 60.0
"""The longest interval of any reading, whatever the samples' own: to be unknown for longer is not usual."""


@dataclass(frozen=True, slots=True, eq=False)
class Points:
    """`minimum`, `average`, `maximum` at each of `times_s`; all of one length, NaN where there is a gap.

    For a counter `average` is the last value. `count` is how many samples are in each point, 0 in a gap.
    """

    times_s: Floats
    minimum: Floats
    average: Floats
    maximum: Floats
    count: Floats

    def __len__(self) -> int:
        return len(self.times_s)

    def between(self, start_s: float, end_s: float) -> Points:
        """Those from `start_s` up to but without `end_s`."""
        first, last = np.searchsorted(self.times_s, (start_s, end_s), side="left")
        return self.rows(slice(int(first), int(last)))

    def known(self) -> Points:
        """Without the gaps."""
        return self.rows(~np.isnan(self.average))

    def rows(self, rows: slice | npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> Points:
        """Those of a slice, a mask or an order."""
        return Points(
            self.times_s[rows], self.minimum[rows], self.average[rows], self.maximum[rows], self.count[rows]
        )


def of_samples(times_s: Floats, values: Floats) -> Points:
    """Each sample a point of its own."""
    return Points(times_s, values, values, values, (~np.isnan(values)).astype(np.float64))


def join(parts: list[Points]) -> Points:
    """One after the other, in the order given."""
    if not parts:
        return of_samples(np.empty(0), np.empty(0))
    return Points(*(np.concatenate(column) for column in zip(*map(_columns, parts), strict=True)))


def _columns(points: Points) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    return points.times_s, points.minimum, points.average, points.maximum, points.count


def gauge(times_s: Floats, values: Floats) -> Points:
    """The known samples, with a NaN point inside each gap."""
    known = ~np.isnan(values)
    every_s, times_s, values = times_s, times_s[known], values[known]
    usual_s = usual_interval_s(np.diff(times_s), every_s)
    holes = np.flatnonzero(np.diff(times_s) > GAP_INTERVALS * usual_s) + 1
    return of_samples(
        np.insert(times_s, holes, times_s[holes - 1] + usual_s), np.insert(values, holes, np.nan)
    )


def rate(times_s: Floats, counter: Floats, lives: Integers) -> Points:
    """Change a second between neighbours, at the later one's time; NaN after a reset or a gap.

    `lives` numbers the counter's lives: where it changes, the counter began anew. A decrease says so, too.
    """
    known = ~np.isnan(counter)
    every_s, times_s, counter, lives = times_s, times_s[known], counter[known], lives[known]
    elapsed_s, change = np.diff(times_s), np.diff(counter)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = change / elapsed_s
    values[_broken(elapsed_s, change, lives, every_s)] = np.nan
    return of_samples(times_s[1:], values)


def ratio_of_changes(times_s: Floats, top: Floats, bottom: Floats, lives: Integers) -> Points:
    """Change of `top` for each change of `bottom`; NaN where `bottom` did not change, after a reset or a gap."""
    known = ~(np.isnan(top) | np.isnan(bottom))
    every_s, times_s, top, bottom, lives = times_s, times_s[known], top[known], bottom[known], lives[known]
    elapsed_s, change, below = np.diff(times_s), np.diff(top), np.diff(bottom)
    with np.errstate(invalid="ignore", divide="ignore"):
        values = change / below
    values[_broken(elapsed_s, change, lives, every_s) | (below <= 0)] = np.nan
    return of_samples(times_s[1:], values)


def _broken(elapsed_s: Floats, change: Floats, lives: Integers, every_s: Floats) -> npt.NDArray[np.bool_]:
    longest_s = GAP_INTERVALS * usual_interval_s(elapsed_s, every_s)
    broken: npt.NDArray[np.bool_] = (
        (elapsed_s <= 0) | (change < 0) | (np.diff(lives) != 0) | (elapsed_s > longest_s)
    )
    return broken


def usual_interval_s(elapsed_s: Floats, every_s: Floats) -> float:
    """The usual one of the intervals at which a value is known, 0 without any; `every_s` are the times of all samples.

    A value that is known now and then is not read that rarely, so more than 60 s is usual only of the samples.
    """
    if not len(elapsed_s):
        return 0.0
    return min(float(np.median(elapsed_s)), max(_SLOWEST_S, float(np.median(np.diff(every_s)))))


def in_steps(points: Points, start_s: float, end_s: float, step_s: float, counter: bool = False) -> Points:
    """One point for each step, at the step's beginning; NaN in a step without a sample, so gaps stay gaps.

    Steps stand at whole multiples of `step_s` since the epoch, so that two questions give the same points.
    """
    first = int(np.floor(start_s / step_s))
    count = max(1, int(np.ceil(end_s / step_s)) - first)
    points = points.known()
    step = np.floor(points.times_s / step_s).astype(np.int64) - first
    inside = (step >= 0) & (step < count)
    points, step = points.rows(inside), step[inside]
    grid = [np.full(count, np.nan) for _ in range(3)]
    weight = np.zeros(count)
    if len(step):
        heads = np.flatnonzero(np.diff(step, prepend=-1))
        at = step[heads]
        weight[at] = np.add.reduceat(points.count, heads)
        grid[0][at] = np.minimum.reduceat(points.minimum, heads)
        grid[2][at] = np.maximum.reduceat(points.maximum, heads)
        if counter:
            grid[1][at] = points.average[np.append(heads[1:], len(step)) - 1]
        else:
            grid[1][at] = np.add.reduceat(points.average * points.count, heads) / weight[at]
    times_s: Floats = (first + np.arange(count, dtype=np.float64)) * step_s
    return Points(times_s, grid[0], grid[1], grid[2], weight)


_NICE_STEPS_S = (
    1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 900, 1200, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800,
)  # fmt: skip


def nice_step_s(least_s: float) -> float:
    """The shortest round step not below `least_s`: 30 s, 5 min, 1 h, ..."""
    found = next((step for step in _NICE_STEPS_S if step >= least_s), None)
    return float(found) if found is not None else float(np.ceil(least_s / 604800) * 604800)
