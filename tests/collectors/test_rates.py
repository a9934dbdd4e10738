"""Rates: each way in which a difference of two samples would lie, and what is shown instead."""

from __future__ import annotations

from typing import Any

import pytest

from collectors.batch import Batch, Builder
from collectors.rates import carry, rates
from tests.samples import builder, captured, computed_rows, record, series, snapshot

CORES = 'libvirt_domain_cpu_usage_cores{domain="guest"}'
SECOND = 1_000_000_000


def shown(previous: Batch, current: Batch) -> dict[str, float]:
    """The computed series of a pair of samples."""
    whole, measured = series(current, computed_rows(previous, current)), series(current)
    return {name: value for name, value in whole.items() if name not in measured}


def pair(before: dict[str, Any], after: dict[str, Any], elapsed_s: float = 10.0, id_after: int = 1) -> dict[str, float]:
    made = builder()
    first = made.batch(snapshot(record(before, 100.0)))
    return shown(first, made.batch(snapshot(record(after, 100.0 + elapsed_s, id=id_after))))


def disk(index: int, name: str, requests: int, bytes: int = 0, times: int = 0) -> dict[str, Any]:
    key = f"block.{index}"
    return {f"{key}.name": name, f"{key}.rd.reqs": requests, f"{key}.rd.bytes": bytes, f"{key}.rd.times": times}


def reads(name: str) -> str:
    return f'libvirt_domain_block_reads_per_second{{domain="guest",target_device="{name}"}}'


def test_a_rate_is_the_change_over_the_time_between_the_samples() -> None:
    found = pair({"cpu.time": 5 * SECOND, "vcpu.current": 2}, {"cpu.time": 20 * SECOND, "vcpu.current": 2})
    assert found == {CORES: 1.5, 'libvirt_domain_cpu_usage_ratio{domain="guest"}': 0.75}


def test_first_sample_has_no_rates() -> None:
    made = builder()
    first = made.batch(snapshot(record({"cpu.time": 5 * SECOND})))
    assert shown(made.batch(snapshot()), first) == {}


@pytest.mark.parametrize("elapsed_s", [0.0, -1.0])
def test_equal_timestamps_or_time_going_back_give_no_rate(elapsed_s: float) -> None:
    assert pair({"cpu.time": 5 * SECOND}, {"cpu.time": 6 * SECOND}, elapsed_s) == {}


def test_no_change_is_a_rate_of_zero() -> None:
    assert pair({"cpu.time": 5 * SECOND}, {"cpu.time": 5 * SECOND}) == {CORES: 0}


def test_reset_of_a_counter_gives_no_rate_and_none_of_its_device() -> None:
    before = {**disk(0, "vda", 100, 1000), **disk(1, "vdb", 100, 1000)}
    after = {**disk(0, "vda", 10, 5000), **disk(1, "vdb", 110, 2000)}
    found = pair(before, after)
    assert found[reads("vdb")] == 1
    assert not [name for name in found if '"vda"' in name]


def test_restart_hidden_by_a_fast_counter_is_told_by_the_domain_s_cpu_time() -> None:
    before = {"cpu.time": 50 * SECOND, "cpu.user": 1, **disk(0, "vda", 100)}
    after = {"cpu.time": 4 * SECOND, "cpu.user": 2, **disk(0, "vda", 9_000)}
    assert pair(before, after) == {}


def test_a_decrease_of_another_domain_wide_counter_costs_only_itself() -> None:
    before = {"cpu.time": 5 * SECOND, "balloon.minor_fault": 100}
    assert pair(before, {"cpu.time": 15 * SECOND, "balloon.minor_fault": 5}) == {CORES: 1}


def test_a_captured_restart_gives_no_rates() -> None:
    before, after = captured("restarted")
    made = builder()
    assert shown(made.batch(snapshot(*before)), made.batch(snapshot(*after))) == {}


def test_domain_that_came_back_with_a_new_id_begins_anew() -> None:
    assert pair({"cpu.time": 5 * SECOND}, {"cpu.time": 50 * SECOND}, id_after=2) == {}


