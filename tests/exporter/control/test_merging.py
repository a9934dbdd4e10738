"""Merges of overlays in running guests by libvirt's test driver: what is warned of, and what is told of a guest that
ended in the middle. Real guests: tests/live/test_merges_that_crash.py."""

from __future__ import annotations

import libvirt
import pytest

from exporter.control import merging
from exporter.control.errors import ControlError, RefusedError, UnreachableError
from tests.live.operating import Operator

TOP, BASE = "/images/top", "/images/base"
NODE = """<node><domain type='test'><name>web1</name><uuid>6695eb01-f6a4-8304-79aa-97f2502e193f</uuid>
<memory>8192</memory><os><type>hvm</type></os><devices><disk type='file' device='disk'>
<driver name='qemu' type='qcow2'/><source file='/images/top'/>{between}<backingStore type='file'>
<format type='{form}'/><source file='/images/base'/><backingStore/></backingStore>{end}
<target dev='{target}' bus='{bus}'/></disk></devices></domain></node>"""
BETWEEN = "<backingStore type='file'><format type='qcow2'/><source file='/images/between'/>"
SNAPSHOT = """<domainsnapshot><name>one</name><state>running</state><creationTime>1700000000</creationTime>
<memory snapshot='no'/><disks><disk name='{target}' snapshot='external' type='file'><driver type='qcow2'/>
<source file='{file}'/></disk></disks>{domain}</domainsnapshot>"""
QEMU_7_2_22, QEMU_8_0 = 7_002_022, 8_000_000
TARGETS = {"ide": "hda", "virtio": "vda"}


@pytest.fixture
def stacked(tmp_path, monkeypatch):
    """Makes a guest on an overlay, and the snapshot `one` that made that."""
    made = []

    def make(bus="ide", form="raw", version=QEMU_7_2_22, file=TOP):
        deep = file != TOP
        (tmp_path / "node.xml").write_text(NODE.format(
            form=form, bus=bus, target=TARGETS[bus],
            between=BETWEEN if deep else "", end="</backingStore>" if deep else "",
        ))  # fmt: skip
        operator = Operator(f"test://{tmp_path}/node.xml", tmp_path / "control")
        made.append(operator)
        domain = operator.executor.session.connection.lookupByName("web1")
        xml = SNAPSHOT.format(target=TARGETS[bus], file=file, domain=domain.XMLDesc(0))
        domain.snapshotCreateXML(xml, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)
        monkeypatch.setattr(merging, "qemu_version", lambda _session: version)
        return operator

    yield make
    for operator in made:
        operator.close()


WARNING = (
    "QEMU 7.2 may crash, and the guest with it, while /images/top is merged into the raw image /images/base and the"
    " guest writes to disk hda (ide): where it may not, pause it meanwhile ('domain suspend web1', and"
    " 'domain resume web1' after it), or shut it off and merge with"
    " 'qemu-img commit -b /images/base /images/top', and then define it with /images/base as that disk"
)


def test_a_merge_that_may_crash_qemu_is_warned_of(stacked):
    control = stacked()
    assert control.dry("domain.block-commit", "web1", device="hda").plan.warnings == [WARNING]
    assert control.dry("snapshot.delete", "web1", name="one").plan.warnings == [WARNING]
    assert control.dry("domain.block-pull", "web1", device="hda").plan.warnings == []
    assert control.dry("snapshot.delete", "web1", name="one", metadata_only=True).plan.warnings == []


@pytest.mark.parametrize(
    ("bus", "form", "version"),
    [("virtio", "raw", QEMU_7_2_22), ("ide", "qcow2", QEMU_7_2_22), ("ide", "raw", QEMU_8_0), ("ide", "raw", None)],
)
def test_one_that_is_not_known_to_crash_is_not_warned_of(stacked, bus, form, version):
    control = stacked(bus, form, version)
    assert control.dry("domain.block-commit", "web1", device=TARGETS[bus]).plan.warnings == []
    assert control.dry("snapshot.delete", "web1", name="one").plan.warnings == []


def test_one_below_the_image_that_is_written_to_is_not_warned_of(stacked):
    """There the guest goes on in its overlay."""
    control = stacked(file="/images/between")
    assert control.dry("snapshot.delete", "web1", name="one").plan.warnings == []
    assert control.dry("domain.block-commit", "web1", device="hda", base="/images/between").plan.warnings == []
    assert control.dry("domain.block-commit", "web1", device="hda").plan.warnings == [WARNING]


def test_a_guest_that_writes_nothing_is_not_warned_of(stacked):
    control = stacked()
    control("domain.suspend", "web1")
    assert control.dry("domain.block-commit", "web1", device="hda").plan.warnings == []
    assert control.dry("snapshot.delete", "web1", name="one").plan.warnings == []
    control("domain.destroy", "web1")
    assert control.dry("snapshot.delete", "web1", name="one").plan.warnings == []


def failed(domain=libvirt.VIR_FROM_QEMU):
    error = libvirt.libvirtError("operation failed: domain is not running")
    error.err = (libvirt.VIR_ERR_OPERATION_FAILED, domain, str(error), 2, None, None, None, -1, -1)
    return error


@pytest.mark.parametrize(
    ("reason", "kind", "told"),
    [
        (libvirt.VIR_DOMAIN_SHUTOFF_CRASHED, ControlError, r"\(crashed\).*see why.*'qemu-img commit -b /images/base /"),
        (libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED, RefusedError, r"\(destroyed\).*'domain start web1', and ask again$"),
    ],
)  # fmt: skip
def test_a_guest_that_ends_while_its_snapshot_is_deleted(stacked, monkeypatch, reason, kind, told):
    control = stacked()

    def ends(snapshot, _flags):
        snapshot.getDomain().destroy()
        monkeypatch.setattr(libvirt.virDomain, "state", lambda *_: [libvirt.VIR_DOMAIN_SHUTOFF, reason])
        raise failed()

    monkeypatch.setattr(libvirt.virDomainSnapshot, "delete", ends)
    with pytest.raises(ControlError, match=r"^delete of snapshot one ended with the guest, which is shutoff") as caught:
        control("snapshot.delete", "web1", name="one")
    assert type(caught.value) is kind
    assert "disk hda was in work, and its data is still in /images/top on /images/base" in str(caught.value)
    assert caught.value.libvirt_code == libvirt.VIR_ERR_OPERATION_FAILED
    caught.match(told)


@pytest.mark.parametrize(
    ("domain", "kind"), [(libvirt.VIR_FROM_QEMU, ControlError), (libvirt.VIR_FROM_RPC, UnreachableError)]
)
def test_another_failure_is_told_as_it_is(stacked, monkeypatch, domain, kind):
    """Where the guest goes on, and where libvirt is gone, who cannot be asked."""
    control = stacked()
    monkeypatch.setattr(merging, "_SETTLES_S", 0.1)

    def fails(snapshot, _flags):
        if domain == libvirt.VIR_FROM_RPC:
            snapshot.getDomain().destroy()
        raise failed(domain)

    monkeypatch.setattr(libvirt.virDomainSnapshot, "delete", fails)
    with pytest.raises(ControlError, match=r"^delete of domain web1") as caught:
        control("snapshot.delete", "web1", name="one")
    assert type(caught.value) is kind
