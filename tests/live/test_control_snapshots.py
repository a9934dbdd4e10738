"""Snapshots, checkpoints and block jobs of a guest that never stops writing; its disk is then checked byte by byte."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import pytest

from exporter.control import block_jobs
from exporter.control.errors import ControlError, NotFoundError, RefusedError, TimedOutError, UnsupportedError
from exporter.control.executor import Actor, Request
from exporter.demonstration.errors import DemonstrationError
from exporter.demonstration.private_hypervisor import PrivateHypervisor
from exporter.demonstration.programs import run_program
from tests.live.conftest import StartExporter
from tests.live.operating import OPERATIONS, Operator, eventually
from tests.live.scraping import Scraper
from tests.live.sector_guests import WRITTEN_FROM, WRITTEN_TO, SectorGuest, define, saying, writing

GUEST = "writer"
UNWRITTEN_FROM = 4 << 20
DISK_BYTES = 12 << 20
# The guest writes faster than that, even on a busy machine: a commit goes on until it is stopped.
SLOW = 8192


@pytest.fixture(scope="module")
def operator(hypervisor: PrivateHypervisor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    operator = Operator(hypervisor.uri, tmp_path_factory.mktemp("snap") / "control", (hypervisor.folder / "images",))
    yield operator
    operator.close()


@pytest.fixture
def writer(hypervisor: PrivateHypervisor, operator: Operator) -> Iterator[SectorGuest]:
    """A running guest on a qcow2 disk: 1 MiB that it keeps writing, 8 MiB of ours that it never touches."""
    guest = define(hypervisor, GUEST, writing())
    raw = guest.disk.read_bytes()[:512].ljust(UNWRITTEN_FROM, b"\0") + ours()
    guest.disk.write_bytes(raw)
    image = guest.disk.with_suffix(".qcow2")
    run_program(["qemu-img", "convert", "-O", "qcow2", str(guest.disk), str(image)])
    xml = hypervisor.virsh("dumpxml", GUEST).replace("type='raw'", "type='qcow2'")
    file = hypervisor.folder / "definitions" / f"{GUEST}.xml"
    file.write_text(xml.replace(str(guest.disk), str(image)))
    hypervisor.virsh("define", str(file))
    operator("domain.start", GUEST)
    eventually(lambda: guest.said(), "the first pass of the guest")
    yield guest
    operator("domain.destroy", GUEST)
    operator("domain.undefine", GUEST, snapshots=True)
    for left in image.parent.glob(f"{GUEST}.*"):
        left.unlink()


def ours() -> bytes:
    return b"".join(struct.pack("<Q", number * 2654435761) for number in range((DISK_BYTES - UNWRITTEN_FROM) // 8))


def passes(guest: SectorGuest) -> int:
    return len(guest.said().strip())


def overwritten(guest: SectorGuest) -> None:
    """Waits until the guest has written since: an overlay without anything in it is committed at once."""
    before = passes(guest)
    eventually(lambda: passes(guest) > before, "a pass of the guest")


def verified(operator: Operator, guest: SectorGuest, file: str) -> None:
    """Stops the guest, and checks every byte of its disk: the newest pass up to a place, the one before it after."""
    before = passes(guest)
    eventually(lambda: passes(guest) > before + 1, "two more passes")
    operator("domain.destroy", GUEST)
    said = guest.said().strip()
    assert "!" not in said
    raw = Path(file).with_suffix(".checked")
    run_program(["qemu-img", "convert", "-O", "raw", file, str(raw)])
    content = raw.read_bytes()
    raw.unlink()
    assert content[UNWRITTEN_FROM:DISK_BYTES] == ours()
    written = content[WRITTEN_FROM:WRITTEN_TO]
    newest = written[:2]
    number = int.from_bytes(newest, "little")
    told = len(said) & 0xFFFF
    assert number in (told, told + 1), (number, told)
    edge = next((at for at in range(0, len(written), 2) if written[at : at + 2] != newest), len(written))
    assert edge % 512 == 0
    earlier = struct.pack("<H", number - 1)
    assert written[edge:] == earlier * ((len(written) - edge) // 2)


def chain(operator: Operator) -> list[str]:
    (row,) = operator("domain.block-jobs", GUEST).details["rows"]
    return list(row["chain"])


@contextmanager
def sharing(operator: Operator, hypervisor: PrivateHypervisor, image: str) -> Iterator[None]:
    """A defined guest whose image stands on `image`, as its header says."""
    overlay = hypervisor.folder / "images" / "sharer.qcow2"
    run_program(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", image, str(overlay)])
    define(hypervisor, "sharer", saying("UP"))
    raw = str(hypervisor.folder / "images" / "sharer.raw")
    file = hypervisor.folder / "definitions" / "sharer.xml"
    xml = hypervisor.virsh("dumpxml", "sharer").replace("type='raw'", "type='qcow2'").replace(raw, str(overlay))
    file.write_text(xml)
    hypervisor.virsh("define", str(file))
    try:
        yield
    finally:
        operator("domain.undefine", "sharer")
        overlay.unlink()


def test_a_commit_while_it_writes(operator: Operator, hypervisor: PrivateHypervisor, writer: SectorGuest) -> None:
    made = operator("snapshot.create", GUEST, name="one", description="before <it> & \"all\"")
    assert len(chain(operator)) == 2
    assert str(made.details["files"]["hda"]) == chain(operator)[0]
    with pytest.raises(RefusedError, match="has a snapshot one already"):
        operator("snapshot.create", GUEST, name="one")
    operator("snapshot.create", GUEST, name="two")
    (row, second) = operator("snapshot.list", GUEST).details["rows"]
    assert (row["name"], row["kind"], row["description"]) == ("one", "external", "before <it> & \"all\"")
    assert (second["name"], second["parent"]) == ("two", "one")
    with pytest.raises(UnsupportedError, match=r"with those taken after them \(two, one\); delete each by itself"):
        operator.dry("snapshot.delete", GUEST, name="one", children=True)
    assert datetime.fromisoformat(row["created"]) <= datetime.fromisoformat(second["created"]) <= datetime.now(UTC)
    overwritten(writer)
    with pytest.raises(TimedOutError, match="was stopped before its end"):
        operator("domain.block-commit", GUEST, device="hda", bandwidth_bytes_sec=SLOW, within_s=1)
    assert len(chain(operator)) == 3
    # Only the newest overlay, into the one below it: the lowest image stays as it is.
    three = chain(operator)
    with pytest.raises(NotFoundError, match=f"no image '/nowhere' below the one it.*{three[0]} on {three[1]}"):
        operator("domain.block-commit", GUEST, device="hda", base="/nowhere")
    partly = operator("domain.block-commit", GUEST, device="hda", base=three[1])
    assert (chain(operator), partly.details["unused_files"]) == (three[1:], three[:1])
    # Another guest that does not even run has an image of its own on top of the lowest: to write there destroys it.
    cause = f"{three[2]} is in use by domain sharer, whose disk would be destroyed"
    with sharing(operator, hypervisor, three[2]), pytest.raises(RefusedError, match=cause):
        operator("domain.block-commit", GUEST, device="hda")
    before = passes(writer)
    steps: list[object] = []
    result = operator.run("domain.block-commit", GUEST, {"device": "hda"},
                          Request(Actor("t", "test"), confirmed=GUEST, progress=steps.append))  # fmt: skip
    assert result.details["chain_before"][-1:] == chain(operator) == result.after["chain"]
    assert result.details["unused_files"] == three[1:2]
    assert steps
    eventually(lambda: passes(writer) > before, "a pass after the commit")
    assert not operator("domain.block-commit", GUEST, device="hda").changed
    verified(operator, writer, str(result.after["chain"][0]))


def test_a_pull_while_it_writes(operator: Operator, hypervisor: PrivateHypervisor, writer: SectorGuest) -> None:
    operator("snapshot.create", GUEST, name="one")
    operator("snapshot.create", GUEST, name="two")
    three = chain(operator)
    partly = operator("domain.block-pull", GUEST, device="hda", base=three[2])
    assert (chain(operator), partly.details["unused_files"]) == ([three[0], three[2]], [three[1]])
    assert not operator("domain.block-pull", GUEST, device="hda", base=three[2]).changed
    assert operator.dry("domain.block-pull", GUEST, device="hda").plan.steps
    result = operator("domain.block-pull", GUEST, device="hda")
    assert result.after["chain"] == result.details["chain_before"][:1]
    Path(str(result.details["unused_files"][0])).unlink()
    verified(operator, writer, str(result.after["chain"][0]))


@pytest.mark.parametrize("verb", ["block-commit", "block-pull"])
def test_stopped_from_elsewhere(operator: Operator, writer: SectorGuest, verb: str) -> None:
    """While one process waits for the job, another stops it: that one is told, and the disk is as it was."""
    operator("snapshot.create", GUEST, name="one")
    overwritten(writer)
    two = chain(operator)
    with ThreadPoolExecutor(1) as other:
        job = other.submit(operator, f"domain.{verb}", GUEST, device="hda", bandwidth_bytes_sec=SLOW)
        eventually(lambda: operator("domain.block-jobs", GUEST).details["rows"][0].get("type"), "the job")
        with pytest.raises(ControlError, match=f"busy with domain.{verb}"):
            operator("domain.suspend", GUEST)
        assert operator("domain.block-abort", GUEST, device="hda").changed
        with pytest.raises(RefusedError, match=r"was stopped by somebody else before its end; the guest goes on"):
            job.result(60)
    assert chain(operator) == two
    verified(operator, writer, two[0])


def test_a_snapshot_inside_an_overlay_keeps_what_it_needs(
    operator: Operator, hypervisor: PrivateHypervisor, writer: SectorGuest
) -> None:
    """libvirt would merge or pull it away, and the revert then end the guest, or bring back zeros."""
    operator("snapshot.create", GUEST, name="out")
    top, lowest = chain(operator)
    operator("snapshot.create", GUEST, name="in", kind="internal")
    inside = f"snapshot in of domain {GUEST} lies inside {top} and would be lost"
    with pytest.raises(RefusedError, match=inside):
        operator("snapshot.delete", GUEST, name="out")
    for verb in ("block-commit", "block-pull"):
        with pytest.raises(RefusedError, match=inside):
            operator.dry(f"domain.{verb}", GUEST, device="hda")
    os.rename(top, top + ".away")
    with pytest.raises(RefusedError, match=f"snapshot in needs {top}, which is not there"):
        operator.dry("snapshot.revert", GUEST, name="in")
    os.rename(top + ".away", top)
    assert operator("snapshot.revert", GUEST, name="in", then="running").after["state"] == "running"
    operator("snapshot.delete", GUEST, name="in")
    # Another guest's image stands on the one that would be written into.
    with sharing(operator, hypervisor, lowest), pytest.raises(RefusedError, match=f"{lowest} is in use by domain shar"):
        operator("snapshot.delete", GUEST, name="out")
    plan = operator.dry("snapshot.delete", GUEST, name="out").plan
    assert plan is not None
    assert plan.steps == [f"write {top} into {lowest}, and remove it", "delete it"]
    # It has none to go with it, for which libvirt would refuse it.
    assert operator("snapshot.delete", GUEST, name="out", children=True).after["snapshots"] == []
    assert (chain(operator), Path(top).exists()) == ([lowest], False)
    # One whose image was committed meanwhile can only be forgotten.
    operator("snapshot.create", GUEST, name="past")
    operator("domain.block-commit", GUEST, device="hda")
    with pytest.raises(RefusedError, match=r"made by snapshot past, is no longer on another image.*--metadata-only"):
        operator("snapshot.delete", GUEST, name="past")
    assert operator("snapshot.delete", GUEST, name="past", metadata_only=True).after["snapshots"] == []


def test_a_job_that_libvirt_cannot_tell_of_goes_on(
    operator: Operator, hypervisor: PrivateHypervisor, writer: SectorGuest
) -> None:
    """QEMU is held by somebody's monitor command: libvirt gives every question up after 30 s, and the job goes on."""
    operator("snapshot.create", GUEST, name="one")
    overwritten(writer)
    pipe = hypervisor.folder / "images" / "held"
    os.mkfifo(pipe)
    # QEMU opens the pipe, and waits for its reader.
    held = json.dumps({"execute": "memsave", "arguments": {"val": 0, "size": 1, "filename": str(pipe)}})
    phases: list[str] = []
    request = Request(Actor("t", "test"), confirmed=GUEST, progress=lambda step: phases.append(step.phase))
    asked = {"device": "hda", "bandwidth_bytes_sec": SLOW}
    with ThreadPoolExecutor(2) as other:
        job = other.submit(operator.run, "domain.block-commit", GUEST, asked, request)
        eventually(lambda: phases, "the job")
        holding = other.submit(hypervisor.virsh, "qemu-monitor-command", GUEST, held, timeout_s=150)
        eventually(lambda: "waiting for libvirt to tell of the job" in phases, "a question that was given up", 120)
        assert not job.done()
        pipe.read_bytes()
        holding.result(60)
        hypervisor.virsh("blockjob", GUEST, "hda", "--bandwidth", "0")
        done = job.result(120)
    pipe.unlink()
    assert done.after["chain"] == done.details["chain_before"][-1:]
    verified(operator, writer, str(done.after["chain"][0]))


