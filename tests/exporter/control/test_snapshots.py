"""Snapshots by libvirt's test driver, and their XML with hostile text. Real guests: tests/live."""

from __future__ import annotations

import threading
from pathlib import Path
from xml.etree import ElementTree

import libvirt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.control import block_chain, block_jobs
from exporter.control.block_chain import JobEnd
from exporter.control.block_jobs import BlockCommit, BlockPull
from exporter.control.checkpoints import checkpoint_xml
from exporter.control.domain import find_domain
from exporter.control.errors import (
    BusyError,
    ControlError,
    NotFoundError,
    RefusedError,
    TimedOutError,
    UnsupportedError,
)
from exporter.control.executor import Actor, Request
from exporter.control.operation import Call, Deadline
from exporter.control.snapshot_failure import Attempt, not_taken
from exporter.control.snapshots import snapshot_xml
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


STACKED = """<node>
<pool type='dir'><name>images</name><target><path>/pool</path></target>
<volume><name>held</name><capacity>1</capacity><key>/pool/held</key><target><path>/pool/held</path></target></volume>
</pool>
<domain type='test'><name>web1</name><uuid>6695eb01-f6a4-8304-79aa-97f2502e193f</uuid>
<memory>8192</memory><os><type>hvm</type></os><devices>{disk}</devices></domain></node>"""
# How a disk's image is named: a file, a block device such as a logical volume, a pool's volume.
SOURCES = {
    "/images/top": ("file", "<source file='/images/top'/>"),
    "/dev/vg/top": ("block", "<source dev='/dev/vg/top'/>"),
    "/pool/held": ("volume", "<source pool='images' volume='held'/>"),
}


def disk(kind, source):
    return f"""<disk type='{kind}' device='disk'><driver name='qemu' type='qcow2'/>{source}
<backingStore type='file'><format type='qcow2'/><source file='/images/base'/><backingStore/></backingStore>
<target dev='vda' bus='virtio'/></disk>"""


def snapshot(kind, change, overlay=""):
    """Known to libvirt from elsewhere, as it writes it; the domain in it has the disk of that kind of source."""
    taken = f"<disk name='vda' snapshot='{change}' type='{kind}'>{overlay}</disk>"
    return f"""<domainsnapshot><name>one</name><state>running</state><creationTime>1700000000</creationTime>
<memory snapshot='{'internal' if change == 'internal' else 'no'}'/><disks>{taken}</disks>{{domain}}</domainsnapshot>"""


@pytest.fixture
def stacked(tmp_path):
    """Makes a guest with a disk on a base image, and a snapshot `one` of it."""
    made = []

    def make(kind, source, snapshot):
        (tmp_path / "node.xml").write_text(STACKED.format(disk=disk(kind, source)))
        operator = Operator(f"test://{tmp_path}/node.xml", tmp_path / "control")
        made.append(operator)
        domain = operator.executor.session.connection.lookupByName("web1")
        domain.snapshotCreateXML(
            snapshot.format(domain=domain.XMLDesc(0)), libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE
        )
        return operator

    yield make
    for operator in made:
        operator.close()


@pytest.mark.parametrize("image", SOURCES)
def test_a_snapshot_inside_an_image_of_any_kind_is_kept(stacked, image):
    kind, source = SOURCES[image]
    control = stacked(kind, source, snapshot("file", "internal"))
    for verb in ("block-pull", "block-commit"):
        with pytest.raises(RefusedError, match=f"snapshot one of domain web1 lies inside {image} and would be lost"):
            control.dry(f"domain.{verb}", "web1", device="vda")


# libvirt takes none into a pool's volume.
@pytest.mark.parametrize(("image", "then"), [("/images/top", ", and remove it"), ("/dev/vg/top", "")])
def test_an_external_snapshot_in_an_image_of_any_kind_is_merged(stacked, image, then):
    kind, source = SOURCES[image]
    control = stacked(kind, source, snapshot(kind, "external", f"<driver type='qcow2'/>{source}"))
    plan = control.dry("snapshot.delete", "web1", name="one").plan
    assert plan.steps == [f"write {image} into /images/base{then}", "delete it"]


