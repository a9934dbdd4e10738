"""The one list of operations: a new area is one file and one line here."""

from __future__ import annotations

from typing import Any

from exporter.control import (
    balloon,
    block_abort,
    block_jobs,
    cdrom,
    checkpoints,
    definition,
    device_limits,
    disk_size,
    hotplug_disk,
    hotplug_interface,
    hotplug_size,
    interface_reading,
    interfaces,
    lifecycle,
    lookup,
    migration,
    networks,
    node_devices,
    pools,
    provisioning,
    save_restore,
    snapshots,
)
from exporter.control.operation import Operation

OPERATIONS: tuple[Operation[Any], ...] = (
    *lookup.OPERATIONS,
    *definition.OPERATIONS,
    *lifecycle.OPERATIONS,
    *provisioning.OPERATIONS,
    *save_restore.OPERATIONS,
    *balloon.OPERATIONS,
    *device_limits.OPERATIONS,
    *migration.OPERATIONS,
    *hotplug_disk.OPERATIONS,
    *hotplug_interface.OPERATIONS,
    *hotplug_size.OPERATIONS,
    *disk_size.OPERATIONS,
    *cdrom.OPERATIONS,
    *block_jobs.OPERATIONS,
    *block_abort.OPERATIONS,
    *snapshots.OPERATIONS,
    *checkpoints.OPERATIONS,
    *networks.OPERATIONS,
    *pools.OPERATIONS,
    *interface_reading.OPERATIONS,
    *interfaces.OPERATIONS,
    *node_devices.OPERATIONS,
)


def by_name() -> dict[str, Operation[Any]]:
    """Every operation by its name, `domain.shutdown`."""
    return {operation.name: operation for operation in OPERATIONS}
