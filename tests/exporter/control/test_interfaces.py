"""Host interfaces on libvirt's test driver with a node of our own, and what must not be touched on a fake host."""

from __future__ import annotations

import socket

import libvirt
import pytest

from exporter.control import own_connectivity
from exporter.control.connection import Session, is_remote
from exporter.control.errors import ControlError, NotFoundError, RefusedError, UnconfirmedError
from exporter.control.executor import Actor, Executor, Request
from exporter.control.folders import Folders
from exporter.control.interfaces import OPERATIONS as CHANGES
from exporter.control.operations import by_name
from exporter.control.own_connectivity import HostNetwork
from exporter.control.request_parameters import parse_parameters

NODE = """<node>
<interface type='ethernet' name='lan0'><start mode='onboot'/><mac address='52:54:00:AA:BB:01'/>
  <protocol family='ipv4'><ip address='192.0.2.5' prefix='24'/><route gateway='192.0.2.1'/></protocol></interface>
<interface type='ethernet' name='twin1'><mac address='52:54:00:aa:bb:02'/></interface>
<interface type='ethernet' name='twin2'><mac address='52:54:00:aa:bb:02'/></interface>
</node>"""


@pytest.fixture
def run(tmp_path):
    (tmp_path / "node.xml").write_text(NODE)
    session = Session(f"test://{tmp_path}/node.xml")
    executor = Executor(session, Folders(tmp_path / "control"))

    def run(verb, reference=None, confirmed=None, dry_run=False, **document):
        operation = by_name()[f"interface.{verb}"]
        request = Request(Actor("tester", "test"), confirmed=confirmed, dry_run=dry_run)
        return executor.run(operation, reference, parse_parameters(operation, document), request)

    run.executor = executor
    yield run
    session.close()


def names(run):
    return {row["name"]: row["active"] for row in run("list").details["rows"]}


def test_list_with_counts(run):
    details = run("list").details
    assert (details["active"], details["inactive"], details["libvirt_active"]) == (3, 0, 3)
    assert [row["name"] for row in details["rows"]] == ["lan0", "twin1", "twin2"]
    assert details["rows"][0] == {"name": "lan0", "active": True, "mac": "52:54:00:aa:bb:01", "type": "ethernet"}
    run("down", "lan0", commit=True)
    assert [row["name"] for row in run("list", inactive=True).details["rows"]] == ["lan0"]
    assert [row["name"] for row in run("list", active=True).details["rows"]] == ["twin1", "twin2"]
    with pytest.raises(ControlError, match="both asked for"):
        run("list", active=True, inactive=True)


@pytest.mark.parametrize("reference", ["lan0", "52:54:00:aa:bb:01", "52:54:00:AA:BB:01", "52-54-00-aa-bb-01"])
def test_found_by_name_and_by_mac_in_any_case(run, reference):
    details = run("show", reference).details
    assert (details["name"], details["mac"]) == ("lan0", "52:54:00:aa:bb:01")
    assert "192.0.2.5" in details["xml"]


def test_an_interface_that_is_not_there_is_told_with_the_nearest(run):
    with pytest.raises(NotFoundError, match="the nearest: lan0"):
        run("show", "lan1")
    with pytest.raises(NotFoundError, match="no interface has the MAC"):
        run("show", "52:54:00:aa:bb:99")
    with pytest.raises(NotFoundError):
        run("show", "x" * 100_000 + "\n")


def test_a_mac_of_two_interfaces_is_refused_with_their_names(run):
    with pytest.raises(RefusedError, match="name one: twin1, twin2"):
        run("show", "52:54:00:aa:bb:02")


DEFINITIONS = [
    ("define-ethernet", {"name": "e9", "dhcp": True}, "e9", "ethernet"),
    ("define-ethernet", {"name": "e9", "address": ["192.0.2.9/24", "2001:db8::9/64"], "gateway": ["192.0.2.1"],
                         "mac": "52:54:00:00:00:09", "mtu_bytes": 1400}, "e9", "ethernet"),
    ("define-bridge", {"name": "br9", "port": ["lan0", "twin1"], "stp": False, "delay_s": 2.5}, "br9", "bridge"),
    ("define-bridge", {"name": "br9"}, "br9", "bridge"),
    ("define-vlan", {"parent": "lan0", "tag": 42, "dhcp": True}, "lan0.42", "vlan"),
    ("define-bond", {"name": "bond9", "port": ["twin1", "twin2"], "miimon_ms": 100}, "bond9", "bond"),
    ("define-bond", {"name": "bond9", "port": ["twin1"], "arp_interval_ms": 100, "arp_target": "192.0.2.1"},
     "bond9", "bond"),
]  # fmt: skip


