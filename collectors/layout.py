"""Layout: the shape of a Record compiled once, used at every sample.

A shape is the set of keys together with state and reason; device names are filled in record by record, since
each domain's taps have names of their own.  Compiling looks each key up in the Field tables (about 1 ms); a
sample is then one key comparison and one itemgetter call (some 10 us for 100 keys).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

from .domain import reason_name, state_name
from .fields import (
    Collector,
    Computed,
    Declaration,
    Field,
    Kind,
    Labels,
    Ratio,
    StateNumber,
    StateSet,
    escape_label_value,
)
from .snapshot import Value

_INDEX = re.compile(r"(?<=\.)([0-9]+)(?=\.|$)")
_INDEX_AT_END = re.compile(r"[0-9]+\.[^.]*$")
_NO_ROW = -1
_PLACES = ("<n>", "<m>")

Indexes = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One series of a shape, whatever its devices are called.

    Behind the subject's labels stand ``texts``, with the names of numbers ``slots`` of the record's between them (one
    less).  Rows with the same ``instance`` belong to one device and are reset together; 0 is the record itself.
    ``bucket_of`` is, for a histogram's bucket, the place of its first bucket among the Layout's measured rows.
    """

    declaration: Declaration
    texts: tuple[str, ...]
    slots: tuple[int, ...]
    instance: int
    bucket_of: int = _NO_ROW

    @property
    def name(self) -> str:
        """The series' name: the family's, or that of its buckets."""
        return self.declaration.name if self.bucket_of == _NO_ROW else f"{self.declaration.name}_bucket"

    def labels(self, names: tuple[str, ...]) -> str:
        """The rendered labels behind the subject's; ``names`` are escaped already."""
        texts = self.texts
        if not self.slots:
            return texts[0]
        return "".join([f"{text}{names[slot]}" for text, slot in zip(texts, self.slots, strict=False)]) + texts[-1]


@dataclass(frozen=True, slots=True)
class Formula:
    """A computed row: its numbers are places among the Layout's measured rows."""

    row: Row
    ratio: Ratio
    numerator: int
    denominator: int
    scale: float
    at_most: float


@dataclass(frozen=True, slots=True)
class Layout:
    """Rows of a shape: ``measured`` (in the order of ``values``), then ``formulas``, then ``constants``.

    ``constants`` are pairs of a Row and its value.  A Record has this shape where its keys are ``keys`` and its
    enumerations (state, reason) are ``enumerations``; its device names may differ from record to record.
    """

    keys: frozenset[str]
    enumerations: tuple[Value, ...]
    measured: tuple[Row, ...]
    formulas: tuple[Formula, ...]
    constants: tuple[tuple[Row, float], ...]
    instances: int
    bounds: tuple[tuple[int, float], ...]  # slots that hold a bin's lowest value, with the scale to its base unit
    _get_enumerations: Any
    _get_names: Any
    _get_values: Any

    def fits(self, stats: Mapping[str, Value]) -> bool:
        """Whether a Record with these stats has this shape."""
        return stats.keys() == self.keys and self._get_enumerations(stats) == self.enumerations

    def names(self, stats: Mapping[str, Value]) -> tuple[Value, ...]:
        """The device names, by slot.  Only for stats that fit."""
        found: tuple[Value, ...] = self._get_names(stats)
        return found

    def texts(self, names: tuple[Value, ...]) -> tuple[str, ...]:
        """The device names as labels show them, not yet escaped."""
        if not self.bounds:
            return tuple(map(str, names))
        scales = dict(self.bounds)
        return tuple(_bound(name, scales[slot]) if slot in scales else str(name) for slot, name in enumerate(names))

    def values(self, stats: Mapping[str, Value]) -> tuple[Value, ...]:
        """The values of the measured rows, in libvirt's units.  Only for stats that fit."""
        found: tuple[Value, ...] = self._get_values(stats)
        return found


def _getter(keys: tuple[str, ...]) -> Any:
    """An itemgetter that gives a tuple for any number of keys."""
    if len(keys) > 1:
        return itemgetter(*keys)
    if keys:
        only = keys[0]
        return lambda stats: (stats[only],)
    return lambda stats: ()


