"""Block jobs that go another way than asked, by libvirt's test driver with a disk of ours. Real ones: tests/live."""

from __future__ import annotations

import re
import threading

import libvirt
import pytest

from exporter.control import block_jobs
from exporter.control.errors import RefusedError, TimedOutError
from exporter.control.executor import Actor, Request
from tests.live.operating import Operator

NODE = """<node><domain type='test'><name>web1</name><uuid>6695eb01-f6a4-8304-79aa-97f2502e193f</uuid>
<memory>8192</memory><os><type>hvm</type></os><devices><disk type='file' device='disk'><source file='/x'/>
<target dev='vda' bus='virtio'/></disk></devices></domain></node>"""
PULL = libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_PULL
ACTIVE_COMMIT = libvirt.VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT
TOP, MID, BASE = (f"<source file='/images/{name}'/>" for name in ("top", "mid", "base"))


class Disk:
    """The guest's vda as libvirt shows it: the `<source>` of each image, the newest first, and the job on it."""

    def __init__(self) -> None:
        self.sources = [TOP, MID, BASE]
        self.job: dict[str, int] = {}
        self.mirror = ""
        self.pivoted = False

    def runs(self, kind: int, into: str = "") -> None:
        self.job = {"type": kind, "cur": 1, "end": 2, "bandwidth": 0}
        self.mirror = f"<mirror type='file' job='active-commit' ready='yes'>{into}</mirror>" if into else ""

    def is_over(self, sources: list[str]) -> None:
        self.job, self.mirror, self.sources = {}, "", sources

    def aborted(self, _device: str, flags: int) -> None:
        self.pivoted = flags == libvirt.VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT
        into = next(index for index, source in enumerate(self.sources) if source in self.mirror)
        self.is_over(self.sources[into:] if self.pivoted else self.sources)

    def xml(self) -> str:
        below = "".join(
            f"<backingStore type='file' index='{index}'><format type='qcow2'/>{source}"
            for index, source in enumerate(self.sources[1:], 2)
        )
        return (
            f"<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>{self.sources[0]}{below}<backingStore/>"
            f"{'</backingStore>' * (len(self.sources) - 1)}{self.mirror}<target dev='vda' bus='virtio'/></disk>"
        )


@pytest.fixture
def disk(monkeypatch):
    made, real = Disk(), libvirt.virDomain.XMLDesc
    shown = re.compile("<disk .*</disk>", re.DOTALL)
    monkeypatch.setattr(
        libvirt.virDomain, "XMLDesc", lambda domain, flags=0: shown.sub(made.xml(), real(domain, flags))
    )
    monkeypatch.setattr(libvirt.virDomain, "blockJobInfo", lambda *_asked: made.job)
    monkeypatch.setattr(libvirt.virDomain, "blockJobAbort", made.aborted)
    return made


@pytest.fixture
def control(tmp_path, disk):
    (tmp_path / "node.xml").write_text(NODE)
    operator = Operator(f"test://{tmp_path}/node.xml", tmp_path / "control")
    yield operator
    operator.close()


# As the export of a server, as a path that is that server's, and as a volume that libvirt does not know.
@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("<source protocol='nbd' name='golden'><host name='images.example'/></source>", "nbd:golden"),
        ("<source protocol='ssh' name='/images/golden'><host name='images.example'/></source>", "ssh:/images/golden"),
        ("<source pool='absent' volume='golden'/>", r"\?"),
    ],
)
def test_no_commit_into_what_others_may_stand_on_unseen(control, disk, source, told):
    disk.sources[-1] = source
    with pytest.raises(RefusedError, match=f"^{told}, an image of disk vda, .*: what else needs it cannot be seen"):
        control.dry("domain.block-commit", "web1", device="vda")
    assert control.dry("domain.block-commit", "web1", device="vda", base="/images/mid").plan.steps
    assert control.dry("domain.block-pull", "web1", device="vda", base="/images/mid").plan.steps
    disk.sources[1:] = [source, BASE]
    with pytest.raises(RefusedError, match=f"^{told}, an image of disk vda"):
        control.dry("domain.block-commit", "web1", device="vda")


def test_somebody_elses_commit_into_another_image_is_not_seen_through(control, disk):
    """It would lose what lies between, of which the plan told nothing."""
    disk.runs(ACTIVE_COMMIT, into=BASE)
    refused = "a commit of vda into /images/base runs, which is not /images/mid.* with --base /images/base"
    with pytest.raises(RefusedError, match=refused):
        control.dry("domain.block-commit", "web1", device="vda", base="/images/mid")
    with pytest.raises(RefusedError, match=refused):
        control("domain.block-commit", "web1", device="vda", base="/images/mid", within_s=5)
    assert disk.job
    assert control("domain.block-commit", "web1", device="vda", within_s=60).after["chain"] == ["/images/base"]


