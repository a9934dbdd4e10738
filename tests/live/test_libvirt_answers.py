"""What libvirt itself answers where control's checks end: the facts that control stands on, asked of a real libvirt.

One test a row of what was measured (codes, states, events). Where a newer libvirt answers differently it shows here,
and not in somebody's guest. Beside each: what control makes of the answer.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from exporter.control import errors
from exporter.control.errors import from_libvirt
from exporter.demonstration.private_hypervisor import PrivateHypervisor
from tests.live.libvirt_answers import (
    BOOTED,
    DESTROYED,
    PAUSED,
    REMOVED,
    SUSPENDED,
    UNPAUSED,
    UPDATED,
    Heard,
    code,
    kind,
    known_guest,
    opened,
    refusal,
)
from tests.live.operating import Operator, eventually
from tests.live.sector_guests import SectorGuest, define, pattern, saying, sector_xml


@pytest.fixture(scope="module")
def connection(hypervisor: PrivateHypervisor) -> Iterator[Any]:
    yield from opened(hypervisor)


@pytest.fixture
def guest(hypervisor: PrivateHypervisor, connection: Any) -> Iterator[tuple[Any, SectorGuest]]:
    yield from known_guest(hypervisor, connection)


@pytest.fixture
def saves(tmp_path: Path) -> Path:
    return tmp_path


# 1. Lifecycle


def test_looking_up_what_is_not_there(connection: Any) -> None:
    missing = str(uuid.uuid4())
    for call in (
        lambda: connection.lookupByName("missing"),
        lambda: connection.lookupByID(999_999),
        lambda: connection.lookupByUUIDString(missing),
    ):
        assert (code(call), kind(call)) == (libvirt.VIR_ERR_NO_DOMAIN, "not-found")
    malformed = lambda: connection.lookupByUUIDString("nonsense")  # noqa: E731 - read twice
    assert (code(malformed), kind(malformed)) == (libvirt.VIR_ERR_INVALID_ARG, "invalid")


def test_definitions_that_are_refused(connection: Any, hypervisor: PrivateHypervisor, guest: Any) -> None:
    for xml, expected in (
        ("<domain type='qemu'><name>known2", libvirt.VIR_ERR_XML_DETAIL),
        ("<domain type='qemu'><memory>1</memory><os><type>hvm</type></os></domain>", libvirt.VIR_ERR_NO_NAME),
        (sector_xml(hypervisor, "known2", pattern())[0].replace('type="qemu"', 'type="nonsense"'), None),
    ):
        refused = refusal(lambda xml=xml: connection.defineXML(xml))
        assert expected in (None, refused.get_error_code())
    strange = sector_xml(hypervisor, "known2", pattern())[0].replace("<vcpu>", "<nonsense/><vcpu>")
    schema = lambda: connection.defineXMLFlags(strange, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)  # noqa: E731
    assert (code(schema), kind(schema)) == (libvirt.VIR_ERR_XML_INVALID_SCHEMA, "invalid")
    connection.defineXML(strange).undefine()  # without the flag the schema is not asked
    twin = sector_xml(hypervisor, "known", pattern())[0]
    for call in (lambda: connection.defineXML(twin), lambda: connection.createXML(twin, 0)):
        assert "already exists with uuid" in str(refusal(call))
        assert code(call) == libvirt.VIR_ERR_OPERATION_FAILED


def test_the_same_uuid_again_overwrites_without_a_word(connection: Any, guest: Any) -> None:
    domain, _known = guest
    changed = domain.XMLDesc(0).replace("<name>known</name>", "<name>known</name><title>changed</title>")
    with Heard(connection, domain) as heard:
        connection.defineXML(changed)
        heard.until(UPDATED)
    assert "changed" in domain.XMLDesc(0)


@pytest.mark.parametrize(
    "verb", ["shutdown", "destroy", "reboot", "reset", "suspend", "resume", "save", "managedSave"]
)
def test_what_an_inactive_domain_refuses(guest: Any, saves: Path, verb: str) -> None:
    domain, _known = guest
    arguments: dict[str, tuple[Any, ...]] = {"reboot": (0,), "reset": (0,), "save": (str(saves / "x"),)}
    call = lambda: getattr(domain, verb)(*arguments.get(verb, ()))  # noqa: E731
    assert "not running" in str(refusal(call))
    assert (code(call), kind(call)) == (libvirt.VIR_ERR_OPERATION_INVALID, "refused")


def test_started_paused_resumed_suspended_reset_destroyed(connection: Any, guest: Any) -> None:
    domain, known = guest
    with Heard(connection, domain) as heard:
        domain.createWithFlags(libvirt.VIR_DOMAIN_START_PAUSED)
        assert domain.state() == [PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER] or domain.state()[0] == PAUSED
        heard.until(BOOTED, SUSPENDED)
        first = connection.lookupByUUIDString(known.uuid).ID()
        assert code(domain.create) == libvirt.VIR_ERR_OPERATION_INVALID
        domain.resume()
        heard.until(UNPAUSED)
        assert code(domain.resume) == libvirt.VIR_ERR_OPERATION_INVALID
        domain.suspend()
        heard.until(UNPAUSED, SUSPENDED)
        before = list(heard.events)
        domain.suspend()  # idempotent, and no event
        domain.resume()
        domain.reset(0)
        heard.until("reboot")
        assert heard.events[len(before) :].count(SUSPENDED) == 0
        assert connection.lookupByUUIDString(known.uuid).ID() == first
        domain.destroyFlags(libvirt.VIR_DOMAIN_DESTROY_GRACEFUL)
        heard.until(DESTROYED)
        assert domain.ID() in (-1, first)
    domain.create()
    assert connection.lookupByUUIDString(known.uuid).ID() > first
    domain.destroy()


def test_a_button_that_nobody_hears_is_no_error_and_no_event(connection: Any, guest: Any) -> None:
    domain, known = guest
    domain.create()
    eventually(lambda: "PATTERN OK" in known.said(), "the guest's word")
    with Heard(connection, domain) as heard:
        assert domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN) == 0
        domain.suspend()
        heard.until(SUSPENDED)  # what comes later is there, so nothing of the shutdown is still on its way
        assert heard.events == [SUSPENDED]
    assert domain.state()[0] == PAUSED


def test_an_agent_that_is_not_connected(connection: Any, hypervisor: PrivateHypervisor, guest: Any) -> None:
    xml, _known = sector_xml(hypervisor, "known-channel", saying("UP"))
    channel = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
    domain = connection.createXML(xml.replace("<memballoon", channel + "<memballoon"), 0)
    call = lambda: domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT)  # noqa: E731
    assert (code(call), kind(call)) == (libvirt.VIR_ERR_AGENT_UNRESPONSIVE, "refused")


def test_undefined_while_it_runs_and_defined_again(connection: Any, guest: Any) -> None:
    domain, known = guest
    domain.create()
    with Heard(connection, domain) as heard:
        domain.undefine()
        heard.until(REMOVED)
        assert (domain.isActive(), domain.isPersistent()) == (1, 0)
        for call in (lambda: domain.managedSave(0), lambda: domain.setAutostart(1), domain.undefine):
            assert "transient" in str(refusal(call))
            assert (code(call), kind(call)) == (libvirt.VIR_ERR_OPERATION_INVALID, "refused")
        connection.defineXML(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
        heard.until(REMOVED, UPDATED)  # updated, not added: it was there
        assert domain.isPersistent() == 1
        domain.undefine()
    number = domain.ID()
    domain.destroy()
    assert code(domain.isActive) == libvirt.VIR_ERR_NO_DOMAIN
    assert domain.ID() in (number, -1)  # the handle's own, and so no proof of anything
    assert code(lambda: connection.lookupByUUIDString(known.uuid)) == libvirt.VIR_ERR_NO_DOMAIN


def test_a_definition_changed_while_it_runs_is_of_the_next_boot(connection: Any, guest: Any) -> None:
    domain, _known = guest
    domain.create()
    later = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE).replace("16384", "32768")
    connection.defineXML(later)
    assert domain.isUpdated() == 0  # so it cannot be asked: the two are compared
    assert "32768" in domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE)
    assert "32768" not in domain.XMLDesc(0)


def test_a_daemon_that_is_started_again_is_found_with_its_guests(
    fresh_hypervisor: PrivateHypervisor, tmp_path: Path
) -> None:
    """The client's connection is dead, the guest is not: the next operation opens another, and finds it as it was."""
    define(fresh_hypervisor, "outlives", saying("UP"))
    operator = Operator(fresh_hypervisor.uri, tmp_path / "control")
    try:
        before = operator("domain.start", "outlives").after
        fresh_hypervisor.kill_daemon()
        with pytest.raises(errors.UnreachableError):
            operator("domain.show", "outlives")
        fresh_hypervisor.start_daemon()
        after = operator("domain.show", "outlives").details
        assert {name: after[name] for name in ("id", "uuid", "state")} == {
            name: before[name] for name in ("id", "uuid", "state")
        }
        assert operator("domain.suspend", "outlives").after["state"] == "paused"
        operator("domain.destroy", "outlives")
    finally:
        operator.close()


