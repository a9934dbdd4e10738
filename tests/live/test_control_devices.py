"""Limits, balloon and devices of a running Linux guest, changed while the exporter is scraped."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from exporter.control.errors import RefusedError, TimedOutError, UnsupportedError
from exporter.control.operation import Result
from exporter.demonstration.errors import DemonstrationError
from exporter.demonstration.guest_console import GuestConsole
from exporter.demonstration.guest_definition import Accelerator
from exporter.demonstration.guest_image import GuestImage
from exporter.demonstration.private_hypervisor import PrivateHypervisor
from tests.live.conftest import new_guest
from tests.live.operating import Operator, eventually
from tests.live.scraping import Scraper
from tests.live.servers import exporter_server

GUEST = "plug"


@pytest.fixture(scope="module")
def operator(hypervisor: PrivateHypervisor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    operator = Operator(
        hypervisor.uri, tmp_path_factory.mktemp("devices") / "control", (hypervisor.folder / "images",)
    )
    yield operator
    operator.close()


@pytest.fixture(scope="module")
def plug(
    hypervisor: PrivateHypervisor, operator: Operator, image: GuestImage, guest_accelerator: Accelerator
) -> Iterator[GuestConsole]:
    """A booted Linux guest with a definition: vda, one NIC, a balloon with statistics."""
    guest = new_guest(hypervisor, GUEST, guest_accelerator)
    console = hypervisor.console(GUEST)
    console.files.log.unlink(missing_ok=True)
    file = hypervisor.folder / "definitions" / f"{GUEST}.xml"
    file.write_text(hypervisor.definition(guest, image))
    hypervisor.virsh("define", str(file))
    operator("domain.start", GUEST)
    console.wait_ready(120)
    yield console
    operator("domain.destroy", GUEST)
    operator("domain.undefine", GUEST, snapshots=True)


@pytest.fixture(scope="module")
def scraper(hypervisor: PrivateHypervisor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraper]:
    with ExitStack() as ending:
        server = ending.enter_context(
            exporter_server(tmp_path_factory.mktemp("scraped"), hypervisor.read_only_uri, ("--sampling.interval=1s",))
        )
        server.start()
        server.wait_ready()
        yield Scraper(server)


def undo(operator: Operator, result: Result) -> None:
    for step in result.details["reverse"]:  # type: ignore[union-attr]
        operator(step["operation"], GUEST, **step["parameters"])  # type: ignore[index,arg-type,call-overload]


def test_the_balloon_follows_and_is_set_back(operator: Operator, plug: GuestConsole, scraper: Scraper) -> None:
    lowered = operator("domain.set-memory", GUEST, memory_mib=88)
    assert lowered.after["live"] == {"memory_kib": 88 << 10, "maximum_memory_kib": 96 << 10}
    assert lowered.after["persistent"]["memory_kib"] == 88 << 10
    eventually(
        lambda: scraper.scrape().value("libvirt_domain_info_memory_usage_bytes", domain=GUEST) == 88 << 20,
        "the exporter's word of it",
    )
    assert not operator("domain.set-memory", GUEST, memory_mib=88).changed
    with pytest.raises(RefusedError, match=r"uses \d+ KiB, and would be left with 4096 KiB.*--force"):
        operator("domain.set-memory", GUEST, memory_mib=4)
    with pytest.raises(RefusedError, match="more than the maximum"):
        operator("domain.set-memory", GUEST, memory_mib=97)
    undo(operator, lowered)
    assert operator.dry("domain.set-memory", GUEST, percent_of_maximum=100).plan.nothing_to_do


def limit_of(scraper: Scraper, disk: str) -> float | None:
    name = "libvirt_domain_block_stats_limit_write_bytes"
    return scraper.scrape().value(name, domain=GUEST, target_device=disk)


def test_a_block_limit_holds_and_is_lifted(operator: Operator, plug: GuestConsole, scraper: Scraper) -> None:
    limited = operator("domain.set-block-limit", GUEST, device="vda", write_bytes_sec=1 << 20)
    assert limited.after["live"] == limited.after["persistent"] == {"vda": {"write_bytes_sec": 1 << 20}}
    eventually(lambda: limit_of(scraper, "vda") == 1 << 20, "the exporter's word of the limit")
    both = operator("domain.set-block-limit", GUEST, total_iops_sec=500, apply_to="live")
    assert both.after["live"] == {"vda": {"write_bytes_sec": 1 << 20, "total_iops_sec": 500}}
    total = operator("domain.set-block-limit", GUEST, total_bytes_sec=2 << 20, apply_to="live")
    assert total.after["live"] == {"vda": {"total_bytes_sec": 2 << 20, "total_iops_sec": 500}}
    undo(operator, total)
    undo(operator, both)
    assert operator.dry("domain.lift-block-limit", GUEST).plan.state["live"] == limited.after["live"]
    lifted = operator("domain.lift-block-limit", GUEST)
    assert lifted.after["live"] == lifted.after["persistent"] == {"vda": {}}
    eventually(lambda: limit_of(scraper, "vda") is None, "the exporter's word that it is lifted")
    undo(operator, lifted)
    assert operator("domain.lift-block-limit", GUEST).before["live"] == limited.after["live"]


def test_a_burst_goes_with_its_limit(operator: Operator, plug: GuestConsole) -> None:
    limits = {"read_iops_sec": 100, "read_iops_sec_max": 200, "write_iops_sec": 50}
    limited = operator("domain.set-block-limit", GUEST, **limits)
    assert limited.after["live"] == {"vda": limits}
    assert operator("domain.lift-block-limit", GUEST).after["persistent"] == {"vda": {}}


def shapes_traffic(hypervisor: PrivateHypervisor) -> bool:
    """Whether the kernel has what libvirt limits received traffic with."""
    try:
        hypervisor.run("tc", "qdisc", "add", "dev", "lo", "root", "sfq")
    except DemonstrationError:
        return False
    hypervisor.run("tc", "qdisc", "del", "dev", "lo", "root")
    return True


def test_a_network_limit_is_set_and_lifted(
    operator: Operator, plug: GuestConsole, hypervisor: PrivateHypervisor
) -> None:
    received = {"inbound_average_kib": 2048, "inbound_peak_kib": 4096, "inbound_burst_kib": 1024}
    kept = operator("domain.set-interface-limit", GUEST, outbound_average_kib=1024, **received, apply_to="persistent")
    (mac,) = kept.after["persistent"]
    if shapes_traffic(hypervisor):
        sent = operator("domain.set-interface-limit", GUEST, device=mac, outbound_average_kib=1024, **received)
        assert sent.after["live"] == kept.after["persistent"]
        undo(operator, sent)
    else:
        for limits in (received, {"outbound_average_kib": 1024}):
            with pytest.raises(UnsupportedError, match=r"kernel cannot shape the traffic.*sch_sfq"):
                operator("domain.set-interface-limit", GUEST, **limits, apply_to="live")
    lifted = operator("domain.lift-interface-limit", GUEST)
    assert lifted.before["live"] == {mac: {}}
    assert lifted.after["live"] == lifted.after["persistent"] == {mac: {}}


def test_a_guest_that_does_not_follow_its_balloon(
    operator: Operator, hypervisor: PrivateHypervisor, plug: GuestConsole
) -> None:
    """Its memory is held by files, so that it cannot give it up: forced, and told."""
    with pytest.raises(TimedOutError, match=r"was asked to have 20480 KiB, and has \d+ KiB after 2 s"):
        operator("domain.set-memory", GUEST, memory_mib=20, apply_to="live", within_s=2, force=True)
    assert operator("domain.set-memory", GUEST, percent_of_maximum=100).changed
    assert Path(plug.files.log).exists()