@pytest.mark.parametrize("look", ["job_of", "known_job"])
def test_a_commit_that_somebody_else_begins_meanwhile_is_left_alone(control, disk, monkeypatch, look):
    """As the act looks for a job, and as ours, once somebody has stopped it, gives way to theirs."""
    monkeypatch.setattr(libvirt.virDomain, "blockCommit", lambda *_asked: disk.runs(ACTIVE_COMMIT, into=MID))
    real, act = getattr(block_jobs, look), block_jobs.BlockCommit.act

    def theirs(handle, device):
        disk.runs(ACTIVE_COMMIT, into=BASE)
        return real(handle, device)

    def acting(*asked):
        monkeypatch.setattr(block_jobs, look, theirs)
        act(*asked)

    monkeypatch.setattr(block_jobs.BlockCommit, "act", acting)
    with pytest.raises(RefusedError, match="a commit of vda into /images/base runs, which is not /images/mid"):
        control("domain.block-commit", "web1", device="vda", base="/images/mid", within_s=5)
    assert (bool(disk.job), disk.pivoted) == (True, False)


def failing(code=libvirt.VIR_ERR_OPERATION_INVALID):
    error = libvirt.libvirtError("no")
    error.err = (code, libvirt.VIR_FROM_NONE, str(error), 2, None, None, None, -1, -1)
    return error


@pytest.mark.parametrize("answers", [True, False], ids=["the stop is taken", "the stop is refused"])
def test_a_job_that_is_done_as_it_is_stopped_is_done(control, disk, monkeypatch, answers):
    def too_late(*_asked):
        disk.is_over([TOP])
        if not answers:
            raise failing()

    monkeypatch.setattr(libvirt.virDomain, "blockPull", lambda *_asked: disk.runs(PULL))
    monkeypatch.setattr(libvirt.virDomain, "blockJobAbort", too_late)
    assert control("domain.block-pull", "web1", device="vda", within_s=0.1).after["chain"] == ["/images/top"]


def test_a_job_that_ends_with_its_guest_as_it_is_stopped_was_not_stopped(control, disk, monkeypatch):
    def powered_off(domain, _device, _flags):
        disk.is_over(disk.sources)
        domain.destroy()
        raise failing()

    monkeypatch.setattr(libvirt.virDomain, "blockPull", lambda *_asked: disk.runs(PULL))
    monkeypatch.setattr(libvirt.virDomain, "blockJobAbort", lambda *asked: powered_off(*asked))
    with pytest.raises(RefusedError, match="ended with the guest, which is shutoff"):
        control("domain.block-pull", "web1", device="vda", within_s=0.1)


def test_time_for_a_guest_that_hangs(control):
    """It answers after 30 s: to the last look, to the stop, and to the look after it."""
    parameters = block_jobs.BlockPull.parameters(device="vda", within_s=10)
    assert block_jobs.BlockPull().time_needed_s(parameters) > 10 + 90 + 2 * block_jobs._SETTLES_S


def test_a_guest_too_busy_to_change_over_is_told_as_such(control, disk, monkeypatch):
    def busy(*_asked):
        raise failing(libvirt.VIR_ERR_OPERATION_TIMEOUT)

    disk.runs(ACTIVE_COMMIT, into=BASE)
    monkeypatch.setattr(libvirt.virDomain, "blockJobAbort", busy)
    request = Request(Actor("t", "test"), confirmed="web1", deadline_s=1)
    with pytest.raises(TimedOutError, match="is copied, and does not change over to /images/base") as caught:
        control.run("domain.block-commit", "web1", {"device": "vda"}, request)
    assert (caught.value.libvirt_code, caught.value.outcome_unknown) == (libvirt.VIR_ERR_OPERATION_TIMEOUT, True)


def test_a_commit_that_is_cancelled_as_it_changes_over_is_stopped(control, disk, monkeypatch):
    cancelled = threading.Event()

    def not_ready(_domain, device, flags):
        if flags:
            cancelled.set()
            raise failing(libvirt.VIR_ERR_BLOCK_COPY_ACTIVE)
        disk.aborted(device, flags)

    disk.runs(ACTIVE_COMMIT, into=BASE)
    monkeypatch.setattr(libvirt.virDomain, "blockJobAbort", lambda *asked: not_ready(*asked))
    request = Request(Actor("t", "test"), confirmed="web1", cancelled=cancelled)
    with pytest.raises(TimedOutError, match=r"was stopped before its end \(cancelled by the caller\)"):
        control.run("domain.block-commit", "web1", {"device": "vda"}, request)
    assert not disk.job
