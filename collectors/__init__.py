"""Everything of virtgauge that reads libvirt and computes; it knows no HTTP and no MongoDB."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from .block import BLOCK
from .domain import DOMAIN
from .fields import Collector
from .interface import INTERFACE
from .inventory import INVENTORY
from .memory import MEMORY
from .periodic import Source
from .vcpu import VCPU

COLLECTORS: tuple[Collector, ...] = (INVENTORY, DOMAIN, VCPU, MEMORY, BLOCK, INTERFACE)
"""The one list of collectors, in page order."""

SOURCES: Mapping[str, Callable[[], Source]] = {}
"""What makes the periodic Source of a collector that is read beside the sampling, by the collector's name."""
