"""The three guests that `make run` shows, each with one known load."""

from __future__ import annotations

from exporter.demonstration.guest_definition import Accelerator, Guest
from exporter.demonstration.private_hypervisor import PrivateHypervisor
from exporter.demonstration.private_namespaces import BRIDGE_ADDRESS, BRIDGE_MAC

CPU_PERCENT = 25
WRITE_BYTES_PER_SECOND = 1 << 20
PING_DATA_BYTES = 1000
PING_INTERVAL_S = 0.1
DISK_BYTES = 64 << 20


def demonstration_guests(hypervisor: PrivateHypervisor, accelerator: Accelerator) -> list[Guest]:
    """demo-cpu burns 25 % of its vCPU, demo-disk writes 1 MiB/s, demo-net sends and receives 10 packets/s."""
    loads = {
        "demo-cpu": (f"burns {CPU_PERCENT} % of a vCPU", {"cpu": str(CPU_PERCENT)}),
        "demo-disk": ("writes 1 MiB/s", {"write": str(WRITE_BYTES_PER_SECOND)}),
        "demo-net": (
            f"pings {1 / PING_INTERVAL_S:g} times a second",
            {"pings": f"{BRIDGE_ADDRESS},{BRIDGE_MAC},{PING_DATA_BYTES},{PING_INTERVAL_S}"},
        ),
    }
    return [
        Guest(
            name,
            title=f"Demonstration: {title}",
            accelerator=accelerator,
            disks=(hypervisor.new_disk(name, DISK_BYTES),),
            interfaces=(hypervisor.new_interface(),),
            balloon_period_s=5,
            boot_orders=orders,
        )
        for name, (title, orders) in loads.items()
    ]
