"""Debian's guest agent in a real guest: what the control service shows of it; mute, gone, returned; stops by it."""

from __future__ import annotations

import ctypes
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.control.errors import RefusedError, TimedOutError
from exporter.demonstration.guest_console import GuestConsole
from exporter.demonstration.guest_image import GuestImage
from exporter.demonstration.private_hypervisor import PrivateHypervisor
from tests.control_service import ControlService
from tests.live.agent_guest import HOSTNAME, MOUNTPOINT, agent_guest, agent_image
from tests.live.operating import Operator, eventually
from tests.live.sector_guests import define, saying

NAME = "agented"
BOOT_S = 240.0


@pytest.fixture(scope="module")
def guest(
    hypervisor: PrivateHypervisor, image: GuestImage, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GuestConsole]:
    """A defined Linux guest with Debian's agent, running."""
    whole = agent_image(image, tmp_path_factory.mktemp("agent"))
    console = hypervisor.console(NAME)
    file = hypervisor.folder / "definitions" / f"{NAME}.xml"
    file.write_text(hypervisor.definition(agent_guest(hypervisor, NAME), whole))
    hypervisor.virsh("define", str(file))
    hypervisor.virsh("start", NAME)
    console.wait_ready(BOOT_S)
    yield console
    if hypervisor.virsh("domstate", NAME).strip() != "shut off":
        hypervisor.virsh("destroy", NAME)
    hypervisor.virsh("undefine", NAME)


@pytest.fixture
def operator(hypervisor: PrivateHypervisor, tmp_path: Path) -> Iterator[Operator]:
    operator = Operator(hypervisor.uri, tmp_path / "control")
    yield operator
    operator.close()


@pytest.fixture
def service(hypervisor: PrivateHypervisor, tmp_path: Path) -> Iterator[ControlService]:
    service = ControlService(tmp_path, hypervisor.uri)
    try:
        yield service.start("--control.agent.enabled", "--control.agent.period", "5s")
    finally:
        service.stop(signal.SIGKILL)


def page(service: ControlService) -> dict[str, float]:
    """The agents' series of the service's metrics page, by name and labels."""
    status, text = service.ask("GET", "/metrics", token="reader")
    assert status == 200
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines if "_agent_" in name or "collector" in name}


def shows(service: ControlService, name: str, value: float) -> None:
    series = f'libvirt_domain_agent_{name}{{domain="{NAME}"}}'
    eventually(lambda: page(service).get(series) == value, f"{series} {value}", 120)


def test_what_the_agent_tells_is_on_the_control_services_page(
    service: ControlService, guest: GuestConsole, hypervisor: PrivateHypervisor
) -> None:
    plain = define(hypervisor, "plain", saying("UP"))
    hypervisor.virsh("start", plain.name)
    try:
        shows(service, "up", 1)
        found = page(service)
        assert found[f'libvirt_domain_agent_users{{domain="{NAME}"}}'] == 1
        assert found[f'libvirt_domain_agent_vcpus_online{{domain="{NAME}"}}'] == 1
        iso = hypervisor.folder / "images" / f"{NAME}-files.iso"
        filesystem = f'{{domain="{NAME}",mountpoint="{MOUNTPOINT}"}}'
        assert 0 < found[f"libvirt_domain_agent_filesystem_size_bytes{filesystem}"] <= iso.stat().st_size
        # The guest took its clock from the host's at its start.
        assert abs(found[f'libvirt_domain_agent_time_drift_seconds{{domain="{NAME}"}}']) < 60
        (info,) = [name for name in found if name.startswith("libvirt_domain_agent_info{") and NAME in name]
        assert f'hostname="{HOSTNAME}"' in info
        assert 'os_version="7.2"' in info
        assert re.search(r'kernel_release="\d+\.', info)
        assert not [name for name in found if plain.name in name]  # it has no channel: not a failure, nothing
        eventually(lambda: page(service).get('libvirt_scrape_collector_success{collector="agent"}') == 1, "success")
        accept = "application/openmetrics-text; version=1.0.0"
        text = service.ask("GET", "/metrics", token="reader", Accept=accept)[1]
        assert text.endswith("# EOF\n")
        assert text.count("# EOF") == 1
        assert "# TYPE libvirt_domain_agent_up gauge" in text
        # libvirt's own agent commands would mark the domain (tainted: custom guest agent command).
        assert "agent" not in hypervisor.virsh("dominfo", NAME).partition("tainted")[2]
    finally:
        hypervisor.virsh("destroy", plain.name)
        hypervisor.virsh("undefine", plain.name)


def exchange(one: Path, other: Path) -> None:
    """Each gets the other's name at once: where one was free for a moment, the service would make its folder anew."""
    at_here, exchanged = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(at_here, os.fsencode(one), at_here, os.fsencode(other), exchanged):
        raise OSError(ctypes.get_errno(), f"{one} and {other} cannot be exchanged")