class Compiler:
    """Compiles Layouts from the declarations of the enabled collectors and keeps those it has seen.

    Used by one thread at a time.  ``declarations`` are all of the enabled collectors', in page order.
    """

    def __init__(self, collectors: Iterable[Collector], cache_size: int = 4096) -> None:
        self.declarations: tuple[Declaration, ...] = tuple(d for c in collectors for d in c.declarations)
        self._fields: dict[str, list[Field]] = {}
        self._state_sets: dict[str, StateSet] = {}
        self._state_numbers: list[StateNumber] = []
        self._computed: list[Computed] = []
        self._name_patterns: dict[str, float] = {}  # keys whose values are labels; 0 or a bin's scale
        self._infos = {d.name: d for d in self.declarations}
        self._cache: dict[tuple[frozenset[str], tuple[Value, ...], tuple[Value, ...]], Layout] = {}
        self._cache_size = cache_size
        for declaration in self.declarations:
            if isinstance(declaration, Field):
                self._fields.setdefault(declaration.source, []).append(declaration)
                histogram = declaration.kind is Kind.HISTOGRAM
                self._name_patterns[declaration.label_key] = 0.0
                self._name_patterns[declaration.inner_label_key] = declaration.scale if histogram else 0.0
            elif isinstance(declaration, StateSet):
                self._state_sets[declaration.source] = declaration
            elif isinstance(declaration, StateNumber):
                self._state_numbers.append(declaration)
            elif isinstance(declaration, Computed):
                self._computed.append(declaration)

    def layout(self, stats: Mapping[str, Value]) -> Layout:
        """The Layout of these stats, from the cache or compiled now."""
        keys = frozenset(stats)
        name_keys = tuple(sorted(key for key in keys if _split(key)[0] in self._name_patterns))
        enumerations = tuple(stats[key] for key in self._enumeration_keys(keys))
        names = tuple(stats[key] for key in name_keys if not self._name_patterns[_split(key)[0]])
        bounds = tuple(stats[key] for key in name_keys if self._name_patterns[_split(key)[0]])
        # Shapes are shared whatever the devices are called, unless a name is odd or stands twice.
        plain = all(isinstance(name, str) and name for name in names) and len(set(names)) == len(names)
        cache_key = (keys, enumerations, bounds if plain else (*bounds, *names))
        known = self._cache.get(cache_key)
        if known is None:
            if len(self._cache) >= self._cache_size:
                self._cache.clear()
            known = self._cache[cache_key] = self._compile(stats, keys, name_keys, enumerations)
        return known

    def _enumeration_keys(self, keys: frozenset[str]) -> tuple[str, ...]:
        wanted = {*self._state_sets, *(n.source for n in self._state_numbers), "state.reason", "sample.reason"}
        return tuple(sorted(keys & wanted))

    def _compile(self, stats: Mapping[str, Value], keys: frozenset[str], name_keys: tuple[str, ...],
                 enumerations: tuple[Value, ...]) -> Layout:
        slots = {key: slot for slot, key in enumerate(name_keys)}
        source_keys: list[str] = []
        measured: list[Row] = []
        place: dict[tuple[str, Indexes], int] = {}  # (pattern, indexes) to the row of its value
        instances: dict[tuple[str, Indexes], int] = {("", ()): 0}
        series: set[tuple[str, str]] = set()
        for key in sorted(keys, key=_natural):
            pattern, indexes = _split(key)
            for declaration in self._fields.get(pattern, ()):
                row = _row(declaration, indexes, stats, slots, instances)
                if row is None:
                    continue
                if declaration.kind is Kind.HISTOGRAM:
                    row = _bucket(row, measured, source_keys, key)
                names = tuple(str(stats[name_key]) for name_key in name_keys)
                identity = (declaration.name, row.labels(names))
                if identity in series:
                    continue
                series.add(identity)
                place.setdefault((pattern, indexes), len(measured))
                source_keys.append(key)
                measured.append(row)
        bounds = tuple((slots[key], scale) for key in name_keys if (scale := self._name_patterns[_split(key)[0]]))
        return Layout(keys, enumerations, tuple(measured), tuple(self._formulas(place, measured)),
                      tuple(self._state_rows(stats)), len(instances), bounds,
                      _getter(self._enumeration_keys(keys)), _getter(name_keys), _getter(tuple(source_keys)))

    def _formulas(self, place: Mapping[tuple[str, Indexes], int], measured: list[Row]) -> Iterable[Formula]:
        for computed in self._computed:
            for (pattern, indexes), numerator in place.items():
                if pattern != computed.numerator:
                    continue
                denominator = _NO_ROW
                if computed.denominator:
                    own = indexes if "<n>" in computed.denominator else ()
                    denominator = place.get((computed.denominator, own), _NO_ROW)
                    if denominator == _NO_ROW:
                        continue
                source = measured[numerator]
                yield Formula(replace(source, declaration=computed), computed.ratio, numerator, denominator,
                              computed.scale, computed.at_most)

    def _state_rows(self, stats: Mapping[str, Value]) -> Iterable[tuple[Row, float]]:
        for source, state_set in self._state_sets.items():
            number = stats.get(source)
            if not isinstance(number, int) or not 0 <= number < len(state_set.states):
                continue
            for state, name in enumerate(state_set.states):
                yield Row(state_set, (_labels(((state_set.label, name),)),), (), 0), float(state == number)
        for declared in self._state_numbers:
            number = stats.get(declared.source)
            if isinstance(number, int) and 0 <= number < len(declared.states):
                labels = _labels(((declared.label, declared.states[number]),))
                yield Row(declared, (labels,), (), 0), float(number)
        yield from self._named(stats, "libvirt_domain_state_reason", _state_reason)
        yield from self._named(stats, "libvirt_domain_sample_incomplete_reason", _incomplete_reason)

    def _named(self, stats: Mapping[str, Value], name: str, labels_of: Any) -> Iterable[tuple[Row, float]]:
        declaration = self._infos.get(name)
        labels = labels_of(stats)
        if declaration is not None and labels is not None:
            yield Row(declaration, (_labels(labels),), (), 0), 1.0


