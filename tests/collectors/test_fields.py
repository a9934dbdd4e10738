"""Fields and the tables of the collectors: what a declaration must say."""

from __future__ import annotations

import pytest

from collectors import COLLECTORS
from collectors.bulk import GROUP_BITS
from collectors.fields import Computed, Field, Kind, escape_label_value


@pytest.mark.parametrize(("value", "shown"), [
    ("plain", "plain"), ('say "x"', r'say \"x\"'), ("a\\b", r"a\\b"), ("two\nlines", r"two\nlines"),
    ("Zürich 🐧", "Zürich 🐧"), ("\ud800", "?"), ("", ""), ("\\n", r"\\n"),
])
def test_label_values_are_escaped_and_always_utf_8(value: str, shown: str) -> None:
    assert escape_label_value(value) == shown
    shown.encode()


def test_labels_are_the_subject_s_then_the_device_s_then_the_fixed_ones() -> None:
    field = Field("a.<n>.b", "x", Kind.GAUGE, "X.", label="device", fixed=(("way", "in"),))
    assert field.labels == ("domain", "device", "way")


def test_groups_are_libvirt_s() -> None:
    for collector in COLLECTORS:
        assert set(collector.groups) <= set(GROUP_BITS)


def test_every_computed_value_is_made_of_declared_fields() -> None:
    sources = {field.source for collector in COLLECTORS for field in collector.fields()}
    for collector in COLLECTORS:
        for declaration in collector.declarations:
            if isinstance(declaration, Computed):
                assert declaration.numerator in sources
                assert not declaration.denominator or declaration.denominator in sources


def test_archive_columns_are_unique() -> None:
    columns = [d.archive for collector in COLLECTORS for d in collector.declarations if d.archive]
    assert len(columns) == len(set(columns))
