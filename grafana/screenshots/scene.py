"""What the pictures show: two private hypervisors with guests at work, watched, archived, operated and scraped.

One guest is a noisy neighbour, one is held back by its disk's limit, one is short of memory, one is paused, one that
should run is off, and one finds its storage full, so that each dashboard has something to say. All figures are
measured; none is made up.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from exporter.demonstration.acceleration import accelerator
from exporter.demonstration.guest_console import GuestConsole
from exporter.demonstration.guest_definition import Accelerator, Disk, Guest
from exporter.demonstration.guest_image import GuestImage, cache_folder, guest_image
from exporter.demonstration.private_hypervisor import PrivateHypervisor
from exporter.demonstration.private_namespaces import BRIDGE_ADDRESS, BRIDGE_MAC
from exporter.monitoring_mixin import FOLDER, knobs, rules
from tests.control_service import ControlService
from tests.live.alerting import alertmanager_server
from tests.live.servers import Prometheus, Server, exporter_server, prometheus_server

SCRAPE_S = 5
DISK_BYTES = 256 << 20
MIB = 1 << 20
PINGS = f"{BRIDGE_ADDRESS},{BRIDGE_MAC}"


@dataclass(frozen=True)
class Role:
    """A guest: what it does from its boot on, and what it is told again and again."""

    name: str
    title: str
    boot: dict[str, str]
    orders: tuple[str, ...] = ()
    vcpus: int = 1
    write_limit_bytes: int = 0
    room_bytes: int = 0  # of the file system its image lies on, if that is one of its own
    late: tuple[str, ...] = ()  # orders from the mishaps on


HOSTS: dict[str, tuple[Role, ...]] = {
    "alpha": (
        Role("web1", "Shop, front end", {"cpu": "15", "pings": f"{PINGS},900,0.02"}, ("read 1048576 4096", "flush")),
        Role("db1", "Shop, database", {"write": str(2 * MIB), "mem": "24", "pings": f"{PINGS},500,0.1"},
             ("write 16777216 65536", "read 4194304 4096", "flush", "flush"), vcpus=2, write_limit_bytes=4 * MIB),
        Role("batch1", "Nightly reports", {"cpu": "60"}, ("cpu 60 1", "write 2097152 4096"), vcpus=2),
    ),
    "beta": (
        Role("web2", "Shop, front end", {"cpu": "10", "pings": f"{PINGS},300,0.1"}, ("read 262144 4096",)),
        Role("mail1", "Mail", {"write": str(256 << 10)}, ("write 4194304 4096", "flush", "read 1048576 16384"),
             room_bytes=12 * MIB, late=("write 33554432 65536",)),
        Role("build1", "Build host", {"mem": "20"}, ("cpu 30", "write 8388608 131072", "cpu 5")),
    ),
}
OWNERS = {"web1": "shop", "web2": "shop", "db1": "shop", "batch1": "reports", "mail1": "office", "build1": "platform"}


class Scene:
    """The whole scene, from entering to leaving. `prometheus` scrapes it; `control` is the first host's service."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hosts: dict[str, PrivateHypervisor] = {}
        self.exporters: dict[str, Server] = {}
        self.consoles: dict[str, GuestConsole] = {}
        self._ending = ExitStack()
        self._over = threading.Event()
        self._late = threading.Event()

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._ending.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._ending.close()

    def mishaps(self) -> None:
        """A QEMU ends, whose guest a rule starts again, and a guest's storage fills up."""
        os.kill(self.hosts["alpha"].qemu_pid("batch1"), signal.SIGKILL)
        self._late.set()

    def _start(self) -> None:
        cache = cache_folder()
        image = guest_image(cache)
        for name, roles in HOSTS.items():
            hypervisor = self._ending.enter_context(PrivateHypervisor())
            self.hosts[name] = hypervisor
            kind = accelerator(hypervisor, image, cache)
            pool(hypervisor)
            for role in roles:
                self.consoles[role.name] = start(hypervisor, role, kind, image)
            hypervisor.virsh("pool-refresh", "images")
            self.exporters[name] = self._exporter(name, hypervisor)
        self.control = self._control()
        self.alertmanager = self._alertmanager()
        self.prometheus = self._prometheus()
        for console in self.consoles.values():
            console.wait_ready(300)
        for roles in HOSTS.values():
            for role in roles:
                threading.Thread(target=self._drive, args=(role,), name=role.name, daemon=True).start()

    def _exporter(self, name: str, hypervisor: PrivateHypervisor) -> Server:
        folder = self.folder / name
        folder.mkdir()
        server = self._ending.enter_context(exporter_server(folder, hypervisor.read_only_uri, [
            f"--host.name={name}", f"--state.directory={folder / 'state'}", "--archive.uri=embedded",
            f"--sampling.interval={SCRAPE_S}s"]))
        server.start()
        server.wait_ready(120)
        return server

    def _control(self) -> ControlService:
        folder = self.folder / "control"
        folder.mkdir()
        rules = folder / "rules.yml"
        rules.write_text(yaml.safe_dump(answers()))
        service = ControlService(folder, self.hosts["alpha"].uri)
        service.start("--control.rules-file", str(rules))
        self._ending.callback(service.stop)
        return service

    def _alertmanager(self) -> Server:
        address = f"http://127.0.0.1:{self.control.port}/api/v1/alerts"
        urls = {address: self.control.tokens["operator"]}
        server = self._ending.enter_context(alertmanager_server(self.folder, urls))
        server.start()
        server.wait_ready()
        return server

    def _prometheus(self) -> Prometheus:
        rule_file = self.folder / "virtgauge.rules.yml"
        rule_file.write_text(rules(knobs()))
        server = prometheus_server(self.folder, [], f"{SCRAPE_S}s", [rule_file],
                                   alertmanager=self.alertmanager.address)
        (file,) = self.folder.glob("prometheus-*.yml")
        token = self.folder / "control.token"
        token.write_text(self.control.tokens["reader"])
        document = yaml.safe_load(file.read_text())
        document["scrape_configs"] = [
            {"job_name": "libvirt", "static_configs": [
                {"targets": [exporter.address], "labels": {"instance": f"{name}:9177"}}
                for name, exporter in self.exporters.items()]},
            {"job_name": "virtgauge-control", "authorization": {"credentials_file": str(token)}, "static_configs": [
                {"targets": [f"127.0.0.1:{self.control.port}"], "labels": {"instance": "alpha:19177"}}]}]
        file.write_text(yaml.safe_dump(document))
        self._ending.enter_context(server)
        server.start()
        server.wait_ready()
        return server

    def _drive(self, role: Role) -> None:
        """The guest's orders over and over; a paused guest does not answer, and is asked again."""
        while not self._over.is_set():
            for order in (*role.orders, *(role.late if self._late.is_set() else ())):
                try:
                    self.consoles[role.name].order(order, timeout_s=30)
                except Exception:  # noqa: BLE001  # whatever it is, the scene goes on without this guest's order
                    self._over.wait(5)
                if self._over.wait(2):
                    return


