"""Values of one sample made from several of its fields."""

from __future__ import annotations

import pytest

from collectors.derived import derived
from tests.samples import builder, captured, record, series, snapshot

USED = 'libvirt_domain_memory_used_ratio{domain="guest"}'


@pytest.mark.parametrize(("usable", "available", "used"), [
    (25, 100, 0.75), (0, 100, 1), (100, 100, 0), (110, 100, 0), (5, 0, None), (0, 0, None), (None, 100, None),
    (5, None, None), (float("nan"), 100, None), (1e300, 1e-300, None),
])
def test_memory_used_ratio(usable: float | None, available: float | None, used: float | None) -> None:
    batch = builder().batch(snapshot(record({"balloon.usable": usable, "balloon.available": available})))
    assert series(batch, derived(batch)).get(USED) == used


def test_without_the_guest_s_figures_there_is_no_ratio() -> None:
    for situation in ("no_balloon", "no_balloon_driver"):
        batch = builder().batch(snapshot(*captured(situation)[0]))
        assert not [name for name in series(batch, derived(batch)) if "used_ratio" in name]


def test_a_captured_guest_with_a_driver_has_one() -> None:
    batch = builder().batch(snapshot(*captured("busy")[0]))
    found = series(batch, derived(batch))['libvirt_domain_memory_used_ratio{domain="busy"}']
    stats = captured("busy")[0][0].stats
    assert found == pytest.approx(1 - int(stats["balloon.usable"]) / int(stats["balloon.available"]))


def test_rates_are_left_to_rates() -> None:
    batch = builder().batch(snapshot(record({"cpu.time": 5})))
    assert series(batch, derived(batch)) == series(batch)
