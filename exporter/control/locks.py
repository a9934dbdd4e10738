"""One lock a subject, shared by command line and service: a file lock that also remembers an act left open.

libvirt lets a second modifying call wait 30 s and then fail; this answers "busy" at once. The lock file holds the
act in progress. The kernel frees the lock when its holder dies, so a free lock with an act in it means a crash.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import JsonValue

from exporter.control.errors import BusyError, UnreachableError
from exporter.control.folders import Folders

_POLL_S = 0.05


class SubjectLock:
    """A held lock. `left_open` is the act that a dead holder left in it, None after a clean end.

    One with a `passing` path removes that file when it is released.
    """

    def __init__(self, fd: int, passing: Path | None = None) -> None:
        self._fd = fd
        self._passing = passing
        self.left_open = _read(fd)

    def open_act(self, act: Mapping[str, JsonValue]) -> None:
        """Writes the act down, on the disk before this returns. Raises UnreachableError where it cannot be."""
        try:
            self._write(json.dumps(dict(act)).encode() + b"\n")
        except OSError as error:
            raise UnreachableError(
                f"the act cannot be written down in its lock ({error.strerror})",
                next_step="make room for the state folder",
            ) from error

    def close_act(self) -> None:
        self._write(b"")

    def _write(self, content: bytes) -> None:
        # Over the old content, whose tail goes last: killed at any moment, one line tells of the act.
        os.pwrite(self._fd, content, 0)
        os.ftruncate(self._fd, len(content))
        os.fdatasync(self._fd)

    def release(self) -> None:
        if self._passing is not None:
            with contextlib.suppress(OSError):
                self._passing.unlink()  # while it is held: who waits for it sees that, and takes the next one
        os.close(self._fd)


class Locks:
    """Locks by key in the state folder. Any thread; also excludes threads of one process from each other."""

    def __init__(self, folders: Folders) -> None:
        self._folders = folders

    def acquire(self, key: str, what: str, wait_s: float = 0.0, passing: bool = False) -> SubjectLock:
        """The lock of `key`; raises BusyError where another holds it after `wait_s`, telling which act.

        A `passing` lock, for what is no act, leaves no file behind; whoever takes its key takes it so.
        """
        path = self._path(key)
        fd = self._open(path)
        end_s = time.monotonic() + wait_s
        while True:
            if _flock(fd):
                if not passing or _is_at(fd, path):
                    return SubjectLock(fd, path if passing else None)
                os.close(fd)  # its last holder has removed it
                fd = self._open(path)
                continue
            if time.monotonic() >= end_s:
                holder = _read(fd) or {}
                os.close(fd)
                raise BusyError(
                    f"{what} is busy with {holder.get('operation', 'another operation')}"
                    f" asked by {holder.get('actor', 'somebody')}",
                    next_step="ask again when it is done, or give --wait 30s",
                )
            time.sleep(_POLL_S)

    def left_open(self) -> Iterator[tuple[SubjectLock, dict[str, JsonValue]]]:
        """Each act that a dead holder left open, with its lock held; the caller closes the act, we release."""
        folder = self._folders.locks
        for path in sorted(folder.glob("*.lock")) if folder.is_dir() else ():
            try:
                if not path.stat().st_size:
                    continue
            except FileNotFoundError:  # a passing lock was released
                continue
            fd = self._open(path)
            if not _flock(fd):
                os.close(fd)
                continue
            lock = SubjectLock(fd)
            try:
                if lock.left_open is not None:
                    yield lock, lock.left_open
            finally:
                lock.release()

    def _path(self, key: str) -> Path:
        safe = re.sub(r"[^A-Za-z0-9_-]", lambda found: f"%{ord(found.group()):x}.", key)
        return self._folders.private(self._folders.locks) / f"{safe[:200]}.lock"

    @staticmethod
    def _open(path: Path) -> int:
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise UnreachableError(
                f"the lock {path} cannot be opened ({error.strerror})",
                next_step="run as the account that owns the state folder",
            ) from error


def _flock(fd: int) -> bool:
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def _read(fd: int) -> dict[str, JsonValue] | None:
    content = os.pread(fd, 1 << 20, 0)
    if not content:
        return None
    try:
        act = json.loads(content.partition(b"\n")[0])
    except ValueError:
        act = None
    return act if isinstance(act, dict) else {"operation": "unknown", "torn": True}
