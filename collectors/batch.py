"""Batch: the columns of one sample, all series of a target side by side, frozen.

Rows stand in three sections: measured, computed, constant; within each, record by record in the order of
the subjects' names.  A Plan says what the rows are; it is made anew only when a record comes, goes or changes
its shape, and it reuses each unchanged record's own columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np
import numpy.typing as npt

from .fields import Constant, Declaration, Field, Kind, Labels, Ratio, escape_label_value
from .filters import Cap
from .layout import Compiler, Layout
from .snapshot import Record, Snapshot, Subject, Value

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]

_LARGEST = 1e300
"""No number of libvirt's comes near; above it, scaling to base units could overflow."""
_NUMBERS = {int, float, bool}
_RATIOS = {ratio: number for number, ratio in enumerate(Ratio)}


def ratio_number(ratio: Ratio) -> int:
    """The number under which ``Plan.formula_ratio`` holds a Ratio."""
    return _RATIOS[ratio]


class Catalogue:
    """The families in page order, with the place of each by name."""

    def __init__(self, declarations: Sequence[Declaration]) -> None:
        by_name: dict[str, Declaration] = {}
        for declaration in declarations:
            by_name.setdefault(declaration.name, declaration)
        self.families = tuple(declaration.family for declaration in by_name.values())
        self.place = {family.name: place for place, family in enumerate(self.families)}


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """What the rows of a Layout are, whoever's they are; one array place a row of its section."""

    measured_family: Integers
    divisor: Floats  # libvirt's value / divisor = base unit: dividing rounds once, 1e-9 as a factor twice
    counter: Booleans
    identity: Booleans
    zero_is_unknown: Booleans
    signed: Booleans
    instance: Integers  # local number of the device; 0 is the record itself
    instances: int
    bucket_of: Integers  # a bucket: the local row of its histogram's first one; else -1
    formula_family: Integers
    formula_ratio: Integers
    numerator: Integers
    denominator: Integers
    formula_scale: Floats
    formula_at_most: Floats

    @classmethod
    def of(cls, layout: Layout, catalogue: Catalogue) -> Columns:
        fields = [row.declaration for row in layout.measured]
        return cls(
            _integers(catalogue.place[f.name] for f in fields),
            np.array([_divisor(f) for f in fields if isinstance(f, Field)], dtype=np.float64),
            np.array([f.kind is Kind.COUNTER for f in fields], dtype=np.bool_),
            np.array([isinstance(f, Field) and f.identity for f in fields], dtype=np.bool_),
            np.array([isinstance(f, Field) and f.zero_is_unknown for f in fields], dtype=np.bool_),
            np.array([isinstance(f, Field) and f.signed for f in fields], dtype=np.bool_),
            _integers(row.instance for row in layout.measured), layout.instances,
            _integers(row.bucket_of for row in layout.measured),
            _integers(catalogue.place[f.row.declaration.name] for f in layout.formulas),
            _integers(_RATIOS[f.ratio] for f in layout.formulas),
            _integers(f.numerator for f in layout.formulas),
            _integers(f.denominator for f in layout.formulas),
            np.array([f.scale for f in layout.formulas], dtype=np.float64),
            np.array([f.at_most for f in layout.formulas], dtype=np.float64))


def _integers(values: object) -> Integers:
    return np.array(list(values), dtype=np.int64)  # type: ignore[call-overload]


def _divisor(field: Field) -> float:
    scale = 1.0 if field.kind is Kind.HISTOGRAM else field.scale  # a histogram's is that of its bounds
    return float(round(1 / scale)) if scale < 1 else 1 / scale


