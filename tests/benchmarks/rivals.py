"""The monitors that a benchmark runs beside ours: Debian's prometheus-libvirt-exporter, collectd's virt plugin."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from exporter.demonstration.private_hypervisor import PrivateHypervisor
from tests.live.servers import Server, free_port

COLLECTD_PLUGINS = Path("/usr/lib/collectd")
_COLLECTD_CONF = """\
BaseDir "{folder}"
PIDFile "{folder}/collectd.pid"
PluginDir "{plugins}"
TypesDB "/usr/share/collectd/types.db"
Interval {interval_s}
LoadPlugin csv
LoadPlugin virt
<Plugin csv>
  DataDir "{folder}/collectd"
</Plugin>
<Plugin virt>
  Connection "{uri}"
</Plugin>
"""


class GoExporter(Server):
    """Debian's exporter has no readiness page: any answer will do."""

    def wait_up(self) -> None:
        deadline = time.monotonic() + 30
        while self._status("/") == 0:
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)


def go_exporter(hypervisor: PrivateHypervisor) -> GoExporter:
    """Debian's prometheus-libvirt-exporter on the hypervisor, not yet started."""
    port = free_port()
    return GoExporter(["prometheus-libvirt-exporter", f"--libvirt.uri={hypervisor.uri}",
                       f"--web.listen-address=127.0.0.1:{port}"], port, hypervisor.folder / "go.log", os.environ)


def has_collectd() -> bool:
    """Whether collectd and its virt plugin are installed (Debian's collectd-core and libxml2)."""
    return shutil.which("collectd") is not None and (COLLECTD_PLUGINS / "virt.so").exists()


class Collectd(Server):
    """collectd with its virt plugin's default set, written to CSV files; it reads by its own clock."""

    def __init__(self, hypervisor: PrivateHypervisor, interval_s: int) -> None:
        folder = hypervisor.folder
        self._written = folder / "collectd"
        configuration = folder / "collectd.conf"
        configuration.write_text(_COLLECTD_CONF.format(folder=folder, plugins=COLLECTD_PLUGINS, interval_s=interval_s,
                                                       uri=hypervisor.read_only_uri))
        super().__init__(["collectd", "-f", "-C", str(configuration)], 0, folder / "collectd.log", os.environ)

    def wait_up(self) -> None:
        """Wait until it has written its first values."""
        deadline = time.monotonic() + 60
        while not any(self._written.rglob("virt*/*")):
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.5)
