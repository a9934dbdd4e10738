"""Everything of virtgauge that reads libvirt and computes; it knows no HTTP and no MongoDB."""

from __future__ import annotations

from .block import BLOCK
from .domain import DOMAIN
from .fields import Collector
from .interface import INTERFACE
from .inventory import INVENTORY
from .memory import MEMORY
from .vcpu import VCPU

COLLECTORS: tuple[Collector, ...] = (INVENTORY, DOMAIN, VCPU, MEMORY, BLOCK, INTERFACE)
"""The one list of collectors, in page order."""
