"""XML from outside: nothing that is not listed reaches libvirt, whatever the text."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.control.allow_list import MOST_CHARACTERS, checked_domain_xml
from exporter.control.errors import InvalidError
from exporter.control.folders import Folders


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    images = tmp_path_factory.mktemp("images")
    (images / "a.raw").write_bytes(b"\0" * 512)
    (images / "plain.qcow2").write_bytes(b"QFI\xfb\0\0\0\3" + bytes(96))
    (images / "backed.qcow2").write_bytes(b"QFI\xfb\0\0\0\3" + (104).to_bytes(8, "big") + bytes(88))
    (images / "external.qcow2").write_bytes(b"QFI\xfb\0\0\0\3" + bytes(64) + (4).to_bytes(8, "big") + bytes(24))
    (images / "link").symlink_to("/etc/shadow")
    (images / "pipe").mkdir()
    return Folders(state=images / "state", images=(images,))


def domain(devices="", rest=""):
    return (
        "<domain type='qemu'>\n<name>g</name>\n<memory unit='MiB'>16</memory>\n"
        f"<os><type arch='x86_64'>hvm</type></os>\n{rest}\n<devices>\n{devices}\n</devices></domain>"
    )


def disk(path, form="raw", kind="file"):
    return (
        f"<disk type='{kind}' device='disk'><driver name='qemu' type='{form}'/><source file='{path}'/>"
        "<target dev='vda' bus='virtio'/><address type='pci' slot='0x05'/></disk>"
    )


def test_a_harmless_definition_passes(folders):
    text = domain(
        disk(folders.images[0] / "a.raw")
        + "<interface type='network'><source network='default'/><model type='virtio'/></interface>"
        "<serial type='pty'/>"
        "<graphics type='vnc' autoport='yes'><listen type='address' address='127.0.0.1'/></graphics>"
        "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>"
    )
    assert checked_domain_xml(text, folders).findtext("name") == "g"


@pytest.mark.parametrize(
    ("devices", "rest", "named"),
    [
        ("<emulator>/tmp/script</emulator>", "", "line 7: <emulator>"),
        ("<hostdev mode='subsystem' type='pci'/>", "", "line 7: <hostdev>"),
        ("<filesystem type='mount'><source dir='/'/></filesystem>", "", "line 7: <filesystem>"),
        ("<serial type='file'><source path='/etc/cron.d/x'/></serial>", "", "<serial type=...> 'file'"),
        ("<serial type='pty'><log file='/etc/x'/></serial>", "", "<log>"),
        ("<serial type='pty'><source path='/dev/tty1'/></serial>", "", "<source>"),
        ("<channel type='unix'><source mode='bind' path='/run/x'/></channel>", "", "<source>"),
        ("<interface type='vhostuser'/>", "", "<interface type=...> 'vhostuser'"),
        ("<interface type='user'><rom file='/etc/shadow'/></interface>", "", "<rom file=...>"),
        ("<interface type='bridge'><script path='/tmp/x'/></interface>", "", "<script>"),
        ("<graphics type='vnc' autoport='yes' listen='0.0.0.0'/>", "", "<graphics listen=...>"),
        ("<graphics type='vnc' socket='/tmp/x'/>", "", "<graphics socket=...>"),
        ("<rng model='virtio'><backend model='random'>/dev/sda</backend></rng>", "", "/dev/sda"),
        ("<tpm model='tpm-tis'/>", "", "<tpm>"),
        ("<shmem name='x'/>", "", "<shmem>"),
        ("", "<seclabel type='none'/>", "line 5: <seclabel>"),
        ("", "<bootloader>/tmp/x</bootloader>", "<bootloader>"),
        ("", "<memoryBacking><locked/></memoryBacking>", "<memoryBacking>"),
        ("", "<q:commandline xmlns:q='http://libvirt.org/schemas/domain/qemu/1.0'/>", "<q:commandline>"),
        ("", "<commandline xmlns='http://libvirt.org/schemas/domain/qemu/1.0'/>", "<commandline>"),
        ("", "<metadata><x/></metadata>", "<metadata>"),
        ("", "<on_crash>coredump-destroy</on_crash>", "<on_crash>"),
        ("", "<os><loader>/etc/shadow</loader></os>", "<loader>"),
        ("", "<os><nvram>/etc/shadow</nvram></os>", "<nvram>"),
        ("", "<os><kernel>/etc/shadow</kernel></os>", "outside the image folders"),
        ("", "<features><x/></features>", "<x>"),
        ("", "text", "<domain> holds text"),
    ],
)
def test_what_could_harm_is_refused_by_name_and_line(folders, devices, rest, named):
    with pytest.raises(InvalidError) as caught:
        checked_domain_xml(domain(devices, rest), folders)
    assert named in str(caught.value)


@pytest.mark.parametrize(
    ("path", "form", "cause"),
    [
        ("/etc/shadow", "raw", "outside"),
        ("{}/../../../../../etc/shadow", "raw", "outside"),
        ("{}/link", "raw", "outside"),
        ("{}/missing.raw", "raw", "No such file"),
        ("{}/pipe", "raw", "neither a file"),
        ("a.raw", "raw", "not an absolute path"),
        ("/dev/null", "raw", "outside"),
        ("{}/a.raw", "qcow2", "no qcow2 image"),
        ("{}/a.raw", "vmdk", "must be raw or qcow2"),
        ("{}/backed.qcow2", "qcow2", "backing file"),
        ("{}/external.qcow2", "qcow2", "another file"),
    ],
)
def test_paths_and_images(folders, path, form, cause):
    with pytest.raises(InvalidError, match=cause):
        checked_domain_xml(domain(disk(path.format(folders.images[0]), form)), folders)
    checked_domain_xml(domain(disk(folders.images[0] / "plain.qcow2", "qcow2")), folders)


def test_a_disk_without_a_format_is_refused(folders):
    text = domain(f"<disk type='file' device='disk'><source file='{folders.images[0]}/a.raw'/></disk>")
    with pytest.raises(InvalidError, match="never guessed"):
        checked_domain_xml(text, folders)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "malformed"),
        ("<domain", "line 1: the XML is malformed"),
        ("<domain/><domain/>", "malformed"),
        ("<network/>", "no domain"),
        ("<!DOCTYPE d SYSTEM 'file:///etc/passwd'><domain/>", "document type"),
        ("<!DOCTYPE d [<!ENTITY a 'aaa'><!ENTITY b '&a;&a;'>]><domain>&b;</domain>", "document type"),
        ("<domain>&nbsp;</domain>", "malformed"),
        ("<?php x?><domain/>", "processing instruction"),
        ("<domain>" + "<a>" * 30, "in each other"),
        ("<domain><name>\ud800</name></domain>", "none"),
        ("<domain><name>\0</name></domain>", "malformed"),
        ("x" * (10 << 20), "characters, more than"),
        ("<domain>" + " " * MOST_CHARACTERS + "</domain>", "characters, more than"),
    ],
)
def test_hostile_text_is_refused(folders, text, cause):
    with pytest.raises(InvalidError, match=cause):
        checked_domain_xml(text, folders)


def test_many_problems_are_all_told_ten_at_most(folders):
    with pytest.raises(InvalidError) as caught:
        checked_domain_xml(domain("<emulator/>\n" * 1000), folders)
    assert str(caught.value).count("<emulator>") == 10


def test_an_encoding_cannot_hide_an_element(folders):
    text = "<?xml version='1.0' encoding='utf-7'?>" + domain("+ADw-emulator+AD4-")
    with pytest.raises(InvalidError, match="holds text"):
        checked_domain_xml(text, folders)


names = st.sampled_from(
    ["name", "os", "type", "devices", "disk", "source", "serial", "emulator", "log", "q:arg", "x", "domain", "address"]
)
words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=12)
trees = st.recursive(
    st.builds(lambda tag, attributes, text: (tag, attributes, text, []), names, st.dictionaries(names, words), words),
    lambda children: st.tuples(names, st.dictionaries(names, words), words, st.lists(children, max_size=4)),
    max_leaves=12,
)


def built(tree):
    tag, attributes, text, children = tree
    element = ElementTree.Element(tag, attributes)
    element.text = text
    element.extend(map(built, children))
    return element


@given(trees)
def test_no_tree_crashes_it_and_none_with_a_stranger_passes(folders, tree):
    root = ElementTree.Element("domain", type="qemu")
    root.append(built(tree))
    text = ElementTree.tostring(root, encoding="unicode")
    try:
        passed = checked_domain_xml(text, folders)
    except InvalidError:
        return
    tags = {element.tag for element in passed.iter()}
    assert tags <= {"domain", "name", "os", "type", "devices", "serial", "disk", "source", "address"}
    assert not any("/" in value for element in passed.iter() for value in element.attrib.values())


@given(st.text(max_size=200))
def test_any_text_is_answered(folders, text):
    with pytest.raises(InvalidError):
        checked_domain_xml(text, folders)
