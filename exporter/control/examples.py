"""An example for each operation: what it is done to, and with which parameters. For the API's document and the docs.

An operation that is not here takes a guest called web1 and no parameters.
"""

from __future__ import annotations

from typing import Any

EXAMPLES: dict[str, tuple[str | None, dict[str, Any]]] = {
    "interface.show": ("52:54:00:1A:2B:3C", {}),
    "interface.device-show": ("eth0", {}),
    "interface.list": (None, {"active": True}),
    "interface.begin": (None, {"confirm_within_s": 120}),
    "interface.define-ethernet": (
        None,
        {"name": "eth1", "address": ["192.0.2.5/24"], "gateway": ["192.0.2.1"], "confirm_within_s": 60},
    ),
    "interface.define-bridge": (None, {"name": "br1", "port": ["eth1"], "stp": False, "delay_s": 2, "dhcp": True}),
    "interface.define-vlan": (None, {"parent": "eth1", "tag": 42, "dhcp": True}),
    "interface.define-bond": (None, {"name": "bond1", "port": ["eth1", "eth2"], "miimon_ms": 100}),
    "interface.undefine": ("br1", {}),
    "interface.up": ("br1", {}),
    "interface.down": ("br1", {"commit": True}),
}
