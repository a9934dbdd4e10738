"""What can be wrong with a guest: the expressions that several dashboards share.

`or` keeps one of two series with the same labels, so that each kind of latency and of limit has a label of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

_BLOCK, _NET = "libvirt_domain_block_", "libvirt_domain_interface_"
_PER_SECOND = "bytes_per_second"

LATENCY = " or ".join(f'label_replace({_BLOCK}{way}_latency_seconds{{@domain}}, "way", "{way}", "", "")'
                      for way in ("read", "write", "flush"))
"""Mean seconds of each disk's reads, writes and flushes."""


def _shares(shares: Mapping[str, tuple[str, str]]) -> str:
    return " or ".join(f'label_replace({use} / ({limit}{{@domain}} > 0), "limit", "{name}", "", "")'
                       for name, (use, limit) in shares.items())


def _of_disks(unit: str, read: str, write: str) -> str:
    read, write = f"{_BLOCK}{read}{{@domain}}", f"{_BLOCK}{write}{{@domain}}"
    limit = f"{_BLOCK}stats_limit"
    return _shares({f"{unit} read": (read, f"{limit}_read_{unit}"), f"{unit} written": (write, f"{limit}_write_{unit}"),
                    unit: (f"({read} + {write})", f"{limit}_total_{unit}")})


BYTES_OF_LIMIT = _of_disks("bytes", f"read_{_PER_SECOND}", f"write_{_PER_SECOND}")
REQUESTS_OF_LIMIT = _of_disks("requests", "reads_per_second", "writes_per_second")
OTHERS_OF_LIMIT = _shares({
    "received": (f"{_NET}receive_{_PER_SECOND}{{@domain}}", f"{_NET}limit_receive_average_{_PER_SECOND}"),
    "sent": (f"{_NET}transmit_{_PER_SECOND}{{@domain}}", f"{_NET}limit_transmit_average_{_PER_SECOND}"),
    "CPU": ("libvirt_domain_cpu_usage_cores{@domain}", "libvirt_domain_limit_cores"),
    "vCPU": ("max without (vcpu) (libvirt_domain_vcpu_usage_ratio{@domain})",
             "libvirt_domain_limit_vcpu_cores")})
OF_LIMIT = f"{BYTES_OF_LIMIT} or {REQUESTS_OF_LIMIT} or {OTHERS_OF_LIMIT}"
"""Share of each limit set for the guest that it uses; the label `limit` says which."""

SWAPPED = " + ".join(f"rate(libvirt_domain_memory_stats_swap_{way}_bytes_total{{@domain}}[$__rate_interval])"
                     for way in ("in", "out"))
LOST = " + ".join(f"rate({_NET}stats_{way}_{what}_total{{@domain}}[$__rate_interval])"
                  for way in ("receive", "transmit") for what in ("errors", "drops"))
"""Packets a second that an interface lost."""
