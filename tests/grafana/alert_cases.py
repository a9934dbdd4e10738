"""For each alert: series that make it fire and series that do not, a sample a minute.

A value is a number (constant) or Grows (a counter).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

GUEST = 'domain="web1"'
MOUNT = f'{GUEST},mountpoint="/var"'
DISK = 'domain="web1",target_device="vda"'


@dataclass(frozen=True)
class Grows:
    """A counter's growth a minute."""

    by: float


@dataclass(frozen=True)
class Case:
    """`bad` and `good`: series without job and instance, with their value."""

    bad: Mapping[str, float | Grows]
    good: Mapping[str, float | Grows]
    job: str = "libvirt"
    minutes: int = 120
    ended: int = 90  # good minutes after which nothing fires any more
    held: int = 12  # minutes for which two good ones do not end it; a job that moved is not stuck for half an hour
    at_once: bool = False  # an event: fires with the first sample, and is held by keep_firing_for


def event(event: str, detail: str) -> Case:
    series = f'libvirt_domain_events_total{{{GUEST},event="{event}",detail="{detail}"}}'
    return Case({series: Grows(1)}, {series: 3}, at_once=True)


def level(series: str, bad: float, good: float, labels: str = GUEST, minutes: int = 120) -> Case:
    name = f"{series}{{{labels}}}" if labels else series
    return Case({name: bad}, {name: good}, minutes=minutes)


def pool(taken: float, fine: float) -> Case:
    capacity, allocation = 'libvirt_pool_info_capacity_bytes{pool="p"}', 'libvirt_pool_info_allocation_bytes{pool="p"}'
    return Case({capacity: 100, allocation: taken}, {capacity: 100, allocation: fine})


