"""Layout: which keys become which series, and when a compiled shape may be used again."""

from __future__ import annotations

from collectors import COLLECTORS
from collectors.layout import Compiler
from collectors.snapshot import Value
from tests.samples import builder, captured, record, series, snapshot
from tests.written_stats import histogram


def test_a_shape_seen_before_is_not_compiled_again() -> None:
    compiler = Compiler(COLLECTORS)
    first = compiler.layout({"cpu.time": 1, "net.0.name": "tap1"})
    assert compiler.layout({"net.0.name": "tap2", "cpu.time": 5}) is first
    assert compiler.layout({"cpu.time": 1}) is not compiler.layout({"cpu.time": 1, "cpu.user": 1})


def test_a_full_cache_is_emptied_and_goes_on() -> None:
    compiler = Compiler(COLLECTORS, cache_size=2)
    shapes = [{f"vcpu.{n}.time": 1} for n in range(5)]
    assert [len(compiler.layout(shape).measured) for shape in shapes] == [1] * 5
    assert len(compiler.layout(shapes[0]).measured) == 1


def test_a_device_without_a_name_has_no_series() -> None:
    found = series(builder().batch(snapshot(record({"block.0.rd.reqs": 5, "net.0.rx.bytes": 5, "net.1.name": "tap1",
                                                    "net.1.rx.bytes": 7}))))
    assert found == {'libvirt_domain_interface_stats_receive_bytes_total{domain="guest",target_device="tap1"}': 7}


def test_a_name_that_is_no_text_or_empty_counts_as_none() -> None:
    for name in (5, "", None, True):
        assert series(builder().batch(snapshot(record({"block.0.name": name, "block.0.rd.reqs": 5})))) == {}


def test_a_name_that_stands_twice_is_shown_once() -> None:
    stats = {"block.0.name": "vda", "block.0.rd.reqs": 1, "block.1.name": "vda", "block.1.rd.reqs": 2}
    assert list(series(builder().batch(snapshot(record(stats)))).values()) == [1]


def test_names_that_become_the_same_later_are_shown_once() -> None:
    made = builder()
    stats = {"block.0.name": "vda", "block.0.rd.reqs": 1, "block.1.name": "vdb", "block.1.rd.reqs": 2}
    assert list(series(made.batch(snapshot(record(stats)))).values()) == [1, 2]
    assert list(series(made.batch(snapshot(record({**stats, "block.1.name": "vda"})))).values()) == [1]


def test_disks_beyond_the_ninth_stand_in_order() -> None:
    stats = {f"block.{n}.name": f"vd{n}" for n in range(12)} | {f"block.{n}.rd.reqs": n for n in range(12)}
    assert list(series(builder().batch(snapshot(record(stats)))).values()) == list(range(12))


def test_a_vcpu_hole_keeps_the_numbers() -> None:
    found = series(builder().batch(snapshot(*captured("vcpu_hole")[0])))
    name = 'libvirt_domain_vcpu_time_seconds_total{domain="vcpu-hole",vcpu="%d"}'
    assert name % 0 in found
    assert name % 1 not in found
    assert name % 2 in found
    assert found['libvirt_domain_info_virtual_cpus{domain="vcpu-hole"}'] == 2


def test_a_user_mode_nic_has_no_series_and_its_neighbour_has() -> None:
    found = series(builder().batch(snapshot(*captured("user_nic")[0])))
    devices = {name for name in found if "interface_stats_receive_bytes" in name}
    assert devices == {'libvirt_domain_interface_stats_receive_bytes_total{domain="user-nic",target_device="vguser1"}'}


def test_an_empty_cdrom_has_counters_and_no_size() -> None:
    found = series(builder().batch(snapshot(*captured("empty_cdrom")[0])))
    assert 'libvirt_domain_block_stats_read_requests_total{domain="empty-cdrom",target_device="sda"}' in found
    assert 'libvirt_domain_block_stats_capacity_bytes{domain="empty-cdrom",target_device="sda"}' not in found


def test_without_a_balloon_driver_the_guest_s_memory_is_absent() -> None:
    for situation in ("no_balloon", "no_balloon_driver"):
        found = series(builder().batch(snapshot(*captured(situation)[0])))
        names = {name.partition("{")[0] for name in found}
        assert "libvirt_domain_memory_stats_rss_bytes" in names
        assert not names & {"libvirt_domain_memory_stats_usable_bytes", "libvirt_domain_memory_stats_unused_bytes",
                            "libvirt_domain_memory_stats_last_update_timestamp_seconds"}