def test_an_external_snapshot_has_no_place_beside_an_image_on_the_network(stacked):
    source = "<source protocol='nbd' name='top'><host name='images.example'/></source>"
    control = stacked("network", source, snapshot("network", "internal"))
    with pytest.raises(RefusedError, match=r"disk vda of domain web1 is top, no file that.*--diskspec vda"):
        control.dry("snapshot.create", "web1", name="two")


def disks(*files, kind="file", attribute="file"):
    return "".join(
        f"<disk type='{kind}' device='disk'><driver name='qemu' type='raw'/><source {attribute}='{file}'/>"
        f"<target dev='{target}' bus='virtio'/></disk>"
        for target, file in files
    )


@pytest.fixture
def with_disks(tmp_path):
    """Makes a guest of these disks, whose images may lie in the folder given."""
    made = []

    def make(text, images=tmp_path):
        (tmp_path / "node.xml").write_text(STACKED.format(disk=text))
        made.append(Operator(f"test://{tmp_path}/node.xml", tmp_path / "control", (images,)))
        return made[-1]

    yield make
    for operator in made:
        operator.close()


@pytest.mark.parametrize("running", [True, False])
def test_each_disk_has_an_overlay_of_its_own(with_disks, tmp_path, running):
    """Images that differ in their last suffix only, or behind the hundredth character."""
    images = [f"web{suffix}" for suffix in (".raw", ".data", ".log")] + [f"{'x' * 100}{number}.raw" for number in "12"]
    for image in images:
        (tmp_path / image).touch()
    targets = ["vda", "vdb", "vdc", "vdd", "vde"]
    control = with_disks(disks(*((target, tmp_path / image) for target, image in zip(targets, images, strict=True))))
    if not running:
        control("domain.destroy", "web1")
    _, *steps = control.dry("snapshot.create", "web1", name="before it").plan.steps
    stems = ["web", "web", "web", "x" * 100, "x" * 100]
    assert steps == [
        f"{target} goes on in {tmp_path / stem}.{target}.before_it.qcow2"
        for target, stem in zip(targets, stems, strict=True)
    ]


def test_two_disks_are_not_given_one_overlay(with_disks, tmp_path):
    """libvirt takes targets that differ in punctuation only, where the disks have addresses."""
    for image in ("web.raw", "web.data"):
        (tmp_path / image).touch()
    text = disks(("vd-a", tmp_path / "web.raw"), ("vd_a", tmp_path / "web.data"))
    for slot in (5, 6):
        address = f"<address type='pci' domain='0' bus='0' slot='{slot}' function='0'/>"
        text = text.replace("bus='virtio'/></disk>", f"bus='virtio'/>{address}</disk>", 1)
    control = with_disks(text)
    refused = rf"disks vd-a and vd_a of domain web1 would both go on in {tmp_path}/web.vd_a.one.qcow2.*--diskspec vd_a"
    for ask in (control, control.dry):
        with pytest.raises(RefusedError, match=refused):
            ask("snapshot.create", "web1", name="one")


def test_an_external_snapshot_has_no_place_beside_a_block_device(with_disks, tmp_path):
    """As a logical volume: a link to a device in /dev, which is in memory."""
    device = next((path for path in sorted(Path("/dev").iterdir()) if path.is_block_device()), None)
    if device is None:
        pytest.skip("this machine shows no block device")
    link = tmp_path / "volume"
    link.symlink_to(device)
    control = with_disks(disks(("vda", link), kind="block", attribute="dev"), Path("/dev"))
    refused = f"disk vda of domain web1 is the block device {link}: .* no place beside it.*--diskspec vda"
    with pytest.raises(RefusedError, match=refused):
        control.dry("snapshot.create", "web1", name="one")