CASES: dict[str, Case] = {
    "LibvirtExporterDown": level("up", 0, 1, ""),
    "LibvirtExporterAbsent": Case({}, {"libvirt_up": 1}),
    "LibvirtDown": level("libvirt_up", 0, 1, ""),
    "LibvirtScrapeSlow": level("scrape_duration_seconds", 8, 0.2, ""),
    "LibvirtSamplerCallsStuck": level("virtgauge_sampler_calls", 5, 1, 'state="stuck"'),
    "LibvirtDomainSampleIncomplete": level("libvirt_domain_sample_complete", 0, 1),
    "LibvirtDomainCrashed": event("stopped", "crashed"),
    "LibvirtDomainPausedByError": Case(
        {f'libvirt_domain_state_reason{{{GUEST},state="paused",reason="io_error"}}': 1},
        {f'libvirt_domain_state_reason{{{GUEST},state="paused",reason="user"}}': 1}),
    "LibvirtDomainOutOfSpace": event("io_error", "enospc"),
    "LibvirtDomainWatchdog": event("watchdog", "reset"),
    "LibvirtDomainAutostartOff": Case(
        {f"libvirt_domain_autostart{{{GUEST}}}": 1, f'libvirt_domain_state{{{GUEST},state="shutoff"}}': 1},
        {f"libvirt_domain_autostart{{{GUEST}}}": 1, f'libvirt_domain_state{{{GUEST},state="shutoff"}}': 0,
         f'libvirt_domain_state{{{GUEST},state="running"}}': 1}),
    "LibvirtDomainStealHigh": level("libvirt_domain_vcpu_steal_ratio", 0.2, 0.02, f'{GUEST},vcpu="1"'),
    "LibvirtDomainStealCritical": level("libvirt_domain_vcpu_steal_ratio", 0.5, 0.2, f'{GUEST},vcpu="1"'),
    "LibvirtDomainMemoryPressure": level("libvirt_domain_memory_used_ratio", 0.98, 0.7),
    "LibvirtDomainBalloonSqueezed": Case(
        {f"libvirt_domain_info_memory_usage_bytes{{{GUEST}}}": 500,
         f"libvirt_domain_info_maximum_memory_bytes{{{GUEST}}}": 1000,
         f"libvirt_domain_memory_used_ratio{{{GUEST}}}": 0.95},
        {f"libvirt_domain_info_memory_usage_bytes{{{GUEST}}}": 500,
         f"libvirt_domain_info_maximum_memory_bytes{{{GUEST}}}": 1000,
         f"libvirt_domain_memory_used_ratio{{{GUEST}}}": 0.5}),
    "LibvirtDomainSwapStorm": Case(
        {f"libvirt_domain_memory_stats_swap_{way}_bytes_total{{{GUEST}}}": Grows(6e8) for way in ("in", "out")},
        {f"libvirt_domain_memory_stats_swap_{way}_bytes_total{{{GUEST}}}": Grows(6e4) for way in ("in", "out")}),
    "LibvirtDomainDiskLatencyHigh": level("libvirt_domain_block_read_latency_seconds", 0.4, 0.004, DISK),
    "LibvirtDomainFlushLatencyHigh": level("libvirt_domain_block_flush_latency_seconds", 0.4, 0.004, DISK),
    "LibvirtDomainDiskThrottled": Case(
        {f"libvirt_domain_block_write_bytes_per_second{{{DISK}}}": 99,
         f"libvirt_domain_block_stats_limit_write_bytes{{{DISK}}}": 100},
        {f"libvirt_domain_block_write_bytes_per_second{{{DISK}}}": 50,
         f"libvirt_domain_block_stats_limit_write_bytes{{{DISK}}}": 100}),
    "LibvirtDomainDiskNoisy": Case(
        {f"libvirt_domain_block_read_bytes_per_second{{{DISK}}}": 0,
         f"libvirt_domain_block_write_bytes_per_second{{{DISK}}}": 9e7,
         'libvirt_domain_block_read_bytes_per_second{domain="db1",target_device="vda"}': 1e6,
         'libvirt_domain_block_write_bytes_per_second{domain="db1",target_device="vda"}': 0,
         'libvirt_domain_block_read_latency_seconds{domain="db1",target_device="vda"}': 0.5},
        # As busy and slow itself, but nobody else is: it harms no one.
        {f"libvirt_domain_block_read_bytes_per_second{{{DISK}}}": 0,
         f"libvirt_domain_block_write_bytes_per_second{{{DISK}}}": 9e7,
         f"libvirt_domain_block_write_latency_seconds{{{DISK}}}": 0.5,
         'libvirt_domain_block_read_bytes_per_second{domain="db1",target_device="vda"}': 1e6,
         'libvirt_domain_block_write_bytes_per_second{domain="db1",target_device="vda"}': 0,
         'libvirt_domain_block_read_latency_seconds{domain="db1",target_device="vda"}': 0.005}),
    "LibvirtPoolFilling": pool(90, 60),
    "LibvirtPoolFull": pool(97, 90),
    "LibvirtPoolFullSoon": Case(
        {'libvirt_pool_info_capacity_bytes{pool="p"}': 1e6, 'libvirt_pool_info_allocation_bytes{pool="p"}': 8e5,
         'libvirt_pool_info_available_bytes{pool="p"}': Grows(-300)},
        {'libvirt_pool_info_capacity_bytes{pool="p"}': 1e6, 'libvirt_pool_info_allocation_bytes{pool="p"}': 8e5,
         'libvirt_pool_info_available_bytes{pool="p"}': 2e5}, minutes=600, ended=450),
    "LibvirtDomainNetworkErrors": Case(
        {f"libvirt_domain_interface_stats_{way}_errors_total{{{DISK}}}": Grows(600) for way in ("receive", "transmit")},
        {f"libvirt_domain_interface_stats_{way}_errors_total{{{DISK}}}": Grows(6) for way in ("receive", "transmit")}),
    "LibvirtDomainNetworkDrops": Case(
        {f"libvirt_domain_interface_stats_{way}_drops_total{{{DISK}}}": Grows(6000) for way in ("receive", "transmit")},
        {f"libvirt_domain_interface_stats_{way}_drops_total{{{DISK}}}": Grows(60) for way in ("receive", "transmit")}),
    "LibvirtMigrationNotConverging": Case(
        {f"libvirt_domain_job_memory_dirty_pages_per_second{{{GUEST}}}": 1000,
         f"libvirt_domain_job_memory_page_bytes{{{GUEST}}}": 4096,
         f"libvirt_domain_job_memory_bytes_per_second{{{GUEST}}}": 1e6},
        {f"libvirt_domain_job_memory_dirty_pages_per_second{{{GUEST}}}": 10,
         f"libvirt_domain_job_memory_page_bytes{{{GUEST}}}": 4096,
         f"libvirt_domain_job_memory_bytes_per_second{{{GUEST}}}": 1e6}),
    "LibvirtJobStuck": Case(
        {f"libvirt_domain_job_elapsed_seconds{{{GUEST}}}": Grows(60),
         f"libvirt_domain_job_data_remaining_bytes{{{GUEST}}}": 500},
        {f"libvirt_domain_job_elapsed_seconds{{{GUEST}}}": Grows(60),
         f"libvirt_domain_job_data_remaining_bytes{{{GUEST}}}": Grows(-5)}, held=10),
    "LibvirtBlockJobStuck": Case(
        {f"libvirt_domain_block_job_current_bytes{{{DISK}}}": 50, f"libvirt_domain_block_job_end_bytes{{{DISK}}}": 100},
        {f"libvirt_domain_block_job_current_bytes{{{DISK}}}": 100,
         f"libvirt_domain_block_job_end_bytes{{{DISK}}}": 100}, held=10),
    "LibvirtSnapshotOld": level("libvirt_domain_snapshot_oldest_timestamp_seconds", -1e6, -1e5, minutes=180),
    "LibvirtDomainChainDeep": level("libvirt_domain_block_backing_images", 12, 2, DISK, minutes=180),
    "LibvirtSnapshotsMany": level("libvirt_domain_snapshots", 12, 3, minutes=180),
    "LibvirtGuestAgentUnreachable": Case(
        {f'libvirt_domain_sample_incomplete_reason{{{GUEST},reason="agent"}}': 1},
        {f'libvirt_domain_sample_incomplete_reason{{{GUEST},reason="job"}}': 1}),
    "LibvirtGuestAgentSilent": replace(level("libvirt_domain_agent_up", 0, 1), job="virtgauge-control"),
    "LibvirtGuestFilesystemFilling": Case(
        {f"libvirt_domain_agent_filesystem_used_bytes{{{MOUNT}}}": 95,
         f"libvirt_domain_agent_filesystem_size_bytes{{{MOUNT}}}": 100},
        {f"libvirt_domain_agent_filesystem_used_bytes{{{MOUNT}}}": 60,
         f"libvirt_domain_agent_filesystem_size_bytes{{{MOUNT}}}": 100}, job="virtgauge-control"),
    "LibvirtHostMemoryLow": Case({"libvirt_node_memory_available_bytes": 3, "libvirt_node_memory_total_bytes": 100},
                                 {"libvirt_node_memory_available_bytes": 30, "libvirt_node_memory_total_bytes": 100}),
    "LibvirtHostMemoryOvercommitted": Case(
        {"libvirt_node_memory_allocated_bytes": 150, "libvirt_node_memory_total_bytes": 100},
        {"libvirt_node_memory_allocated_bytes": 100, "libvirt_node_memory_total_bytes": 100}),
    "LibvirtNoRoomForOneHostLess": Case(
        {'libvirt_node_memory_allocated_bytes{cell="a"}': 80, 'libvirt_node_memory_total_bytes{cell="a"}': 60,
         'libvirt_node_memory_total_bytes{cell="b"}': 60},
        {'libvirt_node_memory_allocated_bytes{cell="a"}': 50, 'libvirt_node_memory_total_bytes{cell="a"}': 60,
         'libvirt_node_memory_total_bytes{cell="b"}': 60}, minutes=180),
    "VirtgaugeSeriesCut": level("virtgauge_series_cut_domains", 2, 0, ""),
    "VirtgaugeArchiveLagging": level("virtgauge_archive_lag_seconds", 1200, 30, ""),
    "VirtgaugeArchiveSpoolFilling": Case(
        {"virtgauge_archive_spool_bytes": 90, "virtgauge_archive_spool_limit_bytes": 100},
        {"virtgauge_archive_spool_bytes": 10, "virtgauge_archive_spool_limit_bytes": 100}),
    "VirtgaugeArchiveSamplesLost": Case({'virtgauge_archive_dropped_samples_total{reason="spool_full"}': Grows(10)},
                                        {'virtgauge_archive_dropped_samples_total{reason="spool_full"}': 10},
                                        at_once=True),
    "VirtgaugeRuleFailed": Case(
        {'virtgauge_control_rule_runs_total{rule="resume",result="failed"}': Grows(1)},
        {'virtgauge_control_rule_runs_total{rule="resume",result="done"}': Grows(1)},
        job="virtgauge-control", at_once=True),
    "VirtgaugeRuleCircuitOpen": replace(level("virtgauge_control_rule_breaker_open", 1, 0, 'rule="resume"'),
                                        job="virtgauge-control"),
    "VirtgaugeRuleFileBroken": replace(level("virtgauge_control_rule_file_ok", 0, 1, ""), job="virtgauge-control"),
    "VirtgaugeApprovalWaiting": replace(level("virtgauge_control_rule_acts_pending", 2, 0, ""),
                                        job="virtgauge-control"),
    "VirtgaugeRulesStopped": replace(level("virtgauge_control_rules_stopped", 1, 0, "", minutes=120),
                                     job="virtgauge-control"),
    "VirtgaugeControlOperationFailed": Case(
        {'virtgauge_control_operations_total{operation="domain start",outcome="failed"}': Grows(1)},
        {'virtgauge_control_operations_total{operation="domain start",outcome="changed"}': Grows(1)},
        job="virtgauge-control", at_once=True),
    "VirtgaugeInterfaceChangeUnconfirmed": Case({"virtgauge_control_interface_change_open": 1},
                                                {"virtgauge_control_interface_change_open": 0},
                                                job="virtgauge-control"),
    "VirtgaugeAuditNotArchived": replace(level("virtgauge_control_audit_archive_ok", 0, 1, ""),
                                         job="virtgauge-control"),
}
WEEK = "LibvirtDomainDiskLatencyUnusual"  # needs a week of series, in a file of its own
ALWAYS = "VirtgaugeWatchdog"
