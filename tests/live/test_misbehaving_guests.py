"""Guests that misbehave, and what becomes of it: the page's series, the shipped alert, the webhook's payload."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.control.errors import ControlError, RefusedError
from exporter.demonstration.guest_console import GuestConsole
from exporter.demonstration.guest_definition import Accelerator
from exporter.demonstration.guest_image import GuestImage
from exporter.demonstration.private_hypervisor import PrivateHypervisor
from tests.live.alerting import Alerting, RecordedWebhooks, hastened
from tests.live.misbehaving_guest import MisbehavingGuest
from tests.live.operating import Operator, eventually

# What a guest of 128 MiB under emulation can do.
KNOBS = {"guest_memory_ratio": "0.6", "noisy_disk_bytes_per_second": "500000", "disk_latency_seconds": "0.000001"}


@pytest.fixture(scope="module")
def guest(
    hypervisor: PrivateHypervisor, image: GuestImage, guest_accelerator: Accelerator
) -> Iterator[MisbehavingGuest]:
    made = MisbehavingGuest(hypervisor, "victim", image, guest_accelerator)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def operator(hypervisor: PrivateHypervisor, tmp_path: Path) -> Iterator[Operator]:
    made = Operator(hypervisor.uri, tmp_path / "control")
    yield made
    made.close()


@pytest.fixture(scope="module")
def webhooks() -> Iterator[RecordedWebhooks]:
    with RecordedWebhooks() as recorded:
        yield recorded


@pytest.fixture(scope="module")
def alerting(
    tmp_path_factory: pytest.TempPathFactory, hypervisor: PrivateHypervisor, guest: MisbehavingGuest,
    webhooks: RecordedWebhooks,
) -> Iterator[Alerting]:
    with Alerting(tmp_path_factory.mktemp("alerting"), hypervisor.read_only_uri, webhooks.url, KNOBS) as made:
        made.prometheus.wait_for('libvirt_domain_state{domain="victim",state="running"} == 1')
        yield made


def test_two_minutes_are_a_second() -> None:
    text = '        expr: |\n          increase(x{a="[5m]"}[10m]) > 0 unless y offset 10m\n        for: 15m\n'
    assert hastened(text) == (
        '        expr: |\n          increase(x{a="[2s]"}[5s]) > 0 unless y offset 5s\n        for: 7s\n')


def test_full_storage_pauses_the_guest_and_alerts(
    guest: MisbehavingGuest, alerting: Alerting, webhooks: RecordedWebhooks, operator: Operator
) -> None:
    guest.fill_storage()
    prometheus = alerting.prometheus
    prometheus.wait_for('libvirt_domain_state_reason{domain="victim",state="paused",reason="io_error"} == 1')
    prometheus.wait_for('libvirt_domain_events_total{domain="victim",event="io_error",detail=~".*enospc.*"} == 1')
    alert = webhooks.wait_for("LibvirtDomainPausedByError", "victim", "firing")
    assert alert["labels"]["reason"] == "io_error"
    assert alert["fingerprint"]
    webhooks.wait_for("LibvirtDomainOutOfSpace", "victim", "firing")

    with pytest.raises(ControlError, match="paused again"):
        operator("domain.resume", "victim")
    guest.make_room()
    assert operator("domain.resume", "victim").after["state"] == "running"
    webhooks.wait_for("LibvirtDomainPausedByError", "victim", "resolved")
    assert guest.is_running()
    guest.take_room()


def test_memory_pressure_alerts(guest: MisbehavingGuest, alerting: Alerting, webhooks: RecordedWebhooks) -> None:
    guest.hold_memory(45)
    alerting.restart_exporter()
    webhooks.wait_for("LibvirtDomainMemoryPressure", "victim", "firing")
    guest.hold_memory(0)
    alerting.restart_exporter()
    webhooks.wait_for("LibvirtDomainMemoryPressure", "victim", "resolved")


def test_a_noisy_neighbour_alerts_by_disk(
    guest: MisbehavingGuest, alerting: Alerting, webhooks: RecordedWebhooks, load_guest: GuestConsole
) -> None:
    load_guest.order("wrate 40960")
    guest.write_steadily(2 << 20)
    alert = webhooks.wait_for("LibvirtDomainDiskNoisy", "victim", "firing")
    assert alert["labels"]["target_device"] == "vda"
    guest.write_steadily(0)
    load_guest.order("idle")
    webhooks.wait_for("LibvirtDomainDiskNoisy", "victim", "resolved")
    assert webhooks.alerts("LibvirtDomainDiskNoisy", "load", "firing") == []


def test_a_panic_alerts_and_is_dumped_and_restarted(
    guest: MisbehavingGuest, alerting: Alerting, webhooks: RecordedWebhooks, operator: Operator
) -> None:
    guest.panic()
    prometheus = alerting.prometheus
    prometheus.wait_for('libvirt_domain_state{domain="victim",state="crashed"} == 1')
    prometheus.wait_for('libvirt_domain_state_reason{domain="victim",state="crashed",reason="panicked"} == 1')
    prometheus.wait_for('libvirt_domain_events_total{domain="victim",event="crashed",detail="panicked"} == 1')
    webhooks.wait_for("LibvirtDomainCrashed", "victim", "firing")

    with pytest.raises(RefusedError, match="crashed"):
        operator("domain.core-dump", "victim", then="reset")
    dumped = operator("domain.core-dump", "victim", then="restart")
    assert Path(str(dumped.details["file"])).stat().st_size > 10 << 20
    assert operator.state("victim") == "running"
    eventually(lambda: guest.console.log().count("GUEST READY") == 2, "the guest booted again")