@pytest.fixture
def failing(with_disks, tmp_path, monkeypatch):
    """Makes a guest of two disks at whose snapshot libvirt fails, after which its XML is what `seen` makes of it."""

    def make(seen):
        for image in ("a b.raw", "c.raw"):
            (tmp_path / image).touch()
        control = with_disks(disks(("vda", tmp_path / "a b.raw"), ("vdb", tmp_path / "c.raw")))
        shown = libvirt.virDomain.XMLDesc

        def fail(_domain, _xml, _flags):
            monkeypatch.setattr(libvirt.virDomain, "XMLDesc", lambda *asked: seen(shown(*asked)))
            raise refusal(libvirt.VIR_ERR_AGENT_UNRESPONSIVE)

        monkeypatch.setattr(libvirt.virDomain, "snapshotCreateXML", fail)
        return control

    return make


def test_the_way_back_from_a_snapshot_that_failed_too_late_names_each_disks_own_image(failing, tmp_path):
    """Without --base a commit would go on to the lowest image, which other guests may stand on."""

    def moved(xml):
        return xml.replace("a b.raw", "a b.vda.one.qcow2").replace("c.raw", "c.vdb.one.qcow2")

    with pytest.raises(ControlError, match="disks go on in the new files") as caught:
        failing(moved)("snapshot.create", "web1", name="one")
    commands = [f"domain block-commit web1 --device vda --base '{tmp_path}/a b.raw'",
                f"domain block-commit web1 --device vdb --base {tmp_path}/c.raw"]  # fmt: skip
    assert f"to go on in the images as before: '{commands[0]}', '{commands[1]}'" in str(caught.value)


def test_a_snapshots_failure_is_told_where_libvirt_does_not_answer_afterwards(failing, tmp_path):
    def hang(_xml):
        raise BUSY

    control = failing(hang)
    with pytest.raises(RefusedError, match=r"libvirt error 86: .*may go on in the new files") as caught:
        control("snapshot.create", "web1", name="one")
    assert f"vdb in {tmp_path}/c.vdb.one.qcow2" in str(caught.value)
    assert caught.value.outcome_unknown
    session = control.executor.session
    call = Call(session, find_domain(session, "web1"), control.folders, Deadline(10))
    attempt = Attempt("one", True, {"vda": "/a"}, {"vda": Path("/b")})
    told = not_taken(call, attempt, refusal(libvirt.VIR_ERR_AGENT_UNRESPONSIVE), "; 'virsh domfsthaw web1'")
    assert str(told).endswith("(vda in /b): see 'domain block-jobs web1'; 'virsh domfsthaw web1'")


def test_external_snapshots_are_not_deleted_with_those_after_them(stacked):
    """libvirt refuses them in any place below the one that is named."""
    kind, source = SOURCES["/images/top"]
    control = stacked(kind, source, snapshot("file", "internal"))
    domain = control.executor.session.connection.lookupByName("web1")
    for name, parent, change in (("two", "one", "external"), ("three", "two", "internal")):
        overlay = f"<driver type='qcow2'/>{source}" if change == "external" else ""
        xml = snapshot(kind, change, overlay).format(domain=domain.XMLDesc(0))
        xml = xml.replace("<name>one</name>", f"<name>{name}</name><parent><name>{parent}</name></parent>", 1)
        domain.snapshotCreateXML(xml, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)
    for name, order in (("one", "three, two, one"), ("two", "three, two")):
        refused = rf"those taken after them \(two\); delete each by itself, without --children: {order}; or forget"
        with pytest.raises(UnsupportedError, match=refused):
            control.dry("snapshot.delete", "web1", name=name, children=True)
    assert control.dry("snapshot.delete", "web1", name="three", children=True).plan.steps == ["delete it"]
    forgotten = control.dry("snapshot.delete", "web1", name="one", children=True, metadata_only=True)
    assert forgotten.plan.steps == ["delete it"]


