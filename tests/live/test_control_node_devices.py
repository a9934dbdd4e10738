"""Node devices: those of the machine that runs the tests, which are looked at only; and those of a machine with an
IOMMU in software, which are really taken, reset, given to a guest and given back.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exporter.control.errors import ControlError, RefusedError, UnsupportedError
from exporter.demonstration.private_hypervisor import PrivateHypervisor
from tests.live.iommu_machine import ADDRESS, DEFAULT, DISK, FREE, OTHER, PAIRED, PORT, run_inside, virtiofsd
from tests.live.operating import Operator


@pytest.fixture
def operator(hypervisor: PrivateHypervisor, tmp_path: Path) -> Iterator[Operator]:
    operator = Operator(hypervisor.uri, tmp_path / "control")
    yield operator
    operator.close()


def test_the_machine_is_listed_shown_and_a_tree(operator: Operator) -> None:
    rows = operator("nodedev.list").details["rows"]
    names = [row["name"] for row in rows]
    assert "computer" in names
    assert names == sorted(names)
    tree = operator("nodedev.tree").details["rows"]
    assert sorted(row["device"].strip() for row in tree) == names
    depth = {row["device"].strip(): row["depth"] for row in tree}
    for row in rows:
        if row.get("parent") in depth:
            assert depth[row["name"]] == depth[row["parent"]] + 1
        shown = operator("nodedev.show", row["name"]).details
        assert shown["name"] in shown["xml"]
    nets = operator("nodedev.list", capability="net").details["rows"]
    assert [row["interface"] for row in nets] == sorted(
        row["interface"] for row in operator("interface.device-list").details["rows"]
    )
    assert operator("nodedev.show", "lo").details["capability"] == "net"
    with pytest.raises(ControlError, match="no PCI device"):
        operator.dry("nodedev.detach", "lo")


def _pci_of(link: Path) -> str | None:
    """The PCI device that a class device is on, by the kernel's path; None where it is on none."""
    functions = [part for part in os.path.realpath(link).split("/") if part.count(":") == 2 and "." in part]
    return functions[-1] if functions else None


def test_what_this_machine_lives_on_is_refused(operator: Operator) -> None:
    """The disk of the root file system and the interface of the default route, as the machine happens to have them."""
    known = {row.get("address") for row in operator("nodedev.list", capability="pci").details["rows"]}
    number = os.stat("/").st_dev
    disk = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    routes = [line.split() for line in Path("/proc/net/route").read_text().splitlines()[1:]]
    defaults = [fields[0] for fields in routes if fields[1] == fields[7] == "00000000"]
    tried = 0
    for link, words in [(disk, "is mounted on /"), *((Path("/sys/class/net") / n, n) for n in defaults)]:
        address = _pci_of(link) if link.exists() else None
        if address in known and address is not None:
            tried += 1
            for verb in ("detach", "reset"):
                with pytest.raises(RefusedError, match=words):
                    operator.dry(f"nodedev.{verb}", address)
            assert any(words in use for use in operator("nodedev.show", address).details["used_by_host"])
    if not tried:
        pytest.skip("neither root disk nor default route of this machine is on a PCI device")


def test_without_an_iommu_nothing_is_offered(operator: Operator) -> None:
    if list(Path("/sys/kernel/iommu_groups").glob("*")):
        pytest.skip("this machine has an IOMMU")
    for row in operator("nodedev.list", capability="pci").details["rows"]:
        with pytest.raises((RefusedError, UnsupportedError)):
            operator.dry("nodedev.detach", row["name"])


@pytest.fixture(scope="module")
def inside() -> dict[str, Any]:
    """What happened in the machine with an IOMMU, by step; one boot for all tests."""
    if virtiofsd() is None:
        pytest.skip("virtiofsd is not installed (Debian: qemu-system-common, or virtiofsd)")
    return run_inside("tests.live.inside_iommu_machine", 900)


REFUSED = {
    DISK: f"the host uses PCI device {DISK}: disk nvme0n1 is mounted on /run/mounted",
    DEFAULT: f"the host uses PCI device {DEFAULT}: interface eth0 has the address 192.0.2.5; "
    "interface eth0 carries the host's default route",
    ADDRESS: f"the host uses PCI device {ADDRESS}: interface eth1 has the address 198.51.100.5; end that use",
    PAIRED: rf"PCI device {PAIRED} shares its IOMMU group \d+ with {OTHER} \(virtio-pci\)",
    PORT: f"PCI device {PORT} is a bridge of the host",
}


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("address", REFUSED)
def test_with_an_iommu_what_the_host_uses_is_refused_by_name(inside: dict[str, Any], address: str) -> None:
    told = inside[f"dry detach {address}"]
    assert told["error"] == "RefusedError"
    assert re.search(REFUSED[address], told["text"]), told["text"]
    assert told["driver"] not in (None, "vfio-pci")


@pytest.mark.timeout(1500)
def test_with_an_iommu_a_device_is_taken_reset_and_given_back(inside: dict[str, Any]) -> None:
    plan = inside[f"dry detach {FREE}"]["plan"]
    assert plan["steps"] == [f"take {FREE} from virtio-pci and give it to vfio-pci"]
    assert plan["lost"] == ["the host's interface eth4"]
    taken = inside["detach"]
    assert (taken["changed"], taken["driver"], taken["details"]["detached"]) == (True, "vfio-pci", [FREE])
    assert inside["detach again"]["changed"] is False
    assert (inside["reset"]["changed"], inside["reset"]["driver"]) == (True, "vfio-pci")
    back = inside["reattach"]
    assert (back["changed"], back["driver"], back["after"]["driver"]) == (True, "virtio-pci", "virtio-pci")
    assert inside["trail"]["verified"] == len(inside["trail"]["events"]) > 0


@pytest.mark.timeout(1500)
def test_with_an_iommu_a_running_guests_device_stays_its_own(inside: dict[str, Any]) -> None:
    assert inside["show held"]["details"]["used_by_guests"] == ["holder"]
    for verb in ("reattach", "reset"):
        told = inside[f"{verb} held"]
        assert (told["error"], told["driver"]) == ("RefusedError", "vfio-pci")
        assert f"PCI device {FREE} belongs to the running guest holder" in told["text"]
    told = inside["migrate held"]
    assert told["error"] == "RefusedError"
    assert f"domain holder has the device {FREE} of this host, which cannot go along" in told["text"]


@pytest.mark.timeout(1500)
def test_with_an_iommu_a_group_goes_as_a_whole(inside: dict[str, Any]) -> None:
    shown = inside["show pair"]["details"]
    assert shown["iommu_group_others"] == [OTHER]
    assert (inside["detach group"]["details"]["detached"], inside["detach group"]["driver"]) == (
        [PAIRED, OTHER], "vfio-pci"
    )  # fmt: skip
    assert inside["detach rest of group"]["details"]["detached"] == [OTHER]
    assert inside["reattach first"]["driver"] == inside["reattach second"]["driver"] == "virtio-pci"
    assert inside["reattach second"]["changed"] is True


@pytest.mark.timeout(1500)
def test_with_an_iommu_a_group_of_which_one_cannot_be_taken_goes_back(inside: dict[str, Any]) -> None:
    told = inside["detach broken group"]
    assert f"detach of PCI device {OTHER} failed" in told["text"]
    assert told["text"].endswith(f"; given back to the host: {PAIRED}")
    assert told["driver"] == inside["show other"]["driver"] == "virtio-pci"
