"""A guest with UEFI: booted and seen, and its variables, which outlive it unless they are named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.control.errors import RefusedError, UnsupportedError
from exporter.demonstration.private_hypervisor import PrivateHypervisor
from tests.live.efi_guest import efi_disk
from tests.live.operating import Operator


@pytest.fixture
def operator(hypervisor: PrivateHypervisor, tmp_path: Path) -> Iterator[Operator]:
    operator = Operator(hypervisor.uri, tmp_path / "control", (hypervisor.folder / "images",))
    yield operator
    operator.close()


def test_booted_by_uefi_and_undefined_with_its_variables_named(
    hypervisor: PrivateHypervisor, operator: Operator
) -> None:
    disk = hypervisor.folder / "images" / "efi.raw"
    disk.write_bytes(efi_disk("UEFI BOOT"))
    guest = {"name": "modern", "type": "qemu", "machine": "q35", "memory_mib": 128, "firmware": "efi",
             "secure_boot": False, "agent": False, "disks": [{"file": str(disk), "bus": "sata"}]}  # fmt: skip
    try:
        operator.dry("domain.provision", **guest)
    except UnsupportedError as error:
        pytest.skip(f"{error}")
    try:
        made = operator("domain.provision", **guest, expect_text="UEFI BOOT", within_s=150)
        assert made.details["seen"]["text"] >= 0
        variables = hypervisor.folder / "lib/qemu/nvram/modern_VARS.fd"
        assert variables.exists()
    finally:
        operator("domain.destroy", "modern")
    with pytest.raises(RefusedError, match=r"UEFI variables.*--nvram.*--keep-nvram"):
        operator("domain.undefine", "modern")
    with pytest.raises(RefusedError, match="UEFI variables"):
        operator.dry("domain.undefine", "modern")
    operator("domain.undefine", "modern", keep_nvram=True)
    assert variables.exists()
    operator("domain.define", **guest)
    operator("domain.start", "modern")
    operator("domain.destroy", "modern")
    plan = operator.dry("domain.undefine", "modern", nvram=True).plan
    assert plan is not None
    assert plan.lost == ["its definition", "its UEFI variables"]
    operator("domain.undefine", "modern", nvram=True)
    assert not variables.exists()
