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
from .fields import Collector, Computed, Declaration, Field, Labels, Ratio, StateSet, escape_label_value
from .snapshot import Value

_INDEX = re.compile(r"(?<=\.)[0-9]+(?=\.|$)")
_NO_ROW = -1
_NO_SLOT = -1


@dataclass(frozen=True, slots=True)
class Row:
    """One series of a shape, whatever its device is called.

    Behind the subject's labels stand ``before``, the device's name (number ``slot`` of the record's names) and
    ``after``; rows without a device name have no slot and are wholly in ``before``.  Rows with the same
    ``instance`` belong to one device and are reset together; 0 is the record itself.
    """

    declaration: Declaration
    before: str
    slot: int
    after: str
    instance: int

    def labels(self, names: tuple[str, ...]) -> str:
        """The rendered labels behind the subject's; ``names`` are escaped already."""
        return self.before if self.slot == _NO_SLOT else f"{self.before}{names[self.slot]}{self.after}"


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
        self._computed: list[Computed] = []
        self._label_keys: dict[str, str] = {}
        self._infos = {d.name: d for d in self.declarations}
        self._cache: dict[tuple[frozenset[str], tuple[Value, ...], tuple[Value, ...]], Layout] = {}
        self._cache_size = cache_size
        for declaration in self.declarations:
            if isinstance(declaration, Field):
                self._fields.setdefault(declaration.source, []).append(declaration)
            elif isinstance(declaration, StateSet):
                self._state_sets[declaration.source] = declaration
            elif isinstance(declaration, Computed):
                self._computed.append(declaration)

    def layout(self, stats: Mapping[str, Value]) -> Layout:
        """The Layout of these stats, from the cache or compiled now."""
        keys = frozenset(stats)
        name_keys = tuple(sorted(key for key in keys if _is_name(key)))
        enumerations = tuple(stats[key] for key in self._enumeration_keys(keys))
        names = tuple(stats[key] for key in name_keys)
        # Shapes are shared whatever the devices are called, unless a name is odd or stands twice.
        plain = all(isinstance(name, str) and name for name in names) and len(set(names)) == len(names)
        cache_key = (keys, enumerations, () if plain else names)
        known = self._cache.get(cache_key)
        if known is None:
            if len(self._cache) >= self._cache_size:
                self._cache.clear()
            known = self._cache[cache_key] = self._compile(stats, keys, name_keys, enumerations)
        return known

    def _enumeration_keys(self, keys: frozenset[str]) -> tuple[str, ...]:
        wanted = {*self._state_sets, "state.reason", "sample.reason"}
        return tuple(sorted(keys & wanted))

    def _compile(self, stats: Mapping[str, Value], keys: frozenset[str], name_keys: tuple[str, ...],
                 enumerations: tuple[Value, ...]) -> Layout:
        slots = {key: slot for slot, key in enumerate(name_keys)}
        source_keys: list[str] = []
        measured: list[Row] = []
        place: dict[tuple[str, str], int] = {}  # (pattern, index) to the row of its value
        instances: dict[tuple[str, str], int] = {("", ""): 0}
        series: set[tuple[str, str]] = set()
        for key in sorted(keys, key=_natural):
            pattern, index = _split(key)
            for declaration in self._fields.get(pattern, ()):
                row = _row(declaration, index, stats, slots, instances)
                if row is None:
                    continue
                name = stats[name_keys[row.slot]] if row.slot != _NO_SLOT else ""
                identity = (declaration.name, f"{row.before}{name}{row.after}")
                if identity in series:
                    continue
                series.add(identity)
                place.setdefault((pattern, index), len(measured))
                source_keys.append(key)
                measured.append(row)
        return Layout(keys, enumerations, tuple(measured), tuple(self._formulas(place, measured)),
                      tuple(self._state_rows(stats)), len(instances), _getter(self._enumeration_keys(keys)),
                      _getter(name_keys), _getter(tuple(source_keys)))

    def _formulas(self, place: Mapping[tuple[str, str], int], measured: list[Row]) -> Iterable[Formula]:
        for computed in self._computed:
            for (pattern, index), numerator in place.items():
                if pattern != computed.numerator:
                    continue
                denominator = _NO_ROW
                if computed.denominator:
                    own = index if "<n>" in computed.denominator else ""
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
                yield Row(state_set, _labels(((state_set.label, name),)), _NO_SLOT, "", 0), float(state == number)
        yield from self._named(stats, "libvirt_domain_state_reason", _state_reason)
        yield from self._named(stats, "libvirt_domain_sample_incomplete_reason", _incomplete_reason)

    def _named(self, stats: Mapping[str, Value], name: str, labels_of: Any) -> Iterable[tuple[Row, float]]:
        declaration = self._infos.get(name)
        labels = labels_of(stats)
        if declaration is not None and labels is not None:
            yield Row(declaration, _labels(labels), _NO_SLOT, "", 0), 1.0


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


def _split(key: str) -> tuple[str, str]:
    """``block.3.rd.reqs`` to (``block.<n>.rd.reqs``, ``3``); a key without an index to (key, '')."""
    match = _INDEX.search(key)
    if match is None:
        return key, ""
    return f"{key[:match.start()]}<n>{key[match.end():]}", match.group()


def _is_name(key: str) -> bool:
    return key.endswith(".name")


def _row(declaration: Field, index: str, stats: Mapping[str, Value], slots: Mapping[str, int],
         instances: dict[tuple[str, str], int]) -> Row | None:
    """The row of a field at an index; None where the name that its label needs is missing."""
    fixed = _labels(declaration.fixed)
    if not declaration.label:
        return Row(declaration, fixed, _NO_SLOT, "", 0)
    after = f'",{fixed}' if fixed else '"'
    group = declaration.source.partition(".")[0]
    if not declaration.label_key:
        instance = instances.setdefault((group, index), len(instances))
        return Row(declaration, f'{declaration.label}="{index}{after}', _NO_SLOT, "", instance)
    name_key = declaration.label_key.replace("<n>", index)
    name = stats.get(name_key)
    if not isinstance(name, str) or not name:
        return None
    instance = instances.setdefault((group, index), len(instances))
    return Row(declaration, f'{declaration.label}="', slots[name_key], after, instance)


def _labels(labels: Labels) -> str:
    return ",".join(f'{name}="{escape_label_value(value)}"' for name, value in labels)
