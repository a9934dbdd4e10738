"""Jobs of domains (migration, save, dump, backup) and of their disks (copy, commit, pull): progress and last result.

``job_reading`` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping

from .fields import MILLISECOND, Collector, Declaration, Field, Info, Kind

JOB_INFO = "libvirt_domain_job_info"
LAST_INFO = "libvirt_domain_job_last_info"
BLOCK_JOB_INFO = "libvirt_domain_block_job_info"
JOB_TYPES = ("none", "bounded", "unbounded", "completed", "failed", "cancelled")
"""virDomainJobType by number."""

# libvirt's key to (name, text, unit as HELP says it, kind, scale).
_Row = tuple[str, str, str, Kind, float]
JOB: Mapping[str, _Row] = {
    "time_elapsed": ("elapsed_seconds", "Seconds since the job began", "milliseconds", Kind.GAUGE, MILLISECOND),
    "time_remaining": ("remaining_seconds", "Seconds the job is expected to take still", "milliseconds", Kind.GAUGE,
                       MILLISECOND),
    "time_elapsed_net": ("elapsed_net_seconds", "Seconds since the job began, without those that the two hosts' clocks "
                         "differ by", "milliseconds", Kind.GAUGE, MILLISECOND),
    "downtime": ("downtime_seconds", "Seconds the guest stood still, or is expected to, for the job", "milliseconds",
                 Kind.GAUGE, MILLISECOND),
    "downtime_net": ("downtime_net_seconds", "Seconds the guest stood still for the job, without those that the two "
                     "hosts' clocks differ by", "milliseconds", Kind.GAUGE, MILLISECOND),
    "setup_time": ("setup_seconds", "Seconds the job's set-up took", "milliseconds", Kind.GAUGE, MILLISECOND),
    **{f"{what}_{word}": (f"{what}_{word}_bytes", f"Bytes of {text} {verb}", "bytes", Kind.GAUGE, 1.0)
       for what, text in (("data", "all data"), ("memory", "memory"), ("disk", "disks"))
       for word, verb in (("total", "to move"), ("processed", "moved"), ("remaining", "still to move"))},
    "memory_constant": ("memory_constant_pages", "Pages of memory that hold one and the same byte, and are told by it",
                        "count", Kind.GAUGE, 1.0),
    "memory_normal": ("memory_normal_pages", "Pages of memory moved as a whole", "count", Kind.GAUGE, 1.0),
    "memory_normal_bytes": ("memory_normal_bytes", "Bytes of memory moved as whole pages", "bytes", Kind.GAUGE, 1.0),
    "memory_bps": ("memory_bytes_per_second", "Bytes of memory a second the job moves", "bytes a second", Kind.GAUGE,
                   1.0),
    "disk_bps": ("disk_bytes_per_second", "Bytes of disks a second the job moves", "bytes a second", Kind.GAUGE, 1.0),
    "memory_dirty_rate": ("memory_dirty_pages_per_second", "Pages a second that the guest writes to anew", "pages a "
                          "second", Kind.GAUGE, 1.0),
    "memory_page_size": ("memory_page_bytes", "Bytes of a page of memory", "bytes", Kind.GAUGE, 1.0),
    "memory_iteration": ("memory_iterations", "Times the job went over the memory", "count", Kind.GAUGE, 1.0),
    "memory_postcopy_requests": ("memory_postcopy_requests", "Pages that the destination asked for by itself", "count",
                                 Kind.GAUGE, 1.0),
    "auto_converge_throttle": ("cpu_throttle_ratio", "Share of time that the guest's vCPUs are held so that the job "
                               "converges", "percent", Kind.GAUGE, 0.01),
    "compression_cache": ("compression_cache_bytes", "Bytes of the compression's cache", "bytes", Kind.GAUGE, 1.0),
    "compression_pages": ("compression_pages", "Pages of memory that were sent compressed", "count", Kind.GAUGE, 1.0),
    "compression_cache_misses": ("compression_cache_misses", "Pages that the compression's cache did not have", "count",
                                 Kind.GAUGE, 1.0),
    "compression_overflow": ("compression_overflows", "Pages that compression made no smaller", "count", Kind.GAUGE,
                             1.0),
    "compression_bytes": ("compression_bytes", "Bytes of memory that were sent compressed", "bytes", Kind.GAUGE, 1.0),
    "disk_temp_used": ("disk_temporary_used_bytes", "Bytes of temporary disk space in use", "bytes", Kind.GAUGE, 1.0),
    "disk_temp_total": ("disk_temporary_total_bytes", "Bytes of temporary disk space", "bytes", Kind.GAUGE, 1.0),
}
LAST = ("time_elapsed", "time_elapsed_net", "downtime", "downtime_net", "setup_time", "data_total", "data_processed",
         "memory_total", "memory_processed", "memory_normal_bytes", "memory_bps", "memory_dirty_rate",
         "memory_iteration", "memory_postcopy_requests", "auto_converge_throttle", "compression_bytes", "disk_total",
         "disk_processed", "disk_bps")
"""What is served of a job that ended."""


def _field(stem: str, prefix: str, key: str, before: str = "") -> Declaration:
    name, text, unit, kind, scale = JOB[key]
    return Field(f"{stem}.{key}", f"libvirt_domain_{prefix}_{name}", kind,
                 f"{before}{text} (virDomainGetJobStats, {stem}.{key}, {unit}).", scale, since="1.0.3")


def _block(word: str, name: str, text: str, unit: str) -> Declaration:
    return Field(f"blockjob.<n>.{word}", f"libvirt_domain_block_job_{name}", Kind.GAUGE,
                 f"{text} (virDomainGetBlockJobInfo, blockjob.<n>.{word}, {unit}).", 1.0, "target_device",
                 "blockjob.<n>.name", since="0.9.4")


JOBS = Collector(
    name="jobs",
    help="Jobs of domains and of their disks: progress while they run, and the domain's last one, also where it ended "
         "the domain; a job whose beginning no event tells is found within a minute.",
    declarations=(
        Info(JOB_INFO, "Always 1 while the domain has a job; what it does (virDomainGetJobStats, text).",
             ("domain", "operation", "type"), source="job", since="3.3.0"),
        *(_field("job", "job", key) for key in JOB),
        Info(LAST_INFO, "Always 1; the domain's last job and how it ended (virDomainGetJobStats, text).",
             ("domain", "operation", "result"), source="last", since="3.3.0"),
        *(_field("last", "job_last", key, "Last job: ") for key in LAST),
        Info(BLOCK_JOB_INFO, "Always 1 while the disk has a job; what it does (virDomainGetBlockJobInfo, text).",
             ("domain", "target_device", "type"), source="blockjob", since="0.9.4"),
        _block("cur", "current_bytes", "Bytes up to which the disk's job has come", "bytes"),
        _block("end", "end_bytes", "Bytes at which the disk's job is done", "bytes"),
        _block("bandwidth", "limit_bytes_per_second", "Most bytes a second the disk's job may move, absent without a "
               "limit", "bytes a second"),
    ),
)
