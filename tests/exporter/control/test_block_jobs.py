"""Block jobs that go another way than asked, by libvirt's test driver with a disk of ours. Real ones: tests/live."""

from __future__ import annotations

import re

import libvirt
import pytest

from exporter.control.errors import RefusedError
from tests.live.operating import Operator

NODE = """<node><domain type='test'><name>web1</name><uuid>6695eb01-f6a4-8304-79aa-97f2502e193f</uuid>
<memory>8192</memory><os><type>hvm</type></os><devices><disk type='file' device='disk'><source file='/x'/>
<target dev='vda' bus='virtio'/></disk></devices></domain></node>"""
TOP, MID, BASE = (f"<source file='/images/{name}'/>" for name in ("top", "mid", "base"))


class Disk:
    """The guest's vda as libvirt shows it: the `<source>` of each image, the newest first."""

    def __init__(self) -> None:
        self.sources = [TOP, MID, BASE]

    def xml(self) -> str:
        below = "".join(
            f"<backingStore type='file' index='{index}'><format type='qcow2'/>{source}"
            for index, source in enumerate(self.sources[1:], 2)
        )
        return (
            f"<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>{self.sources[0]}{below}<backingStore/>"
            f"{'</backingStore>' * (len(self.sources) - 1)}<target dev='vda' bus='virtio'/></disk>"
        )


@pytest.fixture
def disk(monkeypatch):
    made, real = Disk(), libvirt.virDomain.XMLDesc
    shown = re.compile("<disk .*</disk>", re.DOTALL)
    monkeypatch.setattr(
        libvirt.virDomain, "XMLDesc", lambda domain, flags=0: shown.sub(made.xml(), real(domain, flags))
    )
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
