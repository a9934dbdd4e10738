"""Real virtual networks, pools and volumes: made, used, refused, removed; and what the exporter sees of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.control.errors import InvalidError, RefusedError, UnconfirmedError
from exporter.control.executor import Actor, Request
from exporter.demonstration.private_hypervisor import PrivateHypervisor
from exporter.demonstration.programs import run_program
from tests.live.conftest import StartExporter
from tests.live.operating import Operator, eventually
from tests.live.scraping import Page, Scraper
from tests.live.sector_guests import saying

NETWORK = {"name": "lab", "forward": "isolated", "bridge": "labbr0", "address": "192.0.2.1/24",
           "dhcp_from": "192.0.2.100", "dhcp_to": "192.0.2.110"}  # fmt: skip


@pytest.fixture
def operator(hypervisor: PrivateHypervisor, tmp_path: Path) -> Iterator[Operator]:
    operator = Operator(hypervisor.uri, tmp_path / "control", (hypervisor.folder / "images",))
    yield operator
    operator.close()


def seen(scraper: Scraper, name: str, wanted: float | None, **labels: str) -> None:
    """Waits for a value; networks and pools are looked at now and then only."""

    def there() -> bool:
        page: Page = scraper.scrape()
        return page.value(name, **labels) == wanted

    eventually(there, f"{name} {labels} = {wanted}", 150)


def test_a_network_with_a_guest_that_gets_a_lease(
    operator: Operator, hypervisor: PrivateHypervisor, start_exporter: StartExporter
) -> None:
    operator("network.define", **NETWORK)
    operator("network.start", "lab")
    assert operator("network.leases", "lab").details["rows"] == []
    # iPXE asks for an address before it looks for anything to boot.
    guest = {"name": "netboot", "type": "qemu", "memory_mib": 32, "machine": "pc", "boot": ["network"],
             "interfaces": [{"network": "lab", "mac": "52:54:00:00:02:01"}], "agent": False}  # fmt: skip
    operator("domain.create", **guest)
    try:
        rows = eventually(lambda: operator("network.leases", "lab").details["rows"], "the guest's lease", 120)
        assert rows[0]["mac"] == "52:54:00:00:02:01"
        assert rows[0]["address"].startswith("192.0.2.1")
        scraper = Scraper(start_exporter(hypervisor.read_only_uri))
        seen(scraper, "libvirt_network_active", 1, network="lab")
        seen(scraper, "libvirt_network_dhcp_leases", 1, network="lab")
        assert operator.dry("network.stop", "lab").plan.lost == ["what it is to the running guests netboot"]
        with pytest.raises(UnconfirmedError):
            operator.run("network.stop", "lab", {}, Request(Actor("t", "test")))
        with pytest.raises(RefusedError, match="stop it first"):
            operator("network.undefine", "lab")
    finally:
        operator("domain.destroy", "netboot")
        operator("network.stop", "lab")
    # Read once a minute: a new exporter sees it at once.
    seen(Scraper(start_exporter(hypervisor.read_only_uri)), "libvirt_network_active", 0, network="lab")
    operator("network.undefine", "lab")
    assert operator.trail.verify() == len(operator.events())


def test_a_guest_boots_what_a_network_serves(operator: Operator, hypervisor: PrivateHypervisor) -> None:
    """iPXE of the guest's card asks DHCP, fetches the file by TFTP and runs it: a boot sector is such a file, too."""
    served = hypervisor.folder / "images" / "served"
    served.mkdir()
    (served / "hello.0").write_bytes(saying("NETWORK BOOT"))
    network = {**NETWORK, "name": "pxe", "bridge": "pxebr0", "address": "198.51.100.1/24",
               "dhcp_from": "198.51.100.100", "dhcp_to": "198.51.100.110"}  # fmt: skip
    for change, cause in (({"tftp_folder": "/etc"}, "outside"), ({"boot_file": "missing.0"}, "missing.0")):
        with pytest.raises(InvalidError, match=cause):
            operator("network.define", **{**network, "tftp_folder": str(served), "boot_file": "hello.0", **change})
    operator("network.define", **network, tftp_folder=str(served), boot_file="hello.0")
    operator("network.start", "pxe")
    try:
        made = operator("domain.provision", name="netbooted", type="qemu", machine="pc", memory_mib=32, agent=False,
                        interfaces=[{"network": "pxe"}], expect_text="NETWORK BOOT", expect_lease=True,
                        within_s=120)  # fmt: skip
        assert set(made.details["seen"]) == {"text", "lease"}
    finally:
        operator("domain.destroy", "netbooted")
        operator("domain.undefine", "netbooted")
        operator("network.stop", "pxe")
        operator("network.undefine", "pxe")


def test_volumes_of_a_real_pool(operator: Operator, hypervisor: PrivateHypervisor) -> None:
    folder = hypervisor.folder / "images" / "volumes"
    folder.mkdir()
    operator("pool.define", name="volumes", folder=str(folder))
    started = operator("pool.start", "volumes")
    assert started.after["available_bytes"] > 0
    made = operator("volume.create", pool="volumes", name="data.qcow2", capacity_bytes=4 << 20)
    file = str(made.after["file"])
    assert run_program(["qemu-img", "info", file]).decode().count("qcow2")
    assert operator("volume.resize", "data.qcow2", pool="volumes", capacity_bytes=8 << 20).after[
        "capacity_bytes"
    ] == 8 << 20  # fmt: skip
    with pytest.raises(RefusedError, match="--shrink"):
        operator("volume.resize", "data.qcow2", pool="volumes", capacity_bytes=4 << 20)

    operator("volume.create", pool="volumes", name="raw", format="raw", capacity_bytes=2 << 20)
    cut = operator("volume.resize", "raw", pool="volumes", capacity_bytes=1 << 20, shrink=True)
    assert (folder / "raw").stat().st_size == cut.after["capacity_bytes"] == 1 << 20
    operator("volume.create", pool="volumes", name="full", format="raw", capacity_bytes=1 << 20, allocate=True)
    with pytest.raises(RefusedError, match="are written"):
        operator("volume.resize", "full", pool="volumes", capacity_bytes=4096, shrink=True)
    operator("domain.define", name="holder", type="qemu", memory_mib=16, machine="pc", agent=False,
             disks=[{"file": file, "format": "qcow2"}])  # fmt: skip
    try:
        with pytest.raises(RefusedError, match="is a disk of domain holder"):
            operator("volume.delete", "data.qcow2", pool="volumes")
        assert operator("volume.resize", "data.qcow2", pool="volumes", capacity_bytes=9 << 20).changed
        operator("domain.start", "holder")
        with pytest.raises(RefusedError, match="in use by the running domain holder"):
            operator("volume.resize", "data.qcow2", pool="volumes", capacity_bytes=10 << 20)
    finally:
        operator("domain.destroy", "holder")
        operator("domain.undefine", "holder")
    (folder / "stranger").write_bytes(b"x" * 512)
    operator("pool.refresh", "volumes")
    names = [row["name"] for row in operator("volume.list", pool="volumes").details["rows"]]
    assert names == ["data.qcow2", "full", "raw", "stranger"]
    for name in names:
        assert operator("volume.delete", name, pool="volumes").after == {"state": "gone"}
    assert list(folder.iterdir()) == []
    operator("pool.stop", "volumes")
    operator("pool.undefine", "volumes")