# 4. Provisioning


def test_what_a_guest_is_made_of_is_not_there(connection: Any, hypervisor: PrivateHypervisor, guest: Any) -> None:
    xml, known = sector_xml(hypervisor, "known-parts", saying("UP"))
    without_disk = xml.replace(str(known.disk), f"{known.disk}.missing")
    assert code(lambda: connection.createXML(without_disk, 0)) == libvirt.VIR_ERR_SYSTEM_ERROR
    nic = "<interface type='network'><source network='{}'/></interface><memballoon"
    missing = lambda: connection.createXML(xml.replace("<memballoon", nic.format("missing")), 0)  # noqa: E731
    assert (code(missing), kind(missing)) == (libvirt.VIR_ERR_NO_NETWORK, "not-found")
    network = connection.networkDefineXML("<network><name>known-net</name><bridge name='vgknown0'/></network>")
    try:
        refused = refusal(lambda: connection.createXML(xml.replace("<memballoon", nic.format("known-net")), 0))
    finally:
        network.undefine()
    told = from_libvirt(refused, "starting")
    assert (refused.get_error_code(), told.kind) == (libvirt.VIR_ERR_OPERATION_INVALID, "refused")
    assert "network start" in told.next_step
    kernel = xml.replace("<boot ", "<kernel>/nowhere/vmlinuz</kernel><boot ")
    refusal(lambda: connection.createXML(kernel, 0))  # by libvirt's security driver or by QEMU: two codes
    assert "known-parts" not in [domain.name() for domain in connection.listAllDomains(0)]


