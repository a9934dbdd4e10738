"""A libvirt that does as it is told, for what a real one cannot be made to do at a given moment or that fast.

It follows libvirt 9.0 in what matters here: a NOWAIT bulk call takes each domain's job in turn, waits without limit
for a QEMU that hangs, and skips a domain whose job another call holds.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import libvirt

from collectors import COLLECTORS
from collectors.background import Background
from collectors.bulk import SAFE_MASK
from collectors.connection import Opener
from collectors.domain_records import DomainRecords
from collectors.fields import Collector
from collectors.inventory import Inventory
from collectors.kernel import KernelSource
from collectors.lanes import LanePool, Slots
from collectors.sampler import Sampler

CORE = tuple(c for c in COLLECTORS if c.name in ("inventory", "domain", "memory", "block", "interface", "vcpu"))


@dataclass(eq=False)
class Guest:
    """A domain.  Its counters follow the clock from its start on."""

    name: str
    uuid: str
    id: int
    state: int = 1
    busy_cpu: bool = True
    delay_s: float = 0.0
    xml: str | None = None
    fails: bool = False
    started_s: float = field(default_factory=time.monotonic)
    job: Any = field(default_factory=threading.Lock)
    running: threading.Event = field(default_factory=threading.Event)
    command_since_s: float | None = None
    stuck_calls: int = 0

    def __post_init__(self) -> None:
        self.running.set()

    @property
    def count(self) -> int:
        return int((time.monotonic() - self.started_s) * 1e9)

    def stats(self, mask: int) -> dict[str, Any]:
        """As the bulk call gives them; waits while the QEMU hangs, for groups that ask it."""
        safe = {"state.state": self.state, "state.reason": 1, "net.count": 1, "net.0.name": f"tap{self.id}",
                "net.0.rx.bytes": self.count // 1000}
        if not mask & ~SAFE_MASK:
            return safe
        part = {**safe, "cpu.time": self.count, "vcpu.current": 1, "block.count": 1, "block.0.name": "vda"}
        if not self.job.acquire(blocking=False):
            return part
        try:
            self.command_since_s = time.monotonic()
            if not self.running.is_set():
                self.stuck_calls += 1
                self.running.wait(60)
                self.stuck_calls -= 1
            time.sleep(self.delay_s)
            if self.fails:
                raise failure(38, "QEMU ended in the middle of it")
            part.update({"balloon.rss": 1000, "block.0.rd.reqs": self.count // 1_000_000,
                         "block.0.rd.bytes": self.count // 1000})
            return part
        finally:
            self.command_since_s = None
            self.job.release()


def failure(code: int, words: str) -> libvirt.libvirtError:
    error = libvirt.libvirtError(words)
    error.err = (code, libvirt.VIR_FROM_QEMU, words, 2, None, None, None, 0, 0)
    return error


class Domain:
    """virDomain."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    def UUIDString(self) -> str:  # noqa: N802
        return self._guest.uuid

    def ID(self) -> int:  # noqa: N802
        return self._guest.id

    def name(self) -> str:
        return self._guest.name

    def info(self) -> list[int]:
        return [1, 0, 0, 1, self._guest.count if self._guest.running.is_set() and self._guest.busy_cpu else 7]

    def controlInfo(self) -> list[int]:  # noqa: N802
        since_s = self._guest.command_since_s
        if since_s is not None:
            return [2, 0, int(1000 * (time.monotonic() - since_s))]
        return [1, 0, 0] if self._guest.job.locked() else [0, 0, 0]

    def XMLDesc(self, _flags: int) -> str:  # noqa: N802
        guest = self._guest
        return guest.xml or (f"<domain type='qemu' id='{guest.id}'><name>{guest.name}</name><uuid>{guest.uuid}</uuid>"
                             "<memory unit='KiB'>1024</memory><currentMemory unit='KiB'>1024</currentMemory>"
                             "<vcpu>1</vcpu><os><type arch='x86_64' machine='pc'>hvm</type></os><devices/></domain>")


class ScriptedLibvirt:
    """The daemon with its domains.  Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._guests: dict[str, Guest] = {}
        self._ids = 0
        self.calls = 0
        self.most_calls = 0

    def getType(self) -> str:  # noqa: N802
        return "QEMU"

    def start(self, name: str, **how: Any) -> Guest:
        with self._lock:
            self._ids += 1
            guest = self._guests[name] = Guest(name, str(uuid.uuid5(uuid.NAMESPACE_OID, name)),
                                               self._ids, **how)
            return guest

    def end(self, name: str) -> None:
        with self._lock:
            self._guests.pop(name).running.set()

    def guests(self) -> list[Guest]:
        with self._lock:
            return list(self._guests.values())

    # virConnect

    def isAlive(self) -> int:  # noqa: N802
        return 1

    def close(self) -> None:
        """Nothing to close."""

    def getVersion(self) -> int:  # noqa: N802
        return 7_002_000

    def getLibVersion(self) -> int:  # noqa: N802
        return 9_000_000

    def listAllDomains(self, _flags: int) -> list[Domain]:  # noqa: N802
        return [Domain(guest) for guest in self.guests()]

    def getAllDomainStats(self, _stats: int, _flags: int) -> list[tuple[Domain, Mapping[str, Any]]]:  # noqa: N802
        return [(Domain(guest), guest.stats(1)) for guest in self.guests()]

    def domainListGetStats(self, domains: Iterable[Domain], stats: int,  # noqa: N802
                           _flags: int) -> list[tuple[Domain, Mapping[str, Any]]]:
        known = {guest.uuid: guest for guest in self.guests()}
        wanted = [known[d.UUIDString()] for d in domains if d.UUIDString() in known]
        risky = bool(stats & ~SAFE_MASK)
        with self._lock:
            self.calls += risky
            self.most_calls = max(self.most_calls, self.calls)
        try:
            return [(Domain(guest), guest.stats(stats)) for guest in wanted]
        finally:
            with self._lock:
                self.calls -= risky


class ScriptedOpener(Opener):
    """Opens connections to a ScriptedLibvirt."""

    def __init__(self, scripted: ScriptedLibvirt) -> None:
        super().__init__("scripted:///")
        self._scripted = scripted

    def open(self) -> Any:
        return self._scripted


def sampler_of(scripted: ScriptedLibvirt, chunk: int = 12, lanes: int = 3, collectors: tuple[Collector, ...] = CORE,
               kernel: KernelSource | None = None) -> Sampler:
    """A Sampler of the core collectors without the kernel source; processes of this host are no evidence."""
    opener, slots = ScriptedOpener(scripted), Slots()
    inventory = Inventory()
    groups = {"state", *(group for collector in collectors for group in collector.groups)}
    return Sampler(LanePool(opener, lanes, slots), inventory, collectors, DomainRecords(groups, inventory, kernel),
                   Background(LanePool(opener, 2, slots), ()), chunk)


