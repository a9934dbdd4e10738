"""Statistics that this machine's libvirt 9.0 cannot give, written by libvirt's own tables of keys: not captured.

From libvirt 12.8's header and virsh manual: block limits and timed groups (11.10), latency histograms (12.1), I/O
thread poll weight (12.7); and what needs other hardware or set-up: resctrl, perf events, dirty rate, s390's halted.
The energy monitors (12.4) have no name of their values in the header: they are by the patches' and the kernel's words.
"""

from __future__ import annotations

from collections.abc import Mapping

from collectors.backing import chains
from collectors.block import BLOCK
from collectors.dirtyrate import numbered
from collectors.fields import Constant, Kind
from collectors.host import HOST, SUBJECT
from collectors.jobs import JOBS
from collectors.kvm import KVM
from collectors.perf import PERF
from collectors.settings import SETTINGS
from collectors.snapshot import Record, Subject, Value
from collectors.snapshots import SNAPSHOTS
from collectors.storage import STORAGE

BINS = ((0, 5), (10_000, 3), (100_000, 0), (5_000_000, 1))
"""Lowest value in ns and count of each bin of a latency histogram."""


def histogram(disk: int, operation: str, bins: tuple[tuple[int, int], ...] = BINS) -> dict[str, Value]:
    stem = f"block.{disk}.latency_histogram.{operation}.bin"
    stats: dict[str, Value] = {f"{stem}.count": len(bins)}
    for number, (start_ns, count) in enumerate(bins):
        stats |= {f"{stem}.{number}.start": start_ns, f"{stem}.{number}.value": count}
    return stats


def timed_group(disk: int, number: int, interval_s: int) -> dict[str, Value]:
    stem = f"block.{disk}.timed_group.{number}"
    stats: dict[str, Value] = {f"{stem}.interval": interval_s}
    for operation in ("rd", "wr", "zone_append", "flush"):
        stats |= {f"{stem}.{operation}_latency_{word}": ns for word, ns in
                  (("min", 1000), ("max", 9_000_000), ("avg", 250_000))}
        if operation != "flush":
            stats[f"{stem}.{operation}_queue_depth_avg"] = 1.5
    return stats


NEWER: Mapping[str, Value] = {
    "block.count": 1, "block.0.name": "vda", "block.0.timed_group.count": 2,
    **{field.source.replace("<n>", "0"): 4096 for field in BLOCK.fields() if ".limits." in field.source},
    **timed_group(0, 0, 10), **timed_group(0, 1, 60),
    **{key: value for operation in ("read", "write", "flush", "zone_append")
       for key, value in histogram(0, operation).items()},
    "vcpu.0.halted": True,
    "iothread.count": 2, "iothread.1.poll-max-ns": 32768, "iothread.1.poll-grow": 0, "iothread.1.poll-shrink": 0,
    "iothread.1.poll-weight": 2, "iothread.4.poll-max-ns": 32768,
    **numbered({"dirtyrate.calc_status": 2, "dirtyrate.calc_start_time": 1234, "dirtyrate.calc_period": 1,
                "dirtyrate.calc_mode": "dirty-ring", "dirtyrate.megabytes_per_second": 12}),
    "dirtyrate.vcpu.0.megabytes_per_second": 7,
    "memory.bandwidth.monitor.count": 1, "memory.bandwidth.monitor.0.name": "vcpus_0-1",
    "memory.bandwidth.monitor.0.vcpus": "0-1", "memory.bandwidth.monitor.0.node.count": 2,
    "memory.bandwidth.monitor.0.node.0.id": 0, "memory.bandwidth.monitor.0.node.0.bytes.local": 1000,
    "memory.bandwidth.monitor.0.node.0.bytes.total": 2000, "memory.bandwidth.monitor.0.node.1.id": 1,
    "memory.bandwidth.monitor.0.node.1.bytes.local": 3000, "memory.bandwidth.monitor.0.node.1.bytes.total": 4000,
    "cpu.cache.monitor.count": 1, "cpu.cache.monitor.0.name": "vcpus_0-1", "cpu.cache.monitor.0.vcpus": "0-1",
    "cpu.cache.monitor.0.bank.count": 1, "cpu.cache.monitor.0.bank.0.id": 0, "cpu.cache.monitor.0.bank.0.bytes": 65536,
    "cpu.energy.monitor.count": 1, "cpu.energy.monitor.0.name": "vcpus_0-1", "cpu.energy.monitor.0.vcpus": "0-1",
    "cpu.energy.monitor.0.pkg.count": 1, "cpu.energy.monitor.0.pkg.0.id": 0,
    "cpu.energy.monitor.0.pkg.0.core_energy": 12.5, "cpu.energy.monitor.0.pkg.0.activity": 3.25,
    **{field.source: 1_000_000 for field in PERF.fields()},
    **{field.source: 9 for field in KVM.fields() if field.source.startswith("vm.")},
    "vm.max_mmu_rmap_size.max": 4, "vm.mmu_unsync.cur": 0, "vm.mmu_pte_write.sum": 3,
    "vcpu.0.blocking.cur": True, "vcpu.0.nmi_window_exits.sum": 2, "vcpu.0.some_new_thing.max": 8,
}

