"""As Debian has it: the exporter's user may do nothing, QEMU is a user of its own, and all of it works all the same."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.demonstration.private_hypervisor import PrivateHypervisor
from tests.live.operating import Operator
from tests.live.sector_guests import define, saying
from tests.live.servers import exporter_server
from tests.live.test_cost import MonitorLog, log_monitors

NOBODY = "65534"
# The one capability lets it read this checkout, which may lie in a folder of root's. It opens nothing of libvirt's.
AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs",
             "--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search",
             "--bounding-set=-all,+dac_read_search"]  # fmt: skip
TINY = {"type": "qemu", "machine": "pc", "memory_mib": 16, "agent": False}


@pytest.fixture
def hypervisor(fresh_hypervisor: PrivateHypervisor) -> PrivateHypervisor:
    """A private hypervisor whose QEMUs run as libvirt-qemu and whose images libvirt makes over to it."""
    configuration = fresh_hypervisor.folder / "etc/qemu.conf"
    text = configuration.read_text().replace('"root"', '"libvirt-qemu"')
    configuration.write_text(text.replace("dynamic_ownership = 0", "dynamic_ownership = 1"))
    fresh_hypervisor.folder.chmod(0o711)
    log_monitors(fresh_hypervisor)
    return fresh_hypervisor


@pytest.fixture
def operator(hypervisor: PrivateHypervisor, tmp_path: Path) -> Iterator[Operator]:
    (tmp_path / "state").mkdir(mode=0o700)
    operator = Operator(hypervisor.uri, tmp_path / "state/control", (hypervisor.folder / "images",))
    yield operator
    operator.close()


def test_the_exporter_as_nobody_reads_the_kernel_and_can_change_nothing(
    hypervisor: PrivateHypervisor, tmp_path: Path
) -> None:
    guest = define(hypervisor, "seen", saying("UP"))
    hypervisor.virsh("start", guest.name)
    (tmp_path / "state").mkdir()
    subprocess.run(["chown", NOBODY, tmp_path / "state"], check=True)
    flags = ["--sampling.max-age=0s", "--sampling.interval=1h", f"--state.directory={tmp_path}/state"]
    with exporter_server(tmp_path, hypervisor.read_only_uri, flags, prefix=AS_NOBODY) as exporter:
        exporter.start()
        exporter.wait_ready()
        status = Path(f"/proc/{exporter.pid}/status").read_text()
        assert f"Uid:\t{NOBODY}\t{NOBODY}" in status
        exporter.get("/metrics")
        log = MonitorLog(hypervisor)
        page = exporter.get("/metrics")
        assert log.commands()["query-stats"] == 0, "vCPU times come from the kernel"
    assert 'libvirt_domain_vcpu_time_seconds_total{domain="seen",vcpu="0"}' in page
    denied = subprocess.run([*AS_NOBODY, "virsh", "-c", hypervisor.uri, "destroy", "seen"],
                            capture_output=True, text=True, check=False)  # fmt: skip
    assert "Permission denied" in denied.stderr
    assert hypervisor.virsh("domstate", "seen").strip() == "running"


def test_a_seed_a_save_and_a_dump_where_qemu_is_another_user(hypervisor: PrivateHypervisor, operator: Operator) -> None:
    images = hypervisor.folder / "images"
    (images / "sector.raw").write_bytes(saying("DISK BOOT").ljust(1 << 20, b"\0"))
    made = operator("domain.provision", name="fresh", disks=[{"file": f"{images}/sector.raw", "bus": "ide"}],
                    seed_hostname="fresh", expect_text="DISK BOOT", within_s=120, **TINY)  # fmt: skip
    assert made.after["state"] == "running"
    seed, = (images / "virtgauge-seeds").iterdir()
    assert seed.stat().st_mode & 0o077 == 0
    assert Path(f"/proc/{hypervisor.qemu_pid('fresh')}").stat().st_uid == seed.stat().st_uid != 0
    assert operator("domain.core-dump", "fresh").details["size_bytes"] > 0
    saved = operator("domain.save", "fresh").details["saved"]
    operator("saved.restore", saved)
    assert operator.state("fresh") == "running"
    operator("domain.destroy", "fresh")
    operator("domain.undefine", "fresh")
