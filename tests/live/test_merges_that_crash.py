"""A guest that crashes while an overlay is merged into its raw base: what is warned of, and where its data is then."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from exporter.control.block_jobs import BlockCommit
from exporter.control.errors import ControlError
from exporter.control.operation import Plan, Result
from exporter.demonstration.private_hypervisor import PrivateHypervisor
from exporter.demonstration.programs import run_program
from tests.live.operating import Operator, eventually
from tests.live.sector_guests import WRITTEN_FROM, WRITTEN_TO, SectorGuest, define, writing
from tests.live.test_control_snapshots import DISK_BYTES, GUEST, UNWRITTEN_FROM, ours, overwritten

TRIES = 8
ASKED: dict[str, Callable[..., Result]] = {
    "block-commit": lambda ask: ask("domain.block-commit", GUEST, device="hda"),
    "snapshot delete": lambda ask: ask("snapshot.delete", GUEST, name="one"),
}


@pytest.fixture(scope="module")
def operator(hypervisor: PrivateHypervisor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    operator = Operator(hypervisor.uri, tmp_path_factory.mktemp("crash") / "control", (hypervisor.folder / "images",))
    yield operator
    operator.close()


@contextmanager
def on_an_overlay(hypervisor: PrivateHypervisor, operator: Operator) -> Iterator[tuple[SectorGuest, str]]:
    """A guest that keeps writing through IDE, and its overlay, above the raw disk, with 8 MiB of ours in it."""
    guest = define(hypervisor, GUEST, writing())
    os.truncate(guest.disk, DISK_BYTES)
    data = guest.disk.with_suffix(".ours")
    data.write_bytes(ours())
    try:
        overlay = files_of_one(operator)["hda"]
        run_program(["qemu-io", "-c", f"write -s {data} {UNWRITTEN_FROM} {len(ours())}", overlay])
        operator("domain.start", GUEST)
        eventually(guest.said, "the first pass of the guest")
        overwritten(guest)
        yield guest, overlay
    finally:
        operator("domain.destroy", GUEST)
        operator("domain.undefine", GUEST, snapshots=True)
        for left in guest.disk.parent.glob(f"{GUEST}.*"):
            left.unlink()


def warned(operator: Operator, plan: Plan | None, overlay: str) -> None:
    assert plan is not None
    seven = operator.executor.session.connection.getVersion() // 1000 == 7002
    assert [overlay in warning for warning in plan.warnings] == ([True] if seven else [])


def files_of_one(operator: Operator) -> dict[str, str]:
    files = operator("snapshot.create", GUEST, name="one").details["files"]
    assert isinstance(files, dict)
    return {target: str(file) for target, file in files.items()}


def checked(guest: SectorGuest, file: str, form: str) -> None:
    """Ours is there to the byte; of the guest, which never has its disk flush, whole sectors of passes that it made."""
    raw = guest.disk.with_suffix(".checked")
    run_program(["qemu-img", "convert", "-f", form, "-O", "raw", file, str(raw)])
    content = raw.read_bytes()
    assert content[UNWRITTEN_FROM:DISK_BYTES] == ours()
    made = len(guest.said().strip()) + 1
    for at in range(WRITTEN_FROM, WRITTEN_TO, 512):
        sector = content[at : at + 512]
        assert sector == sector[:2] * 256
        assert 1 <= int.from_bytes(sector[:2], "little") <= made


def data_is_told_and_there(error: ControlError, guest: SectorGuest, overlay: str) -> None:
    """It lies where the error says, and gets into the base the way that it says."""
    assert "ended with the guest, which is shutoff (crashed); disk hda was in work" in str(error)
    assert f"its data is still in {overlay} on {guest.disk} (" in str(error)
    assert "; keep all of these files, which are as after a power failure; see why in the guest's log" in str(error)
    checked(guest, overlay, "qcow2")
    assert f"'qemu-img commit -b {guest.disk} {overlay}'" in str(error)
    run_program(["qemu-img", "commit", "-q", "-b", str(guest.disk), overlay])
    checked(guest, str(guest.disk), "raw")


def test_a_guest_killed_as_its_commit_changes_over(
    operator: Operator, hypervisor: PrivateHypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with on_an_overlay(hypervisor, operator) as (guest, overlay):
        real = BlockCommit.finish

        def killed(*asked: object) -> None:
            os.kill(hypervisor.qemu_pid(GUEST), signal.SIGKILL)
            real(*asked)  # type: ignore[arg-type]

        monkeypatch.setattr(BlockCommit, "finish", killed)
        warned(operator, operator.dry("domain.block-commit", GUEST, device="hda").plan, overlay)
        with pytest.raises(ControlError, match=r"^block-commit of hda ended with the guest") as caught:
            operator("domain.block-commit", GUEST, device="hda")
        data_is_told_and_there(caught.value, guest, overlay)


@pytest.mark.parametrize("merge", ["block-commit", "snapshot delete"])
def test_a_guest_whose_qemu_crashes(operator: Operator, hypervisor: PrivateHypervisor, merge: str) -> None:
    """QEMU's own defect, where it has it: a matter of luck each time."""
    for _ in range(TRIES):
        with on_an_overlay(hypervisor, operator) as (guest, overlay):
            warned(operator, ASKED[merge](operator.dry).plan, overlay)
            try:
                ASKED[merge](operator)
            except ControlError as error:
                data_is_told_and_there(error, guest, overlay)
                return
    pytest.skip(f"QEMU did not crash in {TRIES} merges")


@pytest.mark.parametrize("merge", ["block-commit", "snapshot delete"])
def test_a_paused_guest_is_merged_and_goes_on(operator: Operator, hypervisor: PrivateHypervisor, merge: str) -> None:
    for _ in range(3):
        with on_an_overlay(hypervisor, operator) as (guest, _):
            operator("domain.suspend", GUEST)
            plan = ASKED[merge](operator.dry).plan
            assert plan is not None
            assert plan.warnings == []
            assert ASKED[merge](operator).changed
            operator("domain.resume", GUEST)
            overwritten(guest)
            operator("domain.destroy", GUEST)
            checked(guest, str(guest.disk), "raw")
