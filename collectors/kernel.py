"""The local host's own files for CPU, vCPU and interface counters: a hundredth of the bulk groups' cost.

The files are world-readable, so an unprivileged exporter may use them.  Values go under libvirt's own keys and in
its units.  vCPU threads are those named ``CPU n/KVM`` or ``CPU n/TCG`` (QEMU names them, libvirt asks it to); their
schedstat gives run time and steal in nanoseconds where libvirt's vCPU time moves in steps of 10 ms.

Which source serves a running domain is decided once: two sources differ by up to 10 ms, and a step back would read
as a reset.  If the files fail later, the domain's values are absent until it restarts.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import resource
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .domain_xml import Definition, Interface
from .snapshot import Value

KERNEL_GROUPS = frozenset({"cpu-total", "vcpu", "interface"})
"""Groups of the bulk call that this source stands in for."""

Key = tuple[str, int]
_LIST_S = 60.0
"""Time after which a process's threads are listed again, though there are as many: a worker may have ended as a vCPU
was plugged in, and a thread has its name a little after it is there."""
VHOST_USER = "vhostuser"
"""The type of an interface that is no device of the host's: only its switch counts it."""
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024
_VCPU_THREAD = re.compile(r"CPU (\d+)/(?:KVM|TCG)\n?")
# Of /proc/PID/stat behind the command's name (proc_pid_stat(5)).
_ENDED = (b"Z", b"X", b"x")
_MINOR_FAULTS, _MAJOR_FAULTS = 7, 9
_UTIME, _STIME, _THREADS, _START, _RSS, _PROCESSOR, _GUEST = 11, 12, 17, 19, 21, 36, 40
_VCPU_WORDS = ("time", "delay", "timeslices", "cpu", "guest")
_NET_WORDS = ("bytes", "pkts", "errs", "drop")
# A line of /proc/net/dev is a name, eight numbers of what was received, eight of what was sent.
_NET_COLUMNS, _NET_USED = 17, (1, 2, 3, 4, 9, 10, 11, 12)


class KernelSourceError(Exception):
    """A file of a domain's process could not be read or is not of the known form."""


@dataclass(slots=True)
class _Vcpu:
    number: int
    thread: str
    schedstat: int
    stat: int


@dataclass(slots=True)
class _Process:
    """A QEMU process: its open files, and what was fixed when it was found."""

    pid: int
    stat: int
    start_s: float
    network: tuple[int, int]
    threads: int = 0
    listed_s: float = float("-inf")
    vcpus: list[_Vcpu] = field(default_factory=list)
    others: frozenset[str] = frozenset()  # threads that were no vCPU's at the last listing,
    settled: frozenset[str] = frozenset()  # and at one before that: their names are not read again
    keys: tuple[str, ...] = ()

    def close(self) -> None:
        _close(self.vcpus)
        self.vcpus = []
        with contextlib.suppress(OSError):
            os.close(self.stat)


