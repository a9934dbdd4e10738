"""The kernel source against real processes: a child with threads named as QEMU names its vCPUs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from collectors.domain_xml import Definition, parse
from collectors.kernel import KernelSource, KernelSourceError, _devices

# Threads that spin or sleep under QEMU's names, and a worker.  A line on stdin adds one of a number, as a hot-plug;
# "-3" ends the worker before, "+2" ends number 2 and begins another worker.
CHILD = """
import ctypes, sys, threading, time
libc = ctypes.CDLL(None)
def vcpu(number, spin):
    libc.prctl(15, b"CPU %d/TCG" % number, 0, 0, 0)
    while spin and time.thread_time() < 0.2: pass
    ends[number].wait()
def begin(work, *arguments):
    threading.Thread(target=work, args=arguments, daemon=True).start()
worker, ends = threading.Event(), {number: threading.Event() for number in range(9)}
begin(worker.wait)
for number in (0, 2):
    begin(vcpu, number, number == 2)
print("ready", flush=True)
for line in sys.stdin:
    number = abs(int(line))
    if line[0] == "+":
        begin(threading.Event().wait)
        ends[number].set()
        continue
    if line[0] == "-":
        worker.set()
    ends[number] = threading.Event()
    begin(vcpu, number, False)
    print("added", flush=True)
