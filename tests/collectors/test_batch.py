"""Batch: columns of odd and ordinary values, in an order of their own, frozen, with a Plan that is used again."""

from __future__ import annotations

import math
import weakref
from typing import Any

import numpy as np
import pytest

from collectors.fields import Constant
from collectors.snapshot import Record, Subject
from tests.samples import builder, captured, record, series, snapshot, subject

CPU = 'libvirt_domain_info_cpu_time_seconds_total{domain="guest"}'
PLAIN = 'libvirt_domain_info_virtual_cpus{domain="guest"}'


@pytest.mark.parametrize("odd", [None, "5", "0", "", float("nan"), float("inf"), float("-inf"), -1, -0.5, 10**400,
                                 -(10**400), b"5", [1], {}])
def test_what_is_no_number_is_absent_and_costs_no_neighbour(odd: Any) -> None:
    made = builder()
    for stats in ({"vcpu.current": odd, "cpu.time": 2_000_000_000}, {"vcpu.current": 4, "cpu.time": 2_000_000_000},
                  {"vcpu.current": odd, "cpu.time": 2_000_000_000}):
        found = series(made.batch(snapshot(record(stats))))
        assert found[CPU] == 2
        assert found.get(PLAIN) == (None if stats["vcpu.current"] is odd else 4)


@pytest.mark.parametrize(("value", "shown"), [(0, 0), (7, 7), (2**63, 2**63), (2**64 - 1, 2.0**64), (True, 1),
                                              (False, 0), (1.5, 1.5), (10**300, 1e300)])
def test_numbers_are_shown_as_they_are(value: float, shown: float) -> None:
    assert series(builder().batch(snapshot(record({"vcpu.current": value}))))[PLAIN] == shown


def test_nanoseconds_and_kib_become_base_units_with_one_rounding() -> None:
    found = series(builder().batch(snapshot(record({"cpu.time": 3, "cpu.user": 123_456_789_123, "balloon.rss": 3}))))
    assert found[CPU] == 3 / 1e9
    assert found['libvirt_domain_cpu_user_seconds_total{domain="guest"}'] == 123.456789123
    assert found['libvirt_domain_memory_stats_rss_bytes{domain="guest"}'] == 3072


def test_a_zero_that_libvirt_writes_for_unknown_is_absent() -> None:
    stats = {"vcpu.0.wait": 0, "vcpu.1.wait": 5_000_000_000, "vcpu.0.delay": 0, "balloon.last-update": 0}
    assert series(builder().batch(snapshot(record(stats)))) == {
        'libvirt_domain_vcpu_wait_seconds_total{domain="guest",vcpu="1"}': 5,
        'libvirt_domain_vcpu_delay_seconds_total{domain="guest",vcpu="0"}': 0}


def test_the_order_of_records_does_not_matter() -> None:
    records = [record({"cpu.time": n, "vcpu.current": n}, name=f"guest-{n}", identity=str(n)) for n in range(5)]
    made = builder()
    forward, backward = made.batch(snapshot(*records)), made.batch(snapshot(*reversed(records)))
    assert forward.plan is backward.plan
    np.testing.assert_array_equal(forward.raw, backward.raw)


def test_of_two_records_with_the_same_labels_the_later_counts() -> None:
    first = record({"vcpu.current": 1}, identity="one")
    second = record({"vcpu.current": 2}, identity="two")
    assert series(builder().batch(snapshot(first, second))) == {PLAIN: 2}


def test_records_of_two_sources_stand_side_by_side() -> None:
    known = (Constant("libvirt_domain_info", (("uuid", "u"),)), Constant("not_declared", ()))
    inventory = record({}, source="inventory", constants=known)
    found = series(builder().batch(snapshot(record({"vcpu.current": 1}), inventory)))
    assert found == {PLAIN: 1, 'libvirt_domain_info{domain="guest",uuid="u"}': 1}


def test_the_plan_is_the_same_object_while_nothing_changed() -> None:
    made = builder()
    plans = {id(made.batch(snapshot(*captured("busy")[n])).plan) for n in (0, 1, 0)}
    assert len(plans) == 1


