"""Definitions: from fields, from outside XML, compared, renamed, undefined. On libvirt's test driver."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import libvirt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from collectors.connection import start_event_loop
from exporter.control.connection import Session
from exporter.control.definition import DefineParameters
from exporter.control.errors import InvalidError, NotFoundError, RefusedError, UnconfirmedError
from exporter.control.executor import Actor, Executor, Request
from exporter.control.folders import Folders
from exporter.control.guest_xml import guest_xml
from exporter.control.operations import by_name
from exporter.control.request_parameters import parse_parameters

OPERATIONS = by_name()
NODE = """<node><domain type='test'><name>test</name><uuid>6695eb01-f6a4-8304-79aa-97f2502e193f</uuid>
<memory>8192</memory><os><type>hvm</type></os></domain></node>"""


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.raw", "b c & 'd' <e>.raw", "boot.iso", "vmlinuz", "initrd"):
        (folder / name).write_bytes(b"\0" * 512)
    return folder


@pytest.fixture
def folders(tmp_path, images):
    return Folders(state=tmp_path / "control", images=(images,))


@pytest.fixture
def control(tmp_path, folders):
    (tmp_path / "node.xml").write_text(NODE)
    executor = Executor(Session(f"test://{tmp_path}/node.xml"), folders)

    def run(operation_name, reference=None, /, *, confirmed=None, dry_run=False, **parameters):
        operation = OPERATIONS[operation_name]
        checked = operation.parameters.model_validate_json(json.dumps(parameters))
        return executor.run(
            operation, reference, checked, Request(Actor("t", "test"), confirmed=confirmed, dry_run=dry_run)
        )

    run.session = executor.session
    yield run
    executor.close()


def test_defined_from_fields_then_changed_renamed_and_removed(control, images):
    assert "+  <name>web</name>" in control("domain.define", name="web", memory_mib=64, dry_run=True).plan.diff
    made = control("domain.define", name="web", memory_mib=64, title="Say \"hi\" & <bye>", cdrom=f"{images}/boot.iso",
                   disks=[{"file": f"{images}/b c & 'd' <e>.raw"}], interfaces=[{"network": "default"}])  # fmt: skip
    assert (made.changed, made.before, made.after["state"]) == (True, {"state": "not defined"}, "shutoff")
    assert made.after["title"] == "Say \"hi\" & <bye>"
    xml = control("domain.xml", "web").details["xml"]
    assert "b c &amp; " in xml
    with pytest.raises(RefusedError, match="--replace"):
        control("domain.define", name="web", memory_mib=32)
    changed = control("domain.define", name="web", memory_mib=32, replace=True)
    assert changed.after["uuid"] == made.after["uuid"]
    assert control("domain.rename", "web", new_name="www").after["name"] == "www"
    assert not control("domain.rename", "www", new_name="www").changed
    with pytest.raises(RefusedError, match="already"):
        control("domain.rename", "www", new_name="test")
    with pytest.raises(UnconfirmedError):
        control("domain.undefine", "www")
    assert control("domain.undefine", "www", confirmed="www").after == {"state": "gone"}


def test_names_and_uuids_of_others_are_not_taken(control):
    with pytest.raises(RefusedError, match="is the name of"):
        control("domain.define", name="test", uuid="6695eb01-f6a4-8304-79aa-97f2502e1930", memory_mib=1, replace=True)
    with pytest.raises(RefusedError, match="is domain test"):
        control("domain.define", name="other", uuid="6695eb01-f6a4-8304-79aa-97f2502e193f", memory_mib=1, replace=True)
    with pytest.raises(RefusedError, match="already"):
        control("domain.create", name="test", memory_mib=1)


def test_a_transient_one_made_and_kept(control):
    made = control("domain.create", name="brief", memory_mib=8)
    assert (made.after["state"], made.after["persistent"]) == ("running", False)
    kept = control("domain.make-persistent", "brief")
    assert (kept.changed, kept.after["persistent"]) == (True, True)
    assert not control("domain.make-persistent", "brief").changed
    with pytest.raises(RefusedError, match="--while-running"):
        control("domain.undefine", "brief", confirmed="brief")
    gone = control("domain.undefine", "brief", while_running=True, confirmed="brief")
    assert gone.after["persistent"] is False
    with pytest.raises(RefusedError, match="transient"):
        control("domain.undefine", "brief", while_running=True, confirmed="brief")


def test_from_outside_xml(control):
    xml = "<domain type='test'><name>out</name><memory>1024</memory><os><type>hvm</type></os>{}</domain>"
    with pytest.raises(InvalidError, match=r"line 1: <seclabel>"):
        control("domain.define-xml", xml=xml.format("<seclabel/>"))
    with pytest.raises(NotFoundError):
        control("domain.show", "out")
    assert control("domain.define-xml", xml=xml.format("")).after["state"] == "shutoff"
    with pytest.raises(RefusedError, match="--replace"):
        control("domain.define-xml", xml=xml.format(""))
    assert control("domain.define-xml", xml=xml.format("<title>x</title>"), replace=True).after["title"] == "x"
    with pytest.raises(InvalidError, match="no name"):
        control("domain.define-xml", xml="<domain type='test'/>")


def test_the_bootloader_is_taken_where_the_driver_takes_it(control):
    control("domain.define", name="pv", memory_mib=8, bootloader="pygrub")
    assert "<bootloader>/usr/bin/pygrub</bootloader>" in control("domain.xml", "pv").details["xml"]


@pytest.mark.parametrize(
    ("wrong", "cause"),
    [
        ({"disks": [{"file": "/etc/shadow"}]}, "outside"),
        ({"cdrom": "boot.iso"}, "not an absolute path"),
        ({"kernel": "/nowhere/vmlinuz"}, "outside"),
    ],
)
def test_a_path_outside_changes_nothing(control, wrong, cause):
    with pytest.raises(InvalidError, match=cause):
        control("domain.define", name="x", memory_mib=8, **wrong)
    with pytest.raises(NotFoundError):
        control("domain.show", "x")


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "a/b"}, {"name": ""}, {"name": "a\nb"}, {"name": " a"}, {"name": ".a"}, {"name": "x" * 129},
        {"memory_mib": 0}, {"memory_mib": "1"}, {"memory_mib": 1.5}, {"vcpus": 0}, {"uuid": "x"},
        {"interfaces": [{"mac": "52:54:00:1a:2b"}]}, {"interfaces": [{"mac": "01:00:5e:00:00:01"}]},
        {"interfaces": [{"network": "a", "bridge": "b"}]}, {"interfaces": [{"bridge": "a b"}]},
        {"initrd": "/x"}, {"boot": ["hd", "hd"]}, {"boot": ["floppy"]}, {"machine": "pc,accel=x"}, {"unknown": 1},
        {"bootloader": "/tmp/script"}, {"title": "a\nb"},
    ],
)  # fmt: skip
def test_wrong_fields_are_refused_before_anything_is_asked(wrong):
    with pytest.raises(ValidationError):
        DefineParameters.model_validate_json(json.dumps({"name": "x", "memory_mib": 8, **wrong}))


printable = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=40)
SHAPES = ["'\"<&>", "]]>", "<!--", "</name><emulator>x</emulator>", "&amp;", "%s{}"]
hostile = st.one_of(printable, st.sampled_from(SHAPES))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=hostile, title=hostile, cmdline=hostile, network=hostile)
def test_what_is_written_is_what_is_read_back(folders, images, name, title, cmdline, network):
    fields = {"name": name, "title": title, "memory_mib": 8, "kernel": f"{images}/vmlinuz", "cmdline": cmdline,
              "interfaces": [{"network": network}]}  # fmt: skip
    try:
        parameters = DefineParameters.model_validate_json(json.dumps(fields))
    except ValidationError:
        return
    root = ElementTree.fromstring(guest_xml(parameters, folders, "qemu"))
    assert (root.findtext("name"), root.findtext("title")) == (name, title)
    assert root.findtext("os/cmdline") == cmdline
    assert root.find("devices/interface/source").get("network") == network
    assert root.find(".//emulator") is None


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """libvirt's own parser and schema."""
    start_event_loop()
    node = tmp_path_factory.mktemp("node") / "node.xml"
    node.write_text("<node/>")
    connection = libvirt.open(f"test://{node}")
    yield connection
    connection.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=hostile, title=hostile, description=hostile, cmdline=hostile, network=hostile,
       mac=st.integers(0, 2**40 - 1), vcpus=st.integers(1, 64),
       order=st.permutations(["hd", "cdrom", "network"]))  # fmt: skip
