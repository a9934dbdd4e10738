"""Every metric that a dashboard or an alert may use, and the reasons for those that none does."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

from prometheus_client import Metric

from collectors import COLLECTORS
from collectors.agent import AGENT
from collectors.fields import Collector
from collectors.sampling import sampling
from exporter.archive.metrics import ARCHIVE
from exporter.control.alert_store import AlertStore
from exporter.control.audit_metrics import AuditMetrics
from exporter.control.control_metrics import ControlMetrics
from exporter.control.folders import Folders
from exporter.control.rule_metrics import RuleMetrics
from exporter.control.rule_reading import load_rules
from exporter.page import RefusedRequests
from exporter.refusals import Refusals
from tests.samples import REPOSITORY

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
    "libvirt_domain_vcpu_timeslices_total": "steal in seconds is shown; this tells in how many pieces it came",
    "libvirt_domain_process_minor_faults_total": "first uses of memory: nothing is wrong with a guest that has them",
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
    "libvirt_node_sockets_per_cell": "a property of the host that never changes",
    "libvirt_node_cores_per_socket": "the same",
    "libvirt_node_threads_per_core": "the same",
    "libvirt_node_cpu_frequency_hertz": "the same",
    "libvirt_node_interface_": "the host's own interfaces are node_exporter's subject",
    "libvirt_node_ksm_": "only hosts that merge pages have them",
    "libvirt_domain_memory_stats_hugetlb_": "only guests with huge pages have them; a graph would be empty for others",
}

NOTHING_YET = SimpleNamespace(spooled=0, stored=0, waiting=0, fault=None)

# Those of the control service's page.
UNUSED_CONTROL = {
    "virtgauge_control_operation_duration_seconds_": "of a histogram its buckets are used",
    "virtgauge_control_rule_run_seconds_total": "how long rules took; each record of the audit trail has its times",
    "virtgauge_control_rule_acts_retrying": "an act that is tried again is told by the audit trail; the ones that a "
                                            "person must see to are shown",
}


def names(collectors: Iterable[Collector]) -> set[str]:
    """Names of the series that collectors declare."""
    return {declaration.name for collector in collectors for declaration in collector.declarations}


def default_page() -> set[str]:
    """Names on the page of an exporter without flags."""
    return names([sampling(COLLECTORS), *(collector for collector in COLLECTORS if collector.default)]) | front()


def front() -> set[str]:
    """Names that the HTTP front of both services adds to their pages."""
    return {name for family in RefusedRequests(Refusals()).collect() for name in served(family)}


@cache
def control_page() -> frozenset[str]:
    """Names on the control service's own page, as its collectors give them."""
    with TemporaryDirectory() as folder:
        store = AlertStore(Path(folder))
        rules = load_rules(REPOSITORY / "grafana" / "rules" / "virtgauge.control-rules.yml")
        collectors = [ControlMetrics(Folders(Path(folder))), AuditMetrics(lambda: NOTHING_YET),
                      RuleMetrics(store, lambda: rules, lambda: False)]
        found = {name for collector in collectors for family in collector.collect() for name in served(family)}
        store.close()
    return frozenset(found)


def served(family: Metric) -> tuple[str, ...]:
    """The names of a family's series."""
    endings = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}
    return tuple(family.name + ending for ending in endings.get(family.type, ("",)))


@cache
def known() -> frozenset[str]:
    """Every name that an expression may use."""
    declared = names([sampling(COLLECTORS), ARCHIVE, AGENT, *COLLECTORS])
    return frozenset(declared | front() | control_page() | PROMETHEUS | PROCESS)