class KernelSource:
    """Finds the processes of running domains and reads them.

    ``find`` may run in any one thread (reading command lines can wait for a process's memory lock, so never in the
    sampler's); ``stats`` and ``forget`` in the sampler's.  ``proc`` is the mount to read.
    """

    def __init__(self, proc: Path = Path("/proc"), clock: Callable[[], float] = time.monotonic) -> None:
        self._proc = proc
        self._clock = clock
        self._lock = threading.Lock()
        self._processes: dict[Key, _Process | None] = {}  # None: the bulk call serves this domain
        self._networks: dict[tuple[int, int], tuple[float, dict[str, tuple[int, ...]]]] = {}
        self._boot_s: float | None = None

    def decided(self, key: Key) -> bool:
        """Whether it is known which source serves the domain."""
        return key in self._processes

    def serves(self, key: Key) -> bool:
        """Whether this source serves the domain (uuid, id)."""
        return self._processes.get(key) is not None

    def find(self, wanted: Iterable[Key]) -> None:
        """Decide for each undecided domain: its process was found and has all it needs, or the bulk call serves."""
        undecided = {uuid: (uuid, id_) for uuid, id_ in wanted if (uuid, id_) not in self._processes}
        if not undecided:
            return
        found = self._pids(undecided.keys())
        for uuid, key in undecided.items():
            pids = found.get(uuid, [])
            process = None
            if len(pids) == 1:  # two with one uuid (a migration within the host) cannot be told apart
                with contextlib.suppress(OSError, KernelSourceError, ValueError, IndexError):
                    process = self._open(pids[0])
            with self._lock:
                self._processes[key] = process

    def forget(self, running: Iterable[Key]) -> None:
        """Close the files of domains that no longer run."""
        kept = set(running)
        with self._lock:
            gone = [self._processes.pop(key) for key in list(self._processes) if key not in kept]
            if gone:
                used = {process.network for process in self._processes.values() if process is not None}
                self._networks = {network: known for network, known in self._networks.items() if network in used}
        for process in gone:
            if process is not None:
                process.close()

    def stats(self, key: Key, definition: Definition | None) -> dict[str, Value]:
        """The domain's values under libvirt's keys.  Raises KernelSourceError where the process is gone."""
        process = self._processes.get(key)
        if process is None:
            raise KernelSourceError(f"no process is known of domain {key[0]}")
        try:
            stats = self._read(process, definition.vcpus_current if definition is not None else None)
            if definition is not None:
                stats.update(definition_stats(definition))
                self._add_interfaces(stats, process, definition.interfaces)
        except (OSError, ValueError, IndexError) as error:
            raise KernelSourceError(f"process {process.pid} of domain {key[0]}: {error}") from error
        return stats

    def _pids(self, uuids: Iterable[str]) -> dict[str, list[int]]:
        """Processes whose command line holds ``-uuid UUID``, by uuid."""
        wanted = set(uuids)
        found: dict[str, list[int]] = {}
        for entry in os.scandir(self._proc):
            if not entry.name.isdigit():
                continue
            try:
                words = (self._proc / entry.name / "cmdline").read_bytes().split(b"\0")
                uuid = words[words.index(b"-uuid") + 1].decode()
            except (OSError, ValueError, IndexError):
                continue
            if uuid in wanted:
                found.setdefault(uuid, []).append(int(entry.name))
        return found

    def _open(self, pid: int) -> _Process:
        folder = self._proc / str(pid)
        # The file is one for all processes of a network namespace; ns/net, which says the same, is not ours to look at
        # where QEMU runs as another user.
        space = os.stat(folder / "net/dev")
        stat = _open(folder / "stat")
        process = _Process(pid, stat, 0.0, (space.st_dev, space.st_ino))
        try:
            fields = _fields(stat)
            process.start_s = self._boot_time_s() + int(fields[_START]) * _TICK_NS / 1e9
            self._find_vcpus(process)
            if not process.vcpus:
                raise KernelSourceError(f"process {pid} has no thread named CPU n/KVM or CPU n/TCG")
            process.threads = int(fields[_THREADS])
        except BaseException:
            process.close()
            raise
        return process

    def _find_vcpus(self, process: _Process, anew: bool = False) -> None:
        """The vCPU threads as they are now; a hot-plugged vCPU is a new thread.  ``anew`` trusts nothing known."""
        if anew:
            process.others = process.settled = frozenset()
        known = {} if anew else {vcpu.thread: vcpu for vcpu in process.vcpus}
        with contextlib.ExitStack() as opened:
            vcpus, others = self._vcpus_now(process, known, opened)
            opened.pop_all()
        _close([vcpu for vcpu in process.vcpus if vcpu not in vcpus])
        process.vcpus = vcpus
        process.settled = process.others & others
        process.others = others
        process.listed_s = self._clock()
        process.keys = tuple(
            f"vcpu.{vcpu.number}.{word}" for vcpu in process.vcpus for word in _VCPU_WORDS)

    def _vcpus_now(self, process: _Process, known: Mapping[str, _Vcpu],
                   opened: contextlib.ExitStack) -> tuple[list[_Vcpu], frozenset[str]]:
        """The vCPUs, those ``known`` by their threads among them, and the threads that are none's.

        ``opened`` closes the files of new ones, should a later one fail.  A name costs twice what the listing does.
        """
        tasks, ended = self._proc / str(process.pid) / "task", ""
        threads = frozenset(os.listdir(tasks))
        present = {vcpu.number: vcpu for thread, vcpu in known.items() if thread in threads}
        others = set(process.settled & threads)
        for thread in threads - known.keys() - others:
            try:
                match = _VCPU_THREAD.fullmatch((tasks / thread / "comm").read_text())
            except (FileNotFoundError, ProcessLookupError):  # mostly a worker, which come and go
                ended = thread
                continue
            if match is None:
                others.add(thread)
                continue
            number = int(match.group(1))
            present[number] = _Vcpu(number, thread, _open(tasks / thread / "schedstat", opened),
                                    _open(tasks / thread / "stat", opened))
        if ended and any(vcpu.number not in present for vcpu in process.vcpus):
            raise ValueError(f"its thread {ended} ended while they were listed")  # the process may be ending
        return sorted(present.values(), key=lambda vcpu: vcpu.number), frozenset(others)

    def _boot_time_s(self) -> float:
        if self._boot_s is None:
            text = (self._proc / "stat").read_text()
            self._boot_s = float(re.search(r"^btime (\d+)", text, re.M)[1])  # type: ignore[index]
        return self._boot_s

    def _read(self, process: _Process, vcpus: int | None) -> dict[str, Value]:
        """``vcpus`` is their number by the XML, None where that does not tell."""
        fields = _fields(process.stat)
        threads = int(fields[_THREADS])
        if not threads or fields[0] in _ENDED:  # its CPU times read as 0 then, which would look like a reset
            raise ValueError("it has ended")
        # Some 20 us where no thread is new.
        if (threads != process.threads or vcpus not in (None, len(process.vcpus))
                or self._clock() - process.listed_s >= _LIST_S):
            self._find_vcpus(process)
            process.threads = threads
        try:
            values = _vcpu_values(process)
        except ProcessLookupError:  # one was unplugged
            self._find_vcpus(process, anew=True)
            values = _vcpu_values(process)
        user_ns, system_ns = int(fields[_UTIME]) * _TICK_NS, int(fields[_STIME]) * _TICK_NS
        stats: dict[str, Value] = {
            "cpu.time": user_ns + system_ns, "cpu.user": user_ns, "cpu.system": system_ns,
            "vcpu.current": len(process.vcpus), "process.start-time": process.start_s,
            "process.minor-faults": int(fields[_MINOR_FAULTS]), "process.major-faults": int(fields[_MAJOR_FAULTS]),
            "balloon.rss": int(fields[_RSS]) * _PAGE_KIB}
        stats.update(zip(process.keys, values, strict=True))
        return stats

    def _add_interfaces(self, stats: dict[str, Value], process: _Process, interfaces: Collection[Interface]) -> None:
        """Counters as the guest sees them: what its tap received is what it sent, except for macvtap."""
        devices = self._network(process) if interfaces else {}
        for number, interface in enumerate(interfaces):
            counters = devices.get(interface.target_device)
            if counters is None or interface.type == VHOST_USER:  # a device of such a one's name is another's
                continue
            receive, transmit = counters[:4], counters[4:]
            if not interface.direct:
                receive, transmit = transmit, receive
            stats.update(zip(_net_keys(number), (interface.target_device, *receive, *transmit), strict=True))

    def _network(self, process: _Process) -> dict[str, tuple[int, ...]]:
        """All devices of the process's network namespace, read once a sampling for all domains in it."""
        now_s = self._clock()
        known = self._networks.get(process.network)
        if known is not None and now_s - known[0] < 0.2:
            return known[1]
        devices = _devices((self._proc / str(process.pid) / "net/dev").read_text())
        self._networks[process.network] = (now_s, devices)
        return devices


