"""Everything of virtgauge that reads libvirt and computes; it knows no HTTP and no MongoDB."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from . import bandwidth, dirtyrate, iothread, kvm, perf
from .block import BLOCK
from .domain import DOMAIN
from .domain_groups import groups_source
from .event_counts import EVENTS
from .fields import Collector
from .interface import INTERFACE
from .inventory import INVENTORY, Inventory
from .memory import MEMORY
from .periodic import Source
from .vcpu import VCPU

COLLECTORS: tuple[Collector, ...] = (
    INVENTORY, DOMAIN, VCPU, MEMORY, BLOCK, INTERFACE, EVENTS,
    kvm.KVM, kvm.KVM_ALL, perf.PERF, iothread.IOTHREAD, bandwidth.BANDWIDTH, dirtyrate.DIRTYRATE)
"""The one list of collectors, in page order."""

SOURCES: Mapping[str, Callable[[Inventory], Source]] = {
    "kvm": lambda _: groups_source(kvm.KVM, kvm.GROUPS),
    "kvm.all": lambda _: groups_source(kvm.KVM_ALL, kvm.GROUPS, kvm.unnamed),
    "perf": lambda _: groups_source(perf.PERF, perf.GROUPS),
    "iothread": lambda _: groups_source(iothread.IOTHREAD, iothread.GROUPS),
    "bandwidth": lambda _: groups_source(bandwidth.BANDWIDTH, bandwidth.GROUPS),
    "dirtyrate": lambda _: groups_source(dirtyrate.DIRTYRATE, dirtyrate.GROUPS),
}
"""What makes the periodic Source of a collector that is read beside the sampling, by the collector's name."""

HASTENED_BY: Mapping[str, tuple[str, ...]] = {}
"""Kinds of domain events, each with the collectors whose Source is to be read at once after it."""