def without_backing(hypervisor: PrivateHypervisor) -> None:
    """Defines the guest anew by its top image alone, as most definitions are: libvirt finds what is below by itself."""
    root = ElementTree.fromstring(hypervisor.virsh("dumpxml", "--inactive", GUEST))
    for disk in root.iterfind("devices/disk"):
        for below in disk.findall("backingStore"):
            disk.remove(below)
    file = hypervisor.folder / "definitions" / f"{GUEST}.xml"
    file.write_text(ElementTree.tostring(root, encoding="unicode"))
    hypervisor.virsh("define", str(file))


@pytest.mark.parametrize(
    ("verb", "end"),
    [
        ("block-commit", ("destroy", GUEST)),
        ("block-pull", ("destroy", GUEST)),
        ("block-pull", ("qemu-monitor-command", GUEST, '{"execute": "quit"}')),
    ],
)
def test_a_guest_that_ends_during_a_job(
    operator: Operator, hypervisor: PrivateHypervisor, writer: SectorGuest, verb: str, end: tuple[str, ...]
) -> None:
    """It is not taken for done, though its definition then shows the top image alone: every image is still needed."""
    operator("snapshot.create", GUEST, name="one")
    begun_with, ended = chain(operator), rf"{verb} of hda ended with the guest, which is shutoff \(\w+\); disk hda"
    without_backing(hypervisor)
    overwritten(writer)
    with ThreadPoolExecutor(1) as other:
        job = other.submit(operator, f"domain.{verb}", GUEST, device="hda", bandwidth_bytes_sec=SLOW)
        eventually(lambda: operator("domain.block-jobs", GUEST).details["rows"][0].get("type"), "the job")
        with suppress(DemonstrationError):  # QEMU may end before it has answered to "quit"
            hypervisor.virsh(*end)
        with pytest.raises(ControlError, match=ended) as caught:
            job.result(60)
        two = " on ".join(map(str, begun_with))
        assert f"disk hda was in work, and its data is still in {two}; keep all of these files" in str(caught.value)
    begun = next(record for record in reversed(list(operator.trail.records())) if record["event"] == "begin")
    told = OPERATIONS[f"domain.{verb}"].aftermath(operator.executor.session, operator.folders, begun)
    assert told.startswith("interrupted; the domain does not run any more")


