"""A token with a narrow scope gives its guests no image that holds another guest's data, by whatever operation."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exporter.control.connection import Session
from exporter.control.errors import RefusedError
from exporter.control.foreign_images import ForeignImages
from tests.control_service import ControlService

QCOW2_VERSION_3 = b"QFI\xfb\x00\x00\x00\x03"


def qcow2(path: Path, backing: str = "") -> Path:
    """An image's header, which is all that is looked at: the backing file's name stands right behind it."""
    header = bytearray(QCOW2_VERSION_3 + bytes(104))
    if backing:
        header[8:20] = len(header).to_bytes(8, "big") + len(backing).to_bytes(4, "big")
    path.write_bytes(bytes(header) + backing.encode())
    return path


def disk(file: Path, target: str, more: str = "", device: str = "disk") -> str:
    return (f"<disk type='file' device='{device}'><driver name='qemu' type='qcow2'/><source file='{file}'/>"
            f"<target dev='{target}'/>{more}</disk>")  # fmt: skip


def domain(name: str, number: int, disks: str) -> str:
    return (f"<domain type='test'><name>{name}</name><uuid>6695eb01-f6a4-8304-79aa-97f2502e19{number:02}</uuid>"
            f"<memory>8192</memory><os><type>hvm</type></os><devices>{disks}</devices></domain>")  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    qcow2(folder / "base.qcow2")
    qcow2(folder / "middle.qcow2", "base.qcow2")
    qcow2(folder / "db1.qcow2", str(folder / "middle.qcow2"))
    for name in ("own.qcow2", "free.qcow2", "media.qcow2", "shown.qcow2"):
        qcow2(folder / name)
    os.link(folder / "db1.qcow2", folder / "other-name.qcow2")
    (folder / "link.qcow2").symlink_to("db1.qcow2")
    return folder


@pytest.fixture(scope="module")
def service(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlService]:
    folder = tmp_path_factory.mktemp("control")
    db1 = disk(images / "db1.qcow2", "vda") + disk(images / "media.qcow2", "sda", device="cdrom") + disk(
        images / "shown.qcow2", "vdb", "<readonly/>")  # fmt: skip
    (folder / "node.xml").write_text(
        f"<node>{domain('web1', 1, disk(images / 'own.qcow2', 'vda'))}{domain('db1', 2, db1)}</node>")  # fmt: skip
    service = ControlService(folder, f"test://{folder}/node.xml").start("--control.image-directory", str(images))
    yield service
    assert service.stop() in (0, None)


def asked(service: ControlService, token: str, image: Path, read_only: bool = False) -> tuple[int, Any]:
    parameters = {"file": str(image), "format": "qcow2", "read_only": read_only, "apply_to": "persistent"}
    body = {"parameters": parameters, "dry_run": True}
    return service.ask("POST", "/api/v1/domains/web1/attach-disk", body, token=token)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["db1", "link", "other-name", "middle", "base"])
@pytest.mark.parametrize("read_only", [True, False])
def test_another_guests_image_and_what_it_stands_on_are_refused(
    service: ControlService, images: Path, name: str, read_only: bool
) -> None:
    status, document = asked(service, "web", images / f"{name}.qcow2", read_only)
    assert (status, "belongs to a domain that this token does not reach" in document["detail"]) == (409, True)
    assert "'db1'" not in document["detail"]
    # Not for want of anything else: who reaches all of the host is not stopped by this.
    status, document = asked(service, "admin", images / f"{name}.qcow2", read_only)
    assert "does not reach" not in document.get("detail", "")


@pytest.mark.parametrize("name", ["own", "free", "media", "shown"])
def test_ones_own_free_and_shared_images_are_not(service: ControlService, images: Path, name: str) -> None:
    _, document = asked(service, "web", images / f"{name}.qcow2")
    assert "belongs to a domain that" not in document.get("detail", "")
    # Written to, what another guest has in its drive is refused as for everybody, but without that guest's name.
    assert "db1" not in document.get("detail", "")
    if name in ("media", "shown"):
        assert document["detail"].endswith("is in use by a domain that this token does not reach")
        assert asked(service, "admin", images / f"{name}.qcow2")[1]["detail"].endswith("in use by domain db1")


@pytest.mark.parametrize(
    ("operation", "fields"),
    [("define", {}), ("create", {}), ("provision", {}), ("define-xml", None), ("create-xml", None)],
)
def test_a_new_guest_gets_none_either(service: ControlService, images: Path, operation: str, fields: Any) -> None:
    image = str(images / "db1.qcow2")
    if fields is None:
        parameters: dict[str, Any] = {"xml": domain("web7", 7, disk(images / "db1.qcow2", "vda"))}
    else:
        parameters = {"name": "web7", "type": "test", "memory_mib": 64, "disks": [{"file": image, "format": "qcow2"}]}
    for dry_run in (True, False):
        body = {"parameters": parameters, "dry_run": dry_run}
        status, document = service.ask("POST", f"/api/v1/domains:{operation}", body, token="web")
        assert (status, "does not reach" in document["detail"]) == (409, True), document
    assert service.ask("GET", "/api/v1/domains/web7", token="web")[0] == 404


def test_another_guests_uuid_tells_no_name(service: ControlService) -> None:
    uuid = "6695eb01-f6a4-8304-79aa-97f2502e1902"
    parameters = {"name": "web7", "uuid": uuid, "type": "test", "memory_mib": 64}
    status, document = service.ask("POST", "/api/v1/domains:define", {"parameters": parameters}, token="web")
    assert (status, uuid in document["detail"], "db1" in document["detail"]) == (403, True, False)


def test_what_another_guest_wrote_leads_nowhere(tmp_path: Path) -> None:
    """Into its metadata, an entity that no parser knows; into its raw disk, whose bytes are its own, a header."""
    free = qcow2(tmp_path / "free.qcow2")
    os.mkfifo(tmp_path / "fifo")
    claims = {"vda": "\0", "vdb": str(free), "vdc": str(tmp_path / "fifo")}
    # A pipe is not waited for even where the image is qcow2: an administrator's mistake may have led to it.
    disks = [disk(qcow2(tmp_path / f"{target}.img", name), target) for target, name in claims.items()]
    disks[:2] = [one.replace("qcow2'/>", "raw'/>") for one in disks[:2]]
    # What was its raw disk until a snapshot was taken.
    raw, overlay = qcow2(tmp_path / "raw.img", str(free)), qcow2(tmp_path / "overlay.img", "raw.img")
    disks.append(disk(overlay, "vdd", f"<backingStore type='file'><format type='raw'/><source file='{raw}'/>"
                                      "</backingStore>"))  # fmt: skip
    written = domain("db1", 2, "".join(disks)).replace(
        "<os>", "<metadata><x:note xmlns:x='urn:x'>&owned;</x:note></metadata><os>")  # fmt: skip
    (tmp_path / "node.xml").write_text(f"<node>{domain('web1', 1, '')}</node>")
    session = Session(f"test://{tmp_path}/node.xml")
    try:
        session.connection.defineXML(f'<!DOCTYPE domain [<!ENTITY owned "x">]>{written}')
        foreign = ForeignImages(session, lambda name: name == "web1")
        foreign.refuse(free)
        for target in (*claims, "overlay", "raw"):
            with pytest.raises(RefusedError, match="does not reach"):
                foreign.refuse(tmp_path / f"{target}.img")
    finally:
        session.close()
