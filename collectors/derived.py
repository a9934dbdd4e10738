"""Values made from several fields of one sample, vectorised."""

from __future__ import annotations

import numpy as np

from .batch import Batch, Floats, ratio_number
from .fields import Ratio

_COMPLEMENT = ratio_number(Ratio.COMPLEMENT)


def derived(batch: Batch) -> Floats:
    """Values of the plan's computed rows that one sample gives; NaN for the others and where one is absent.

    A complement is kept between 0 and 1: the guest's two figures are not of the same instant.
    """
    plan = batch.plan
    values = np.full(plan.formulas, np.nan)
    rows = plan.formula_ratio == _COMPLEMENT
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        share = 1 - batch.raw[plan.numerator[rows]] / batch.raw[plan.denominator[rows]]
    share[~np.isfinite(share)] = np.nan
    values[rows] = np.clip(share, 0.0, 1.0) * plan.formula_scale[rows]
    return values
