"""Networks, pools and volumes on libvirt's test driver; their XML with hostile text. The real ones: tests/live."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from exporter.control.errors import InvalidError, NotFoundError, RefusedError, UnconfirmedError
from exporter.control.executor import Actor, Request
from exporter.control.networks import NetworkFields, StopNetwork, network_xml
from exporter.control.pools import CreateVolumeParameters, pool_xml, volume_xml
from exporter.control.save_records import disk_generations
from tests.live.operating import Operator

NODE = """<node><domain type='test'><name>web1</name><uuid>6695eb01-f6a4-8304-79aa-97f2502e193f</uuid>
<memory>8192</memory><os><type>hvm</type></os><devices>
<interface type='network'><source network='lab'/></interface></devices></domain></node>"""
HOLDER = """<domain type='test'><name>holder</name><memory>8192</memory><os><type>hvm</type></os><devices>
<disk type='volume' device='disk'><driver name='qemu' type='raw'/><source pool='p' volume='a.raw'/>
<target dev='vda'/></disk></devices></domain>"""
NETFS = """<pool type='netfs'><name>far</name><source><host name='192.0.2.9'/><dir path='/export'/></source>
<target><path>/mnt/far</path></target></pool>"""
NETWORK = {"name": "lab", "address": "192.0.2.1/24", "dhcp_from": "192.0.2.100", "dhcp_to": "192.0.2.199"}
HOSTILE = st.text(st.characters(exclude_categories=("C", "Zl", "Zp", "Zs"), exclude_characters="/."), min_size=1,
                  max_size=40)  # fmt: skip


@pytest.fixture
def control(tmp_path):
    (tmp_path / "node.xml").write_text(NODE)
    (tmp_path / "images").mkdir()
    operator = Operator(f"test://{tmp_path}/node.xml", tmp_path / "control", (tmp_path / "images",))
    yield operator
    operator.close()


@given(name=HOSTILE)
def test_text_stays_text(name):
    root = ElementTree.fromstring(network_xml(NetworkFields(**{**NETWORK, "name": name})))
    assert root.findtext("name") == name
    assert [element.tag for element in root] == ["name", "forward", "bridge", "ip"]
    root = ElementTree.fromstring(pool_xml(name, Path("/") / name))
    assert (root.findtext("name"), root.findtext("target/path")) == (name, f"/{name}")
    assert [element.tag for element in root] == ["name", "target"]


@given(name=st.text(max_size=60))
def test_a_volume_stays_in_its_pool(name):
    try:
        fields = CreateVolumeParameters(pool="p", name=name, capacity_bytes=512)
    except ValidationError:
        return
    assert "/" not in name
    assert not name.startswith(".")
    assert ElementTree.fromstring(volume_xml(fields)).findtext("name") == name


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"address": "here"}, "no address with its prefix"),
        ({"address": None}, "DHCP needs an address"),
        ({"dhcp_to": None}, "give both"),
        ({"dhcp_to": "192.0.3.1"}, "does not lie in 192.0.2.0/24"),
        ({"dhcp_to": "192.0.2.5"}, "ends before it begins"),
        ({"bridge": "no way"}, "bridge"),
        ({"name": "a/b"}, "name"),
        ({"boot_file": "a.0"}, "both tftp_folder and boot_file"),
        ({"tftp_folder": "/images"}, "both tftp_folder and boot_file"),
        ({"tftp_folder": "/images", "boot_file": "../a"}, "boot_file"),
        ({"tftp_folder": "/images", "boot_file": "/a"}, "boot_file"),
        ({"tftp_folder": "/i", "boot_file": "a", "dhcp_from": None, "dhcp_to": None}, "told by DHCP"),
    ],
)
def test_networks_that_are_none(fields, cause):
    with pytest.raises(ValidationError, match=cause):
        NetworkFields(**{**NETWORK, **fields})


def test_a_network_from_definition_to_end(control):
    assert "+  <name>lab</name>" in control.dry("network.define", **NETWORK).plan.diff
    made = control("network.define", **NETWORK)
    assert made.after["addresses"] == ["192.0.2.1/24"]
    assert (made.after["active"], made.after["persistent"]) == (False, True)
    with pytest.raises(RefusedError, match="already"):
        control("network.define", **NETWORK)
    with pytest.raises(RefusedError, match="not active"):
        control("network.leases", "lab")
    assert control("network.start", "lab").after["active"]
    assert not control("network.start", made.after["uuid"]).changed
    assert control("network.autostart", "lab").after["autostart"]
    assert not control("network.autostart", "lab").changed
    with pytest.raises(RefusedError, match="stop it first"):
        control("network.undefine", "lab")
    assert control.dry("network.stop", "lab").plan.lost == ["what it is to the running guests web1"]
    with pytest.raises(UnconfirmedError):
        control.run("network.stop", "lab", {}, Request(Actor("t", "test")))
    assert not control("network.stop", "lab").after["active"]
    assert not control("network.stop", "lab").changed
    assert control("network.undefine", "lab").after == {"state": "gone"}
    with pytest.raises(NotFoundError):
        control("network.show", "lab")


def test_guests_of_other_hosts_are_warned_of(control):
    control.executor.session.connection.storagePoolDefineXML(NETFS).create()
    control("volume.create", pool="far", name="a.raw", format="raw", capacity_bytes=1 << 20)
    warned = "pool far (netfs) may be used by other hosts too, whose guests are not seen from here: look there"
    assert control.dry("volume.delete", "a.raw", pool="far").plan.warnings == [warned]
    assert control.dry("volume.resize", "a.raw", pool="far", capacity_bytes=1 << 20).plan.warnings == []
    assert control.dry("volume.resize", "a.raw", pool="far", capacity_bytes=2 << 20).plan.warnings == [warned]
    assert control("volume.delete", "a.raw", pool="far").warnings == [warned]


def test_a_pool_and_its_volumes(control, tmp_path):
    with pytest.raises(InvalidError, match="outside the image folders"):
        control("pool.define", name="p", folder="/etc")
    with pytest.raises(InvalidError, match="No such file"):
        control("pool.define", name="p", folder=f"{tmp_path}/images/none")
    assert control("pool.define", name="p", folder=f"{tmp_path}/images").after["folder"] == f"{tmp_path}/images"
    with pytest.raises(RefusedError, match="not active"):
        control("volume.list", pool="p")
    assert control("pool.start", "p").after["active"]
    made = control("volume.create", pool="p", name="a.raw", format="raw", capacity_bytes=1 << 20)
    assert made.after["capacity_bytes"] == 1 << 20
    with pytest.raises(RefusedError, match="already"):
        control("volume.create", pool="p", name="a.raw", capacity_bytes=1 << 20)
    with pytest.raises(RefusedError, match="--allocate"):
        control("volume.create", pool="p", name="b", format="raw", capacity_bytes=1 << 59, allocate=True)
    with pytest.raises(NotFoundError, match=r"no volume 'b'; the nearest: a\.raw"):
        control("volume.delete", "b", pool="p")
    (row,) = control("volume.list", pool="p").details["rows"]
    assert row["name"] == "a.raw"
    with pytest.raises(RefusedError, match="--shrink"):
        control("volume.resize", "a.raw", pool="p", capacity_bytes=4096)
    assert not control("volume.resize", "a.raw", pool="p", capacity_bytes=1 << 20).changed
    # A disk may name its pool and volume, and no file.
    holder = control.executor.session.connection.defineXML(HOLDER)
    with pytest.raises(RefusedError, match=r"volume a\.raw is a disk of domain holder"):
        control("volume.delete", "a.raw", pool="p")
    (tmp_path / "images/a.raw").write_bytes(b"of the guest")
    (then,) = disk_generations(control.executor.session.connection, HOLDER)  # by which a restore knows that it moved on
    assert (then.path, then.size_bytes) == (f"{tmp_path}/images/a.raw", 12)
    holder.create()
    assert control("domain.block-jobs", "holder").details["rows"][0]["chain"] == [then.path]
    with pytest.raises(RefusedError, match="in use by the running domain holder"):
        control("volume.resize", "a.raw", pool="p", capacity_bytes=2 << 20)
    holder.destroy()
    holder.undefine()
    assert control.dry("volume.delete", "a.raw", pool="p").plan.warnings == []
    assert control("volume.delete", "a.raw", pool="p").after == {"state": "gone"}
    control("pool.stop", "p")
    control("pool.undefine", "p")
    assert control("pool.list").details["rows"] == []


def test_a_guest_that_ends_in_between_stops_no_network_from_being_looked_at(control):
    """Between libvirt's list of guests and the look at each of them."""
    connection = control.executor.session.connection
    web1 = NODE[NODE.index("<domain"):NODE.index("</node>")]
    connection.createXML(web1.replace("web1", "brief").replace("193f", "1940"), 0)
    listed = connection.listAllDomains()
    connection.lookupByName("brief").destroy()
    call = SimpleNamespace(
        session=SimpleNamespace(connection=SimpleNamespace(listAllDomains=lambda _flags: listed)),
        subject=SimpleNamespace(name="lab"),
    )
    assert len(listed) == 2
    assert StopNetwork().users(call) == ["web1"]