@pytest.mark.parametrize(
    ("state", "version", "source", "refused"),
    [
        ("shutoff", 9_000_000, SOURCES["/pool/held"][1], True),
        ("disk-snapshot", 9_000_000, SOURCES["/pool/held"][1], False),
        ("shutoff", 9_000_000, SOURCES["/images/top"][1], False),
        ("shutoff", 10_000_000, SOURCES["/pool/held"][1], False),
    ],
)
def test_one_of_a_volume_that_was_taken_while_the_guest_was_off_is_not_deleted(
    stacked, monkeypatch, state, version, source, refused
):
    """libvirt 9.0 refuses it at the act. The guest has gone on in a file of its own since."""
    then = f"""<domain type='test'><name>web1</name><uuid>6695eb01-f6a4-8304-79aa-97f2502e193f</uuid>
<memory>8192</memory><os><type>hvm</type></os><devices><disk type='{'volume' if 'volume' in source else 'file'}'
device='disk'>{source}<target dev='vda' bus='virtio'/></disk></devices></domain>"""
    taken = snapshot("file", "external", f"<driver type='qcow2'/>{SOURCES['/images/top'][1]}")
    taken = taken.replace("<state>running<", f"<state>{state}<").replace("{domain}", then)
    control = stacked(*SOURCES["/images/top"], taken)
    monkeypatch.setattr(libvirt.virConnect, "getLibVersion", lambda _self: version)
    if not refused:
        assert len(control.dry("snapshot.delete", "web1", name="one").plan.steps) == 2
        return
    told = "one of domain web1 was taken while the guest was off, of disk vda, which is volume held of pool images"
    with pytest.raises(UnsupportedError, match=told):
        control.dry("snapshot.delete", "web1", name="one")
    assert control.dry("snapshot.delete", "web1", name="one", metadata_only=True).plan.steps == ["delete it"]


def test_an_external_snapshot_on_the_network_is_not_merged(stacked):
    source = "<source protocol='nbd' name='top'><host name='images.example'/></source>"
    control = stacked("network", source, snapshot("network", "external", f"<driver type='qcow2'/>{source}"))
    with pytest.raises(RefusedError, match=r"has disk vda of domain web1 go on in an image on the network"):
        control.dry("snapshot.delete", "web1", name="one")


@pytest.mark.parametrize("operation", [BlockCommit(), BlockPull()])
def test_a_guest_that_is_off_shows_no_chain_to_be_taken_for_done(stacked, operation):
    """Its definition has the top image alone, which looks as after a pull of everything."""
    control = stacked(*SOURCES["/images/top"], snapshot("file", "internal"))
    control("domain.destroy", "web1")
    session = control.executor.session
    call = Call(session, find_domain(session, "web1"), control.folders, Deadline(10))
    call.details["chain_before"] = ["/images/top", "/images/base"]
    parameters = operation.parameters(device="vda")
    with pytest.raises(ControlError, match=r"ended before it could be seen.*keep all of /images/top, /images/base"):
        operation.verify(call, parameters)
    with pytest.raises(RefusedError, match="web1 has ended meanwhile and is shutoff; nothing was changed"):
        operation.act(call, parameters)


@pytest.mark.parametrize("base", [None, "/images/base"])
@pytest.mark.parametrize("operation", ["domain.block-commit", "domain.block-pull"])
def test_a_guest_that_ends_between_two_looks_is_refused(stacked, monkeypatch, operation, base):
    control = stacked(*SOURCES["/images/top"], snapshot("file", "external", "<source file='/images/other'/>"))
    looks = 0
    real = block_chain.chain_of

    def ending(handle, device):
        nonlocal looks
        looks -= 1
        if looks == 0:
            handle.destroy()
        return real(handle, device)

    for module in (block_chain, block_jobs):
        monkeypatch.setattr(module, "chain_of", ending)
    told = []
    # At each look in turn, until there are none left.
    while not told or told[-1]:
        looks = len(told) + 1
        try:
            control.dry(operation, "web1", device="vda", base=base)
            told.append("")
        except RefusedError as error:
            told.append(str(error))
            control("domain.start", "web1")
    assert all("web1 has ended meanwhile and is shutoff; nothing was changed" in text for text in told[:-1])
    assert len(told) > 2


