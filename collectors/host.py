"""The host: CPU, memory, NUMA cells, huge pages, KSM, and what the running domains were promised of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any
from xml.etree import ElementTree

import libvirt

from .connection import Session
from .fields import KIBIBYTE, NANOSECOND, Collector, Constant, Declaration, Field, Info, Kind
from .inventory import Inventory
from .periodic import RunningDomain, Scope
from .snapshot import Record, Subject, Value

SUBJECT = Subject("host", ("host",), ())
NODE_INFO = "libvirt_node_info"
_MEBIBYTE = 1 << 20
_KSM = ("shared", "sharing", "unshared", "volatile")
_MOST_CELLS = 1024
_CAPABILITIES_S = 60.0
"""How long the capabilities are kept: the daemon makes them anew at each call, and they say what hardly changes."""
_NAME_S = 3600.0
"""How long the host's name is kept: libvirtd may ask name servers for it, and hosts are hardly ever renamed."""


def _field(source: str, name: str, text: str, kind: Kind = Kind.GAUGE, scale: float = 1.0, since: str = "0.9.3",
           **labels: Any) -> Declaration:
    return Field(source, f"libvirt_node_{name}", kind, text, scale, subject_labels=(), since=since, **labels)


def _declarations() -> tuple[Declaration, ...]:
    found: list[Declaration] = [
        Info(NODE_INFO, "Always 1; the host's name and CPU model (virConnectGetHostname, virNodeGetInfo, text).",
             ("hostname", "model"), source="node", since="0.3.0"),
        _field("node.cpus", "cpus", "Number of the host's CPUs that are online (virNodeGetInfo, node.cpus, count).",
               since="0.1.0"),
        _field("node.cells", "cells", "Number of the host's NUMA cells (virNodeGetInfo, node.cells, count).",
               since="0.1.0"),
        *(_field(f"node.{word}", word.replace("-", "_"),
                 f"{text} (virNodeGetInfo, node.{word}, count).", since="0.1.0") for word, text in (
                     ("sockets-per-cell", "Number of the processor sockets of a NUMA cell"),
                     ("cores-per-socket", "Number of the cores of a socket; on odd topologies all CPUs"),
                     ("threads-per-core", "Number of the threads of a core"))),
        _field("node.mhz", "cpu_frequency_hertz",
               "Nominal clock of the host's CPUs; absent where libvirt does not know it (virNodeGetInfo, node.mhz, "
               "megahertz).", scale=1e6, since="0.1.0", zero_is_unknown=True),
        _field("node.vcpus-allocated", "vcpus_allocated",
               "Number of vCPUs of all running domains (domain XML <vcpu>, node.vcpus-allocated, count)."),
        _field("node.memory-allocated", "memory_allocated_bytes",
               "Bytes of memory that all running domains may have (domain XML <memory>, node.memory-allocated, "
               "bytes)."),
    ]
    found += [_field(f"node.cpu.{mode}", "cpu_seconds_total",
                     "CPU seconds of the host since its start, by mode; steal and guest are in none of them "
                     "(virNodeGetCPUStats, node.cpu.kernel, node.cpu.user, node.cpu.idle, node.cpu.iowait, nanoseconds)"
                     ".", Kind.COUNTER, NANOSECOND, fixed=(("mode", mode),))
              for mode in ("kernel", "user", "idle", "iowait")]
    found += [_field(f"node.memory.{word}", f"memory_{word}_bytes",
                     f"{text} (virNodeGetMemoryStats, node.memory.{word}, KiB).", scale=KIBIBYTE,
                     since="12.3.0" if word == "available" else "0.9.3")
              for word, text in (("total", "Bytes of the host's memory"), ("free", "Bytes of unused memory"),
                                 ("buffers", "Bytes of memory that buffers take"),
                                 ("cached", "Bytes of memory that the page cache takes"),
                                 ("available", "Bytes of memory that new processes can have"))]
    found += [_field(f"node.cell.<n>.{word}", f"cell_memory_{word}_bytes",
                     f"{text} of a NUMA cell (virNodeGetMemoryStats, node.cell.<n>.{word}, KiB).", scale=KIBIBYTE,
                     label="cell") for word, text in (("total", "Bytes of memory"), ("free", "Bytes of unused memory"))]
    for word, text in (("total", "Huge pages there are"), ("free", "Huge pages not in use")):
        name = "huge_pages" if word == "total" else "huge_pages_free"
        found.append(_field(f"node.cell.<n>.pages.<m>.{word}", name,
                            f"{text}, by NUMA cell and size in bytes (capabilities and virNodeGetFreePages, "
                            f"node.cell.<n>.pages.<m>.{word}, count).", label="cell", inner_label="size",
                            since="1.2.6"))
    found += [_field(f"node.ksm.{word}", "ksm_pages",
                     "Pages that kernel same-page merging deals with, by state (virNodeGetMemoryParameters, "
                     "node.ksm.shared, node.ksm.sharing, node.ksm.unshared, node.ksm.volatile, count).",
                     fixed=(("state", word),), since="0.10.2") for word in _KSM]
    found.append(_field("node.ksm.full-scans", "ksm_full_scans_total",
                        "Times that kernel same-page merging looked at all memory (virNodeGetMemoryParameters, "
                        "node.ksm.full-scans, count).", Kind.COUNTER, since="0.10.2"))
    return tuple(found)


HOST = Collector(name="host", help="The host's CPU, memory, NUMA cells, huge pages, and what the domains have of it.",
                 declarations=_declarations())