def _state_reason(stats: Mapping[str, Value]) -> Labels | None:
    state, reason = stats.get("state.state"), stats.get("state.reason")
    if not isinstance(state, int) or not isinstance(reason, int):
        return None
    name = state_name(state)
    return None if name is None else (("state", name), ("reason", reason_name(state, reason)))


def _incomplete_reason(stats: Mapping[str, Value]) -> Labels | None:
    reason = stats.get("sample.reason")
    return (("reason", reason),) if isinstance(reason, str) and reason else None


def _natural(key: str) -> list[tuple[int, int, str]]:
    """Sort key that puts block.10 behind block.9."""
    return [(0, int(part), "") if part.isascii() and part.isdigit() and len(part) < 19 else (1, 0, part)
            for part in key.split(".")]


def _split(key: str) -> tuple[str, Indexes]:
    """``block.3.rd.reqs`` to (``block.<n>.rd.reqs``, ('3',)); a second index becomes ``<m>``."""
    parts = _INDEX.split(key)
    if len(parts) == 1:
        return key, ()
    pattern, indexes = parts[0], []
    for number, at in enumerate(range(1, len(parts), 2)):
        pattern += (_PLACES[number] if number < len(_PLACES) else parts[at]) + parts[at + 1]
        indexes.append(parts[at])
    return pattern, tuple(indexes)


def _is_label(key: str, value: Value | None) -> bool:
    """Whether a value can be a label's: a name, or under another key a number (a node's, a cache's, an interval)."""
    if isinstance(value, str):
        return bool(value)
    return isinstance(value, int) and not isinstance(value, bool) and not key.endswith(".name")


def _bound(start: Value, scale: float) -> str:
    """A bucket's upper bound, in base units, from the next bin's lowest value."""
    known = isinstance(start, int) and scale < 1 and start < 2**64
    return repr(start / round(1 / scale)) if known else str(start)  # type: ignore[operator]


def _row(declaration: Field, indexes: Indexes, stats: Mapping[str, Value], slots: Mapping[str, int],
         instances: dict[tuple[str, Indexes], int]) -> Row | None:
    """The row of a field at its indexes; None where a name that its labels need is missing."""
    texts, taken = [""], []
    given = ((declaration.label, declaration.label_key), (declaration.inner_label, declaration.inner_label_key))
    for (label, name_key), index in zip(given, (*indexes, "", ""), strict=False):
        if not label:
            continue
        texts[-1] += f'{"," if texts != [""] else ""}{label}="'
        if declaration.kind is Kind.HISTOGRAM and label == declaration.inner_label:
            if not _whole(declaration, indexes, stats):
                return None
            slot = slots.get(_at(name_key, (indexes[0], str(int(index) + 1))))
        elif name_key:
            name_key = _at(name_key, indexes)
            if not _is_label(name_key, stats.get(name_key)):
                return None
            slot = slots[name_key]
        else:
            texts[-1] += f'{index}"'
            continue
        if slot is None:
            texts[-1] += '+Inf"'
        else:
            taken.append(slot)
            texts.append('"')
    fixed = _labels(declaration.fixed)
    texts[-1] += f",{fixed}" if fixed and texts != [""] else fixed
    instance = 0
    if declaration.label:
        group = declaration.source.partition(".")[0]
        own = indexes if declaration.inner_label and declaration.kind is not Kind.HISTOGRAM else indexes[:1]
        instance = instances.setdefault((group, own), len(instances))
    return Row(declaration, tuple(texts), tuple(taken), instance)


def _whole(declaration: Field, indexes: Indexes, stats: Mapping[str, Value]) -> bool:
    """Whether a bin is one of a histogram without a gap whose bins begin at rising values, the first at 0 or above."""
    starts: list[Value] = []
    while (start := stats.get(_at(declaration.inner_label_key, (indexes[0], str(len(starts)))))) is not None:
        if not isinstance(start, int) or isinstance(start, bool) or start <= (starts[-1] if starts else -1):  # type: ignore[operator]
            return False
        if _at(declaration.source, (indexes[0], str(len(starts)))) not in stats:
            return False
        starts.append(start)
    return indexes[1] in map(str, range(len(starts)))


def _at(pattern: str, indexes: Indexes) -> str:
    for place, index in zip(_PLACES, indexes, strict=False):
        pattern = pattern.replace(place, index)
    return pattern


def _bucket(row: Row, measured: list[Row], source_keys: list[str], key: str) -> Row:
    """A bucket's row, told which is its histogram's first: the row before it, if that is of the same histogram."""
    first = len(measured)
    bins = _INDEX_AT_END.sub("", key)
    if measured and measured[-1].bucket_of != _NO_ROW and _INDEX_AT_END.sub("", source_keys[-1]) == bins:
        first = measured[-1].bucket_of
    return replace(row, bucket_of=first)


def _labels(labels: Labels) -> str:
    return ",".join(f'{name}="{escape_label_value(value)}"' for name, value in labels)