def test_other_constants_make_another_plan() -> None:
    made = builder()
    constants = (Constant("libvirt_domain_info", (("uuid", "a"),)),)
    first = made.batch(snapshot(record({}, constants=constants)))
    assert made.batch(snapshot(record({}, constants=constants))).plan is first.plan
    again = made.batch(snapshot(record({}, constants=(Constant("libvirt_domain_info", (("uuid", "b"),)),))))
    assert series(again) == {'libvirt_domain_info{domain="guest",uuid="b"}': 1}


def test_an_unchanged_record_keeps_its_placement_when_others_come_and_go() -> None:
    made = builder()
    one = record({"cpu.time": 1}, name="a", identity="a")
    two = record({"cpu.time": 1}, name="b", identity="b")
    alone = made.batch(snapshot(one)).plan.placements
    both = made.batch(snapshot(one, two)).plan.placements
    assert both[0] is alone[0]
    assert made.batch(snapshot(two)).plan.placements == (both[1],)


def test_a_renamed_domain_and_a_renamed_device_get_series_of_their_new_name() -> None:
    made = builder()
    stats = {"net.0.name": "tap0", "net.0.rx.bytes": 1}
    made.batch(snapshot(record(stats, name="old")))
    found = series(made.batch(snapshot(record({**stats, "net.0.name": "tap9"}, name="new"))))
    assert list(found) == ['libvirt_domain_interface_stats_receive_bytes_total{domain="new",target_device="tap9"}']


def test_a_batch_is_frozen() -> None:
    batch = builder().batch(snapshot(*captured("busy")[0]))
    for column in (batch.raw, batch.times_s):
        with pytest.raises(ValueError, match="read-only"):
            column[0] = 1


def test_times_are_those_of_each_record() -> None:
    records = (record({"cpu.time": 1}, 3.0, "b", "b"), record({"cpu.time": 1}, 7.0, "a", "a"))
    assert builder().batch(snapshot(*records)).times_s.tolist() == [7.0, 3.0]


def test_no_records_and_records_without_series_are_fine() -> None:
    made = builder()
    assert series(made.batch(snapshot())) == {}
    assert series(made.batch(snapshot(record({}), record({"unknown.key": 1}, name="b", identity="b")))) == {}
    assert series(made.batch(snapshot(up=False))) == {}


def test_subjects_without_labels_have_series_without_braces() -> None:
    own = Record(Subject("exporter", ("exporter",), ()), "sampling", {"libvirt.up": True, "sampler.stuck": 2}, 0.0)
    assert series(builder().batch(snapshot(own))) == {
        "libvirt_up": 1, 'virtgauge_sampler_calls{state="stuck"}': 2}


def test_raw_is_not_a_number_where_absent() -> None:
    batch = builder().batch(snapshot(record({"vcpu.current": -1})))
    assert math.isnan(batch.raw[0])


def test_a_number_too_large_for_its_base_unit_is_absent() -> None:
    stats = {"balloon.rss": 1.7e308, "balloon.usable": 1e-300, "balloon.available": 1.7e308, "vcpu.current": 2}
    found = series(builder().batch(snapshot(record(stats))))
    assert found[PLAIN] == 2
    assert 'libvirt_domain_memory_stats_rss_bytes{domain="guest"}' not in found


class Stats(dict[str, Any]):
    """Values that can be watched for their end."""


def test_what_was_made_for_one_sample_is_not_held_until_the_next() -> None:
    """What is read beside the sampling, and given again as the same object, is."""
    made = builder()
    before = record({"settings.autostart": 1}, at_s=1.0, source="settings")
    stats = Stats({"vcpu.current": 2})
    now = Record(subject(), "bulk", stats, 5.0)
    ends = weakref.ref(stats)
    first = made.batch(snapshot(before, now))
    del stats, now
    assert ends() is None
    second = made.batch(snapshot(before, record({"vcpu.current": 3}, at_s=9.0)))
    assert second.plan is first.plan
    assert series(second)[PLAIN] == 3