def start(hypervisor: PrivateHypervisor, role: Role, kind: Accelerator, image: GuestImage) -> GuestConsole:
    """The role's guest on a thin image, defined, so that it can be off; with a limit and an owner where it has them."""
    disk = small_storage(hypervisor, role) if role.room_bytes else hypervisor.new_disk(role.name, DISK_BYTES)
    hypervisor.run("qemu-img", "create", "-q", "-f", "qcow2", str(disk.file), str(DISK_BYTES))
    guest = Guest(role.name, role.title, kind, role.vcpus, disks=(disk,), interfaces=(hypervisor.new_interface(),),
                  balloon_period_s=5, boot_orders=role.boot)
    xml = hypervisor.definition(guest, image).replace('name="qemu" type="raw"', 'name="qemu" type="qcow2"')
    if role.write_limit_bytes:
        limit = f"<iotune><write_bytes_sec>{role.write_limit_bytes}</write_bytes_sec></iotune>"
        xml = xml.replace("</disk>", f"{limit}</disk>", 1)
    owner = (f'<metadata><nova:instance xmlns:nova="http://openstack.org/xmlns/libvirt/nova/1.1">'
             f'<nova:name>{role.name}</nova:name><nova:flavor name="m1.tiny"/><nova:owner>'
             f'<nova:project uuid="0000">{OWNERS[role.name]}</nova:project></nova:owner></nova:instance></metadata>')
    file = hypervisor.folder / "definitions" / f"{role.name}.xml"
    file.write_text(xml.replace("<memory ", f"{owner}<memory ", 1))
    hypervisor.virsh("define", str(file))
    hypervisor.virsh("start", role.name)
    return hypervisor.console(role.name)


def small_storage(hypervisor: PrivateHypervisor, role: Role) -> Disk:
    """A disk whose image lies on a file system of its own, which the hypervisor's namespaces take with them."""
    folder = hypervisor.folder / "images" / role.name
    folder.mkdir()
    hypervisor.run("mount", "-t", "tmpfs", "-o", f"size={role.room_bytes}", role.name, str(folder))
    return Disk(folder / f"{role.name}-vda.qcow2", "vda", serial=f"{role.name}-vda")


def answers() -> dict[str, Any]:
    """The shipped rules in dry run, but the one that restarts who crashed; and one that a person must approve."""
    shipped: dict[str, Any] = yaml.safe_load((FOLDER / "rules" / "virtgauge.control-rules.yml").read_text())
    for rule in shipped["rules"]:
        rule["mode"] = "enforce" if rule["name"] == "restart-crashed" else "dry-run"
    shipped["rules"].append({
        "name": "pause-reports-while-cpu-is-short", "mode": "approve",
        "match": ['alertname =~ "LibvirtDomainSteal.*"', 'domain =~ "batch.*|web.*"'],
        "expect": {"state": ["running"]}, "action": {"operation": "domain.suspend"}})
    return {**shipped, "here": ["instance =~ alpha:.*"], "protected": {"domains": ["web*"]}}


def pool(hypervisor: PrivateHypervisor) -> None:
    """The folder of the images as a storage pool."""
    hypervisor.virsh("pool-create-as", "images", "dir", "--target", str(hypervisor.folder / "images"))
