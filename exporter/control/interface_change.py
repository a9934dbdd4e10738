"""The host's one open interface change: libvirt's transaction, a file that tells of it, a watchdog that ends it.

libvirt (netcf) rolls a change back at the next boot only, never by a timer. So the deadline is ours: the change is
written down, a process of its own (`exporter.control.interface_watchdog`) takes it over, and only then libvirt's
transaction begins. Unless it is committed in time, the watchdog rolls it back, whatever became of us.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import libvirt

from exporter.control.connection import Session
from exporter.control.errors import ControlError, RefusedError
from exporter.control.folders import Folders

LOCK_KEY = "host-interfaces"
_READY_WITHIN_S = 20.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class OpenChange:
    """A change that was begun and neither committed nor rolled back. `ends_s` is CLOCK_BOOTTIME, in seconds."""

    id: str
    uri: str
    boot_id: str
    ends_s: float
    confirm_before: str

    def remaining_s(self) -> float:
        """Seconds until it is rolled back; not negative."""
        return max(0.0, self.ends_s - boot_time_s())

    @property
    def of_this_boot(self) -> bool:
        return self.boot_id == boot_id()


def boot_time_s() -> float:
    """Seconds since boot, suspend included: one clock for all processes of this host."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """The kernel's name for this boot; proc_sys_kernel(5)."""
    return _BOOT_ID.read_text(encoding="ascii").strip()


class ChangeFile:
    """Where the open change is written down, and the lock that its watchdog holds while it lives."""

    def __init__(self, folders: Folders) -> None:
        self._folder = folders.state
        self._private = folders.private
        self.path = folders.state / "interface-change.json"
        self._watch = folders.state / "interface-watch.lock"

    def load(self) -> OpenChange | None:
        """The open change; None without one. A torn file counts as none: it is replaced whole, never in part."""
        try:
            return OpenChange(**json.loads(self.path.read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def store(self, change: OpenChange) -> None:
        """Writes it down, on the disk before this returns."""
        self._private(self._folder)
        part = self.path.with_suffix(".part")
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(json.dumps(asdict(change)).encode())
            file.flush()
            os.fdatasync(fd)
        os.replace(part, self.path)

    def forget(self, change: OpenChange) -> None:
        """Removes it, if it is still this one."""
        found = self.load()
        if found is not None and found.id == change.id:
            self.path.unlink(missing_ok=True)

    def watch_lock(self) -> int | None:
        """The watchdog's lock, held until the file descriptor is closed; None where another holds it."""
        self._private(self._folder)
        fd = os.open(self._watch, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return fd

    def is_watched(self) -> bool:
        """Whether a watchdog lives."""
        fd = self.watch_lock()
        if fd is None:
            return True
        os.close(fd)
        return False


def begin(session: Session, folders: Folders, confirm_within_s: float) -> OpenChange:
    """Opens libvirt's transaction under a watchdog. The caller holds the lock of the host's interfaces.

    Raises RefusedError where libvirt has one open that is not ours, ControlError where no watchdog starts,
    libvirtError.
    """
    file = ChangeFile(folders)
    change = OpenChange(
        id=uuid.uuid4().hex,
        uri=session.uri or str(session.connection.getURI()),
        boot_id=boot_id(),
        ends_s=boot_time_s() + confirm_within_s,
        confirm_before=(datetime.now(UTC) + timedelta(seconds=confirm_within_s)).isoformat(timespec="seconds"),
    )
    file.store(change)
    try:
        start_watchdog(folders, change)
        session.connection.changeBegin(0)
    except BaseException as error:
        file.forget(change)
        if isinstance(error, libvirt.libvirtError) and error.get_error_code() == libvirt.VIR_ERR_OPERATION_INVALID:
            raise RefusedError(
                "libvirt has an interface change open that virtgauge did not begin",
                next_step="end it with 'virsh iface-commit' or 'virsh iface-rollback'",
                libvirt_code=error.get_error_code(),
                libvirt_message=error.get_error_message(),
            ) from error
        raise
    return change


def commit(session: Session, folders: Folders, change: OpenChange) -> None:
    """Keeps what was changed. Raises RefusedError where its time is over, libvirtError."""
    if change.remaining_s() <= 0:
        raise RefusedError("the time to confirm is over; the change is being rolled back", next_step="change it again")
    session.connection.changeCommit(0)
    ChangeFile(folders).forget(change)


def roll_back(session: Session, folders: Folders, change: OpenChange) -> bool:
    """Undoes what was changed; false where libvirt has no transaction open any more. Raises libvirtError."""
    undone = True
    try:
        session.connection.changeRollback(0)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_OPERATION_INVALID:
            raise
        undone = False
    ChangeFile(folders).forget(change)
    return undone


def start_watchdog(folders: Folders, change: OpenChange) -> None:
    """Starts the process that ends `change` in time, and waits until it has its own connection.

    Raises ControlError where it does not come up; it is then not running.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "exporter.control.interface_watchdog"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a closed terminal or Ctrl-C must not take it along
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        order = {"state": str(folders.state), "change": asdict(change)}
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(order).encode())
            process.stdin.close()
        ready, _, _ = select.select([process.stdout], [], [], _READY_WITHIN_S)
        answer = os.read(process.stdout.fileno(), 4096).decode(errors="replace").strip() if ready else ""
    if answer != "ready":
        process.kill()
        process.wait()
        raise ControlError(
            f"the watchdog that would roll the change back did not start ({answer or 'no answer'}), so nothing is done",
            next_step="try again; if it stays so, check that libvirt takes another connection",
        )
    # Only so that no zombie stays where this process lives longer than the watchdog.
    threading.Thread(target=process.wait, name="interface-watchdog-reaper", daemon=True).start()


def resume(folders: Folders, note: Callable[[str, dict[str, Any]], object]) -> None:
    """Takes up a change whose watchdog has died: watched again, or told of as ended by a reboot.

    For each start of the service and of the command line. `note` writes to the audit trail.
    """
    file = ChangeFile(folders)
    change = file.load()
    if change is None or file.is_watched():
        return
    if not change.of_this_boot:
        file.forget(change)
        outcome = "the host was restarted with the change open; libvirt rolls it back at boot"
        note("interrupted", {"operation": "interface.change", "change": change.id, "outcome": outcome})
        return
    # Past its time it rolls back at once.
    with contextlib.suppress(ControlError):
        start_watchdog(folders, change)