def test_an_agent_that_is_not_asked_for_want_of_a_lock_is_told_of(service: ControlService, guest: GuestConsole) -> None:
    """Its series go, which says nothing by itself; the collector's success and the log do."""
    success, locks = 'libvirt_scrape_collector_success{collector="agent"}', service.state / "control" / "locks"
    shows(service, "up", 1)
    away = locks.with_name("away")
    away.touch()
    exchange(locks, away)

    def gone() -> bool:
        found = page(service)  # an earlier reading may have failed, too, and one in progress still show what it has
        return found.get(success) == 0 and not [name for name in found if NAME in name]

    eventually(gone, "the reading has failed", 120)
    assert "the guest agent is not asked: " in (service.folder / "log").read_text()
    exchange(locks, away)
    shows(service, "up", 1)
    eventually(lambda: page(service).get(success) == 1, "the reading goes on", 120)


def test_an_agent_that_goes_returns_or_falls_mute(service: ControlService, guest: GuestConsole) -> None:
    shows(service, "up", 1)
    guest.order("agent gone")
    shows(service, "connected", 0)
    shows(service, "up", 0)
    assert not [name for name in page(service) if "filesystem" in name]
    guest.order("agent 1")
    shows(service, "up", 1)
    try:
        guest.order("agent mute")
        shows(service, "up", 0)
        shows(service, "connected", 1)
    finally:
        guest.order("agent 1")


def test_a_mute_agent_holds_neither_page_nor_operations(
    service: ControlService, guest: GuestConsole, operator: Operator
) -> None:
    """While the reading waits for the agent (libvirt's limit is 5 s) pages come, and the guest is acted on."""
    shows(service, "up", 1)
    guest.order("agent mute")
    try:
        rounds = 0
        while page(service).get(f'libvirt_domain_agent_up{{domain="{NAME}"}}') != 0:
            assert service.ask("GET", f"/api/v1/domains/{NAME}")[0] == 200
            assert operator("domain.suspend", NAME).after["state"] == "paused"
            assert operator("domain.resume", NAME).after["state"] == "running"
            rounds += 1
        assert rounds > 2, "what was asked had to wait for the agent"
    finally:
        guest.order("agent 1")


def test_an_agent_that_fell_mute_after_it_had_answered_is_passed_over(operator: Operator, guest: GuestConsole) -> None:
    """libvirt would wait 60 s in the call; the operation goes on to the button after the agent's own time."""
    guest.order("acpi ignore")
    guest.order("agent mute")
    with pytest.raises(TimedOutError, match=r"agent did not answer.*pushing the ACPI button"):
        operator("domain.shutdown", NAME, agent_timeout_s=2, acpi_timeout_s=2)
    eventually(lambda: "ACPI power button (ignore)" in guest.log(), "the button in the guest")
    assert operator.state(NAME) == "running"
    # Nobody can take back what the agent was asked: it does it when it wakes, as the error said.
    guest.order("agent 1")
    eventually(lambda: operator.state(NAME) == "shutoff", "the shutdown that the agent was asked for")


def test_reboot_and_shutdown_by_the_agent(operator: Operator, guest: GuestConsole) -> None:
    boots = guest.log().count("GUEST READY")
    operator("domain.start", NAME)
    eventually(lambda: guest.log().count("GUEST READY") == boots + 1, "the boot", BOOT_S)
    eventually(lambda: agent_can_be_asked(operator), "the agent's channel")
    assert operator("domain.reboot", NAME, mode="agent", timeout_s=120).details["asked"] == "agent"
    eventually(lambda: guest.log().count("GUEST READY") == boots + 2, "the boot after it", BOOT_S)
    eventually(lambda: agent_can_be_asked(operator), "the agent's channel")
    stopped = operator("domain.shutdown", NAME, mode="agent", agent_timeout_s=120)
    assert stopped.details["stopped_by"] == "agent"
    assert guest.log().count("AGENT shutdown") >= 3
    with pytest.raises(RefusedError, match="start it"):
        operator("domain.reboot", NAME, mode="agent")


def test_a_guest_that_sleeps_is_woken(operator: Operator, guest: GuestConsole, hypervisor: PrivateHypervisor) -> None:
    boots = guest.log().count("GUEST READY")
    operator("domain.start", NAME)
    eventually(lambda: guest.log().count("GUEST READY") == boots + 1, "the boot", BOOT_S)
    eventually(lambda: agent_can_be_asked(operator), "the agent's channel")
    hypervisor.virsh("dompmsuspend", NAME, "mem")
    eventually(lambda: operator.state(NAME) == "pmsuspended", "the guest's sleep")
    for asked in ("shutdown", "reboot", "resume", "start", "suspend"):
        with pytest.raises(RefusedError, match="wake it"):
            operator(f"domain.{asked}", NAME)
    woken = operator("domain.wake", NAME).after
    assert (woken["state"], woken["reason"]) == ("running", "wakeup")
    assert not operator("domain.wake", NAME).changed


def agent_can_be_asked(operator: Operator) -> bool:
    try:
        return operator.dry("domain.shutdown", NAME, mode="agent").dry_run
    except RefusedError:
        return False