@pytest.mark.parametrize(("verb", "document", "name", "kind"), DEFINITIONS)
def test_define_up_down_undefine(run, verb, document, name, kind):
    plan = run(verb, dry_run=True, **document)
    assert plan.plan.diff.count("\n+") >= 2
    assert name not in names(run)
    defined = run(verb, **document)
    assert (defined.changed, defined.after["type"], defined.after["change"]["open"]) == (True, kind, True)
    assert "virtgauge interface commit" in defined.warnings[0]
    up = run("up", name)
    assert (up.before["active"], up.after["active"]) == (False, True)
    assert run("up", name).changed is False
    assert "it is up" in run("undefine", name, dry_run=True).plan.warnings[0]
    assert run("down", name).after["active"] is False
    assert run("down", name).changed is False
    assert run("commit").after == {"change": {"open": False}}
    assert name in names(run)
    assert run("undefine", name, dry_run=True).plan.warnings == []
    with pytest.raises(UnconfirmedError):
        run("undefine", name, commit=True)
    assert run("undefine", name, confirmed=name, commit=True).after == {"change": {"open": False}}
    assert name not in names(run)
    assert run.executor.trail.verify() > 5


def test_defining_an_existing_one_shows_the_difference(run):
    plan = run("define-ethernet", dry_run=True, name="lan0", dhcp=True, override=True).plan
    assert "is replaced" in plan.warnings[0]
    diff = plan.diff
    assert "-    <ip address='192.0.2.5' prefix='24'/>" in diff
    assert "+    <dhcp />" in diff


def test_several_steps_are_one_change(run):
    assert run("begin").after["change"]["open"]
    with pytest.raises(RefusedError, match="commit it or roll it back"):
        run("begin")
    run("define-ethernet", name="e9", dhcp=True)
    run("define-vlan", parent="e9", tag=7)
    assert {"e9", "e9.7"} <= set(names(run))
    assert run("rollback").after["change"] == {"open": False}
    assert not {"e9", "e9.7"} & set(names(run))
    for verb in ("commit", "rollback"):
        with pytest.raises(RefusedError, match="no interface change is open"):
            run(verb)


def test_a_failed_step_leaves_no_change_open(run):
    # Refused by libvirt itself: a node has no such function half way.
    run("begin")
    run("commit")
    session = run.executor.session
    session.connection.changeBegin(0)
    with pytest.raises(RefusedError, match="virtgauge did not begin"):
        run("define-ethernet", name="e9")
    assert run("change").details == {"open": False}
    session.connection.changeRollback(0)
    assert run("define-ethernet", name="e9", commit=True).changed


def test_a_transaction_ended_behind_our_back_is_opened_again(run):
    run("begin")
    run.executor.session.connection.changeCommit(0)
    run("define-ethernet", name="e9")
    run("rollback")
    assert "e9" not in names(run)


@pytest.fixture
def host(tmp_path):
    """A host whose default route goes over br0, made of the bond of eth0 and eth1; vlan7 stands on eth2."""
    (tmp_path / "proc/net").mkdir(parents=True)
    (tmp_path / "proc/net/route").write_text(
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\n"
        "br0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\n"
        "eth9\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\n"
    )
    zero = "0" * 32
    (tmp_path / "proc/net/ipv6_route").write_text(
        f"{zero} 00 {zero} 00 fe80{'0' * 27}1 00000400 00000001 00000000 00000003 eth2.7\n"
        f"{zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200 lo\n"
    )
    (tmp_path / "proc/net/if_inet6").write_text("20010db8000000000000000000000005 08 40 00 80 eth3\n")
    net = tmp_path / "sys/class/net"
    lower = {"br0": ["bond0"], "bond0": ["eth0", "eth1"], "eth2.7": ["eth2"]}
    for name in ("br0", "bond0", "eth0", "eth1", "eth2", "eth2.7", "eth3"):
        (net / name).mkdir(parents=True)
        for below in lower.get(name, ()):
            (net / name / f"lower_{below}").touch()
    return HostNetwork(tmp_path)


