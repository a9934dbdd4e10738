"""The processes of a PID namespace, seen from outside it."""

from __future__ import annotations

import os
from typing import NamedTuple


class NamespaceProcess(NamedTuple):
    """A process: its number here, its number inside the namespace, and its command name."""

    pid: int
    inside_pid: int
    name: str


def namespace_processes(member_pid: int) -> list[NamespaceProcess]:
    """All processes in the PID namespace that process `member_pid` is in; empty once that one is gone.

    Needs root, since the kernel shows a process's namespaces only to those who may trace it.
    """
    namespace = _namespace(str(member_pid))
    if namespace is None:
        return []
    pids = (name for name in os.listdir("/proc") if name.isdigit())
    found = (_describe(pid) for pid in pids if _namespace(pid) == namespace)
    return [process for process in found if process is not None]


def _namespace(pid: str) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return None


def _describe(pid: str) -> NamespaceProcess | None:
    try:
        with open(f"/proc/{pid}/status") as status:
            fields = dict(line.rstrip("\n").split(":\t", 1) for line in status if ":\t" in line)
    except OSError:
        return None
    return NamespaceProcess(int(pid), int(fields["NSpid"].split()[-1]), fields["Name"])