def test_a_guest_that_ends_before_its_job(
    operator: Operator, hypervisor: PrivateHypervisor, writer: SectorGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two looks at its disk, or the last one and the begin: the caller is told that it has ended."""
    operator("snapshot.create", GUEST, name="one")
    without_backing(hypervisor)
    two = chain(operator)
    for verb, look, told in (
        ("block-commit", "require_chain", "domain writer has ended meanwhile and is shutoff; nothing was changed"),
        ("block-pull", "require_chain", "domain writer has ended meanwhile and is shutoff; nothing was changed"),
        ("block-commit", "base_index", "in disk hda of domain writer, which is shutoff; nothing was changed"),
        ("block-pull", "watch_job", r"libvirt error 55: .*domain is not running"),
    ):
        with monkeypatch.context() as patch:
            real, destroyed = getattr(block_jobs, look), partial(hypervisor.virsh, "destroy", GUEST)
            patch.setattr(block_jobs, look, lambda *asked, real=real, gone=destroyed: gone() or real(*asked))
            with pytest.raises(RefusedError, match=told):
                operator(f"domain.{verb}", GUEST, device="hda", within_s=60)
        assert operator.state(GUEST) == "shutoff"
        operator("domain.start", GUEST)
        assert chain(operator) == two


def test_a_job_without_room(operator: Operator, hypervisor: PrivateHypervisor) -> None:
    """The base's file system is full: QEMU gives the commit up, and the guest goes on; with room it is done."""
    guest = define(hypervisor, "crowded", saying("UP"))
    small, top = hypervisor.folder / "images" / "small", guest.disk.with_suffix(".qcow2")
    small.mkdir()
    hypervisor.run("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small))
    base = small / "base.qcow2"
    hypervisor.run("qemu-img", "create", "-q", "-f", "qcow2", str(base), "8M")
    hypervisor.run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(base), str(top))
    hypervisor.run("qemu-io", "-c", f"write -s {guest.disk} 0 512", "-c", "write -P 7 4M 2M", str(top))
    file = hypervisor.folder / "definitions" / "crowded.xml"
    xml = hypervisor.virsh("dumpxml", "crowded").replace("type='raw'", "type='qcow2'")
    file.write_text(xml.replace(str(guest.disk), str(top)))
    hypervisor.virsh("define", str(file))
    try:
        operator("domain.start", "crowded")
        with pytest.raises(ControlError, match=r"block-commit of hda failed in QEMU; the guest goes on.*look for room"):
            operator("domain.block-commit", "crowded", device="hda")
        assert operator.state("crowded") == "running"
        (row,) = operator("domain.block-jobs", "crowded").details["rows"]
        assert (row["chain"], row.get("type")) == ([str(top), str(base)], None)
        hypervisor.run("mount", "-o", "remount,size=8m", str(small))
        done = operator("domain.block-commit", "crowded", device="hda")
        assert done.after["chain"] == [str(base)]
        operator("domain.destroy", "crowded")
        read = hypervisor.run("qemu-io", "-r", "-c", "read -P 7 4M 2M", str(base))
        assert b"read 2097152/2097152" in read
        assert b"verification failed" not in read
    finally:
        operator("domain.destroy", "crowded")
        operator("domain.undefine", "crowded", snapshots=True)
        hypervisor.run("umount", str(small))


def test_an_internal_snapshot_and_back(operator: Operator, writer: SectorGuest) -> None:
    operator("snapshot.create", GUEST, name="inside", kind="internal")
    with pytest.raises(RefusedError, match="quiesced"):
        operator("snapshot.create", GUEST, name="x", kind="internal", quiesce=True)
    with pytest.raises(RefusedError, match=r"agent in domain writer does not answer"):
        operator("snapshot.create", GUEST, name="x", quiesce=True)
    with pytest.raises(NotFoundError, match="no snapshot 'insde'; the nearest: inside"):
        operator("snapshot.revert", GUEST, name="insde")
    assert operator.dry("snapshot.revert", GUEST, name="inside").plan.lost
    reverted = operator("snapshot.revert", GUEST, name="inside", then="running")
    assert reverted.after["state"] == "running"
    before = passes(writer)
    eventually(lambda: passes(writer) > before, "a pass after the revert")
    assert operator("snapshot.delete", GUEST, name="inside").after["snapshots"] == []
    assert not operator("snapshot.delete", GUEST, name="inside").changed


    # One outside the image, which this libvirt may not be able to go back to.
    operator("snapshot.create", GUEST, name="out")
    if operator.executor.session.connection.getLibVersion() < 9_009_000:
        with pytest.raises(UnsupportedError, match="cannot revert to the external snapshot out"):
            operator("snapshot.revert", GUEST, name="out")
    operator("snapshot.delete", GUEST, name="out", metadata_only=True)
    assert operator("snapshot.list", GUEST).details["rows"] == []
    assert operator("checkpoint.create", GUEST, name="monday").after["checkpoints"] == ["monday"]
    with pytest.raises(RefusedError, match="has a checkpoint monday already"):
        operator("checkpoint.create", GUEST, name="monday")
    operator("checkpoint.create", GUEST, name="tuesday")
    rows = {row["name"]: row for row in operator("checkpoint.list", GUEST).details["rows"]}
    assert rows["tuesday"]["parent"] == "monday"
    assert operator("checkpoint.delete", GUEST, name="monday").after["checkpoints"] == ["tuesday"]
    assert not operator("checkpoint.delete", GUEST, name="monday").changed
    operator("checkpoint.delete", GUEST, name="tuesday")


def test_killed_in_the_middle_of_a_commit(
    operator: Operator, hypervisor: PrivateHypervisor, writer: SectorGuest, start_exporter: StartExporter
) -> None:
    """kill -9: libvirt goes on, as the exporter sees; the next start tells, and asking again sees it through."""
    scraper = Scraper(start_exporter(hypervisor.read_only_uri, ("--sampling.interval=1s",)))
    operator("snapshot.create", GUEST, name="one")
    overwritten(writer)
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(operator.executor.session.uri), str(operator.folders.state)],
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"committing\n"
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    (explained,) = operator.executor.explain_left_open(OPERATIONS)
    assert "libvirt goes on with the active commit of hda" in str(explained["outcome"])
    eventually(lambda: job_seen(scraper), "the job's series", 150)  # looked for once a minute
    with pytest.raises(RefusedError, match="active commit runs on that disk already"):
        operator("domain.block-pull", GUEST, device="hda")
    assert operator("domain.block-abort", GUEST, device="hda").changed
    assert not operator("domain.block-abort", GUEST, device="hda").changed
    eventually(lambda: not job_seen(scraper), "the end of the job's series", 150)
    result = operator("domain.block-commit", GUEST, device="hda")
    assert len(result.after["chain"]) == 1
    verified(operator, writer, str(result.after["chain"][0]))
    assert operator.trail.verify() == len(operator.events())


