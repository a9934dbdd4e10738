"""Follows an audit trail into a spool: every whole line that was appended to it, by whichever process.

The trail is safe on the disk before its writer goes on, so nothing is lost while nobody follows: the follower
remembers the line it came to and goes on from there.  Where it cannot tell (the position is gone, the trail was moved
away), it begins again at the trail's first line; ids are made of the lines, so what is sent again is there once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

from exporter.archive.documents import Host
from exporter.archive.spool import Spool
from exporter.archive.spool_frames import SAMPLES
from exporter.archive.trail_documents import payload_of
from exporter.repeated_log import RepeatedLog

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5
_MOST_READ_BYTES = 1 << 20


class TrailFollower:
    """``start`` and ``stop`` from one thread.  ``spooled`` is called when something new is safe in the spool.

    ``host`` gives the host's identity once it is known; until then the trail keeps what it has.  ``position`` is the
    file with how far the trail was read: the byte behind the last line, and that line's hash.
    """

    def __init__(self, trail: Path, spool: Spool, position: Path, host: Callable[[], Host | None],
                 spooled: Callable[[], None]) -> None:
        self._trail = trail
        self._spool = spool
        self._position = position
        self._host = host
        self._spooled = spooled
        self._repeated = RepeatedLog(log)
        self._at = -1  # not looked for yet
        self._inode = 0
        self._records = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="audit-follower", daemon=True)

    @property
    def records(self) -> int:
        """Records spooled since the start.  Any thread."""
        return self._records

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Spools what is there and ends."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def caught_up(self) -> bool:
        """Whether all whole lines of the trail are in the spool.  Any thread."""
        try:
            with self._trail.open("rb") as file:
                return self._same(file.fileno()) and self._at >= _end_of_lines(file.fileno())
        except FileNotFoundError:
            return True

    def _run(self) -> None:
        while True:
            ending = self._stopping.is_set()
            try:
                while self._take():
                    pass
                self._repeated.recovered("spool")
            except OSError as error:
                self._repeated.failed("spool", "the audit trail is not spooled for the archive; it keeps what it has",
                                      trail=str(self._trail), error=error.strerror or str(error))
            except Exception:  # a bug must not end the archive of the trail
                log.exception("the audit trail was not followed")
            if ending:
                return
            self._stopping.wait(LOOK_EVERY_S)

    def _take(self) -> bool:
        """Spools the next lines; whether there may be more.  Raises OSError."""
        host = self._host()
        if host is None:
            return False
        try:
            file = self._trail.open("rb")
        except FileNotFoundError:
            return False
        with file:
            self._find_place(file.fileno())
            data = os.pread(file.fileno(), _MOST_READ_BYTES, self._at)
        whole = data[:data.rfind(b"\n") + 1]
        if not whole:
            return False
        lines = [line for line in whole.split(b"\n") if line]
        if lines:
            self._spool.append(SAMPLES, payload_of(host, lines), len(lines))
            self._spool.sync()
        self._at += len(whole)
        self._remember(lines[-1] if lines else b"", host)
        self._records += len(lines)
        self._spooled()
        return True

    def _same(self, file: int) -> bool:
        status = os.fstat(file)
        return status.st_ino == self._inode and status.st_size >= self._at >= 0

    def _find_place(self, file: int) -> None:
        if self._same(file):
            return
        known, self._at, self._inode = self._at >= 0, 0, os.fstat(file).st_ino
        if known:
            log.warning("the audit trail was moved away; the new one is followed from its beginning",
                        extra={"trail": str(self._trail)})
            return
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads(self._position.read_text())
            end, hashed = int(found["end"]), found["hash"]
            start = max(0, end - 65536)
            line = os.pread(file, end - start, start).rstrip(b"\n").rpartition(b"\n")[2]
            if line and hashed == json.loads(line)["hash"]:
                self._at = end

    def _remember(self, line: bytes, host: Host) -> None:
        try:
            hashed = json.loads(line)["hash"]
        except (ValueError, KeyError, TypeError):
            return  # a torn line: the position before it serves
        text = json.dumps({"end": self._at, "hash": hashed, "host": str(host.uuid)})
        temporary = self._position.with_suffix(".new")
        temporary.write_text(text)
        temporary.replace(self._position)


def _end_of_lines(file: int) -> int:
    """The byte behind the last whole line."""
    size = os.fstat(file).st_size
    start = max(0, size - 65536)
    return start + os.pread(file, size - start, start).rfind(b"\n") + 1
