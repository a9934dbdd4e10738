"""What libvirt's test driver answers on host interfaces: the facts that `interface` stands on, one a test."""

from __future__ import annotations

import libvirt
import pytest

from collectors.connection import start_event_loop
from exporter.control.errors import from_libvirt

NODE = "<node><interface type='ethernet' name='e1'><mac address='52:54:00:aa:bb:01'/></interface></node>"


@pytest.fixture
def connection(tmp_path):
    (tmp_path / "node.xml").write_text(NODE)
    start_event_loop()
    connection = libvirt.open(f"test://{tmp_path}/node.xml")
    yield connection
    connection.close()


def names(connection):
    return {interface.name() for interface in connection.listAllInterfaces(0)}


def code(call):
    with pytest.raises(libvirt.libvirtError) as caught:
        call()
    return caught.value.get_error_code()


@pytest.mark.parametrize(
    "xml",
    [
        "<interface type='ethernet' name='e9'><start mode='onboot'/><protocol family='ipv4'><dhcp/></protocol>"
        "</interface>",
        "<interface type='ethernet' name='e9'><protocol family='ipv4'><ip address='192.0.2.9' prefix='24'/>"
        "<route gateway='192.0.2.1'/></protocol></interface>",
        "<interface type='ethernet' name='e9'><protocol family='ipv6'><ip address='2001:db8::9' prefix='64'/>"
        "</protocol></interface>",
        "<interface type='bridge' name='e9'><bridge stp='off' delay='2'><interface type='ethernet' name='e1'/></bridge>"
        "</interface>",
        "<interface type='bridge' name='e9'><bridge/></interface>",
        "<interface type='vlan' name='e9'><vlan tag='9'><interface name='e1'/></vlan></interface>",
        "<interface type='bond' name='e9'><bond mode='active-backup'><miimon freq='100'/>"
        "<interface type='ethernet' name='e1'/></bond></interface>",
        "<interface type='bond' name='e9'><bond><arpmon interval='100' target='192.0.2.1'/></bond></interface>",
    ],
)  # fmt: skip
def test_every_kind_is_defined_even_an_empty_one(connection, xml):
    connection.interfaceDefineXML(xml, 0)
    assert "e9" in names(connection)


@pytest.mark.parametrize(
    "xml",
    [
        "<interface type='vlan' name='e9'><vlan><interface name='e1'/></vlan></interface>",
        "<interface type='ethernet'/>",
        "<interface type='tunnel' name='e9'/>",
        "<interface type='ethernet' name='e9'><start mode='never'/></interface>",
    ],
)
def test_what_it_refuses_is_the_requests_own_words(connection, xml):
    with pytest.raises(libvirt.libvirtError) as caught:
        connection.interfaceDefineXML(xml, 0)
    assert caught.value.get_error_code() == libvirt.VIR_ERR_XML_ERROR
    assert from_libvirt(caught.value, "defining").exit_status == 2
    assert names(connection) == {"e1"}


def test_an_existing_one_is_overwritten_and_an_active_one_undefined(connection):
    interface = connection.interfaceLookupByName("e1")
    assert interface.isActive()
    connection.interfaceDefineXML("<interface type='ethernet' name='e1'><mtu size='1400'/></interface>", 0)
    assert "1400" in interface.XMLDesc(0)
    assert interface.isActive()
    interface.undefine()
    assert names(connection) == set()


def test_up_of_an_up_one_and_down_of_a_down_one(connection):
    interface = connection.interfaceLookupByName("e1")
    assert code(lambda: interface.create(0)) == libvirt.VIR_ERR_OPERATION_INVALID
    interface.destroy(0)
    assert code(lambda: interface.destroy(0)) == libvirt.VIR_ERR_OPERATION_INVALID
    interface.create(0)


def test_the_transaction(connection):
    for end in (connection.changeCommit, connection.changeRollback):
        assert code(lambda end=end: end(0)) == libvirt.VIR_ERR_OPERATION_INVALID
    connection.interfaceLookupByName("e1").destroy(0)
    connection.changeBegin(0)
    assert code(lambda: connection.changeBegin(0)) == libvirt.VIR_ERR_OPERATION_INVALID
    connection.interfaceDefineXML("<interface type='ethernet' name='e9'/>", 0)
    connection.interfaceLookupByName("e1").create(0)
    connection.changeRollback(0)
    # The definition is gone, and what was brought up inside is down again.
    assert names(connection) == {"e1"}
    assert not connection.interfaceLookupByName("e1").isActive()
    connection.changeBegin(0)
    connection.interfaceDefineXML("<interface type='ethernet' name='e9'/>", 0)
    connection.changeCommit(0)
    assert names(connection) == {"e1", "e9"}


def test_a_mac_is_looked_up_as_it_is_written(connection):
    assert connection.interfaceLookupByMACString("52:54:00:aa:bb:01").name() == "e1"
    twin = "<interface type='ethernet' name='e2'><mac address='52:54:00:aa:bb:01'/></interface>"
    connection.interfaceDefineXML(twin, 0)
    several = libvirt.VIR_ERR_MULTIPLE_INTERFACES
    assert code(lambda: connection.interfaceLookupByMACString("52:54:00:aa:bb:01")) == several
    assert code(lambda: connection.interfaceLookupByMACString("52:54:00:aa:bb:99")) == libvirt.VIR_ERR_NO_INTERFACE


def test_a_host_bootloader_is_accepted_and_kept(connection):
    """Only here: QEMU refuses it, and Xen is not on this host."""
    domain = connection.defineXML(
        "<domain type='test'><name>pv</name><memory>8192</memory><bootloader>/usr/bin/pygrub</bootloader>"
        "<os><type>linux</type></os></domain>"
    )
    assert "<bootloader>/usr/bin/pygrub</bootloader>" in domain.XMLDesc(0)
    domain.undefine()