HISTOGRAMS = frozenset(field.name for field in BLOCK.fields() if field.kind is Kind.HISTOGRAM)


NODE: Mapping[str, Value] = {field.source.replace("<n>", "0").replace("<m>", "2097152"): 1_000_000_000
                             for field in HOST.fields()}
POOL: Mapping[str, Value] = {"pool.state": 2, **{field.source: 4096 for field in STORAGE.fields()}}
VOLUME: Mapping[str, Value] = {"volume.0.name": "a.img", "volume.0.capacity": 4096, "volume.0.allocation": 0,
                               "volume.1.name": "b\n.img", "volume.1.capacity": 8192, "volume.1.allocation": 8192}
NETWORK: Mapping[str, Value] = {"network.active": 1, "network.autostart": 0, "network.persistent": 1,
                                "network.leases": 3}
NETWORKS: Mapping[str, Value] = {"networks.active": 1, "networks.inactive": 0}
JOB: Mapping[str, Value] = {"blockjob.0.name": "vda", **{field.source.replace("<n>", "0"): 2000
                                                         for field in JOBS.fields()}}
KEPT: Mapping[str, Value] = {field.source: 1 for collector in (SNAPSHOTS, SETTINGS) for field in collector.fields()}

CHAIN: Mapping[str, Value] = {
    f"block.{number}.{word}": value for number in range(2)
    for word, value in (("name", "vda"), ("allocation", 1), ("capacity", 4096), ("physical", 2048))}


def beside(at_s: float) -> list[Record]:
    """Records as the periodic sources give them, with every key there is."""
    domain = Subject("domain", ("written", "written"), (("domain", "written"),))
    jobs = (Constant("libvirt_domain_job_info", (("operation", "migration_out"), ("type", "unbounded"))),
            Constant("libvirt_domain_job_last_info", (("operation", "save"), ("result", "completed"))),
            Constant("libvirt_domain_block_job_info", (("target_device", "vda"), ("type", "copy"))),
            Constant("libvirt_domain_block_error_info", (("target_device", "vda"), ("error", "no_space"))))
    pool = Subject("pool", ("pool-uuid",), (("pool", "default"),))
    return [
        Record(SUBJECT, "host", NODE, at_s),
        Record(SUBJECT, "host-name", {}, at_s,
               (Constant("libvirt_node_info", (("hostname", "h"), ("model", "x86_64"))),)),
        Record(pool, "storage", POOL, at_s), Record(pool, "volumes", VOLUME, at_s),
        Record(Subject("network", ("net-uuid",), (("network", "default"),)), "virtual_networks", NETWORK, at_s,
               (Constant("libvirt_network_info", (("uuid", "net-uuid"), ("bridge", "virbr0"))),)),
        Record(Subject("networks", ("networks",), ()), "virtual_networks", NETWORKS, at_s),
        Record(Subject("interface", ("eth0",), (("interface", "eth0"),)), "virtual_networks", {"interface.active": 1},
               at_s, (Constant("libvirt_node_interface_info", (("mac", "52:54:00:00:00:01"),)),)),
        Record(domain, "jobs", JOB, at_s, jobs), Record(domain, "kept", KEPT, at_s),
        Record(domain, "backing", chains(CHAIN, {}), at_s)]
