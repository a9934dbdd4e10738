"""The process that rolls an interface change back unless it is confirmed in time: `python -m` of this module.

Started by `exporter.control.interface_change`, which hands it the change on standard input and waits for "ready".
It has a session and a libvirt connection of its own, so that it survives its starter, and ends when the change does.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path

import libvirt

from exporter.control.audit import Trail
from exporter.control.connection import Session
from exporter.control.errors import BusyError, ControlError
from exporter.control.folders import Folders
from exporter.control.interface_change import LOCK_KEY, ChangeFile, OpenChange, roll_back
from exporter.control.locks import Locks

_POLL_S = 0.25
# A holder that is silent for longer is stuck in libvirt; connectivity is worth more than its turn.
_LOCK_WAIT_S = 10.0
_RETRY_S = 2.0
_RETRY_MOST_S = 60.0
_TRY_FOR_S = 24 * 3600.0


def main() -> int:
    """Watches one change to its end; 0 where it ended as it should, 1 where nothing was watched."""
    order = json.load(sys.stdin)
    folders = Folders(state=Path(order["state"]))
    change = OpenChange(**order["change"])
    os.chdir("/")
    held = _take_over(folders)
    if held is None:
        return _answer("another watchdog runs", 1)
    session = Session(change.uri)
    try:
        _ = session.connection
    except ControlError as error:
        return _answer(str(error), 1)
    _answer("ready", 0)
    watch(folders, change, session)
    os.close(held)
    return 0


def _take_over(folders: Folders) -> int | None:
    """The watchdog's lock; a predecessor whose change has just ended gets a moment to notice."""
    for _ in range(20):
        held = ChangeFile(folders).watch_lock()
        if held is not None:
            return held
        time.sleep(_POLL_S)
    return None


def _answer(text: str, status: int) -> int:
    sys.stdout.write(text.replace("\n", " ") + "\n")
    sys.stdout.flush()
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_RDWR), sys.stdout.fileno())
    return status


def watch(folders: Folders, change: OpenChange, session: Session) -> None:
    """Waits for the change's end or its time, and then undoes it; returns when there is nothing left to watch."""
    file = ChangeFile(folders)
    while _is_open(file, change):
        if change.remaining_s() <= 0:
            _end(folders, change, session)
            return
        time.sleep(min(_POLL_S, change.remaining_s() + 0.01))


def _is_open(file: ChangeFile, change: OpenChange) -> bool:
    found = file.load()
    return found is not None and found.id == change.id


def _end(folders: Folders, change: OpenChange, session: Session) -> None:
    lock = None
    with contextlib.suppress(BusyError):
        lock = Locks(folders).acquire(LOCK_KEY, "the host's interfaces", _LOCK_WAIT_S)
    try:
        if not _is_open(ChangeFile(folders), change):
            return  # committed while we waited for the lock
        _tell(folders, change, _undo(folders, change, session))
    finally:
        if lock is not None:
            lock.release()


def _undo(folders: Folders, change: OpenChange, session: Session) -> str:
    give_up_s, pause_s = time.monotonic() + _TRY_FOR_S, _RETRY_S
    while True:
        try:
            undone = roll_back(session, folders, change)
        except (ControlError, libvirt.libvirtError) as error:
            if time.monotonic() > give_up_s or not folders.state.is_dir():
                return f"not rolled back: {error}"
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.2, _RETRY_MOST_S)
            continue
        return "rolled back, since nobody confirmed it in time" if undone else "libvirt had no change open any more"


def _tell(folders: Folders, change: OpenChange, outcome: str) -> None:
    with contextlib.suppress(ControlError):  # the host is safe; a full disk must not make it otherwise
        Trail(folders.trail).append(
            "rolled-back",
            {"operation": "interface.rollback", "actor": "watchdog", "way": "watchdog", "change": change.id,
             "outcome": outcome, "pid": os.getpid()},
        )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
