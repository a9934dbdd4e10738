"""Memory: what the balloon allots and what the guest says of itself.

The guest's own figures exist only with a balloon driver in the guest and a statistics period in the domain;
without them libvirt leaves the keys out and the page does, too.
"""

from __future__ import annotations

from .domain_xml import BALLOON_PERIOD
from .fields import KIBIBYTE, Collector, Computed, Field, Info, Kind, Ratio


def _bytes(source: str, name: str, text: str) -> Field:
    return Field(f"balloon.{source}", f"libvirt_domain_{name}", Kind.GAUGE,
                 f"{text} (libvirt balloon.{source}, KiB).", KIBIBYTE, archive=f"memory_{source}_kib")


def _counter(source: str, name: str, text: str, unit: str, scale: float = 1.0) -> Field:
    return Field(f"balloon.{source}", f"libvirt_domain_memory_stats_{name}_total", Kind.COUNTER,
                 f"{text} (libvirt balloon.{source}, {unit}).", scale,
                 archive=f"memory_{source}" + ("_kib" if scale == KIBIBYTE else ""))


MEMORY = Collector(
    name="memory",
    help="Balloon size and the guest's own memory figures.",
    groups=("balloon",),
    declarations=(
        _bytes("maximum", "info_maximum_memory_bytes", "Bytes of memory the domain may have"),
        _bytes("current", "info_memory_usage_bytes", "Bytes of memory the balloon leaves to the domain now"),
        Field("balloon.current", "libvirt_domain_memory_stats_actual_balloon_bytes", Kind.GAUGE,
              "Bytes of memory the balloon leaves to the domain now (libvirt balloon.current, KiB).", KIBIBYTE),
        _bytes("rss", "memory_stats_rss_bytes", "Resident bytes of the QEMU process, guest memory and its own"),
        _bytes("unused", "memory_stats_unused_bytes", "Bytes the guest leaves wholly unused, its MemFree"),
        _bytes("available", "memory_stats_available_bytes", "Bytes the guest sees in all, its MemTotal"),
        _bytes("usable", "memory_stats_usable_bytes", "Bytes the guest could use without swapping, its MemAvailable"),
        _bytes("disk_caches", "memory_stats_disk_cache_bytes", "Bytes of page cache the guest could give back"),
        _counter("swap_in", "swap_in_bytes", "Bytes the guest read from swap", "KiB", KIBIBYTE),
        _counter("swap_out", "swap_out_bytes", "Bytes the guest wrote to swap", "KiB", KIBIBYTE),
        _counter("major_fault", "major_fault", "Page faults in the guest that needed I/O", "count"),
        _counter("minor_fault", "minor_fault", "Page faults in the guest that needed no I/O", "count"),
        _counter("hugetlb_pgalloc", "hugetlb_pgalloc", "Huge pages the guest allocated", "count"),
        _counter("hugetlb_pgfail", "hugetlb_pgfail", "Huge page allocations that failed in the guest", "count"),
        Field("balloon.last-update", "libvirt_domain_memory_stats_last_update_timestamp_seconds", Kind.GAUGE,
              "Time of the guest's last memory report (libvirt balloon.last-update, seconds since the epoch); absent "
              "while the guest's driver never reported.", archive="memory_last_update_s", zero_is_unknown=True),
        Field("process.major-faults", "libvirt_domain_process_major_faults_total", Kind.COUNTER,
              "Page faults of the domain's process that waited for the host's disk: guest memory that the host had "
              "swapped out (process's stat file, field 12, as process.major-faults, count).",
              archive="process_major_faults", since=""),
        Field("process.minor-faults", "libvirt_domain_process_minor_faults_total", Kind.COUNTER,
              "Page faults of the domain's process that needed no disk: memory used for the first time or shared "
              "(process's stat file, field 10, as process.minor-faults, count).", since=""),
        Info(BALLOON_PERIOD,
             "Seconds between the guest's memory reports, 0 where it is asked for none, so that its own figures are "
             "absent; virsh dommemstat --period sets it, which shows within ten minutes; absent without a balloon "
             "(domain XML <memballoon><stats period>, seconds).", ("domain",),
             source="domain XML <memballoon><stats period>", since="1.1.1"),
        Computed("libvirt_domain_memory_used_ratio", Ratio.COMPLEMENT, "balloon.usable",
                 "Share of its memory that the guest uses (1 - libvirt balloon.usable / balloon.available, ratio).",
                 denominator="balloon.available"),
    ),
)
