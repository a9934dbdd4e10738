"""resctrl monitors: memory bandwidth and cache occupancy, where the domain's definition asks for them.

libvirt 12.4's energy monitors are read by the names that its patches and the kernel's resctrl give them; there was no
machine to see them on, since they need Linux 7.0 and processors that count energy by themselves.
"""

from __future__ import annotations

from .fields import Collector, Declaration, Field, Kind

_MEMORY, _CACHE, _ENERGY = "memory.bandwidth.monitor.<n>", "cpu.cache.monitor.<n>", "cpu.energy.monitor.<n>"
GROUPS = ("memory", "cpu-total")


def _moved(word: str, text: str) -> Declaration:
    source = f"{_MEMORY}.node.<m>.bytes.{word}"
    return Field(source, f"libvirt_domain_memory_bandwidth_{word}_bytes_total", Kind.COUNTER,
                 f"Bytes that the monitor's vCPUs moved over the memory bus {text} (libvirt {source}, bytes).",
                 label="monitor", label_key=f"{_MEMORY}.name", inner_label="node",
                 inner_label_key=f"{_MEMORY}.node.<m>.id", since="6.0.0")


def _energy(word: str, name: str, text: str, unit: str) -> Declaration:
    source = f"{_ENERGY}.pkg.<m>.{word}"
    return Field(source, f"libvirt_domain_{name}_total", Kind.COUNTER, f"{text} (libvirt {source}, {unit}).",
                 label="monitor", label_key=f"{_ENERGY}.name", inner_label="package",
                 inner_label_key=f"{_ENERGY}.pkg.<m>.id", since="12.4.0")


BANDWIDTH = Collector(
    name="bandwidth",
    help="Memory bandwidth, cache occupancy and energy by resctrl monitor.",
    declarations=(
        _moved("local", "of their own node"),
        _moved("total", "of all nodes, as their node's monitor counts"),
        Field(f"{_CACHE}.bank.<m>.bytes", "libvirt_domain_cache_occupancy_bytes", Kind.GAUGE,
              f"Bytes of a last-level cache in use by the monitor's vCPUs (libvirt {_CACHE}.bank.<m>.bytes, bytes).",
              label="monitor", label_key=f"{_CACHE}.name", inner_label="cache",
              inner_label_key=f"{_CACHE}.bank.<m>.id", since="4.10.0"),
        _energy("core_energy", "energy_joules", "Energy that the cores took for the monitor's vCPUs", "joules"),
        _energy("activity", "activity_farads", "Work of the cores for the monitor's vCPUs, whatever their frequency",
                "farads"),
    ),
    default=False,
)