def _close(vcpus: Iterable[_Vcpu]) -> None:
    for file in (file for vcpu in vcpus for file in (vcpu.schedstat, vcpu.stat)):
        with contextlib.suppress(OSError):
            os.close(file)


def _vcpu_values(process: _Process) -> list[int]:
    """The values of its keys.  Raises ProcessLookupError where a vCPU's thread has ended."""
    values: list[int] = []
    for vcpu in process.vcpus:
        run_ns, delay_ns, timeslices = os.pread(vcpu.schedstat, 128, 0).split()
        thread = _fields(vcpu.stat)
        values += (int(run_ns), int(delay_ns), int(timeslices), int(thread[_PROCESSOR]), int(thread[_GUEST]) * _TICK_NS)
    return values


def _devices(text: str) -> dict[str, tuple[int, ...]]:
    """Of each device in ``/proc/net/dev`` what it received and what it sent: bytes, packets, errors, drops.

    Column by column, since a host may have hundreds of taps.
    """
    words = text.split("\n", 2)[2].split()
    names = words[::_NET_COLUMNS]
    if not all(name.endswith(":") for name in names):  # the kernel puts a blank behind it, whatever the number's length
        raise ValueError("net/dev is not of the known form")
    counters = zip(*(map(int, words[at::_NET_COLUMNS]) for at in _NET_USED), strict=True)
    return {name[:-1]: found for name, found in zip(names, counters, strict=True)}


@functools.lru_cache(1024)
def _net_keys(number: int) -> tuple[str, ...]:
    return (f"net.{number}.name", *(f"net.{number}.{way}.{word}" for way in ("rx", "tx") for word in _NET_WORDS))


def counts_interfaces(definition: Definition | None) -> bool:
    """Whether the kernel counts all that there is to count: of a vhost-user interface only its switch does."""
    return definition is None or all(interface.type != VHOST_USER for interface in definition.interfaces)


def definition_stats(definition: Definition) -> dict[str, Value]:
    """What the XML knows of a domain, under the bulk call's keys: vCPU maximum, balloon's maximum and current size."""
    stats: dict[str, Value] = {}
    if definition.vcpus_maximum is not None:
        stats["vcpu.maximum"] = definition.vcpus_maximum
    if definition.maximum_memory_bytes is not None:
        stats["balloon.maximum"] = definition.maximum_memory_bytes // 1024
    if definition.memory_bytes is not None:
        stats["balloon.current"] = definition.memory_bytes // 1024
    return stats


def _open(path: Path, opened: contextlib.ExitStack | None = None) -> int:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    if opened is not None:
        opened.callback(os.close, file)
    return file


def _fields(file: int) -> list[bytes]:
    """The fields of a stat file behind the command's name, which may hold spaces and brackets."""
    text = os.pread(file, 1024, 0)
    return text[text.rindex(b")") + 2:].split()


def raise_open_files_limit() -> int:
    """Lift this process's soft limit of open files to its hard limit: each domain holds four and more.  The limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            return hard
    return soft
