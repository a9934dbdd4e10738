"""The Prometheus page from a Batch; only values that changed are formatted again.

The page is a list of pieces, kept between samples: for each row its ready prefix and its value, in turn.  A sample
replaces the values that changed and joins.  A family's header stands in front of its first present row's prefix.
Measured costs and what was tried besides: docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt
import orjson

from collectors.batch import Batch, Booleans, Floats, Integers, Plan, kept_rows
from collectors.fields import Family, Kind

_MANY = 0.4
"""Share of changed values from which replacing all values at once is quicker than one by one."""


class Exposition:
    """The page of one target.  Keeps what was last shown; one thread at a time.

    ``only`` names the families to show; None shows all.
    """

    def __init__(self, families: Sequence[Family], only: frozenset[str] | None = None) -> None:
        self._shown_families = np.array([only is None or family.name in only for family in families], dtype=np.bool_)
        self._text_headers = [header(family, False) for family in families]
        self._openmetrics_headers = [header(family, True) for family in families]
        self._plan: Plan | None = None
        self._shown: Floats = np.empty(0)
        self._present: Booleans = np.empty(0, dtype=np.bool_)
        self._pieces: list[str] = []
        self._header_rows: list[tuple[int, int]] = []
        self.formatted = 0  # values formatted for the last page
        self.series = 0  # series on the last page

    def update(self, batch: Batch, computed: Floats) -> None:
        """Take over a sample: ``batch``'s measured rows and ``computed`` rows of the same plan (NaN: absent)."""
        if batch.plan is not self._plan:
            self._lay_out(batch.plan)
        values = np.concatenate((batch.scaled, computed, batch.plan.constant_values))[self._order]
        present = ~np.isnan(values)
        changed = np.flatnonzero(present & (values != self._shown))
        appeared = np.flatnonzero(present != self._present)
        self.formatted = len(changed)
        self.series = int(present.sum())
        self._replace(changed, values)
        for row in appeared.tolist():
            self._pieces[2 * row] = self._prefixes[row] if present[row] else ""
            if not present[row]:
                self._pieces[2 * row + 1] = ""
        self._shown = values
        if len(appeared):
            self._present = present
            self._find_headers()

    def _replace(self, changed: Integers, values: Floats) -> None:
        """Put the texts of the changed rows into their places."""
        pieces = self._pieces
        texts = format_values(values[changed])
        if len(changed) == len(values):
            pieces[1:-1:2] = texts
        elif len(changed) > _MANY * len(values):
            column = np.array(pieces[1:-1:2], dtype=object)
            column[changed] = texts
            pieces[1:-1:2] = column.tolist()
        else:
            for row, text in zip(changed.tolist(), texts, strict=True):
                pieces[2 * row + 1] = text

    def text(self) -> bytes:
        """The page in text format 0.0.4."""
        return self._join(self._text_headers)

    def openmetrics(self) -> bytes:
        """The page in OpenMetrics 1.0 without its ``# EOF``."""
        return self._join(self._openmetrics_headers)

    def _join(self, headers: Sequence[str]) -> bytes:
        pieces = self._pieces
        # Each line begins with its break, so that a value's text needs none of its own; the page's first has none.
        for row, family in self._header_rows:
            pieces[2 * row] = headers[family] + self._prefixes[row]
        for row, family in self._header_rows[:1]:
            pieces[2 * row] = headers[family][1:] + self._prefixes[row]
        return "".join(pieces).encode() if self._header_rows else b""

    def _lay_out(self, plan: Plan) -> None:
        """Prefixes and texts in page order (by family, then record); what did not change is taken over."""
        texts, shown = self._taken_over(plan)
        family_of_row = plan.family_of_row
        order: Integers = np.argsort(family_of_row, kind="stable")
        order = order[self._shown_families[family_of_row[order]]]
        flat = np.empty(plan.rows, dtype=object)
        sections = [placement.prefixes for placement in plan.placements]
        flat[:] = list(chain.from_iterable(part for section in zip(*sections, strict=True) for part in section))
        self._prefixes = flat[order].tolist()
        self._family = family_of_row[order]
        self._shown = shown[order]
        self._present = ~np.isnan(self._shown)
        self._pieces = [*([""] * (2 * len(order))), "\n"]
        self._pieces[1:-1:2] = texts[order].tolist()
        self._pieces[0:-1:2] = np.where(self._present, flat[order], "").tolist()
        self._order, self._plan = order, plan
        self._header_rows = []
        self._find_headers()

    def _taken_over(self, plan: Plan) -> tuple[npt.NDArray[np.object_], Floats]:
        """Texts and values that the last page showed, at their rows of the new plan."""
        texts = np.full(plan.rows, "", dtype=object)
        shown = np.full(plan.rows, np.nan)
        old = self._plan
        if old is not None and len(self._order):
            old_texts = np.full(old.rows, "", dtype=object)
            old_shown = np.full(old.rows, np.nan)
            old_texts[self._order] = self._pieces[1:-1:2]
            old_shown[self._order] = self._shown
            source, target = kept_rows(old, plan)
            texts[target], shown[target] = old_texts[source], old_shown[source]
        return texts, shown

    def _find_headers(self) -> None:
        """The first present row of each family: a family without a sample has no header either."""
        for row, _ in self._header_rows:
            self._pieces[2 * row] = self._prefixes[row] if self._present[row] else ""
        rows = np.flatnonzero(self._present)
        family = self._family[rows]
        first = np.ones(len(rows), dtype=np.bool_)
        first[1:] = family[1:] != family[:-1]
        self._header_rows = list(zip(rows[first].tolist(), family[first].tolist(), strict=True))


def format_values(values: Floats) -> list[str]:
    """Each value's shortest exact text; whole numbers without a point.

    orjson formats all of them in one call; adding zero turns -0 into 0.
    """
    if not len(values):
        return []
    text = orjson.dumps(values + 0.0, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1] + b","
    return text.replace(b".0,", b",").decode()[:-1].split(",")


def header(family: Family, openmetrics: bool) -> str:
    """A family's HELP and TYPE lines, each with its break in front."""
    name = family.name
    if openmetrics and family.kind is Kind.COUNTER:
        name = name.removesuffix("_total")
    text = family.help.replace("\\", r"\\").replace("\n", r"\n")
    if openmetrics:
        text = text.replace('"', r"\"")
    return f"\n# HELP {name} {text}\n# TYPE {name} {family.kind.value}"