class Placement:
    """One record's rows: its subject, source and shape.  Never changed; another shape is another Placement."""

    def __init__(self, record: Record, layout: Layout, columns: Columns, catalogue: Catalogue) -> None:
        self.subject: Subject = record.subject
        self.source = record.source
        self.layout = layout
        self.columns = columns
        self.names = layout.names(record.stats)
        self.constants = record.constants
        known = [c for c in record.constants if c.name in catalogue.place]
        rows = [(row.declaration.name, row.labels(()), value) for row, value in layout.constants]
        rows += [(c.name, _render(c), c.value) for c in known]
        self.constant_rows = [(name, labels) for name, labels, _ in rows]
        self.constant_family = _integers(catalogue.place[name] for name, _, _ in rows)
        self.constant_values = np.array([value for _, _, value in rows], dtype=np.float64)

    def holds(self, record: Record) -> bool:
        """Whether the record still has this subject (identity and labels), constants and shape."""
        return ((record.subject is self.subject or record.subject == self.subject)
                and (record.constants is self.constants or record.constants == self.constants)
                and self.layout.fits(record.stats)
                and self.layout.names(record.stats) == self.names)

    @cached_property
    def prefixes(self) -> tuple[list[str], list[str], list[str]]:
        """A line break and ``name{labels} `` of each row, by section; made once, when a page first shows them."""
        own = ",".join(f'{name}="{escape_label_value(value)}"' for name, value in self.subject.labels)
        names = tuple(map(escape_label_value, self.layout.texts(self.names)))
        return ([_prefix(row.name, own, row.labels(names)) for row in self.layout.measured],
                [_prefix(f.row.declaration.name, own, f.row.labels(names)) for f in self.layout.formulas],
                [_prefix(name, own, labels) for name, labels in self.constant_rows])

    def series(self) -> list[tuple[str, str]]:
        """(family name, labels behind the subject's) of each measured row: what a row is in any shape."""
        names = self.layout.texts(self.names)
        return [(row.declaration.name, row.labels(names)) for row in self.layout.measured]

    def computed_series(self) -> list[tuple[str, str]]:
        """The same of each computed row."""
        names = self.layout.texts(self.names)
        return [(f.row.declaration.name, f.row.labels(names)) for f in self.layout.formulas]


def _prefix(name: str, own: str, labels: str) -> str:
    inside = f"{own},{labels}" if own and labels else own or labels
    return f"\n{name}{{{inside}}} " if inside else f"\n{name} "


def _render(constant: Constant) -> str:
    return ",".join(f'{name}="{escape_label_value(value)}"' for name, value in constant.labels)


class Plan:
    """What each row of a Batch is.  Frozen; two Batches of one Plan can be compared row by row."""

    def __init__(self, placements: tuple[Placement, ...], catalogue: Catalogue) -> None:
        self.placements = placements
        self.catalogue = catalogue
        columns = [p.columns for p in placements]
        self.measured_counts = _integers(len(c.measured_family) for c in columns)
        self.formula_counts = _integers(len(c.formula_family) for c in columns)
        self.constant_counts = _integers(len(p.constant_family) for p in placements)
        self.measured_start = _starts(self.measured_counts)
        self.formula_start = _starts(self.formula_counts)
        self.constant_start = _starts(self.constant_counts)
        self.measured = int(self.measured_counts.sum())
        self.formulas = int(self.formula_counts.sum())
        self.divisor = _join([c.divisor for c in columns])
        self.counter = _join([c.counter for c in columns]).astype(np.bool_)
        self.identity = _join([c.identity for c in columns]).astype(np.bool_)
        self.zero_is_unknown = _join([c.zero_is_unknown for c in columns]).astype(np.bool_)
        self.least = np.where(_join([c.signed for c in columns]).astype(np.bool_), -_LARGEST, 0.0)
        self.placement_of_row = np.repeat(np.arange(len(columns)), self.measured_counts)
        instance_start = _starts(_integers(c.instances for c in columns))
        self.instances = int(sum(c.instances for c in columns))
        self.record_instance = instance_start[:-1]
        self.instance = _join([c.instance for c in columns]).astype(np.int64) + instance_start[self.placement_of_row]
        bucket_of = _join([c.bucket_of for c in columns]).astype(np.int64)
        self.buckets = np.flatnonzero(bucket_of >= 0)
        first = bucket_of[self.buckets] + self.measured_start[self.placement_of_row[self.buckets]]
        self.first_bucket = np.searchsorted(self.buckets, first)  # of each of ``buckets``, its histogram's first there
        offset = np.repeat(self.measured_start[:-1], self.formula_counts)
        self.formula_ratio = _join([c.formula_ratio for c in columns]).astype(np.int64)
        self.numerator = _join([c.numerator for c in columns]).astype(np.int64) + offset
        self.denominator = _join([c.denominator for c in columns]).astype(np.int64) + offset
        self.formula_scale = _join([c.formula_scale for c in columns])
        self.formula_at_most = _join([c.formula_at_most for c in columns])
        self.constant_values = _join([p.constant_values for p in placements])

    @cached_property
    def family_of_row(self) -> Integers:
        """Place of each row's family in the catalogue: measured, computed, constant rows one after the other."""
        sections = ([p.columns.measured_family for p in self.placements],
                    [p.columns.formula_family for p in self.placements],
                    [p.constant_family for p in self.placements])
        return _join([part for section in sections for part in section]).astype(np.int64)

    @cached_property
    def index(self) -> dict[Placement, int]:
        return {placement: place for place, placement in enumerate(self.placements)}

    @property
    def rows(self) -> int:
        """Number of series there would be if nothing were absent."""
        return self.measured + self.formulas + len(self.constant_values)


