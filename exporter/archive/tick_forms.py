"""Forms: which columns an object's rows are, said once for all objects that are alike.

A Shape is the columns of one device, whichever it is; a Form is the Shapes of an object, one after the other.  An
object then takes its Form's number and the names of its devices, so that thousands of new domains cost little.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from collectors.batch import Integers, Placement
from collectors.fields import Field, StateSet
from collectors.layout import Layout
from exporter.archive.documents import VALUES, column_of

Place = tuple[str, str, str]
"""(group, device, column) of a row; the device is empty in the group ``values``."""
Shape = tuple[str, tuple[str, ...]]
"""(group, its columns)."""


@dataclass(frozen=True, slots=True, eq=False)
class LayoutForm:
    """What of a Layout is archived: ``rows`` (places among its measured rows), Shape by Shape.

    ``devices`` has each Shape's device: its name, or the slot of the record's names that has it.
    """

    layout: Layout
    shapes: tuple[Shape, ...]
    devices: tuple[str | int, ...]
    rows: Integers
    state: str | None

    @classmethod
    def of(cls, layout: Layout) -> LayoutForm:
        found: dict[tuple[str, str | int], dict[str, int]] = {}
        for number, row in enumerate(layout.measured):
            column = column_of(row.declaration) if isinstance(row.declaration, Field) else None
            if column is not None:
                device: str | int = ""
                if column.group != VALUES:
                    device = row.slots[0] if row.slots else row.texts[0].split('"')[1]
                found.setdefault((column.group, device), {})[column.name] = number
        rows = list(chain.from_iterable(columns.values() for columns in found.values()))
        return cls(layout, tuple((group, tuple(columns)) for (group, _), columns in found.items()),
                   tuple(device for _, device in found), np.array(rows, dtype=np.int64), _state(layout))


def _state(layout: Layout) -> str | None:
    """The name of the object's state, where the layout has one."""
    for row, value in layout.constants:
        if isinstance(row.declaration, StateSet) and row.declaration.archive and value == 1.0:
            return row.texts[0].split('"')[1]
    return None


class FormBook:
    """Layouts to their LayoutForms; keeps those of the last Plan.  One thread."""

    def __init__(self) -> None:
        self._kept: dict[int, LayoutForm] = {}

    def of(self, layout: Layout) -> LayoutForm:
        """The form of a Layout, made once."""
        form = self._kept.get(id(layout))
        if form is None:
            form = self._kept[id(layout)] = LayoutForm.of(layout)
        return form

    def keep(self, placements: Sequence[Placement]) -> None:
        """Forgets the Layouts that none of these has."""
        wanted = {id(placement.layout) for placement in placements}
        self._kept = {number: form for number, form in self._kept.items() if number in wanted}


Shaped = tuple[tuple[Shape, ...], list[str], Integers]
"""(Shapes, name of each one's device, places of their rows among the Plan's)."""


def shaped(placements: Sequence[tuple[Placement, LayoutForm, int]]) -> Shaped:
    """One object's rows from its placements, each with its form and its first row; of equal columns the last counts."""
    shapes: tuple[Shape, ...] = ()
    devices: list[str] = []
    rows: list[Integers] = []
    for placement, form, start in placements:
        names = placement.names
        shapes += form.shapes
        devices += [device if isinstance(device, str) else str(names[device]) for device in form.devices]
        rows.append(form.rows + start)
    joined = rows[0] if len(rows) == 1 else np.concatenate(rows)
    if _collide(shapes, devices):
        return _last_of_each(shapes, devices, joined)
    return shapes, devices, joined


def _collide(shapes: Sequence[Shape], devices: Sequence[str]) -> bool:
    if len({(shape[0], device) for shape, device in zip(shapes, devices, strict=True)}) == len(devices):
        return False
    seen: dict[tuple[str, str], set[str]] = {}
    for (group, columns), device in zip(shapes, devices, strict=True):
        before = seen.get((group, device))
        if before is None:
            seen[group, device] = set(columns)
        elif before.isdisjoint(columns):
            before.update(columns)
        else:
            return True
    return False


def _last_of_each(shapes: Sequence[Shape], devices: Sequence[str], rows: Integers) -> Shaped:
    found: dict[tuple[str, str], dict[str, int]] = {}
    numbers = iter(rows.tolist())
    for (group, columns), device in zip(shapes, devices, strict=True):
        kept = found.setdefault((group, device), {})
        for column in columns:
            kept[column] = next(numbers)
    places = list(chain.from_iterable(columns.values() for columns in found.values()))
    return (tuple((group, tuple(columns)) for (group, _), columns in found.items()),
            [device for _, device in found], np.array(places, dtype=np.int64))


class FormNumbers:
    """Numbers of Forms within one frame's head, and the order of values that they give."""

    def __init__(self) -> None:
        self.forms: dict[tuple[Shape, ...], int] = {}
        self._columns: dict[tuple[str, str], int] = {}
        self._kinds: list[Integers] = []

    def number(self, shapes: tuple[Shape, ...]) -> int:
        """The Form's number; a new one for a new Form."""
        number = self.forms.get(shapes)
        if number is None:
            number = self.forms[shapes] = len(self._kinds)
            self._kinds.append(np.array([
                self._columns.setdefault((group, column), len(self._columns))
                for group, columns in shapes for column in columns], dtype=np.uint16))
        return number

    def lengths(self, numbers: Sequence[int]) -> Integers:
        """How many rows each of these objects has."""
        return np.array([len(self._kinds[number]) for number in numbers], dtype=np.int64)

    def order(self, numbers: Sequence[int]) -> Integers:
        """Rows of these objects, column by column: one column of all devices of all objects stands together."""
        kinds = [self._kinds[number] for number in numbers]
        if not kinds:
            return np.empty(0, dtype=np.int64)
        return np.argsort(np.concatenate(kinds), kind="stable")  # of 16 bits: numpy sorts by radix

    def head(self) -> dict[str, Any]:
        """``shapes`` and ``forms`` as a head holds them."""
        shapes: dict[Shape, int] = {}
        forms = [[shapes.setdefault(shape, len(shapes)) for shape in form] for form in self.forms]
        return {"shapes": list(shapes), "forms": forms}


def forms_of(head: Mapping[str, Any]) -> list[tuple[Shape, ...]]:
    """The Forms of a head, by number."""
    shapes = [(str(group), tuple(map(str, columns))) for group, columns in head["shapes"]]
    return [tuple(shapes[number] for number in form) for form in head["forms"]]


class PlaceBook:
    """Places of objects, made once for each Shape and device.  One thread."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Shape, str], tuple[Place, ...]] = {}

    def of(self, shapes: Sequence[Shape], devices: Sequence[str]) -> tuple[Place, ...]:
        """The places of an object's rows."""
        return tuple(chain.from_iterable(map(self._device, shapes, devices)))

    def _device(self, shape: Shape, device: str) -> tuple[Place, ...]:
        places = self._kept.get((shape, device))
        if places is None:
            group, columns = shape
            places = self._kept[shape, device] = tuple((group, device, column) for column in columns)
        return places