def test_boot_orders_that_do_not_fit(connection: Any, hypervisor: PrivateHypervisor) -> None:
    xml, _known = sector_xml(hypervisor, "known-order", saying("UP"))
    both = xml.replace("<target dev=\"hda\"", "<boot order='1'/><target dev=\"hda\"")
    assert code(lambda: connection.defineXML(both)) == libvirt.VIR_ERR_CONFIG_UNSUPPORTED
    second = "<disk type='block' device='cdrom'><target dev='hdb' bus='ide'/><boot order='1'/></disk><serial"
    twice = both.replace("<boot dev=\"hd\" />", "").replace("<serial", second, 1)
    assert code(lambda: connection.defineXML(twice)) == libvirt.VIR_ERR_CONFIG_UNSUPPORTED


def test_a_host_bootloader_is_xens(connection: Any, hypervisor: PrivateHypervisor) -> None:
    xml, _known = sector_xml(hypervisor, "known-pv", saying("UP"))
    pygrub = lambda: connection.createXML(xml.replace("<os>", "<bootloader>/usr/bin/pygrub</bootloader><os>"), 0)  # noqa: E731
    assert (code(pygrub), kind(pygrub)) == (libvirt.VIR_ERR_CONFIG_UNSUPPORTED, "unsupported")
    xen = hypervisor.uri.replace("qemu+unix", "xen+unix")
    assert code(lambda: libvirt.open(xen)) == libvirt.VIR_ERR_NO_CONNECT


# 5. Host interfaces of the udev backend


def test_host_interfaces_as_udev_shows_them(connection: Any) -> None:
    everything = {interface.name() for interface in connection.listAllInterfaces(0)}
    named = {*connection.listInterfaces(), *connection.listDefinedInterfaces()}
    assert "lo" in everything
    assert "lo" not in named  # so control counts the whole list
    loopback = connection.interfaceLookupByName("lo")
    assert loopback.MACString() == "00:00:00:00:00:00"
    other = next(iter(named), None)
    if other is not None:
        mac = connection.interfaceLookupByName(other).MACString()
        if mac.upper() != mac:
            assert code(lambda: connection.interfaceLookupByMACString(mac.upper())) == libvirt.VIR_ERR_NO_INTERFACE
    for call in (
        lambda: connection.interfaceDefineXML("<interface type='ethernet' name='e9'/>", 0),
        lambda: connection.changeBegin(0),
        lambda: connection.changeCommit(0),
        lambda: connection.changeRollback(0),
        lambda: loopback.destroy(0),
        lambda: loopback.create(0),
        lambda: loopback.undefine(),
    ):
        refused = refusal(call)
        if refused.get_error_code() != libvirt.VIR_ERR_NO_SUPPORT:
            pytest.skip("this libvirt was built with netcf and can change interfaces")
        assert from_libvirt(refused, "changing").http_status == 501