def job_seen(scraper: Scraper) -> bool:
    found = scraper.scrape().values
    return any(name == "libvirt_domain_block_job_info" and ("domain", GUEST) in labels for name, labels in found)


KILLED = """
import sys, threading, time
from pathlib import Path
from tests.live.operating import Operator
from tests.live.test_control_snapshots import SLOW
operator = Operator(sys.argv[1], Path(sys.argv[2]))
watcher = Operator(sys.argv[1], Path(sys.argv[2]))
order = {"device": "hda", "bandwidth_bytes_sec": SLOW}
threading.Thread(target=operator, args=("domain.block-commit", "writer"), kwargs=order, daemon=True).start()
while not watcher("domain.block-jobs", "writer").details["rows"][0].get("type"):
    time.sleep(0.01)
print("committing", flush=True)
threading.Event().wait()
"""


def test_a_snapshot_of_a_pools_volume(operator: Operator, hypervisor: PrivateHypervisor) -> None:
    """Its overlay lies beside the volume, and the disk is the volume again once it is deleted."""
    pooled, other = define(hypervisor, "pooled", saying("UP")), define(hypervisor, "other", saying("UP"))
    folder = hypervisor.folder / "images"
    operator("pool.define", name="held", folder=str(folder))
    operator("pool.start", "held")
    root = ElementTree.fromstring(hypervisor.virsh("dumpxml", "pooled"))
    (disk,) = root.iterfind("devices/disk")
    disk.set("type", "volume")
    (source,) = disk.iterfind("source")
    source.attrib = {"pool": "held", "volume": pooled.disk.name}
    file = hypervisor.folder / "definitions" / "pooled.xml"
    file.write_text(ElementTree.tostring(root, encoding="unicode"))
    hypervisor.virsh("define", str(file))
    try:
        with pytest.raises(RefusedError, match=r"hda of domain pooled is volume pooled.raw of pool held.*start"):
            operator.dry("snapshot.create", "pooled", name="one")
        taken_by_virsh_while_it_is_off(operator, hypervisor, folder / "virsh.qcow2", str(pooled.disk))
        hypervisor.virsh("define", str(file))
        operator("domain.start", "pooled")
        made = operator("snapshot.create", "pooled", name="one")
        overlay = str(made.details["files"]["hda"])
        (row,) = operator("domain.block-jobs", "pooled").details["rows"]
        assert (Path(overlay).parent, row["chain"]) == (folder, [overlay, str(pooled.disk)])
        assert operator("snapshot.delete", "pooled", name="one").after["snapshots"] == []
        assert f"<source pool='held' volume='{pooled.disk.name}'" in hypervisor.virsh("dumpxml", "pooled")
        assert not Path(overlay).exists()
        again = {"file": str(pooled.disk), "format": "raw"}
        for running in (True, False):  # the pool
            with pytest.raises(RefusedError, match=f"domain pooled has {pooled.disk} in its disk hda"):
                operator.dry("domain.attach-disk", "pooled", **again)
            with pytest.raises(RefusedError, match=f"{pooled.disk} is in use by domain pooled"):
                operator.dry("domain.attach-disk", "other", **again)
            if running:
                operator("pool.stop", "held")
        detached = operator.dry("domain.detach-disk", "pooled", device="hda", apply_to="persistent")
        assert str(pooled.disk) in detached.plan.diff
    finally:
        operator("domain.destroy", "pooled")
        for name in (pooled.name, other.name):
            operator("domain.undefine", name, snapshots=True)
        operator("pool.stop", "held")
        operator("pool.undefine", "held")


