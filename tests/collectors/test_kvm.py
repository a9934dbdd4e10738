"""Tests of the KVM counters: what is declared and what is left to kvm.all."""

from __future__ import annotations

import pytest

from collectors.bulk import ChunkAnswer, DomainStats
from collectors.domain_xml import Definition, parse
from collectors.inventory import Inventory
from collectors.kvm import KVM, KVM_ALL, KvmSource, named, unnamed
from collectors.periodic import RunningDomain
from collectors.snapshot import Value
from tests.samples import builder, captured, record, series, snapshot


def kvm_stats() -> dict[str, Value]:
    return dict(captured("kvm")[-1][0].stats)


def test_a_real_guests_counters_are_either_declared_or_left_to_kvm_all() -> None:
    stats = kvm_stats()
    words = {key.split(".")[2] for key in stats if key.startswith("vcpu.0.") and key.count(".") == 3}
    batch = builder([KVM, KVM_ALL]).batch(snapshot(record(stats), record(unnamed(stats), source="kvm.all")))
    shown = series(batch)
    named = {name for name in shown if name.startswith("libvirt_domain_vcpu_kvm_") and "_stat" not in name}
    other = {name for name in shown if name.startswith("libvirt_domain_vcpu_kvm_stat")}
    assert len(named) + len(other) == len(words) > 40
    assert 'libvirt_domain_vcpu_kvm_stat_total{domain="guest",vcpu="0",stat="pf_fast"}' in other


def test_unknown_counters_of_a_newer_kernel_come_under_their_own_names() -> None:
    found = unnamed({"vm.brand_new.sum": 3, "vm.brand_new.max": 4, "vcpu.12.odd.cur": True, "vcpu.0.time": 1,
                     "vcpu.current": 1, "vm.remote_tlb_flush.sum": 1})
    assert found == {"vcpu.12.kvm.0.name": "odd", "vcpu.12.kvm.0.cur": True, "kvm.0.name": "brand_new",
                     "kvm.0.max": 4, "kvm.1.name": "brand_new", "kvm.1.sum": 3}


POLLED: dict[str, Value] = {"cpu.haltpoll.success.time": 0, "cpu.haltpoll.fail.time": 0}
OTHERS: dict[str, Value] = {"cpu.time": 5, "vcpu.current": 1, "vcpu.0.time": 5, "vcpu.0.halted": True}


@pytest.mark.parametrize(("type_", "counted", "wanted"), [
    ("kvm", POLLED, POLLED),  # a host whose halt_poll_ns is 0
    ("qemu", POLLED, None), ("", POLLED, None),
    ("qemu", POLLED | {"cpu.haltpoll.fail.time": 3, "vm.pages_4k.cur": 7}, {"vm.pages_4k.cur": 7})])
def test_whether_a_zero_of_halt_polling_is_one_is_told_by_the_domain_s_type(
        monkeypatch: pytest.MonkeyPatch, type_: str, counted: dict[str, Value], wanted: dict[str, Value] | None,
) -> None:
    class Known(Inventory):
        def details(self, uuid: str, id: int) -> Definition | None:
            return parse(f"<domain type='{type_}'/>") if type_ else None

    found = ChunkAnswer(1.0, (DomainStats("u", 1, "web", counted | OTHERS, True),))
    monkeypatch.setattr("collectors.domain_groups.read_whole", lambda *_: found)
    records = list(KvmSource(Known()).read(None, RunningDomain("u", 1, "web")))  # type: ignore[arg-type]
    assert [record.stats for record in records] == ([] if wanted is None else [wanted])


def test_what_kvm_declares_is_what_it_is_given() -> None:
    with_kvm: dict[str, Value] = POLLED | {"vcpu.12.exits.sum": 0, "vm.pages_4k.cur": 7}
    assert named(with_kvm | OTHERS | {"vcpu.12.pf_fast.sum": 1}) == with_kvm


def test_what_a_real_guest_counts_is_all_there() -> None:
    stats = kvm_stats()
    assert len(named(stats)) + len(unnamed(stats)) / 2 == sum(
        key.startswith(("vm.", "cpu.haltpoll.")) or (key.startswith("vcpu.") and key.count(".") == 3) for key in stats)
