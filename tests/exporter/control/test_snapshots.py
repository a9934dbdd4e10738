"""Snapshots by libvirt's test driver, and their XML with hostile text. Real guests: tests/live."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.control.errors import NotFoundError, RefusedError
from exporter.control.snapshots import checkpoint_xml, snapshot_xml
from tests.live.operating import Operator

NODE = """<node><domain type='test'><name>web1</name><uuid>6695eb01-f6a4-8304-79aa-97f2502e193f</uuid>
<memory>8192</memory><os><type>hvm</type></os><devices>
<disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk></devices></domain></node>"""
PRINTABLE = st.text(st.characters(exclude_categories=("C", "Zl", "Zp", "Zs")), min_size=1, max_size=40)


@pytest.fixture
def control(tmp_path):
    (tmp_path / "node.xml").write_text(NODE)
    operator = Operator(f"test://{tmp_path}/node.xml", tmp_path / "control")
    yield operator
    operator.close()


@given(name=PRINTABLE, description=PRINTABLE, target=PRINTABLE, path=PRINTABLE)
def test_text_stays_text(name, description, target, path):
    root = ElementTree.fromstring(snapshot_xml(name, description, {target: Path("/") / path}, [target]))
    assert (root.findtext("name"), root.findtext("description")) == (name, description)
    assert [element.tag for element in root] == ["name", "description", "disks"]
    assert [disk.attrib for disk in root.iterfind("disks/disk")] == [
        {"name": target, "snapshot": "external"}, {"name": target, "snapshot": "no"}
    ]  # fmt: skip
    assert root.find("disks/disk/source").attrib == {"file": str(Path("/") / path)}
    checkpoint = ElementTree.fromstring(checkpoint_xml(name, description))
    assert [(element.tag, element.text) for element in checkpoint] == [("name", name), ("description", description)]


def test_taken_reverted_deleted(control):
    made = control("snapshot.create", "web1", name="one", kind="internal", description="a <b> & 'c'")
    assert made.after["snapshots"] == ["one"]
    with pytest.raises(RefusedError, match="already"):
        control("snapshot.create", "web1", name="one", kind="internal")
    (row,) = control("snapshot.list", "web1").details["rows"]
    assert (row["description"], row["current"], row["kind"]) == ("a <b> & 'c'", True, "internal")
    assert control("snapshot.revert", "web1", name="one", then="paused").after["state"] == "paused"
    with pytest.raises(NotFoundError, match="the nearest: one"):
        control("snapshot.revert", "web1", name="ones")
    assert control("snapshot.delete", "web1", name="one").after["snapshots"] == []
    assert not control("snapshot.delete", "web1", name="one").changed


@pytest.mark.parametrize("operation", ["domain.block-commit", "domain.block-pull"])
def test_an_empty_drive_has_no_chain(control, operation):
    with pytest.raises(RefusedError, match="disk sda of domain web1 has nothing in it"):
        control.dry(operation, "web1", device="sda")


@pytest.mark.parametrize("name", ["", "a/b", ".hidden", "-x", "a\nb", " a", "x" * 65])
def test_names_that_are_none(control, name):
    with pytest.raises(ValueError, match="name"):
        control("snapshot.create", "web1", name=name)