@pytest.mark.parametrize("word", [libvirt.VIR_DOMAIN_BLOCK_JOB_CANCELED, libvirt.VIR_DOMAIN_BLOCK_JOB_FAILED])
def test_a_job_that_the_guests_own_end_cancels_was_stopped_by_nobody(stacked, word):
    """A guest that powers itself off: libvirt tells of the job before it knows that the guest is off."""
    control = stacked(*SOURCES["/images/top"], snapshot("file", "internal"))
    session = control.executor.session
    subject = find_domain(session, "web1")

    class EndsTheGuest(threading.Event):
        def wait(self, timeout=None):
            subject.handle.destroy()
            return False

    call = Call(session, subject, control.folders, Deadline(10, EndsTheGuest()))
    end = JobEnd("vda")
    end.on_event(None, None, "vda", libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_PULL, word, None)
    told = BlockPull()._ended_early(call, BlockPull.parameters(device="vda"), end, ["/images/top", "/images/base"])
    assert "ended with the guest, which is shutoff (destroyed); disk vda was in work, and its data is still in" \
        " /images/top on /images/base; keep all of these files; 'domain start web1', and ask again" in str(told)


def refusal(code):
    error = libvirt.libvirtError("cannot acquire state change lock")
    error.err = (code, libvirt.VIR_FROM_NONE, str(error), 2, None, None, None, -1, -1)
    return error


BUSY = refusal(libvirt.VIR_ERR_OPERATION_TIMEOUT)
PULLING = {"type": libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_PULL, "cur": 1, "end": 2, "bandwidth": 0}


@pytest.fixture
def answering(stacked, monkeypatch):
    """Makes a guest whose questions for its job are answered one by one, the last one for ever, and which has been
    pulled up once its job is over."""

    def make(*answers):
        control = stacked(*SOURCES["/images/top"], snapshot("file", "external", "<source file='/o'/>"))
        left = [*answers]
        begun = []

        def answer(_domain, _device, _flags):
            found = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(found, libvirt.libvirtError):
                raise found
            return found

        def chain(_handle, _device):
            return ["/images/top"] if begun and left == [{}] else ["/images/top", "/images/base"]

        monkeypatch.setattr(libvirt.virDomain, "blockJobInfo", answer)
        monkeypatch.setattr(libvirt.virDomain, "blockPull", lambda *asked: begun.append(asked))
        for module in (block_chain, block_jobs):
            monkeypatch.setattr(module, "chain_of", chain)
        return control

    return make


def test_a_guest_too_busy_to_tell_of_its_job_is_asked_again(answering):
    control = answering({}, {}, {}, {}, PULLING, BUSY, BUSY, PULLING, BUSY, {})
    phases = []
    request = Request(Actor("t", "test"), progress=lambda step: phases.append(step.phase))
    done = control.run("domain.block-pull", "web1", {"device": "vda"}, request)
    assert (done.changed, done.after["chain"]) == (True, ["/images/top"])
    waiting = "waiting for libvirt to tell of the job"
    assert phases == ["pull of vda", waiting, waiting, "pull of vda", waiting]


def test_a_job_that_may_run_is_not_begun_or_called_ended(answering, monkeypatch):
    control = answering(BUSY)
    for operation in ("domain.block-pull", "domain.block-abort"):
        with pytest.raises(BusyError, match="cannot acquire state change lock"):
            control(operation, "web1", device="vda")
    with pytest.raises(BusyError):
        control("domain.block-jobs", "web1")
    begun = {"subject": {"uuid": "6695eb01-f6a4-8304-79aa-97f2502e193f"}, "parameters": {"device": "vda"}}
    told = BlockPull().aftermath(control.executor.session, control.folders, begun)
    assert told.startswith("interrupted; libvirt cannot tell now whether it goes on with vda")


def test_a_job_that_cannot_be_stopped_in_time_may_go_on(answering, monkeypatch):
    def refused(*_asked):
        raise BUSY

    monkeypatch.setattr(libvirt.virDomain, "blockJobAbort", refused)
    control = answering({}, {}, {}, {}, PULLING, BUSY)
    with pytest.raises(TimedOutError, match=r"is to be stopped \(not done within 0.5 s\).*it may go on") as caught:
        control("domain.block-pull", "web1", device="vda", within_s=0.5)
    assert caught.value.outcome_unknown
    assert caught.value.libvirt_code == libvirt.VIR_ERR_OPERATION_TIMEOUT