def test_what_carries_the_default_route_and_the_caller(host):
    assert set(host.protected(None)) == {"br0", "bond0", "eth0", "eth1", "eth2", "eth2.7"}
    assert host.protected("2001:db8::5")["eth3"] == "carries your own connection"
    assert "eth3" not in host.protected("not an address")


def test_this_hosts_own_addresses_are_found():
    assert HostNetwork().with_address("127.0.0.1") == HostNetwork().with_address("::ffff:127.0.0.1") == {"lo"}
    with socket.socket(socket.AF_INET6) as sock:
        sock.bind(("::1", 0))
    assert HostNetwork().with_address("::1") == {"lo"}


def test_the_address_of_an_ssh_session():
    assert own_connectivity.ssh_address({"SSH_CONNECTION": "198.51.100.7 5000 192.0.2.5 22"}) == "192.0.2.5"
    assert own_connectivity.ssh_address({}) is None
    assert own_connectivity.ssh_address({"SSH_CONNECTION": "garbage"}) is None


@pytest.mark.parametrize(
    ("verb", "reference", "document"),
    [
        ("define-ethernet", None, {"name": "br0"}),
        ("define-bridge", None, {"name": "br9", "port": ["eth1"]}),
        ("define-vlan", None, {"parent": "eth2", "tag": 9}),
        ("define-bond", None, {"name": "bond9", "port": ["eth0"]}),
        ("down", "eth0", {}),
        ("undefine", "eth0", {}),
    ],
)
def test_the_way_to_this_host_is_not_touched_without_an_override(run, host, monkeypatch, verb, reference, document):
    run("define-ethernet", name="eth0", commit=True, override=True)
    run("up", "eth0", commit=True, override=True)
    for operation in CHANGES:
        monkeypatch.setattr(type(operation), "host_network", host)
    with pytest.raises(RefusedError, match="carries the host's default route") as caught:
        run(verb, reference, **document)
    assert "override" in caught.value.next_step
    assert names(run)["eth0"] is True
    assert run(verb, reference, **document, override=True, dry_run=True).plan.steps


def test_the_callers_own_interface_is_refused(run, host, monkeypatch):
    monkeypatch.setattr(type(by_name()["interface.define-ethernet"]), "host_network", host)
    token = own_connectivity.caller_address.set("2001:db8::5")
    try:
        with pytest.raises(RefusedError, match="carries your own connection"):
            run("define-ethernet", name="eth3")
    finally:
        own_connectivity.caller_address.reset(token)


@pytest.mark.parametrize(
    ("uri", "remote"),
    [("qemu:///system", False), ("qemu+unix:///system?socket=/x", False), ("test:///default", False),
     ("qemu+ssh://host/system", True), ("qemu+tls://[::1]/system", True), ("qemu+tcp:///system", True)],
)  # fmt: skip
def test_remote_uris(uri, remote):
    assert is_remote(uri) is remote


def test_a_host_elsewhere_is_refused_since_its_change_could_not_be_rolled_back(run, monkeypatch):
    run("list")  # connected already, so that only the URI's words count
    session = run.executor.session
    monkeypatch.setattr(session, "another", lambda: session)
    monkeypatch.setattr(session, "uri", "qemu+ssh://elsewhere/system")
    with pytest.raises(RefusedError, match="run virtgauge on that host"):
        run("up", "lan0")


def test_no_node_devices_of_capability_net_is_an_empty_list(run):
    assert run("device-list").details == {"rows": [], "devices": 0}
    with pytest.raises(NotFoundError, match="no network device"):
        run("device-show", "eth0")


def test_a_read_only_connection_cannot_change_anything(run, tmp_path):
    session = Session(run.executor.session.uri, read_only=True)
    try:
        for attempt in (
            lambda c: c.interfaceDefineXML("<interface type='ethernet' name='e9'/>", 0),
            lambda c: c.changeBegin(0),
            lambda c: c.interfaceLookupByName("lan0").destroy(0),
            lambda c: c.interfaceLookupByName("lan0").undefine(),
        ):
            with pytest.raises(libvirt.libvirtError) as caught:
                attempt(session.connection)
            assert caught.value.get_error_code() == libvirt.VIR_ERR_OPERATION_DENIED
    finally:
        session.close()