"""

Start = Callable[[str], subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    children: list[subprocess.Popen[str]] = []

    def run(identity: str) -> subprocess.Popen[str]:
        child = subprocess.Popen([sys.executable, "-c", CHILD, "-uuid", identity], text=True,
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        children.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        wait_for(lambda: vcpu_threads(child.pid) == 2)
        return child

    yield run
    for child in children:
        child.kill()
        child.communicate()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def tell(child: subprocess.Popen[str], line: str) -> None:
    assert child.stdin is not None
    child.stdin.write(line)
    child.stdin.flush()


def vcpu_threads(pid: int) -> int:
    return sum(comm.read_text().startswith("CPU ") for comm in Path(f"/proc/{pid}/task").glob("*/comm"))


def definition(identity: str, interfaces: str = "") -> Definition:
    return parse(f"<domain type='qemu' id='7'><name>a</name><uuid>{identity}</uuid><memory unit='KiB'>65536</memory>"
                 f"<currentMemory unit='KiB'>32768</currentMemory><vcpu current='2'>4</vcpu>"
                 f"<os><type arch='x86_64' machine='pc'>hvm</type></os><devices>{interfaces}</devices></domain>")


def test_values_of_a_process(start: Start) -> None:
    identity = str(uuid.uuid4())
    child = start(identity)
    source = KernelSource()
    source.find([(identity, 7)])
    assert source.serves((identity, 7))
    wait_for(lambda: int(source.stats((identity, 7), None)["vcpu.2.time"]) >= 100_000_000)
    stats = source.stats((identity, 7), definition(identity))
    assert stats["vcpu.current"] == 2
    assert stats["vcpu.maximum"] == 4
    assert stats["balloon.maximum"] == 65536
    assert stats["balloon.current"] == 32768
    assert stats["cpu.time"] == int(stats["cpu.user"]) + int(stats["cpu.system"])
    assert int(stats["vcpu.0.time"]) < int(stats["vcpu.2.time"])
    assert "vcpu.1.time" not in stats
    assert abs(float(stats["process.start-time"]) - time.time()) < 60
    assert int(stats["vcpu.2.timeslices"]) > 0
    assert stats["vcpu.2.guest"] == 0  # only KVM runs a guest's code on the pCPU itself
    assert int(stats["process.minor-faults"]) > 1000  # Python's own start
    assert int(stats["process.major-faults"]) >= 0
    rss_kib = int(Path(f"/proc/{child.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024
    assert int(stats["balloon.rss"]) == pytest.approx(rss_kib, rel=0.5)


def test_hot_plugged_vcpu_is_found(start: Start) -> None:
    identity = str(uuid.uuid4())
    child = start(identity)
    source = KernelSource()
    source.find([(identity, 1)])
    assert source.stats((identity, 1), None)["vcpu.current"] == 2
    tell(child, "3\n")
    wait_for(lambda: vcpu_threads(child.pid) == 3)
    stats = source.stats((identity, 1), None)
    assert stats["vcpu.current"] == 3
    assert "vcpu.3.time" in stats


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize("told", ["by the XML", "by time"])
def test_a_vcpu_that_is_plugged_in_as_a_worker_ends_is_found(start: Start, told: str) -> None:
    identity, clock = str(uuid.uuid4()), Clock()
    child = start(identity)
    source = KernelSource(clock=clock)
    source.find([(identity, 1)])
    assert source.stats((identity, 1), None)["vcpu.current"] == 2
    threads = len(os.listdir(f"/proc/{child.pid}/task"))
    tell(child, "-3\n")
    wait_for(lambda: vcpu_threads(child.pid) == 3 and len(os.listdir(f"/proc/{child.pid}/task")) == threads)
    assert source.stats((identity, 1), definition(identity))["vcpu.current"] == 2
    if told == "by time":
        clock.now_s += 61
        assert source.stats((identity, 1), None)["vcpu.current"] == 3
    else:
        plugged = replace(definition(identity), vcpus_current=3)
        assert source.stats((identity, 1), plugged)["vcpu.current"] == 3


def test_a_vcpu_that_is_unplugged_as_a_worker_begins_costs_its_own_series(start: Start) -> None:
    identity = str(uuid.uuid4())
    child = start(identity)
    source = KernelSource()
    source.find([(identity, 1)])
    threads = len(os.listdir(f"/proc/{child.pid}/task"))
    assert source.stats((identity, 1), None)["vcpu.current"] == 2
    tell(child, "+2\n")
    wait_for(lambda: vcpu_threads(child.pid) == 1 and len(os.listdir(f"/proc/{child.pid}/task")) == threads)
    stats = source.stats((identity, 1), None)
    assert stats["vcpu.current"] == 1
    assert {"vcpu.0.time", "cpu.time"} <= stats.keys()
    assert "vcpu.2.time" not in stats


def test_a_vcpu_that_is_unplugged_and_plugged_in_again_is_another_thread(start: Start) -> None:
    identity = str(uuid.uuid4())
    child = start(identity)
    source = KernelSource()
    source.find([(identity, 1)])
    assert source.stats((identity, 1), None)["vcpu.current"] == 2
    for line, threads in (("+2\n", 1), ("2\n", 2)):
        tell(child, line)
        wait_for(lambda threads=threads: vcpu_threads(child.pid) == threads)  # type: ignore[misc]
    for _ in range(2):
        stats = source.stats((identity, 1), None)
        assert stats["vcpu.current"] == 2
        assert "vcpu.2.time" in stats


def test_names_of_threads_that_are_known_are_not_read_again(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    identity, clock = str(uuid.uuid4()), Clock()
    child = start(identity)
    source = KernelSource(clock=clock)
    source.find([(identity, 1)])
    names: list[Path] = []
    read_text = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, *rest: (names.append(path), read_text(path, *rest))[1])

    for reads in (True, False):  # a thread has its name a little after it is there, so each is looked at twice
        names.clear()
        clock.now_s += 61
        source.stats((identity, 1), None)
        assert any(path.name == "comm" for path in names) == reads
    assert child.poll() is None


def test_process_that_ended_is_an_error_and_never_switches(start: Start) -> None:
    identity = str(uuid.uuid4())
    child = start(identity)
    source = KernelSource()
    source.find([(identity, 1)])
    child.kill()
    child.wait()
    with pytest.raises(KernelSourceError, match=identity):
        source.stats((identity, 1), None)
    source.find([(identity, 1)])
    assert source.serves((identity, 1))
    source.forget([])
    assert not source.decided((identity, 1))


def test_a_zombies_counters_are_not_zero_but_absent(start: Start) -> None:
    identity = str(uuid.uuid4())
    child = start(identity)
    source = KernelSource()
    source.find([(identity, 1)])
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and its entry is still there
    assert Path(f"/proc/{child.pid}/stat").exists()
    with pytest.raises(KernelSourceError, match=identity):
        source.stats((identity, 1), None)


def test_two_processes_with_one_uuid_are_left_to_the_bulk_call(start: Start) -> None:
    identity = str(uuid.uuid4())
    start(identity)
    start(identity)
    source = KernelSource()
    source.find([(identity, 1)])
    assert source.decided((identity, 1))
    assert not source.serves((identity, 1))


def test_process_without_vcpu_threads_is_left_to_the_bulk_call() -> None:
    identity = str(uuid.uuid4())
    child = subprocess.Popen(["sh", "-c", "read line", "-uuid", identity], stdin=subprocess.PIPE)
    try:
        source = KernelSource()
        source.find([(identity, 1)])
        assert not source.serves((identity, 1))
    finally:
        child.communicate(b"\n")


@pytest.mark.parametrize(("kind", "swapped"), [("ethernet", True), ("direct", False)])
def test_interfaces_are_the_guests_view(start: Start, kind: str, swapped: bool) -> None:
    identity = str(uuid.uuid4())
    start(identity)
    source = KernelSource()
    source.find([(identity, 1)])
    nic = f"<interface type='{kind}'><mac address='52:54:00:00:00:01'/><target dev='lo'/></interface>"
    host = Path("/proc/net/dev").read_text().split("lo:")[1].split()
    stats = source.stats((identity, 1), definition(identity, nic))
    assert stats["net.0.name"] == "lo"
    switched = nic.replace(f"type='{kind}'", "type='vhostuser'")
    assert not [key for key in source.stats((identity, 1), definition(identity, switched)) if "net." in key]
    received = int(host[8]) if swapped else int(host[0])
    assert int(stats["net.0.rx.bytes"]) >= received
    assert {f"net.0.{way}.{word}" for way in ("rx", "tx") for word in ("bytes", "pkts", "errs", "drop")} <= stats.keys()


def test_each_device_has_its_own_counters() -> None:
    numbers = {name: [place * 1000 + column for column in range(16)] for place, name in enumerate(("lo", "vnet10"))}
    rows = "".join(f"{name:>6}: {' '.join(f'{n:7}' for n in row)}\n" for name, row in numbers.items())
    devices = _devices("Inter-|   Receive\n face |bytes\n" + rows)
    assert devices == {name: (*row[:4], *row[8:12]) for name, row in numbers.items()}


def test_interface_that_the_host_does_not_have_is_absent(start: Start) -> None:
    identity = str(uuid.uuid4())
    start(identity)
    source = KernelSource()
    source.find([(identity, 1)])
    nic = "<interface type='ethernet'><target dev='nowhere0'/></interface>"
    assert not [key for key in source.stats((identity, 1), definition(identity, nic)) if key.startswith("net.")]


def as_strangers_see_it(proc: Path, pid: int) -> Path:
    """A folder of a process in ``proc`` without what only its own user may look at."""
    folder = proc / str(pid)
    folder.mkdir(parents=True)
    for name in ("stat", "cmdline", "task"):
        (folder / name).symlink_to(f"/proc/{pid}/{name}")
    (folder / "net").symlink_to(proc / "net")
    return folder


def test_domains_of_one_network_share_a_reading_that_ends_with_them(start: Start, tmp_path: Path) -> None:
    keys = [(str(uuid.uuid4()), 1) for _ in range(3)]
    for identity, _ in keys:
        as_strangers_see_it(tmp_path, start(identity).pid)
    (tmp_path / "stat").write_text("btime 1\n")
    (tmp_path / "net").mkdir()
    nic = "<interface type='direct'><target dev='tap0'/></interface>"
    source = KernelSource(tmp_path, clock=lambda: 0.0)

    def received(key: tuple[str, int], now: int) -> object:
        (tmp_path / "net/dev").write_text(f"Inter-|\n face |\n  tap0: {' '.join([str(now)] * 16)}\n")
        source.find([key])
        return source.stats(key, definition(key[0], nic))["net.0.rx.bytes"]

    assert [received(key, now) for now, key in enumerate(keys[:2], 1)] == [1, 1]
    source.forget([])
    assert received(keys[2], 3) == 3


def with_one_more_thread(proc: Path, pid: int) -> Path:
    """``as_strangers_see_it``, with the folder of a thread in which no file is left; that folder."""
    tasks = as_strangers_see_it(proc, pid) / "task"
    threads = list(tasks.iterdir())
    tasks.unlink()
    tasks.mkdir()
    for thread in threads:
        (tasks / thread.name).symlink_to(f"/proc/{pid}/task/{thread.name}")
    (proc / "stat").write_text("btime 1\n")
    (tasks / "999999999").mkdir()
    return tasks / "999999999"


def test_a_thread_that_ends_while_it_is_listed_costs_nothing(start: Start, tmp_path: Path) -> None:
    identity = str(uuid.uuid4())
    with_one_more_thread(tmp_path, start(identity).pid)
    (tmp_path / "net").mkdir()
    (tmp_path / "net/dev").touch()
    source = KernelSource(tmp_path)
    source.find([(identity, 1)])
    assert source.stats((identity, 1), None)["vcpu.current"] == 2


def test_no_file_stays_open_of_a_process_that_cannot_be_read_in_full(start: Start, tmp_path: Path) -> None:
    identity = str(uuid.uuid4())
    thread = with_one_more_thread(tmp_path, start(identity).pid)
    (thread / "comm").write_text("CPU 7/KVM\n")
    (thread / "schedstat").touch()
    (tmp_path / "net").mkdir()
    (tmp_path / "net/dev").touch()
    before = os.listdir("/proc/self/fd")
    source = KernelSource(tmp_path)
    source.find([(identity, 1)])
    assert not source.serves((identity, 1))
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_no_file_stays_open(start: Start) -> None:
    identity = str(uuid.uuid4())
    start(identity)
    before = set(os.listdir("/proc/self/fd"))
    source = KernelSource()
    source.find([(identity, 1)])
    source.stats((identity, 1), None)
    source.forget([])
    assert len(set(os.listdir("/proc/self/fd")) - before) <= 1  # the listing's own