def kept_rows(old: Plan, new: Plan) -> tuple[Integers, Integers]:
    """Row numbers in ``old`` and in ``new``, over all sections, of the records that both hold unchanged."""
    pairs = [(old.index[p], place) for place, p in enumerate(new.placements) if p in old.index]
    sections = ((old.measured_start, new.measured_start, new.measured_counts, 0, 0),
                (old.formula_start, new.formula_start, new.formula_counts, old.measured, new.measured),
                (old.constant_start, new.constant_start, new.constant_counts,
                 old.measured + old.formulas, new.measured + new.formulas))
    before, after = [], []
    for old_start, new_start, counts, old_offset, new_offset in sections:
        source, target = row_ranges(pairs, old_start, new_start, counts)
        before.append(source + old_offset)
        after.append(target + new_offset)
    return np.concatenate(before), np.concatenate(after)


def row_ranges(pairs: Sequence[tuple[int, int]], old_start: Integers, new_start: Integers,
               counts: Integers) -> tuple[Integers, Integers]:
    """Row numbers (old, new) of whole records within a section, by the records' places (old, new)."""
    if not pairs:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    old_places, new_places = np.array(pairs, dtype=np.int64).T
    lengths = counts[new_places]
    ends = np.cumsum(lengths)
    within = np.arange(int(ends[-1])) - np.repeat(ends - lengths, lengths)
    return np.repeat(old_start[old_places], lengths) + within, np.repeat(new_start[new_places], lengths) + within


def _starts(counts: Integers) -> Integers:
    return np.concatenate((np.zeros(1, dtype=np.int64), np.cumsum(counts, dtype=np.int64)))