def test_libvirt_reads_what_is_built_and_nothing_is_lost(
    judge, folders, images, name, title, description, cmdline, network, mac, vcpus, order
):
    address = "52:" + ":".join(f"{mac >> 8 * place & 255:02x}" for place in range(5))
    fields = {"name": name, "title": title, "description": description, "memory_mib": 8, "vcpus": vcpus,
              "kernel": f"{images}/vmlinuz", "cmdline": cmdline, "boot": order, "cdrom": f"{images}/boot.iso",
              "disks": [{"file": f"{images}/b c & 'd' <e>.raw"}],
              "interfaces": [{"network": network, "mac": address}]}  # fmt: skip
    try:
        parameters = DefineParameters.model_validate_json(json.dumps(fields))
    except ValidationError:
        return
    domain = judge.defineXMLFlags(guest_xml(parameters, folders, "test"), libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
    try:
        theirs = ElementTree.fromstring(domain.XMLDesc(0))
    finally:
        domain.undefine()
    assert (theirs.findtext("name"), theirs.findtext("title"), theirs.findtext("description")) == (
        name, title, description
    )  # fmt: skip
    assert (theirs.findtext("os/cmdline"), theirs.findtext("vcpu")) == (cmdline, str(vcpus))
    assert [boot.get("dev") for boot in theirs.iterfind("os/boot")] == list(order)
    assert theirs.find("devices/interface/source").get("network") == network
    assert theirs.find("devices/interface/mac").get("address") == address
    assert theirs.find("devices/disk/source").get("file") == f"{images}/b c & 'd' <e>.raw"


@pytest.mark.parametrize("field", ["name", "title", "description", "cmdline", "machine", "uuid", "cdrom"])
def test_ten_megabytes_are_refused_in_one_short_line(control, field):
    document = {"name": "x", "memory_mib": 8, "kernel": "/x", field: "<&'\"" * (10 << 18)}
    with pytest.raises(InvalidError) as caught:
        parse_parameters(OPERATIONS["domain.define"], document)
    assert field in str(caught.value)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)
