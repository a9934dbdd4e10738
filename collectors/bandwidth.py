"""resctrl monitors: memory bandwidth and cache occupancy, where the domain's definition asks for them.

libvirt 12.4's energy monitors are left out: no source read tells the key of their value.
"""

from __future__ import annotations

from .fields import Collector, Declaration, Field, Kind

_MEMORY, _CACHE = "memory.bandwidth.monitor.<n>", "cpu.cache.monitor.<n>"
GROUPS = ("memory", "cpu-total")


def _moved(word: str, text: str) -> Declaration:
    source = f"{_MEMORY}.node.<m>.bytes.{word}"
    return Field(source, f"libvirt_domain_memory_bandwidth_{word}_bytes_total", Kind.COUNTER,
                 f"Bytes that the monitor's vCPUs moved over the memory bus {text} (libvirt {source}, bytes).",
                 label="monitor", label_key=f"{_MEMORY}.name", inner_label="node",
                 inner_label_key=f"{_MEMORY}.node.<m>.id", since="6.0.0")


BANDWIDTH = Collector(
    name="bandwidth",
    help="Memory bandwidth and cache occupancy by resctrl monitor.",
    declarations=(
        _moved("local", "of their own node"),
        _moved("total", "of all nodes, as their node's monitor counts"),
        Field(f"{_CACHE}.bank.<m>.bytes", "libvirt_domain_cache_occupancy_bytes", Kind.GAUGE,
              f"Bytes of a last-level cache in use by the monitor's vCPUs (libvirt {_CACHE}.bank.<m>.bytes, bytes).",
              label="monitor", label_key=f"{_CACHE}.name", inner_label="cache",
              inner_label_key=f"{_CACHE}.bank.<m>.id", since="4.10.0"),
    ),
    default=False,
)
