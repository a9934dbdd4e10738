"""Every metric that a dashboard or an alert may use, and the reasons for those that none does."""

from __future__ import annotations

from collections.abc import Iterable

from collectors import COLLECTORS
from collectors.fields import Collector
from collectors.sampling import sampling

# What Prometheus itself, and the client library on the exporter's page, add.
PROMETHEUS = {"up", "ALERTS", "scrape_duration_seconds", "scrape_series_added", "scrape_samples_scraped"}
PROCESS = {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds", "process_max_fds",
           "process_start_time_seconds"}

# Metrics of the default page that no panel and no alert uses, by prefix, with the reason.
UNUSED = {
    "libvirt_domain_block_stats_limit_burst_": "bursts are a detail of a limit; docs/metrics.md tells them",
    "libvirt_domain_block_stats_size_iops_bytes": "a detail of how a limit counts",
    "libvirt_domain_memory_stats_actual_balloon_bytes": "the same value as libvirt_domain_info_memory_usage_bytes, "
                                                        "kept for the names of other exporters",
    "libvirt_domain_block_stats_read_bytes_total": "its rate is served: libvirt_domain_block_read_bytes_per_second",
    "libvirt_domain_block_stats_write_bytes_total": "its rate is served",
    "libvirt_domain_block_stats_read_requests_total": "its rate is served",
    "libvirt_domain_block_stats_write_requests_total": "its rate is served",
    "libvirt_domain_block_stats_flush_requests_total": "its rate is served",
    "libvirt_domain_interface_stats_receive_bytes_total": "its rate is served",
    "libvirt_domain_interface_stats_receive_packets_total": "its rate is served",
    "libvirt_domain_interface_stats_transmit_bytes_total": "its rate is served",
    "libvirt_domain_interface_stats_transmit_packets_total": "its rate is served",
    "libvirt_domain_vcpu_delay_seconds_total": "its rate is served: libvirt_domain_vcpu_steal_ratio",
    "libvirt_domain_block_stats_threshold_bytes": "the level at which libvirt sends an event, set by whoever manages "
                                                  "the volume; the event is what matters",
    "libvirt_domain_memory_stats_hugetlb_": "only guests with huge pages have them; a graph would be empty for others",
}


def names(collectors: Iterable[Collector]) -> set[str]:
    """Names of the series that collectors declare."""
    return {declaration.name for collector in collectors for declaration in collector.declarations}


def default_page() -> set[str]:
    """Names on the page of an exporter without flags."""
    return names([sampling(COLLECTORS), *(collector for collector in COLLECTORS if collector.default)])


def known() -> set[str]:
    """Every name that an expression may use."""
    return names([sampling(COLLECTORS), *COLLECTORS]) | PROMETHEUS | PROCESS