def test_domain_that_vanished_has_no_series_and_no_rates_on_its_return() -> None:
    made = builder()
    first = made.batch(snapshot(record({"cpu.time": 5 * SECOND}, 0.0)))
    gone = made.batch(snapshot())
    assert series(gone, computed_rows(first, gone)) == {}
    back = made.batch(snapshot(record({"cpu.time": 9 * SECOND}, 20.0)))
    assert shown(gone, back) == {}
    again = made.batch(snapshot(record({"cpu.time": 14 * SECOND}, 30.0)))
    assert shown(back, again) == {CORES: 0.5}


def test_domain_missing_from_samples_that_were_not_recorded_keeps_its_rate() -> None:
    """Same id and same counters, so the time between the two samples that hold it is what counts."""
    made = builder()
    first = made.batch(snapshot(record({"cpu.time": 5 * SECOND}, 0.0)))
    made.batch(snapshot())
    assert shown(first, made.batch(snapshot(record({"cpu.time": 15 * SECOND}, 20.0)))) == {CORES: 0.5}


def test_device_that_moved_its_index_keeps_its_rate() -> None:
    before = {**disk(0, "vda", 100), **disk(1, "vdb", 200), **disk(2, "vdc", 300)}
    found = pair(before, {**disk(0, "vda", 110), **disk(1, "vdc", 320)})
    assert found[reads("vda")] == 1
    assert found[reads("vdc")] == 2
    assert reads("vdb") not in found


def test_devices_that_swapped_their_indices_under_the_same_keys_keep_their_rates() -> None:
    found = pair({**disk(0, "vda", 100), **disk(1, "vdb", 5000)}, {**disk(0, "vdb", 5010), **disk(1, "vda", 120)})
    assert (found[reads("vda")], found[reads("vdb")]) == (2, 1)


def test_a_captured_hotplug_keeps_the_rates_of_the_other_devices() -> None:
    made = builder()
    whole, without, again = (made.batch(snapshot(*records)) for records in captured("hotplug"))
    device = 'libvirt_domain_block_reads_per_second{domain="hotplug",target_device="%s"}'
    assert {device % "vda", device % "vdc"} <= shown(whole, without).keys()
    assert device % "vdb" not in shown(whole, without)
    found = shown(without, again)
    assert {device % "vda", device % "vdc"} <= found.keys()
    assert device % "vdb" not in found
    assert 'libvirt_domain_cpu_usage_cores{domain="hotplug"}' in found


def test_replugged_disk_with_lower_counters_begins_anew() -> None:
    found = pair({**disk(0, "vda", 100), **disk(1, "vdb", 200)}, {**disk(0, "vda", 110), **disk(1, "vdb", 3)})
    assert reads("vda") in found
    assert reads("vdb") not in found


def test_shape_change_keeps_the_rates_of_what_stayed() -> None:
    before = {"cpu.time": 5 * SECOND, **disk(0, "vda", 100)}
    after = {"cpu.time": 15 * SECOND, **disk(0, "vda", 110), **disk(1, "vdb", 50), "vcpu.0.time": 7}
    found = pair(before, after)
    assert found[CORES] == 1
    assert found[reads("vda")] == 1
    assert reads("vdb") not in found


def test_a_value_missing_in_either_sample_has_no_rate() -> None:
    assert pair({"cpu.time": None}, {"cpu.time": 5}) == {}
    assert pair({"cpu.time": 5}, {"cpu.time": float("nan")}) == {}


def test_time_is_each_record_s_own() -> None:
    made = builder()
    first = made.batch(snapshot(record({"cpu.time": 0}, 0.0, "a", "a"), record({"cpu.time": 0}, 0.0, "b", "b")))
    second = made.batch(snapshot(record({"cpu.time": 10 * SECOND}, 10.0, "a", "a"),
                                 record({"cpu.time": 10 * SECOND}, 40.0, "b", "b")))
    found = shown(first, second)
    assert found['libvirt_domain_cpu_usage_cores{domain="a"}'] == 1
    assert found['libvirt_domain_cpu_usage_cores{domain="b"}'] == 0.25


