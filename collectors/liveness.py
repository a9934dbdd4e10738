"""Signs of life of QEMU processes, found without asking them: for the order in which domains are asked once slots are
short, and to name dead storage as the reason of a hang.

A QEMU that serves its monitor sleeps in or runs its main loop; one that was stopped stands in state T, one whose
disk or network storage does not answer in state D (/proc/PID/stat, proc_pid_stat(5)).  Where the process is not on
this host, a CPU time that goes on is a sign, but its absence is none.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable
from enum import Enum
from pathlib import Path

import libvirt

from .connection import Session

Key = tuple[str, int]
_APART_S = 0.06
_STATE, _START = 0, 19  # of /proc/PID/stat behind the command's name


class Sign(Enum):
    """What a look at a domain's process gave."""

    NONE = "nothing is known"
    ALIVE = "its main thread runs or sleeps as it should, or its CPU time goes on"
    STOPPED = "its main thread is stopped or gone"
    STORAGE = "its main thread waits for a disk or a network file system"


_STOPPED, _STORAGE = frozenset("TtZX"), frozenset("D")


class Signs:
    """Looks at domains; keeps which process is whose.  Used by one lane's call at a time."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._pids: dict[Key, tuple[int, str] | None] = {}  # None: not on this host
        self._cpu: dict[Key, int] = {}

    def look(self, session: Session, keys: Iterable[Key]) -> dict[str, Sign]:
        """A Sign for each domain (uuid, id), by uuid.  Never touches QEMU.  Raises what the session raises."""
        wanted = list(keys)
        self._pids = {key: pid for key, pid in self._pids.items() if key in wanted}
        unknown = [key for key in wanted if key not in self._pids]
        if unknown:
            self._find(unknown)
        signs = {key[0]: self._state(key) for key in wanted}
        remote = [key for key in wanted if self._pids[key] is None]
        if remote:
            signs.update(self._advancing(session, remote))
        return signs

    def _find(self, keys: Iterable[Key]) -> None:
        """Processes whose command line holds ``-uuid UUID``; two with one uuid (a migration) prove nothing."""
        found: dict[str, list[tuple[int, str]]] = {}
        for entry in os.scandir(self._proc):
            if entry.name.isdigit():
                try:
                    words = (self._proc / entry.name / "cmdline").read_bytes().split(b"\0")
                    uuid = words[words.index(b"-uuid") + 1].decode()
                    found.setdefault(uuid, []).append((int(entry.name), self._stat(int(entry.name))[_START]))
                except (OSError, ValueError, IndexError):
                    continue
        for key in keys:
            pids = found.get(key[0], [])
            self._pids[key] = pids[0] if len(pids) == 1 else None

    def _stat(self, pid: int) -> list[str]:
        return (self._proc / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()

    def _state(self, key: Key) -> Sign:
        process = self._pids[key]
        if process is None:
            return Sign.NONE
        try:
            words = self._stat(process[0])
            state, start = words[_STATE], words[_START]
        except (OSError, IndexError):
            return Sign.STOPPED
        if start != process[1] or state in _STOPPED:
            return Sign.STOPPED
        return Sign.STORAGE if state in _STORAGE else Sign.ALIVE

    def _advancing(self, session: Session, keys: Collection[Key]) -> dict[str, Sign]:
        """ALIVE for those whose CPU time grew since the last look, or since a moment ago; info() takes no job."""
        before = {key: self._cpu[key] for key in keys if key in self._cpu}
        new = [key for key in keys if key not in before]
        if new:
            before.update(self._cpu_times(session, new))
            time.sleep(_APART_S)
        self._cpu = self._cpu_times(session, keys)
        return {key[0]: Sign.ALIVE for key, cpu_ns in self._cpu.items() if cpu_ns > before.get(key, cpu_ns)}

    def _cpu_times(self, session: Session, keys: Iterable[Key]) -> dict[Key, int]:
        ids = dict(keys)
        found: dict[Key, int] = {}
        for domain in session.domains(ids):
            uuid = domain.UUIDString()
            try:
                found[uuid, ids[uuid]] = int(domain.info()[4])
            except libvirt.libvirtError as error:
                if session.lost(error):
                    raise
        return found
