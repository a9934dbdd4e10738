"""Every metric that a dashboard or an alert may use, and the reasons for those that none does."""

from __future__ import annotations

from collections.abc import Iterable

from collectors import COLLECTORS
from collectors.agent import AGENT
from collectors.fields import Collector
from collectors.sampling import sampling
from exporter.archive.metrics import ARCHIVE

# What Prometheus itself, and the client library on the exporter's page, add.
PROMETHEUS = {"up", "ALERTS", "scrape_duration_seconds", "scrape_series_added", "scrape_samples_scraped"}
PROCESS = {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds", "process_max_fds",
           "process_start_time_seconds"}

# On the control service's own page (exporter/control/control_metrics.py).
CONTROL = {"virtgauge_control_operations_total", "virtgauge_control_operations_running",
           "virtgauge_control_operation_duration_seconds_bucket", "virtgauge_control_operation_duration_seconds_count",
           "virtgauge_control_interface_change_open", "virtgauge_control_audit_archive_ok",
           "virtgauge_control_audit_waiting_records", "virtgauge_control_audit_spooled_records_total",
           "virtgauge_control_audit_stored_records_total",
           "virtgauge_control_rule_runs_total", "virtgauge_control_rule_breaker_open"}

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
    "libvirt_domain_job_": "details of a job for who looks into one; the panels show what decides it",
    "libvirt_domain_block_job_": "details of a disk's job",
    "libvirt_domain_checkpoint_": "their number is shown",
    "libvirt_domain_block_request_duration_seconds": "only disks that somebody gave latency histograms have them",
    "libvirt_domain_block_stats_interval_": "only disks that somebody gave timed groups have them",
    "libvirt_domain_block_stats_request_": "properties of the host's device that never change",
    "libvirt_domain_interface_limit_": "settings; shown by virtgauge domain show",
    "libvirt_domain_limit_": "settings; shown by virtgauge domain show",
    "libvirt_domain_vcpu_affinity_info": "a setting; the pCPU each vCPU runs on is shown",
    "libvirt_domain_vcpu_halted": "idle by another name: the use of each vCPU is shown",
    "libvirt_domain_messages": "deprecation warnings, for who upgrades libvirt",
    "libvirt_network": "state of virtual networks, which hardly ever changes; leases are shown",
    "libvirt_node_cell": "the free memory of each cell is shown",
    "libvirt_node_huge_pages": "only hosts with huge pages have them",
    "libvirt_node_info": "text about the host",
    "libvirt_node_interface_": "the host's own interfaces are node_exporter's subject",
    "libvirt_node_ksm_": "only hosts that merge pages have them",
    "libvirt_domain_memory_stats_hugetlb_": "only guests with huge pages have them; a graph would be empty for others",
    "virtgauge_unsupported_call_info": "of other hypervisors' drivers; a QEMU of today supports what is asked",
}


def names(collectors: Iterable[Collector]) -> set[str]:
    """Names of the series that collectors declare."""
    return {declaration.name for collector in collectors for declaration in collector.declarations}


def default_page() -> set[str]:
    """Names on the page of an exporter without flags."""
    return names([sampling(COLLECTORS), *(collector for collector in COLLECTORS if collector.default)])


def known() -> set[str]:
    """Every name that an expression may use."""
    return names([sampling(COLLECTORS), ARCHIVE, AGENT, *COLLECTORS]) | CONTROL | PROMETHEUS | PROCESS