class HostSource:
    """Reads the host.  What the domains were promised comes from the inventory's cached XML, without a call."""

    collector = HOST.name
    period_s = 15.0
    deadline_s = 10.0

    def __init__(self, inventory: Inventory, clock: Callable[[], float] = time.monotonic) -> None:
        self._inventory = inventory
        self._clock = clock
        self._running: tuple[RunningDomain, ...] = ()
        self._hostname: tuple[float, str] | None = None
        self._capabilities: tuple[float, str] | None = None

    def parts(self, session: Session, scope: Scope) -> Sequence[str]:
        self._running = scope.running
        return ("host", "name")

    def read(self, session: Session, part: object) -> Iterable[Record]:
        return [self._name(session) if part == "name" else self._host(session)]

    def _name(self, session: Session) -> Record:
        """Who the host is: a part of its own, since asking for its name may take libvirtd long."""
        read_at_s, connection = time.monotonic(), session.connection
        now_s = self._clock()
        if self._hostname is None:
            self._hostname = (now_s, str(connection.getHostname()))
        elif now_s - self._hostname[0] > _NAME_S:
            # Where name servers are away libvirtd may think for long, or refuse: the known name stays until it is due.
            known = self._hostname[1]
            self._hostname = (now_s, known)
            with contextlib.suppress(libvirt.libvirtError):
                self._hostname = (now_s, str(connection.getHostname()))
        constant = Constant(NODE_INFO, (("hostname", self._hostname[1]), ("model", str(connection.getInfo()[0]))))
        return Record(SUBJECT, "host-name", {}, read_at_s, (constant,))

    def _host(self, session: Session) -> Record:
        read_at_s = time.monotonic()
        connection, ask = session.connection, session.support.ask
        info = connection.getInfo()
        stats: dict[str, Value] = {
            "node.cpus": info[2], "node.mhz": info[3], "node.cells": info[4], "node.sockets-per-cell": info[5],
            "node.cores-per-socket": info[6], "node.threads-per-core": info[7]}
        for mode, value in (ask("getCPUStats", lambda: connection.getCPUStats(-1)) or {}).items():
            stats[f"node.cpu.{mode}"] = value
        memory = ask("getMemoryStats", lambda: connection.getMemoryStats(-1)) or {"total": info[1] * 1024}
        stats |= {f"node.memory.{word}": value for word, value in memory.items()}
        stats |= self._cells(session) | self._ksm(session) | self._allocated()
        return Record(SUBJECT, self.collector, stats, read_at_s)

    def _cells(self, session: Session) -> dict[str, Value]:
        stats: dict[str, Value] = {}
        connection, ask = session.connection, session.support.ask
        for cell, pages in sorted(huge_pages(self._capabilities_of(session)).items())[:_MOST_CELLS]:
            memory = ask("getMemoryStats", partial(connection.getMemoryStats, cell)) or {}
            stats |= {f"node.cell.{cell}.{word}": memory[word] for word in ("total", "free") if word in memory}
            if not pages:
                continue
            sizes = sorted(pages)
            free = ask("getFreePages", partial(connection.getFreePages, sizes, cell, 1)) or {}
            for size_kib in sizes:
                stem = f"node.cell.{cell}.pages.{size_kib * 1024}"
                stats[f"{stem}.total"] = pages[size_kib]
                if size_kib in free.get(cell, {}):
                    stats[f"{stem}.free"] = free[cell][size_kib]
        return stats

    def _capabilities_of(self, session: Session) -> str:
        now_s = self._clock()
        if self._capabilities is None or now_s - self._capabilities[0] > _CAPABILITIES_S:
            text = session.support.ask("getCapabilities", session.connection.getCapabilities)
            self._capabilities = (now_s, text or "<capabilities/>")
        return self._capabilities[1]

    def _ksm(self, session: Session) -> dict[str, Value]:
        found = session.support.ask("getMemoryParameters", session.connection.getMemoryParameters) or {}
        stats: dict[str, Value] = {f"node.ksm.{word}": found[f"shm_pages_{word}"] for word in _KSM
                                   if f"shm_pages_{word}" in found}
        if "shm_full_scans" in found:
            stats["node.ksm.full-scans"] = found["shm_full_scans"]
        return stats

    def _allocated(self) -> dict[str, Value]:
        """Sums over the running domains; absent while one of them is not known yet, since a sum would be too low."""
        known = [self._inventory.details(domain.uuid, domain.id) for domain in self._running]
        stats: dict[str, Value] = {}
        vcpus = [d.vcpus_current for d in known if d is not None and d.vcpus_current is not None]
        memory = [d.maximum_memory_bytes for d in known if d is not None and d.maximum_memory_bytes is not None]
        if len(vcpus) == len(known):
            stats["node.vcpus-allocated"] = sum(vcpus)
        if len(memory) == len(known):
            stats["node.memory-allocated"] = sum(memory)
        return stats


def huge_pages(capabilities: str) -> dict[int, dict[int, int]]:
    """For each NUMA cell's number its huge pages: size in KiB to their number; the smallest size is no huge one."""
    root = ElementTree.fromstring(capabilities)
    found: dict[int, dict[int, int]] = {}
    for cell in root.iterfind("host/topology/cells/cell"):
        sizes = {int(p.get("size", "0")): int(p.text or 0) for p in cell.iterfind("pages") if p.get("unit") == "KiB"}
        smallest = min(sizes, default=0)
        found[int(cell.get("id", "0"))] = {size: count for size, count in sizes.items() if size > smallest}
    return found
