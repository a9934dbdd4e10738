"""Limits and the balloon: what is wanted, refused, undone. On libvirt's test driver; real guests: tests/live."""

from __future__ import annotations

import pytest

from exporter.control.balloon import SetMemory
from exporter.control.errors import InvalidError, NotFoundError, RefusedError
from tests.live.operating import Operator

NIC = "52:54:00:aa:bb:cc"
NODE = f"""<node><domain type='test'><name>web1</name><uuid>6695eb01-f6a4-8304-79aa-97f2502e193f</uuid>
<memory>8192</memory><os><type>hvm</type></os><devices>
<disk type='file' device='disk'><source file='/x'/><target dev='vda' bus='virtio'/></disk>
<disk type='file' device='disk'><source file='/y'/><target dev='vdb' bus='virtio'/></disk>
<disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk>
<interface type='network'><mac address='{NIC}'/><source network='default'/></interface>
<interface type='user'><mac address='52:54:00:aa:bb:cd'/></interface></devices></domain>
<network><name>default</name><bridge name='virbr0'/></network></node>"""
# libvirt's test driver wants a burst with every limit, and that above it.
BURST = {"total_bytes_sec_max": 2000}


@pytest.fixture
def control(tmp_path):
    (tmp_path / "node.xml").write_text(NODE)
    operator = Operator(f"test://{tmp_path}/node.xml", tmp_path / "control")
    yield operator
    operator.close()


def undo(control, result):
    for step in result.details["reverse"]:
        control(step["operation"], "web1", **step["parameters"])


def test_a_limit_on_every_disk_is_set_once_and_undone(control):
    first = control("domain.set-block-limit", "web1", total_bytes_sec=1000, **BURST)
    limits = {"total_bytes_sec": 1000, **BURST}
    assert first.before["live"] == {"vda": {}, "vdb": {}}
    assert first.after["live"] == first.after["persistent"] == {"vda": limits, "vdb": limits}
    assert not control("domain.set-block-limit", "web1", total_bytes_sec=1000).changed
    lifted = control("domain.lift-block-limit", "web1", device="vda")
    assert lifted.after["live"] == {"vda": {}}
    assert not control("domain.lift-block-limit", "web1", device="vda").changed
    undo(control, lifted)
    state = control.dry("domain.lift-block-limit", "web1").plan.state
    assert state["live"] == {"vda": limits, "vdb": limits}
    undo(control, first)
    state = control.dry("domain.lift-block-limit", "web1").plan.state
    assert state["live"] == state["persistent"] == {"vda": {}, "vdb": {}}


def test_only_the_next_boot(control):
    result = control("domain.set-interface-limit", "web1", outbound_average_kib=10, apply_to="persistent")
    assert "live" not in result.after
    assert result.after["persistent"] == {NIC: {"outbound.average": 10}}
    assert control.dry("domain.lift-interface-limit", "web1").plan.state["live"] == {NIC: {}}


def test_interface_limits_are_merged_and_undone(control):
    control("domain.set-interface-limit", "web1", outbound_average_kib=10)
    changed = control("domain.set-interface-limit", "web1", device=NIC.upper(), inbound_average_kib=5,
                      inbound_peak_kib=9, outbound_average_kib=0)  # fmt: skip
    assert changed.after["live"] == {NIC: {"inbound.average": 5, "inbound.peak": 9}}
    undo(control, changed)
    back = control("domain.lift-interface-limit", "web1")
    assert back.before["live"] == back.before["persistent"] == {NIC: {"outbound.average": 10}}
    assert back.after["live"] == {NIC: {}}


@pytest.mark.parametrize(
    ("operation", "parameters", "cause"),
    [
        ("set-interface-limit", {"inbound_peak_kib": 9}, "inbound.peak needs an average"),
        ("set-interface-limit", {"device": "52:54:00:aa:bb:cd", "inbound_average_kib": 9}, f"it has: {NIC}"),
        ("set-block-limit", {"device": "sda", "total_iops_sec": 9}, "it has: vda, vdb"),
        ("set-memory", {"memory_mib": 9}, "more than the maximum of domain web1, 8192 KiB"),
        ("set-memory", {"change_mib": -8}, "less than 1 MiB"),
    ],
)
def test_refusals_name_what_there_is(control, operation, parameters, cause):
    with pytest.raises((RefusedError, InvalidError), match=cause):
        control(f"domain.{operation}", "web1", **parameters)
    assert control.events() == ["refused"]


@pytest.mark.parametrize(
    ("operation", "parameters", "cause"),
    [
        ("set-memory", {}, "exactly one"),
        ("set-memory", {"memory_mib": 4, "change_mib": 4}, "exactly one"),
        ("set-block-limit", {}, "sets no limit"),
        ("set-block-limit", {"total_iops_sec": 4, "read_iops_sec": 4}, "cannot stand beside"),
        ("set-interface-limit", {"device": NIC}, "sets no limit"),
    ],
)
def test_words_that_do_not_fit_together(control, operation, parameters, cause):
    with pytest.raises(ValueError, match=cause):
        control(f"domain.{operation}", "web1", **parameters)


def test_memory_by_size_share_and_difference(control):
    assert control("domain.set-memory", "web1", percent_of_maximum=50).after["live"]["memory_kib"] == 4096
    assert not control("domain.set-memory", "web1", memory_mib=4).changed
    raised = control("domain.set-memory", "web1", change_mib=1)
    assert raised.after["persistent"]["memory_kib"] == raised.after["live"]["memory_kib"] == 5120
    assert control("domain.set-memory", "web1", change_mib=1000).after["live"]["memory_kib"] == 8192
    assert not control("domain.set-memory", "web1", change_mib=1).changed
    undo(control, raised)
    assert control.dry("domain.set-memory", "web1", memory_mib=1).plan.state["live"]["memory_kib"] == 4096


def test_what_a_domain_lacks(control):
    control("domain.destroy", "web1")
    with pytest.raises(RefusedError, match="is not running; start it, or apply to persistent"):
        control("domain.set-memory", "web1", memory_mib=4, apply_to="both")
    assert control("domain.set-memory", "web1", memory_mib=4).after["persistent"]["memory_kib"] == 4096
    with pytest.raises(NotFoundError):
        control("domain.set-memory", "web2", memory_mib=4)


def test_an_interruption_is_explained(control):
    operation = "domain.set-memory"
    begun = {"operation": operation, "subject": {"uuid": "6695eb01-f6a4-8304-79aa-97f2502e193f"},
             "parameters": {"memory_mib": 4}, "reverse": [{"operation": operation}]}  # fmt: skip
    told = SetMemory().aftermath(control.executor.session, control.folders, begun)
    assert 'the running guest has {"maximum_memory_kib": 8192, "memory_kib": 8192}' in told
    assert "undone by" in told
    gone = SetMemory().aftermath(control.executor.session, control.folders, begun | {"subject": {"uuid": NIC}})
    assert "not there any more" in gone
