"""Fixtures of the live tests: a private hypervisor with real guests, the exporter and Prometheus as processes.

Everything is ended and removed when its fixture is, after failures too; even where pytest itself is killed,
the hypervisor's processes end with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from exporter.demonstration.acceleration import accelerator
from exporter.demonstration.guest_console import GuestConsole
from exporter.demonstration.guest_definition import Accelerator, Guest
from exporter.demonstration.guest_image import GuestImage, cache_folder, guest_image
from exporter.demonstration.private_hypervisor import PrivateHypervisor
from tests.live.servers import Prometheus, Server, exporter_server, prometheus_server

StartExporter = Callable[..., Server]
StartPrometheus = Callable[..., Prometheus]

DISK_BYTES = 64 << 20


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test of this folder is a live one."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("live")


@pytest.fixture(scope="session")
def image() -> GuestImage:
    """The demonstration guest's kernel and initial file system."""
    return guest_image(cache_folder())


@pytest.fixture(scope="session")
def hypervisor() -> Iterator[PrivateHypervisor]:
    """A private hypervisor for the whole run. Tests that break its daemon take `fresh_hypervisor` instead."""
    with PrivateHypervisor() as private:
        yield private


@pytest.fixture(scope="session")
def guest_accelerator(hypervisor: PrivateHypervisor, image: GuestImage) -> Accelerator:
    """What guests run under on this machine."""
    return accelerator(hypervisor, image, cache_folder())


@pytest.fixture(scope="session")
def load_guest(hypervisor: PrivateHypervisor, image: GuestImage, guest_accelerator: Accelerator) -> GuestConsole:
    """A booted guest (`load`: one vCPU, vda, one NIC) that takes orders; it does nothing until it is told to."""
    guest = new_guest(hypervisor, "load", guest_accelerator)
    console = hypervisor.start_guest(guest, image)
    console.wait_ready()
    return console


@pytest.fixture
def fresh_hypervisor() -> Iterator[PrivateHypervisor]:
    """A private hypervisor of the test's own, without guests."""
    with PrivateHypervisor() as private:
        yield private


@pytest.fixture
def start_exporter(tmp_path: Path) -> Iterator[StartExporter]:
    """Call it with a libvirt URI and flags: a ready `virtgauge exporter`, ended with the test."""
    with ExitStack() as ending:

        def start(uri: str, flags: Sequence[str] = ()) -> Server:
            server = ending.enter_context(exporter_server(tmp_path, uri, flags))
            server.start()
            server.wait_ready()
            return server

        yield start


@pytest.fixture
def start_prometheus(tmp_path: Path) -> Iterator[StartPrometheus]:
    """Call it with scrape targets (HOST:PORT): a ready Prometheus that scrapes them, ended with the test."""
    with ExitStack() as ending:

        def start(targets: Sequence[str], interval: str = "1s", rule_files: Sequence[Path] = ()) -> Prometheus:
            server = ending.enter_context(prometheus_server(tmp_path, targets, interval, rule_files))
            server.start()
            server.wait_ready()
            return server

        yield start


def new_guest(hypervisor: PrivateHypervisor, name: str, accelerator: Accelerator, vcpus: int = 1) -> Guest:
    """A guest with a disk and a NIC of its own, not yet started."""
    disks = (hypervisor.new_disk(name, DISK_BYTES),)
    return Guest(name, accelerator=accelerator, vcpus=vcpus, disks=disks, interfaces=(hypervisor.new_interface(),))
