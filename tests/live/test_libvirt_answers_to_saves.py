"""What libvirt itself answers to saves and restores that are wrong, dangerous or damaged: the facts control stands on.

One test a row of what was measured, as in `test_libvirt_answers`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from exporter.control.errors import from_libvirt
from exporter.demonstration.private_hypervisor import PrivateHypervisor
from tests.live.libvirt_answers import (
    DESTROYED,
    FROM_SNAPSHOT,
    PAUSED,
    RESTORED,
    RUNNING,
    SAVED,
    SHUTOFF,
    SUSPENDED,
    Heard,
    code,
    kind,
    known_guest,
    opened,
    refusal,
)
from tests.live.operating import eventually
from tests.live.sector_guests import SectorGuest, pattern, sector_xml

HEADER = b"LibvirtQemudSave"


@pytest.fixture(scope="module")
def connection(hypervisor: PrivateHypervisor) -> Iterator[Any]:
    yield from opened(hypervisor)


@pytest.fixture
def guest(hypervisor: PrivateHypervisor, connection: Any) -> Iterator[tuple[Any, SectorGuest]]:
    yield from known_guest(hypervisor, connection)


@pytest.fixture
def saves(tmp_path: Path) -> Path:
    return tmp_path


def test_where_an_image_cannot_be_written_the_guest_goes_on(guest: Any, saves: Path) -> None:
    domain, _known = guest
    domain.create()
    for path in (saves / "missing" / "x", saves, Path("/sys/x"), Path("/proc/x")):
        call = lambda path=path: domain.save(str(path))  # noqa: E731
        assert code(call) == libvirt.VIR_ERR_SYSTEM_ERROR
        assert domain.state() == [RUNNING, libvirt.VIR_DOMAIN_RUNNING_SAVE_CANCELED]


def test_a_save_by_parameters_knows_the_file_and_no_format(guest: Any, connection: Any, saves: Path) -> None:
    """libvirt 9.0 has no parameter for the format, which `save_image_format` of qemu.conf says for all.

    Not shown: without a file it makes a managed save, and leaves the domain locked, so that each later call to it
    hung for ten minutes, twice. Control saves with saveFlags, which needs its file.
    """
    domain, _known = guest
    domain.create()
    file = {libvirt.VIR_DOMAIN_SAVE_PARAM_FILE: str(saves / "image")}
    assert kind(lambda: domain.saveParams({**file, "image_format": "zstd"}, 0)) == "unsupported"
    assert domain.state()[0] == RUNNING
    assert domain.saveParams(file, libvirt.VIR_DOMAIN_SAVE_PAUSED) == 0
    assert (saves / "image").read_bytes().startswith(HEADER)
    assert code(lambda: connection.restoreParams({}, 0)) == libvirt.VIR_ERR_INVALID_ARG
    assert connection.restoreParams(file, 0) == 0
    assert domain.state()[0] == PAUSED


def test_no_room_while_saving(guest: Any, hypervisor: PrivateHypervisor) -> None:
    domain, known = guest
    small = hypervisor.folder / "images" / "small-saves"
    small.mkdir()
    hypervisor.run("mount", "-t", "tmpfs", "-o", "size=64k", "small", str(small))
    try:
        domain.create()
        eventually(lambda: "PATTERN OK" in known.said(), "the guest's first check")
        refused = refusal(lambda: domain.save(f"{small}/x"))
        assert "No space left on device" in str(refused)
        assert from_libvirt(refused, "saving").next_step == "make room, and ask again"
        assert hypervisor.run("ls", str(small)) == b""
        assert domain.state()[0] == RUNNING
    finally:
        hypervisor.run("umount", "--lazy", str(small))


def test_an_existing_file_is_overwritten_and_keeps_its_mode(connection: Any, guest: Any, saves: Path) -> None:
    """Why images have names of ours that nobody else can have made."""
    domain, _known = guest
    domain.create()
    file = saves / "precious"
    file.write_text("somebody's only copy")
    file.chmod(0o644)
    domain.save(str(file))
    assert file.read_bytes()[: len(HEADER)] == HEADER
    assert file.stat().st_mode & 0o777 == 0o644  # the guest's memory, for all to read
    connection.restore(str(file))


def test_saved_to_a_device_the_guest_is_lost(connection: Any, guest: Any) -> None:
    domain, _known = guest
    domain.create()
    assert domain.save("/dev/null") == 0
    assert domain.state() == [SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_SAVED]
    assert code(lambda: connection.restore("/dev/null")) == libvirt.VIR_ERR_OPERATION_FAILED


def test_paths_are_the_clients_and_dots_are_followed(
    connection: Any, guest: Any, saves: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain, _known = guest
    domain.create()
    monkeypatch.chdir(saves)
    (saves / "sub").mkdir()
    domain.save("sub/../relative")
    assert (saves / "relative").stat().st_mode & 0o777 == 0o600
    connection.restore(str(saves / "relative"))


def test_events_and_states_of_a_save_and_a_restore(connection: Any, guest: Any, saves: Path) -> None:
    domain, known = guest
    domain.create()
    eventually(lambda: "PATTERN OK" in known.said(), "the guest's first check")
    image = str(saves / "image")
    with Heard(connection, domain) as heard:
        domain.saveFlags(image, None, libvirt.VIR_DOMAIN_SAVE_PAUSED | libvirt.VIR_DOMAIN_SAVE_BYPASS_CACHE)
        heard.until(SUSPENDED, SAVED)
        assert domain.state() == [SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_SAVED]
        connection.restore(image)
        heard.until(RESTORED)
        assert domain.state()[0] == PAUSED  # as the image says
        assert code(lambda: connection.restore(image)) == libvirt.VIR_ERR_OPERATION_INVALID
        domain.destroy()
        connection.restoreFlags(image, None, libvirt.VIR_DOMAIN_SAVE_RUNNING)  # the same image again, and otherwise
        heard.until(RESTORED, DESTROYED, RESTORED, FROM_SNAPSHOT)
        assert domain.state()[0] == RUNNING
    domain.destroy()
    xml = connection.saveImageGetXMLDesc(image, 0)
    other = xml.replace("<name>known</name>", "<name>known-other</name>")
    for call in (
        lambda: connection.restoreFlags(image, other, 0),
        lambda: connection.saveImageDefineXML(image, other, 0),
    ):
        assert (code(call), kind(call)) == (libvirt.VIR_ERR_CONFIG_UNSUPPORTED, "unsupported")
    domain.undefine()
    connection.restore(image)
    restored = connection.lookupByUUIDString(known.uuid)
    assert restored.isPersistent() == 0


def test_a_name_that_another_has_meanwhile(
    connection: Any, guest: Any, saves: Path, hypervisor: PrivateHypervisor
) -> None:
    domain, _known = guest
    domain.create()
    domain.save(str(saves / "image"))
    domain.undefine()
    connection.defineXML(sector_xml(hypervisor, "known", pattern())[0])
    assert "already exists with uuid" in str(refusal(lambda: connection.restore(str(saves / "image"))))


def test_images_that_are_none(connection: Any, guest: Any, saves: Path) -> None:
    domain, known = guest
    domain.create()
    eventually(lambda: "PATTERN OK" in known.said(), "the guest's first check")
    image = saves / "image"
    domain.save(str(image))
    whole = image.read_bytes()
    version_and_sizes = whole[: len(HEADER) + 76]

    def written(content: bytes) -> str:
        (saves / "bad").write_bytes(content)
        return str(saves / "bad")

    missing = lambda: connection.restore(str(saves / "missing"))  # noqa: E731
    assert code(missing) == libvirt.VIR_ERR_SYSTEM_ERROR
    for content, expected in (
        (b"", libvirt.VIR_ERR_OPERATION_FAILED),
        (whole[:30], libvirt.VIR_ERR_OPERATION_FAILED),
        (b"NotAnImage......" + whole[16:], libvirt.VIR_ERR_OPERATION_FAILED),
        (version_and_sizes + whole[len(version_and_sizes) :].replace(b"<domain", b"<<<<<<<", 1),
         libvirt.VIR_ERR_XML_DETAIL),
    ):  # fmt: skip
        assert code(lambda content=content: connection.restore(written(content))) == expected
    # Cut off in the memory: the header alone is read before QEMU starts.
    cut = whole[: len(whole) // 2]
    assert "known" in connection.saveImageGetXMLDesc(written(cut), 0)
    assert code(lambda: connection.restore(written(cut))) in (
        libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_ERR_OPERATION_FAILED
    )  # fmt: skip
    assert domain.state()[0] == SHUTOFF
    # Within the memory nothing is checked at all: restored without an error, and the guest finds it.
    place = whole.index(bytes.fromhex("0010021004100610"), 64 << 10)
    connection.restore(written(whole[:place] + b"\xff" + whole[place + 1 :]))
    eventually(lambda: "PATTERN BAD" in known.said(), "the guest finds its memory damaged")


def test_the_disk_of_an_image_is_gone(connection: Any, guest: Any, saves: Path) -> None:
    domain, known = guest
    domain.create()
    domain.save(str(saves / "image"))
    moved = known.disk.rename(known.disk.with_suffix(".moved"))
    try:
        refused = refusal(lambda: connection.restore(str(saves / "image")))
    finally:
        moved.rename(known.disk)
    assert refused.get_error_code() == libvirt.VIR_ERR_SYSTEM_ERROR
    assert refused.get_error_domain() == libvirt.VIR_FROM_STORAGE
    assert "bring the file back" in from_libvirt(refused, "restoring").next_step


def test_a_managed_save_that_is_damaged_stands_in_the_way(
    connection: Any, guest: Any, hypervisor: PrivateHypervisor
) -> None:
    domain, _known = guest
    image = hypervisor.folder / "lib" / "qemu" / "save" / "known.save"
    domain.create()
    domain.managedSave(0)
    assert image.stat().st_mode & 0o777 == 0o600
    refused = lambda: domain.undefine()  # noqa: E731
    assert "managed save" in str(refusal(refused))
    assert (code(refused), kind(refused)) == (libvirt.VIR_ERR_OPERATION_INVALID, "refused")
    with Heard(connection, domain) as heard:
        domain.create()
        heard.until(RESTORED)
    assert domain.hasManagedSaveImage(0) == 0
    domain.managedSave(0)
    image.write_bytes(image.read_bytes()[:200])
    for _ in range(2):
        refusal(domain.create)
        assert domain.hasManagedSaveImage(0) == 1
    domain.createWithFlags(libvirt.VIR_DOMAIN_START_FORCE_BOOT)
    assert domain.hasManagedSaveImage(0) == 0
    domain.destroy()
    assert code(lambda: domain.managedSaveRemove(0)) == libvirt.VIR_ERR_SYSTEM_ERROR
    domain.create()
    domain.managedSave(0)
    domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)
    assert not image.exists()