def test_a_hung_domain_shows_what_was_measured_and_no_more() -> None:
    whole, part = captured("partial")
    made = builder()
    before, after = (series(made.batch(snapshot(*records))) for records in (whole, part))
    disk = 'libvirt_domain_block_stats_read_bytes_total{domain="hung",target_device="vda"}'
    assert disk in before
    assert disk not in after
    assert after['libvirt_domain_sample_complete{domain="hung"}'] == 0
    assert after['libvirt_domain_sample_complete{domain="neighbour"}'] == 1
    assert after['libvirt_domain_sample_incomplete_reason{domain="hung",reason="monitor"}'] == 1
    assert 'libvirt_domain_info_cpu_time_seconds_total{domain="hung"}' in after


def test_states_and_reasons_are_named() -> None:
    states = {"paused": ("paused", "user"), "stopped": ("shutoff", "destroyed"), "busy": ("running", "booted")}
    for situation, (state, reason) in states.items():
        found = series(builder().batch(snapshot(*captured(situation)[-1])))
        ones = [name for name, value in found.items() if name.startswith("libvirt_domain_state{") and value == 1]
        assert ones == [f'libvirt_domain_state{{domain="{situation}",state="{state}"}}']
        assert f'libvirt_domain_state_reason{{domain="{situation}",state="{state}",reason="{reason}"}}' in found


def test_a_change_of_state_alone_is_another_shape() -> None:
    made = builder()
    for state, name in ((1, "running"), (3, "paused"), (1, "running")):
        found = series(made.batch(snapshot(record({"state.state": state, "state.reason": 1}))))
        assert found[f'libvirt_domain_state{{domain="guest",state="{name}"}}'] == 1
        assert sum(value for key, value in found.items() if key.startswith("libvirt_domain_state{")) == 1


def test_a_state_this_version_does_not_know_is_absent() -> None:
    for state in (8, -1, 10**30, "running", 1.5):
        assert series(builder().batch(snapshot(record({"state.state": state, "state.reason": 1})))) == {}


def page(stats: dict[str, Value]) -> dict[str, float]:
    return {name.partition("{")[0] + "{" + name.partition(",")[2]: value
            for name, value in series(builder().batch(snapshot(record(stats)))).items()}


def test_a_second_index_has_a_label_of_its_own() -> None:
    shown = page({"memory.bandwidth.monitor.0.name": "vcpus_0", "memory.bandwidth.monitor.0.node.1.id": 3,
                  "memory.bandwidth.monitor.0.node.1.bytes.total": 7,
                  "memory.bandwidth.monitor.0.node.2.bytes.total": 9})  # no id: which node is unknown
    assert shown == {'libvirt_domain_memory_bandwidth_total_bytes_total{monitor="vcpus_0",node="3"}': 7}


def test_bins_become_cumulative_buckets_that_end_where_the_next_bin_begins() -> None:
    shown = page({"block.0.name": "vda", **histogram(0, "read")})
    name = 'libvirt_domain_block_request_duration_seconds_bucket{target_device="vda",le="%s",operation="read"}'
    assert shown == {name % "1e-05": 5, name % "0.0001": 8, name % "0.005": 8, name % "+Inf": 9}


def test_histograms_side_by_side_do_not_add_up() -> None:
    shown = page({"block.0.name": "vda", "block.1.name": "vdb", **histogram(0, "read"), **histogram(1, "read"),
                  **histogram(0, "write", ((0, 2),)), **histogram(1, "write", ((0, 1), (2000, 1)))})
    ends = {name: value for name, value in shown.items() if 'le="+Inf"' in name}
    assert sorted(ends.values()) == [2, 2, 9, 9]


def test_a_histogram_with_a_bin_missing_is_absent_and_the_others_stay() -> None:
    bins = histogram(0, "read")
    shown = page({"block.0.name": "vda", **(bins | {"block.0.latency_histogram.read.bin.1.value": "x"}),
                  **histogram(0, "write")})
    assert {name for name in shown if 'operation="read"' in name} == set()
    assert max(shown.values()) == 9


def test_other_bounds_are_other_series() -> None:
    made = builder()
    first = made.batch(snapshot(record({"block.0.name": "vda", **histogram(0, "read", ((0, 1), (1000, 1)))})))
    second = made.batch(snapshot(record({"block.0.name": "vda", **histogram(0, "read", ((0, 1), (2000, 1)))})))
    assert not series(first).keys() & {name for name in series(second) if "+Inf" not in name}
