"""The devices of the machine that runs the tests. Only looked at: nothing here is a real run of a change."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.control.errors import ControlError, RefusedError, UnsupportedError
from exporter.demonstration.private_hypervisor import PrivateHypervisor
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
