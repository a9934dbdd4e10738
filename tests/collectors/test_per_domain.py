"""Tests of the statistics by a domain's own calls, on libvirt's test driver, whose bulk call gives the state only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from collectors.bulk import GROUP_BITS, group_bits, read_chunk, read_roster
from collectors.connection import Opener, Session
from collectors.per_domain import add_missing
from collectors.snapshot import Value
from collectors.support import Support
from tests.samples import builder, record, series, snapshot

CORE = ("state", "cpu-total", "balloon", "vcpu", "interface", "block")


@pytest.fixture
def session() -> Iterator[Session]:
    made = Session(Opener("test:///default"))
    yield made
    made.close()


def test_a_domain_is_whole_under_the_bulk_calls_keys(session: Session) -> None:
    entry, = read_roster(session).entries
    domain, = read_chunk(session, [entry.uuid], group_bits(CORE)).domains
    assert domain.complete
    shown = series(builder().batch(snapshot(record(domain.stats, name="test"))))
    for name in ("block_stats_read_bytes_total", "block_stats_write_requests_total", "block_stats_capacity_bytes"):
        assert shown[f'libvirt_domain_{name}{{domain="test",target_device="vda"}}'] > 0
    for name in ("receive_bytes", "transmit_packets"):
        assert shown[f'libvirt_domain_interface_stats_{name}_total{{domain="test",target_device="testnet0"}}'] > 0
    assert shown['libvirt_domain_info_cpu_time_seconds_total{domain="test"}'] > 0
    assert shown['libvirt_domain_info_virtual_cpus{domain="test"}'] == 2
    assert shown['libvirt_domain_vcpu_time_seconds_total{domain="test",vcpu="1"}'] > 0
    assert shown['libvirt_domain_info_maximum_memory_bytes{domain="test"}'] == 8 << 30
    assert shown['libvirt_domain_memory_stats_unused_bytes{domain="test"}'] == 1 << 30
    assert shown['libvirt_domain_sample_complete{domain="test"}'] == 1


def test_only_the_groups_asked_for_and_only_what_is_missing(session: Session) -> None:
    entry, = read_roster(session).entries
    domain, = read_chunk(session, [entry.uuid], GROUP_BITS["state"]).domains
    assert {key.partition(".")[0] for key in domain.stats} == {"state", "sample", "monitor"}
    virtual, = session.domains([entry.uuid])
    stats: dict[str, Value] = {"cpu.time": 5}
    add_missing(virtual, stats, ["cpu-total"], Support())
    assert stats == {"cpu.time": 5}


def test_without_any_bulk_call_the_domains_own_calls_serve(session: Session) -> None:
    session.support.unsupported.add("getAllDomainStats", "domainListGetStats")
    roster = read_roster(session)
    entry, = roster.entries
    assert entry.stats == {"state.state": 1, "state.reason": 0}
    domain, = read_chunk(session, [entry.uuid], group_bits(CORE)).domains
    assert domain.stats["state.state"] == 1
    assert domain.stats["block.0.name"] == "vda"


def test_what_is_not_supported_costs_its_values_only(session: Session) -> None:
    session.support.unsupported.add("blockStats", "memoryStats", "vcpus", "info", "XMLDesc")
    entry, = read_roster(session).entries
    domain: Any = read_chunk(session, [entry.uuid], group_bits(CORE)).domains[0]
    assert {key.partition(".")[0] for key in domain.stats} == {"state", "sample", "monitor"}
