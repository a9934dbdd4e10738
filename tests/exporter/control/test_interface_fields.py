"""The fields of a host interface: what is refused, with its cause, and the XML of what is not."""

from __future__ import annotations

import contextlib
import json
from xml.etree import ElementTree

import libvirt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.connection import start_event_loop
from exporter.control.errors import InvalidError
from exporter.control.interface_fields import Bond, Bridge, Ethernet, Vlan
from exporter.control.interface_xml import interface_kind, interface_parts, interface_xml
from exporter.control.operations import by_name
from exporter.control.request_parameters import parse_parameters

OPERATIONS = by_name()


def problem(verb, **document):
    with pytest.raises(InvalidError) as caught:
        parse_parameters(OPERATIONS[f"interface.{verb}"], document)
    assert caught.value.exit_status == 2
    assert caught.value.http_status == 422
    return str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["", "a" * 16, "eth 0", "eth/0", "../x", ".", "-x", "eth0\n", "eth0;reboot", "<x/>", "'", "é", "eth0:1", 5, None,
     "x" * 10_000_000],
)  # fmt: skip
def test_names_that_no_interface_has(name):
    assert "name" in problem("define-ethernet", name=name)


@pytest.mark.parametrize(
    "mac",
    ["52:54:00:1a:2b", "52:54:00:1a:2b:3c:4d", "zz:54:00:1a:2b:3c", "5254001a2b3c", "52:54:00:1a:2b:3c ; x", 7,
     "01:00:5e:00:00:01", "00:00:00:00:00:00"],
)  # fmt: skip
def test_malformed_macs(mac):
    assert "mac" in problem("define-ethernet", name="eth0", mac=mac)


@pytest.mark.parametrize(
    "address",
    ["192.0.2.5", "192.0.2.5/33", "192.0.2.256/24", "192.0.2.5/-1", "192.0.2.0/24", "192.0.2.255/24", "0.0.0.0/0",
     "127.0.0.1/8", "224.0.0.1/4", "2001:db8::5/129", "fe80::1%eth0/64", "::1/128", "x", "", 5],
)  # fmt: skip
def test_malformed_addresses(address):
    assert "address" in problem("define-ethernet", name="eth0", address=[address])


@pytest.mark.parametrize("tag", [0, -1, 4095, 4096, "x", 1.5, None, 10**30])
def test_vlan_tags_out_of_range(tag):
    assert "tag" in problem("define-vlan", parent="eth0", tag=tag)


@pytest.mark.parametrize(
    ("verb", "document", "part"),
    [
        ("define-ethernet", {"name": "eth0", "mtu_bytes": 67}, "mtu_bytes"),
        ("define-ethernet", {"name": "eth0", "mtu_bytes": 65536}, "mtu_bytes"),
        ("define-ethernet", {"name": "eth0", "start": "never"}, "start"),
        ("define-ethernet", {"name": "eth0", "dhcp": "yes"}, "dhcp"),
        ("define-ethernet", {"name": "eth0", "nonsense": 1}, "nonsense is unknown"),
        ("define-ethernet", {}, "name is missing"),
        ("define-ethernet", {"name": "e", "dhcp": True, "address": ["192.0.2.5/24"]}, "choose one"),
        ("define-ethernet", {"name": "e", "gateway": ["192.0.2.1"]}, "needs a static IPv4"),
        ("define-ethernet", {"name": "e", "address": ["192.0.2.5/24"], "gateway": ["198.51.100.1"]}, "in none of"),
        ("define-ethernet", {"name": "e", "address": ["192.0.2.5/24"], "gateway": ["192.0.2.5"]}, "own address"),
        ("define-ethernet", {"name": "e", "address": ["192.0.2.5/24"] * 2}, "given twice"),
        ("define-ethernet", {"name": "e", "confirm_within_s": 0}, "confirm_within_s"),
        ("define-ethernet", {"name": "e", "confirm_within_s": "soon"}, "confirm_within_s"),
        ("define-bridge", {"name": "br0", "port": ["br0"]}, "port of itself"),
        ("define-bridge", {"name": "br0", "port": ["eth0", "eth0"]}, "given twice"),
        ("define-bridge", {"name": "br0", "port": "eth0"}, "port"),
        ("define-bridge", {"name": "br0", "delay_s": -1}, "delay_s"),
        ("define-vlan", {"parent": "enp0s31f6verylong"[:15], "tag": 4000}, "1 to 15"),
        ("define-bond", {"name": "bond0", "port": []}, "port"),
        ("define-bond", {"name": "bond0", "port": ["eth0"], "mode": "fast"}, "mode"),
        ("define-bond", {"name": "b", "port": ["e"], "updelay_ms": 5}, "miimon_ms"),
        ("define-bond", {"name": "b", "port": ["e"], "arp_interval_ms": 5}, "belong together"),
        ("define-bond", {"name": "b", "port": ["e"], "arp_interval_ms": 5, "arp_target": "::2"}, "IPv4"),
        ("define-bond", {"name": "b", "port": ["e"], "arp_interval_ms": 5, "arp_target": "192.0.2.1",
                         "mode": "802.3ad"}, "ARP"),
    ],
)  # fmt: skip
def test_what_is_refused_names_the_field_and_the_cause(verb, document, part):
    message = problem(verb, **document)
    assert part in message
    assert "\n" not in message