def _join(parts: Sequence[npt.NDArray[np.generic]]) -> npt.NDArray[np.float64]:
    return np.concatenate(parts) if parts else np.empty(0)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One sample's measured values.

    ``raw``: float64, one a measured row, in libvirt's unit, NaN where absent.  ``times_s``: monotonic time of
    each placement's record.  Both are read-only arrays; rows are those of ``plan``.  ``wall_time_s`` is the
    sample's time since the epoch, ``ended_s`` the monotonic time at which it was whole.
    """

    plan: Plan
    raw: Floats
    times_s: Floats
    sequence: int
    wall_time_s: float
    ended_s: float
    up: bool

    @property
    def scaled(self) -> Floats:
        """The measured values in base units."""
        scaled: Floats = self.raw / self.plan.divisor
        return scaled


class Builder:
    """Turns Snapshots into Batches; keeps the placements between samples.  One thread at a time."""

    def __init__(self, compiler: Compiler, choose: Callable[[Sequence[Record]], Sequence[Record]] | None = None,
                 cap: Cap | None = None) -> None:
        """``choose`` leaves Records out, ``cap`` whole domains by the number of their series."""
        self.compiler = compiler
        self._choose = choose
        self._cap = cap
        self.catalogue = Catalogue(compiler.declarations)
        self._placements: dict[tuple[tuple[str | int, ...], str], Placement] = {}
        self._keys: list[tuple[str, Labels, str]] = []
        self._order: list[int] = []
        self._records: dict[int, tuple[Record, Placement]] = {}  # of the last sample, what may come again
        self._columns: dict[int, tuple[Layout, Columns]] = {}
        self.plan = Plan((), self.catalogue)

    def batch(self, snapshot: Snapshot) -> Batch:
        """The Batch of a Snapshot.  No value, however odd, makes it fail: what is no number is absent."""
        chosen = snapshot.records if self._choose is None else self._choose(snapshot.records)
        records = self._ordered(chosen)
        placements = tuple(map(self._place, records))
        # What was made for this sample alone is not held: it would be there twice while the next one is taken.
        self._records = {id(r): (r, p) for r, p in zip(records, placements, strict=True)
                         if r.sampled_at_s < snapshot.started_s}
        if self._cap is not None:
            cut = self._cap.cut(*_counts(placements))
            if cut:
                records = [r for r in records if r.subject.kind != "domain" or r.subject.name not in cut]
                placements = tuple(p for p in placements if p.subject.kind != "domain" or p.subject.name not in cut)
        if placements != self.plan.placements:
            self.plan = Plan(placements, self.catalogue)
            self._placements = {(p.subject.key, p.source): p for p in placements}
            used = {id(p.layout) for p in placements}
            self._columns = {key: value for key, value in self._columns.items() if key in used}
        plan = self.plan
        raw = _floats([p.layout.values(r.stats) for p, r in zip(placements, records, strict=True)], plan.measured)
        with np.errstate(invalid="ignore"):
            absent = ~((raw >= plan.least) & (raw <= _LARGEST)) | (plan.zero_is_unknown & (raw == 0))
        raw[absent] = np.nan
        if len(plan.buckets):
            raw[plan.buckets] = _cumulative(raw[plan.buckets], plan.first_bucket)
        times = np.array([record.sampled_at_s for record in records], dtype=np.float64)
        raw.flags.writeable = times.flags.writeable = False
        return Batch(plan, raw, times, snapshot.sequence, snapshot.wall_time_s, snapshot.ended_s, snapshot.up)

    def _ordered(self, records: Sequence[Record]) -> list[Record]:
        """Records by subject kind, labels and source; of two with the same, which would double series, the later."""
        keys = [(r.subject.kind, r.subject.labels, r.source) for r in records]
        if keys != self._keys:  # mostly they are the last sample's, and sorting them is dear
            place = {key: number for number, key in enumerate(keys)}
            self._keys, self._order = keys, [place[key] for key in sorted(place)]
        return [records[number] for number in self._order]

    def _place(self, record: Record) -> Placement:
        last = self._records.get(id(record))
        if last is not None:  # what is read beside the sampling stays the same object until it is read again
            return last[1]
        known = self._placements.get((record.subject.key, record.source))
        if known is not None and known.holds(record):
            return known
        layout = self.compiler.layout(record.stats)
        kept = self._columns.get(id(layout))
        if kept is None:
            kept = self._columns[id(layout)] = (layout, Columns.of(layout, self.catalogue))
        return Placement(record, layout, kept[1], self.catalogue)


def _counts(placements: Sequence[Placement]) -> tuple[dict[str, int], int]:
    """Rows of each domain, by its name, and of all else together."""
    counts: dict[str, int] = {}
    others = 0
    for placement in placements:
        columns = placement.columns
        rows = len(columns.measured_family) + len(columns.formula_family) + len(placement.constant_family)
        if placement.subject.kind == "domain":
            counts[placement.subject.name] = counts.get(placement.subject.name, 0) + rows
        else:
            others += rows
    return counts, others


def _floats(tuples: Sequence[tuple[Value, ...]], count: int) -> Floats:
    flat = list(chain.from_iterable(tuples))
    try:
        if not set(map(type, flat)) <= _NUMBERS:  # numpy would read a text "0" as a number
            raise TypeError
        return np.array(flat, dtype=np.float64).reshape(count)
    except (TypeError, ValueError, OverflowError):
        return np.array([_float(value) for value in flat], dtype=np.float64)


def _cumulative(counts: Floats, first: Integers) -> Floats:
    """Buckets from bins: running sums, begun anew at each histogram; one absent bin makes its whole histogram so."""
    sums = np.cumsum(np.nan_to_num(counts))
    before = sums[first] - np.nan_to_num(counts)[first]
    broken = np.zeros(len(counts), dtype=np.bool_)
    broken[first[np.isnan(counts)]] = True
    found: Floats = np.where(broken[first], np.nan, sums - before)
    return found


def _float(value: object) -> float:
    """``value`` as a float, NaN where it is none: one odd value costs its own series only."""
    if not isinstance(value, int | float):
        return float("nan")
    try:
        return float(value)
    except OverflowError:
        return float("nan")

