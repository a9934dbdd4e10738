"""An example for each operation: what it is done to, and with which parameters. For the API's document and the docs.

An operation that is not here takes a guest called web1 and no parameters.
"""

from __future__ import annotations

from typing import Any

_SAVED = "6695eb01-f6a4-8304-79aa-97f2502e193f-20261122T221500Z-1a2b3c4d"
_GUEST: dict[str, Any] = {
    "name": "web1",
    "memory_mib": 2048,
    "vcpus": 2,
    "disks": [{"file": "/var/lib/libvirt/images/web1.qcow2", "format": "qcow2"}],
    "interfaces": [{"network": "default"}],
}
_XML = "<domain type='kvm'><name>web1</name><memory unit='MiB'>512</memory><os><type>hvm</type></os></domain>"

EXAMPLES: dict[str, tuple[str | None, dict[str, Any]]] = {
    "domain.list": (None, {"which": "active"}),
    "domain.define": (None, _GUEST),
    "domain.create": (None, _GUEST),
    "domain.define-xml": (None, {"xml": _XML}),
    "domain.create-xml": (None, {"xml": _XML}),
    "domain.provision": (None, {**_GUEST, "expect_agent": True, "within_s": 300, "seed_hostname": "web1"}),
    "domain.cdrom-insert": ("web1", {"iso": "/var/lib/libvirt/images/rescue.iso"}),
    "domain.set-memory": ("web1", {"percent_of_maximum": 100}),
    "domain.set-block-limit": ("web1", {"device": "vda", "total_bytes_sec": 10485760}),
    "domain.lift-block-limit": ("web1", {"device": "vda"}),
    "domain.set-interface-limit": ("web1", {"device": "52:54:00:1a:2b:3c", "outbound_average_kib": 10240}),
    "domain.lift-interface-limit": ("web1", {"device": "52:54:00:1a:2b:3c"}),
    "domain.attach-disk": ("web1", {"file": "/var/lib/libvirt/images/web1-data.qcow2", "format": "qcow2"}),
    "domain.detach-disk": ("web1", {"device": "vdb"}),
    "domain.attach-interface": ("web1", {"network": "default", "mac": "52:54:00:1a:2b:3d"}),
    "domain.detach-interface": ("web1", {"device": "52:54:00:1a:2b:3d"}),
    "domain.set-disk-size": ("web1", {"device": "vda", "capacity_bytes": 42949672960}),
    "domain.set-vcpus": ("web1", {"vcpus": 4}),
    "domain.attach-memory": ("web1", {"size_mib": 1024}),
    "domain.detach-memory": ("web1", {"size_mib": 1024}),
    "domain.block-commit": ("web1", {"device": "vda", "bandwidth_bytes_sec": 104857600}),
    "domain.block-pull": ("web1", {"device": "vda"}),
    "domain.block-abort": ("web1", {"device": "vda"}),
    "snapshot.create": ("web1", {"name": "before-upgrade", "quiesce": True}),
    "snapshot.revert": ("web1", {"name": "before-upgrade", "then": "running"}),
    "snapshot.delete": ("web1", {"name": "before-upgrade"}),
    "checkpoint.create": ("web1", {"name": "monday"}),
    "checkpoint.delete": ("web1", {"name": "monday"}),
    "network.list": (None, {}),
    "network.define": (
        None, {"name": "lab", "address": "192.0.2.1/24", "dhcp_from": "192.0.2.100", "dhcp_to": "192.0.2.199"}
    ),
    **{f"network.{verb}": ("lab", {}) for verb in ("show", "xml", "leases", "start", "stop", "autostart", "undefine")},
    "pool.list": (None, {}),
    "pool.define": (None, {"name": "images", "folder": "/var/lib/libvirt/images"}),
    **{
        f"pool.{verb}": ("images", {})
        for verb in ("show", "xml", "start", "stop", "refresh", "autostart", "undefine")
    },
    "volume.list": (None, {"pool": "images"}),
    "volume.create": (None, {"pool": "images", "name": "web1-data.qcow2", "capacity_bytes": 10737418240}),
    "volume.resize": ("web1-data.qcow2", {"pool": "images", "capacity_bytes": 21474836480}),
    "volume.delete": ("web1-data.qcow2", {"pool": "images"}),
    "domain.rename": ("web1", {"new_name": "www1"}),
    "domain.undefine": ("web1", {"managed_save": True}),
    "domain.shutdown": ("web1", {"acpi_timeout_s": 120}),
    "domain.migrate": ("web1", {"to": "kvm2", "shared_disk": ["vda"], "auto_converge": True, "within_s": 900}),
    "domain.migrate-destinations": (None, {}),
    "domain.migrate-tune": ("web1", {"bandwidth_mib_per_second": 500, "max_downtime_s": 1}),
    "domain.save": ("web1", {"comment": "before the upgrade"}),
    "saved.list": (None, {}),
    "saved.show": (_SAVED, {}),
    "saved.restore": (_SAVED, {"then": "running"}),
    "saved.adopt": (_SAVED, {}),
    "saved.remove": (_SAVED, {}),
    "nodedev.list": (None, {"capability": "pci"}),
    "nodedev.tree": (None, {}),
    "nodedev.show": ("eth1", {}),
    "nodedev.detach": ("pci_0000_03_00_0", {}),
    "nodedev.reset": ("pci_0000_03_00_0", {}),
    "nodedev.reattach": ("pci_0000_03_00_0", {}),
    "interface.show": ("AA:BB:CC:DD:EE:FF", {}),
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
    "interface.down": ("br1", {"confirm_within_s": 30}),
}