def taken_by_virsh_while_it_is_off(
    operator: Operator, hypervisor: PrivateHypervisor, overlay: Path, base: str
) -> None:
    """libvirt 9.0 does not delete it, whether the guest runs or not: told in the plan; the way out is the one told."""
    spec = f"hda,file={overlay}"
    hypervisor.virsh("snapshot-create-as", "pooled", "off", "--disk-only", "--diskspec", spec)
    known = operator.executor.session.connection.getLibVersion() < 9_001_000
    for runs in (False, True) if known else ():
        if runs:
            operator("domain.start", "pooled")
        with pytest.raises(UnsupportedError, match=r"while the guest was off, of disk hda.*pooled.raw of pool held"):
            operator.dry("snapshot.delete", "pooled", name="off")
        with pytest.raises(DemonstrationError, match="parent disk source are not the same"):
            hypervisor.virsh("snapshot-delete", "pooled", "off")
    if not known:
        operator("domain.start", "pooled")
    assert operator("domain.block-commit", "pooled", device="hda").after["chain"] == [base]
    assert operator("snapshot.delete", "pooled", name="off", metadata_only=True).after["snapshots"] == []
    operator("domain.destroy", "pooled")
    overlay.unlink()


def test_an_empty_overlay_is_committed_at_once(operator: Operator, hypervisor: PrivateHypervisor) -> None:
    """The guest has written nothing since: libvirt counts such a job as 1 of 1."""
    guest = define(hypervisor, "idle", saying("UP"))
    operator("domain.start", "idle")
    try:
        operator("snapshot.create", "idle", name="one")
        assert operator("domain.block-commit", "idle", device="hda", within_s=60).after["chain"] == [str(guest.disk)]
    finally:
        operator("domain.destroy", "idle")
        operator("domain.undefine", "idle", snapshots=True)


def test_a_snapshot_of_disks_whose_images_have_one_stem(operator: Operator, hypervisor: PrivateHypervisor) -> None:
    """The guest is off, and starts from the new files; libvirt would take one file for both without a word."""
    guest = define(hypervisor, "twin", saying("UP"))
    second = guest.disk.with_suffix(".data")
    second.write_bytes(bytes(1 << 20))
    hypervisor.virsh("attach-disk", "twin", str(second), "hdb", "--subdriver", "raw", "--config")
    try:
        files = operator("snapshot.create", "twin", name="one").details["files"]
        assert files == {target: str(guest.disk.with_name(f"twin.{target}.one.qcow2")) for target in ("hda", "hdb")}
        operator("domain.start", "twin")
        rows = {row["device"]: row["chain"] for row in operator("domain.block-jobs", "twin").details["rows"]}
        assert rows == {"hda": [files["hda"], str(guest.disk)], "hdb": [files["hdb"], str(second)]}
    finally:
        operator("domain.destroy", "twin")
        operator("domain.undefine", "twin", snapshots=True)