def test_every_problem_is_told_at_once():
    assert len(problem("define-ethernet", name="a b", mac="x", mtu_bytes=1).split("; ")) >= 3


NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,9}", fullmatch=True)
IPV4 = st.builds(lambda third, fourth: f"10.{third}.7.{fourth}/24", st.integers(0, 255), st.integers(1, 254))
IPV6 = st.builds(lambda last: f"2001:db8::{last:x}/64", st.integers(1, 0xFFFF))
COMMON = {
    "start": st.sampled_from(["onboot", "none", "hotplug"]),
    "mtu_bytes": st.none() | st.integers(68, 65535),
    "dhcp6": st.booleans(),
    "autoconf": st.booleans(),
    "address": st.lists(IPV4 | IPV6, max_size=3, unique=True),
}
ETHERNET = st.fixed_dictionaries({"name": NAMES, **COMMON})
BRIDGE = st.fixed_dictionaries(
    {"name": NAMES.map(lambda n: "b" + n), "port": st.lists(NAMES.map(lambda n: "e" + n), max_size=3, unique=True),
     "stp": st.booleans(), "delay_s": st.floats(0, 255), **COMMON}
)  # fmt: skip
VLAN = st.fixed_dictionaries({"parent": NAMES, "tag": st.integers(1, 4094), **COMMON})
BOND = st.fixed_dictionaries(
    {"name": NAMES.map(lambda n: "b" + n), "port": st.lists(NAMES.map(lambda n: "e" + n), min_size=1, unique=True),
     "mode": st.sampled_from(["balance-rr", "active-backup", "802.3ad"]), "miimon_ms": st.integers(1, 1000),
     "updelay_ms": st.none() | st.integers(1, 1000), **COMMON}
)  # fmt: skip


@pytest.fixture(scope="module")
def libvirt_of_its_own(tmp_path_factory):
    """libvirt's own parser, as the judge of our XML."""
    start_event_loop()
    node = tmp_path_factory.mktemp("node") / "node.xml"
    node.write_text("<node/>")
    connection = libvirt.open(f"test://{node}")
    yield connection
    connection.close()


@given(
    made=st.one_of(
        st.tuples(st.just(Ethernet), ETHERNET),
        st.tuples(st.just(Bridge), BRIDGE),
        st.tuples(st.just(Vlan), VLAN),
        st.tuples(st.just(Bond), BOND),
    )
)
def test_libvirt_reads_what_is_built_and_nothing_is_lost(libvirt_of_its_own, made):
    model, document = made
    fields = model.model_validate_json(json.dumps(document))
    xml = interface_xml(fields)
    interface = libvirt_of_its_own.interfaceDefineXML(xml, libvirt.VIR_INTERFACE_DEFINE_VALIDATE)
    try:
        answer = interface.XMLDesc(0)
    finally:
        interface.undefine()
    assert interface.name() == fields.interface_name
    assert interface_kind(answer) == interface_kind(xml)
    assert interface_parts(answer) == interface_parts(xml) == fields.parts
    ours, theirs = ElementTree.fromstring(xml), ElementTree.fromstring(answer)
    for path in ("start", "mtu", "protocol", "protocol/ip", "protocol/route", "vlan", "bond", "bond/miimon"):
        assert sorted(str(e.attrib) for e in theirs.iterfind(path)) == sorted(
            str(e.attrib) for e in ours.iterfind(path)
        )


@given(text=st.text(max_size=40) | st.sampled_from(["<x/>", "'\"&]]>", "a\x00b", "&amp;", "<!DOCTYPE a>"]))
def test_hostile_text_is_refused_or_stays_one_name(text):
    try:
        fields = Ethernet.model_validate_json(json.dumps({"name": text}))
    except ValueError:
        return
    root = ElementTree.fromstring(interface_xml(fields))
    assert (root.get("name"), [child.tag for child in root]) == (text, ["start"])


@given(document=st.dictionaries(st.sampled_from(["name", "mac", "address", "gateway", "port", "tag", "parent", "mode"]),
                                st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=20),
                                             lambda inner: st.lists(inner, max_size=3), max_leaves=6)))  # fmt: skip
@pytest.mark.parametrize("verb", ["define-ethernet", "define-bridge", "define-vlan", "define-bond"])
def test_any_json_is_read_or_refused_in_one_line(verb, document):
    with contextlib.suppress(InvalidError):
        parse_parameters(OPERATIONS[f"interface.{verb}"], document)
