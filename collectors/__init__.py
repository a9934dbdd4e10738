"""Everything of virtgauge that reads libvirt and computes; it knows no HTTP and no MongoDB."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from . import bandwidth, dirtyrate, iothread, kvm, perf
from .backing import BACKING, BackingSource
from .block import BLOCK
from .configuration import CONFIGURATION
from .disk_errors import DISK_ERRORS, DiskErrorSource
from .domain import DOMAIN
from .domain_groups import groups_source
from .event_counts import EVENTS
from .fields import Collector
from .host import HOST, HostSource
from .interface import INTERFACE
from .inventory import INVENTORY, Inventory
from .job_reading import JobSource
from .jobs import JOBS
from .limits import LIMITS
from .memory import MEMORY
from .periodic import Source
from .settings import SETTINGS, SettingsSource
from .snapshots import SNAPSHOTS, SnapshotSource
from .storage import STORAGE, VOLUMES, PoolSource, VolumeSource
from .switch_counters import SWITCH_COUNTERS, SwitchCounterSource
from .vcpu import VCPU
from .virtual_networks import VIRTUAL_NETWORKS, NetworkSource

COLLECTORS: tuple[Collector, ...] = (
    INVENTORY, DOMAIN, VCPU, MEMORY, BLOCK, INTERFACE, LIMITS, EVENTS, DISK_ERRORS, JOBS, SNAPSHOTS,
    SETTINGS, HOST, STORAGE, VOLUMES, VIRTUAL_NETWORKS,
    CONFIGURATION, BACKING, SWITCH_COUNTERS,
    kvm.KVM, kvm.KVM_ALL, perf.PERF, iothread.IOTHREAD, bandwidth.BANDWIDTH, dirtyrate.DIRTYRATE)
"""The one list of collectors, in page order."""

SOURCES: Mapping[str, Callable[[Inventory], Source]] = {
    kvm.KVM.name: kvm.KvmSource,
    "kvm.all": lambda _: groups_source(kvm.KVM_ALL, kvm.GROUPS, kvm.unnamed),
    "perf": lambda _: groups_source(perf.PERF, perf.GROUPS),
    "iothread": lambda _: groups_source(iothread.IOTHREAD, iothread.GROUPS),
    "bandwidth": lambda _: groups_source(bandwidth.BANDWIDTH, bandwidth.GROUPS),
    "dirtyrate": lambda _: groups_source(dirtyrate.DIRTYRATE, dirtyrate.GROUPS, dirtyrate.numbered),
    BACKING.name: BackingSource,
    DISK_ERRORS.name: DiskErrorSource,
    JOBS.name: JobSource,
    SNAPSHOTS.name: SnapshotSource,
    SETTINGS.name: SettingsSource,
    HOST.name: HostSource,
    STORAGE.name: PoolSource,
    VOLUMES.name: VolumeSource,
    VIRTUAL_NETWORKS.name: NetworkSource,
    SWITCH_COUNTERS.name: SwitchCounterSource,
}
"""What makes the periodic Source of a collector that is read beside the sampling, by the collector's name."""

HASTENED_BY: Mapping[str, tuple[str, ...]] = {
    "lifecycle": (DISK_ERRORS.name, JOBS.name, SETTINGS.name, SNAPSHOTS.name),
    "job_completed": (JOBS.name, SNAPSHOTS.name),
    "block_job_2": (JOBS.name, BACKING.name),
    "migration_iteration": (JOBS.name,),
}
"""Kinds of domain events, each with the collectors whose Source is to be read at once after it."""