def test_latency_is_time_by_request_and_absent_without_requests() -> None:
    before = {**disk(0, "vda", 100, times=SECOND), **disk(1, "vdb", 5, times=SECOND)}
    found = pair(before, {**disk(0, "vda", 104, times=2 * SECOND), **disk(1, "vdb", 5, times=SECOND)})
    latency = 'libvirt_domain_block_read_latency_seconds{domain="guest",target_device="%s"}'
    assert found[latency % "vda"] == 0.25
    assert latency % "vdb" not in found


def test_usage_of_a_vcpu_never_exceeds_one() -> None:
    assert pair({"vcpu.0.time": 0}, {"vcpu.0.time": 11 * SECOND}) == {
        'libvirt_domain_vcpu_usage_ratio{domain="guest",vcpu="0"}': 1}


def test_a_hot_unplugged_and_replugged_vcpu_begins_anew() -> None:
    found = pair({"vcpu.0.time": 0, "vcpu.2.time": 50}, {"vcpu.0.time": SECOND, "vcpu.2.time": 10})
    assert list(found) == ['libvirt_domain_vcpu_usage_ratio{domain="guest",vcpu="0"}']


def test_rates_are_frozen() -> None:
    made = builder()
    first, second = (made.batch(snapshot(*records)) for records in captured("busy"))
    values = rates(first, second)
    with pytest.raises(ValueError, match="read-only"):
        values[0] = 1


def three(made: Builder, names: str, elapsed_s: float, counter: int, **more: Any) -> Batch:
    return made.batch(snapshot(*(record({"cpu.time": counter, **more.get(name, {})}, elapsed_s, name, name)
                                 for name in names)))


def test_carry_moves_rates_to_the_plan_that_follows() -> None:
    made = builder()
    first, second = three(made, "ac", 0.0, 0), three(made, "ac", 10.0, 10 * SECOND)
    values = rates(first, second)
    assert carry(values, second.plan, second.plan) is values
    third = three(made, "bc", 12.0, 12 * SECOND)
    name = 'libvirt_domain_cpu_usage_cores{domain="%s"}'
    found = series(third, carry(values, second.plan, third.plan))
    assert found[name % "c"] == 1
    assert name % "a" not in found
    assert name % "b" not in found


def test_carry_keeps_by_series_what_stayed_of_a_record_that_changed_its_shape() -> None:
    made = builder()
    before = {**disk(0, "vda", 100), **disk(1, "vdb", 0)}
    after = {**disk(0, "vda", 110), **disk(1, "vdb", 50)}
    first, second = three(made, "ab", 0.0, 0, a=before), three(made, "ab", 10.0, 10 * SECOND, a=after)
    name = 'libvirt_domain_block_reads_per_second{domain="a",target_device="%s"}'
    third = three(made, "ab", 11.0, 10 * SECOND, a={**disk(0, "vdb", 50), **disk(1, "vdc", 7)})
    found = series(third, carry(rates(first, second), second.plan, third.plan))
    assert found[name % "vdb"] == 5
    assert not {name % "vda", name % "vdc"} & found.keys()
    assert found['libvirt_domain_cpu_usage_cores{domain="a"}'] == found[
        'libvirt_domain_cpu_usage_cores{domain="b"}'] == 1


def test_samples_of_a_hung_domain_have_rates_of_what_was_measured() -> None:
    whole, part = captured("partial")
    made = builder()
    found = shown(made.batch(snapshot(*whole)), made.batch(snapshot(*part)))
    assert 'libvirt_domain_cpu_usage_cores{domain="hung"}' in found
    assert not [name for name in found if "_block_" in name and '"hung"' in name]
    assert [name for name in found if "_block_" in name and '"neighbour"' in name]


def test_a_rate_too_large_for_a_float_is_absent() -> None:
    tiny = {"vcpu.current": 1e-300, "vcpu.0.time": 1, **disk(0, "vda", 0, times=0)}
    huge = {"vcpu.current": 1e-300, "vcpu.0.time": 1e300, **disk(0, "vda", 1e-300, 1e300, times=1e300)}
    found = pair({"cpu.time": 0, **tiny}, {"cpu.time": 1e300, **huge}, 1e-6)
    assert all(value < float("inf") for value in found.values())
