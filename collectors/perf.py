"""perf events of a domain's process: only those that its definition or virDomainSetPerfEvents enabled."""

from __future__ import annotations

from .fields import NANOSECOND, Collector, Declaration, Field, Kind

_SINCE = "1.3.3"
_COUNTS = {
    "cpu_cycles": "CPU cycles", "instructions": "Instructions", "cache_references": "Cache references",
    "cache_misses": "Cache misses", "branch_instructions": "Branch instructions", "branch_misses": "Branch misses",
    "bus_cycles": "Bus cycles", "stalled_cycles_frontend": "Cycles stalled in the processor's front end",
    "stalled_cycles_backend": "Cycles stalled in the processor's back end",
    "ref_cpu_cycles": "CPU cycles at nominal speed",
    "page_faults": "Page faults of the process", "context_switches": "Context switches of the process",
    "cpu_migrations": "Moves of the process's threads to another pCPU", "page_faults_min": "Page faults without I/O",
    "page_faults_maj": "Page faults with I/O", "alignment_faults": "Alignment faults",
    "emulation_faults": "Emulation faults",
}
_TIMES = {"cpu_clock": "Seconds by the CPU's clock", "task_clock": "Seconds the process's threads ran"}


def _declarations() -> tuple[Declaration, ...]:
    found: list[Declaration] = [
        Field(f"perf.{event}", f"libvirt_domain_perf_{event}_total", Kind.COUNTER,
              f"{text} since the event was enabled (libvirt perf.{event}, count).", since=_SINCE)
        for event, text in _COUNTS.items()]
    found += [
        Field(f"perf.{event}", f"libvirt_domain_perf_{event}_seconds_total", Kind.COUNTER,
              f"{text} since the event was enabled (libvirt perf.{event}, nanoseconds).", NANOSECOND, since=_SINCE)
        for event, text in _TIMES.items()]
    found += [
        Field("perf.cmt", "libvirt_domain_perf_cache_occupancy_bytes", Kind.GAUGE,
              "Bytes of the last-level cache in use by the domain (libvirt perf.cmt, bytes).", since=_SINCE),
        Field("perf.mbmt", "libvirt_domain_perf_memory_bandwidth_total_bytes_per_second", Kind.GAUGE,
              "Bytes a second the domain moves over the memory bus, all nodes (libvirt perf.mbmt, bytes a second).",
              since=_SINCE),
        Field("perf.mbml", "libvirt_domain_perf_memory_bandwidth_local_bytes_per_second", Kind.GAUGE,
              "Bytes a second the domain moves over the memory bus, its own node (libvirt perf.mbml, bytes a second).",
              since=_SINCE)]
    return tuple(found)


PERF = Collector(name="perf", help="perf events, as far as they are enabled for the domain.",
                 declarations=_declarations(), default=False)
GROUPS = ("perf",)
