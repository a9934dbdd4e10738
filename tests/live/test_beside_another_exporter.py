"""Debian's libvirt exporter (kumina's) and ours with its names, on the same guests: what it says, ours says, too."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from exporter.demonstration.private_hypervisor import PrivateHypervisor
from tests.live.conftest import StartExporter
from tests.live.fleet import Fleet
from tests.live.operating import eventually
from tests.live.sector_guests import saying, sector_xml
from tests.live.servers import Server, free_port

PROGRAM = "prometheus-libvirt-exporter"
# Labels that only theirs have: the UUID on every series, where a device's data lie. Ours are on the info series.
THEIR_LABELS = ("uuid", "source_file", "source_bridge")
# Counters that go on in a guest that does nothing: its emulator works a little.
MOVING = ("cpu_time_seconds_total",)
Series = tuple[str, frozenset[tuple[str, str]]]


def samples(server: Server) -> list[Sample]:
    """libvirt's series of a page."""
    return [sample for family in text_string_to_metric_families(server.get("/metrics"))
            for sample in family.samples if sample.name.startswith("libvirt_")]


def series(found: list[Sample]) -> dict[Series, float]:
    """The values by name and labels, without the labels that only theirs have."""
    return {(sample.name, frozenset((k, v) for k, v in sample.labels.items() if k not in THEIR_LABELS)): sample.value
            for sample in found}


def told(found: list[Sample], label: str, keys: tuple[str, ...]) -> dict[tuple[str, ...], str]:
    """A label's values by those of others, where it is not empty."""
    return {tuple(s.labels[key] for key in keys): s.labels[label] for s in found
            if s.labels.get(label) and all(key in s.labels for key in keys)}


@pytest.fixture
def guests(fresh_hypervisor: PrivateHypervisor) -> Iterator[list[str]]:
    """One that has read its disk, one with two disks and a tap, one that is paused, one that is off."""
    fleet = Fleet(fresh_hypervisor)
    with fleet.connected() as connection:
        connection.createXML(sector_xml(fresh_hypervisor, "reader", saying("UP"))[0])
        connection.createXML(fleet.xml("plain", vcpus=2, disks=2))
        connection.createXML(fleet.xml("paused")).suspend()
        connection.defineXML(fleet.xml("off", disks=0))
        log = fresh_hypervisor.folder / "console" / "reader.log"
        eventually(lambda: log.exists() and "UP" in log.read_text(errors="replace"), "the guest has booted")
        yield [domain.name() for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)]


def test_each_of_its_series_is_on_our_page_with_its_value(
    fresh_hypervisor: PrivateHypervisor, guests: list[str], start_exporter: StartExporter, tmp_path: Path
) -> None:
    program = shutil.which(PROGRAM)
    if program is None:
        pytest.skip(f"{PROGRAM} is not installed (Debian's package of that name)")
    port = free_port()
    command = [program, f"--libvirt.uri={fresh_hypervisor.uri}", f"--web.listen-address=127.0.0.1:{port}"]
    ours = start_exporter(fresh_hypervisor.read_only_uri, ["--sampling.max-age=0s", "--compat.names=kumina"])
    with Server(command, port, tmp_path / "theirs.log", os.environ) as theirs:
        theirs.start()
        their_samples = eventually(lambda: samples_if_up(theirs), "their page", 30)
    our_samples = samples(ours)
    found, mine = series(their_samples), series(our_samples)
    domains = {dict(labels).get("domain") for _, labels in found} - {None}
    assert domains == set(guests)  # it knows of no others
    missing = {name: labels for name, labels in found if (name, labels) not in mine}
    assert missing == {}
    differing = {key: (value, mine[key]) for key, value in found.items()
                 if mine[key] != value and not key[0].endswith(MOVING)}
    assert differing == {}
    assert len(found) > 30
    read = next(value for (name, labels), value in found.items()
                if name == "libvirt_domain_block_stats_read_bytes_total" and ("domain", "reader") in labels)
    assert read > 0  # and not all of it is nothing
    # What their labels say besides, ours say once a domain or device: to be joined.
    uuids = told(our_samples, "uuid", ("domain",))
    assert told(their_samples, "uuid", ("domain",)).items() <= uuids.items()
    files = told(our_samples, "source_file", ("domain", "target_device"))
    assert told(their_samples, "source_file", ("domain", "target_device")) == files


def samples_if_up(server: Server) -> list[Sample] | None:
    try:
        return samples(server)
    except OSError:
        return None
