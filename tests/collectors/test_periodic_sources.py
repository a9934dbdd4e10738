"""Tests of the periodic collectors on libvirt's test driver: real calls, and what it does not support."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import libvirt
import pytest

from collectors import COLLECTORS, SOURCES
from collectors.background import HASTENED_S
from collectors.connection import Opener, Session
from collectors.host import HostSource, huge_pages
from collectors.inventory import Inventory
from collectors.job_reading import FAST_S, JobSource
from collectors.periodic import RunningDomain, Scope, Source
from collectors.snapshot import Record
from collectors.support import Support
from tests.samples import builder, series, snapshot

NAMES = ("host", "storage", "volumes", "virtual_networks", "snapshots", "settings", "jobs", "disk_errors")


@pytest.fixture
def session() -> Iterator[Session]:
    made = Session(Opener("test:///default"))
    yield made
    made.close()


def scope(session: Session) -> Scope:
    found = session.connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
    return Scope(tuple(RunningDomain(d.UUIDString(), d.ID(), d.name()) for d in found))


def page(session: Session, source: Source) -> dict[str, float]:
    """Series of all parts of a source, by name with labels."""
    collector = next(c for c in COLLECTORS if c.name == source.collector)
    records = [record for part in source.parts(session, scope(session)) for record in source.read(session, part)]
    return series(builder([collector]).batch(snapshot(*records)))


def made(name: str, inventory: Inventory | None = None) -> Source:
    return SOURCES[name](inventory or Inventory())


@pytest.mark.parametrize("name", NAMES)
def test_a_source_gives_only_what_its_collector_declares_and_no_series_twice(session: Session, name: str) -> None:
    collector = next(c for c in COLLECTORS if c.name == name)
    source = made(name)
    declared = {d.name for d in collector.declarations}
    assert {series_name.partition("{")[0] for series_name in page(session, source)} <= declared
    assert page(session, source) is not None  # what is not supported was remembered: again without an error


class OldLibvirt:
    """A running domain of libvirt 5, which knows no flag to keep the last job's figures, and its lane's session."""

    def __init__(self) -> None:
        self.support = Support()
        self.asked: list[int] = []

    def domains(self, _uuids: Iterable[str]) -> list[OldLibvirt]:
        return [self]

    def lost(self, _error: libvirt.libvirtError) -> bool:
        return False

    def jobStats(self, flags: int) -> dict[str, int]:  # noqa: N802
        self.asked.append(flags)
        if flags & 2:
            error = libvirt.libvirtError("invalid argument: unsupported flags (0x2)")
            error.err = (libvirt.VIR_ERR_INVALID_ARG, libvirt.VIR_FROM_QEMU, "", 2, None, None, None, 0, 0)
            raise error
        return {"type": 2, "operation": 5, "time_elapsed": 1500} if self.asked.count(0) > 2 else {"type": 0}


def test_jobs_of_a_libvirt_that_cannot_keep_the_last_one() -> None:
    libvirt_5, now_s = OldLibvirt(), [1000.0]
    source = JobSource(Inventory(), lambda: now_s[0])

    def read() -> list[Record]:
        now_s[0] += 61
        return list(source.read(libvirt_5, RunningDomain("u", 1, "web")))  # type: ignore[arg-type]

    assert read() == read() == []
    assert "jobStats completed" in libvirt_5.support.unsupported
    record, = read()
    assert record.stats["job.time_elapsed"] == 1500
    assert libvirt_5.asked.count(3) == 1
    assert 1 not in libvirt_5.asked, "it would forget the figures for everybody else"


def test_host(session: Session) -> None:
    inventory = Inventory()
    running = scope(session).running
    inventory.refresh(session, [(d.uuid, d.id) for d in running])
    shown = page(session, made("host", inventory))
    info = session.connection.getInfo()
    assert shown["libvirt_node_cpus"] == info[2] == 16
    assert shown["libvirt_node_cells"] == 2
    assert shown["libvirt_node_memory_total_bytes"] == info[1] << 20
    assert shown["libvirt_node_cpu_frequency_hertz"] == info[3] * 1_000_000
    assert [shown[f"libvirt_node_{word}"] for word in ("sockets_per_cell", "cores_per_socket", "threads_per_core")] == (
        info[5:])
    assert f'libvirt_node_info{{hostname="{session.connection.getHostname()}",model="{info[0]}"}}' in shown
    assert shown["libvirt_node_vcpus_allocated"] == 2
    assert shown["libvirt_node_memory_allocated_bytes"] == 8 << 30
    assert shown['libvirt_node_cpu_seconds_total{mode="idle"}'] > 0
    assert "libvirt_node_memory_free_bytes" not in shown  # the test driver does not tell


def test_the_hosts_name_is_asked_once_an_hour_and_its_capabilities_once_a_minute(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libvirtd asks the name servers for the name, and makes the capabilities anew at each call."""
    asked: list[str] = []
    for name in ("getHostname", "getCapabilities"):
        real = getattr(session.connection, name)
        monkeypatch.setattr(session.connection, name, lambda name=name, real=real: (asked.append(name), real())[1])
    now_s = [1000.0]
    source = HostSource(Inventory(), lambda: now_s[0])
    first = page(session, source)
    assert page(session, source).keys() == first.keys()
    assert sorted(asked) == ["getCapabilities", "getHostname"]
    now_s[0] += 3601
    monkeypatch.setattr(session.connection, "getHostname", lambda: "renamed")
    assert 'libvirt_node_info{hostname="renamed",model="i686"}' in page(session, source)


def test_a_host_whose_name_cannot_be_had_keeps_the_known_one(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For another hour: with the name servers away each question may take libvirtd long."""
    now_s = [1000.0]
    source = HostSource(Inventory(), lambda: now_s[0])
    first = page(session, source)
    asked: list[None] = []

    def refused() -> str:
        asked.append(None)
        raise libvirt.libvirtError("no name")

    monkeypatch.setattr(session.connection, "getHostname", refused)
    now_s[0] += 3601
    assert page(session, source).keys() == first.keys() == page(session, source).keys()
    assert len(asked) == 1


def test_a_sum_over_domains_is_absent_while_one_is_not_known(session: Session) -> None:
    shown = page(session, made("host", Inventory()))
    assert "libvirt_node_vcpus_allocated" not in shown


def test_huge_pages_by_cell() -> None:
    text = ("<capabilities><host><topology><cells><cell id='1'><pages unit='KiB' size='4'>99</pages>"
            "<pages unit='KiB' size='2048'>7</pages></cell></cells></topology></host></capabilities>")
    assert huge_pages(text) == {1: {2048: 7}}
    assert huge_pages("<capabilities/>") == {}


def test_pools_and_volumes(session: Session) -> None:
    pool, = session.connection.listAllStoragePools(0)
    shown = page(session, made("storage"))
    assert shown['libvirt_pool_state{pool="default-pool",state="running"}'] == 1
    assert shown['libvirt_pool_info_capacity_bytes{pool="default-pool"}'] == pool.info()[1]
    assert shown['libvirt_pool_volumes{pool="default-pool"}'] == pool.numOfVolumes()
    assert len(page(session, made("volumes"))) == 2 * pool.numOfVolumes()


def test_an_inactive_pool_has_no_sizes(session: Session) -> None:
    writer: Any = libvirt.open("test:///default")
    try:
        writer.storagePoolLookupByName("default-pool").destroy()
        shown = page(session, made("storage"))
        assert shown['libvirt_pool_state{pool="default-pool",state="inactive"}'] == 1
        assert not [name for name in shown if "_bytes" in name or "volumes" in name]
    finally:
        writer.storagePoolLookupByName("default-pool").create()
        writer.close()


def test_networks_and_interfaces(session: Session) -> None:
    shown = page(session, made("virtual_networks"))
    assert shown['libvirt_network_active{network="default"}'] == 1
    assert shown['libvirt_networks{state="active"}'] == 1
    assert shown['libvirt_node_interface_active{interface="eth1"}'] == 1


def test_snapshots_of_domains_running_or_not(session: Session) -> None:
    source = made("snapshots")
    assert page(session, source) == {}
    writer: Any = libvirt.open("test:///default")
    domain = writer.lookupByName("test")
    try:
        for number in range(2):
            domain.snapshotCreateXML(f"<domainsnapshot><name>s{number}</name></domainsnapshot>", 0)
        shown = page(session, source)
        assert shown['libvirt_domain_snapshots{domain="test"}'] == 2
        oldest = shown['libvirt_domain_snapshot_oldest_timestamp_seconds{domain="test"}']
        assert 1_700_000_000 < oldest <= shown['libvirt_domain_snapshot_newest_timestamp_seconds{domain="test"}']
    finally:
        for one in domain.listAllSnapshots(0):
            one.delete(0)
        writer.close()
    assert page(session, source) == {}


@pytest.mark.parametrize(("many", "readings"), [(4, 1), (9, 3)])
def test_a_snapshot_made_anew_under_its_name_has_its_new_time(session: Session, many: int, readings: int) -> None:
    source = made("snapshots")
    writer: Any = libvirt.open("test:///default")
    domain = writer.lookupByName("test")

    def make(number: int, created: int) -> None:
        xml = (f"<domainsnapshot><name>s{number}</name><state>shutoff</state><creationTime>{created}</creationTime>"
               f"{domain.XMLDesc(0)}</domainsnapshot>")
        domain.snapshotCreateXML(xml, libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)

    try:
        for number in range(many):
            make(number, 100 + number)
        page(session, source)
        for anew in range(many):
            domain.snapshotLookupByName(f"s{anew}").delete(0)
            make(anew, 200 + anew)
            for _ in range(readings):
                shown = page(session, source)
            assert shown['libvirt_domain_snapshot_newest_timestamp_seconds{domain="test"}'] == 200 + anew
        assert shown['libvirt_domain_snapshot_oldest_timestamp_seconds{domain="test"}'] == 200
    finally:
        for one in domain.listAllSnapshots(0):
            one.delete(0)
        writer.close()


def test_nothing_is_asked_of_domains_that_are_not_watched(session: Session) -> None:
    known = scope(session)
    nobody = Scope((), frozenset(), lambda uuid, name: name != "test")
    for name in ("snapshots", "settings", "jobs", "disk_errors"):
        assert list(made(name).parts(session, nobody)) == []
    assert [part.name for part in made("settings").parts(session, known)] == ["test"]  # type: ignore[attr-defined]


def test_settings(session: Session) -> None:
    shown = page(session, made("settings"))
    assert shown == {'libvirt_domain_autostart{domain="test"}': 0, 'libvirt_domain_persistent{domain="test"}': 1,
                     'libvirt_domain_managed_save{domain="test"}': 0}


def test_a_domain_that_ends_before_its_warnings_are_read_costs_nothing_else(session: Session) -> None:
    source = made("settings")
    known = scope(session)
    gone = RunningDomain("6695eb01-f6a4-8304-79aa-97f2502e1940", 9, "gone")
    writer: Any = libvirt.open("test:///default")
    domain = writer.createXML(f"<domain type='test'><name>gone</name><uuid>{gone.uuid}</uuid><memory>8192</memory>"
                              "<os><type>hvm</type></os></domain>", 0)
    try:
        assert [found.UUIDString() for found in session.domains([gone.uuid])] == [gone.uuid]  # kept from now on
        source.parts(session, Scope((*known.running, gone)))
    finally:
        domain.destroy()
        writer.close()
    assert [record.source for record in source.read(session, gone)] == ["settings"]


def test_a_domain_without_a_job_has_no_series(session: Session) -> None:
    assert page(session, made("jobs")) == {}
    assert made("jobs").period_s > FAST_S >= HASTENED_S


def test_unsupported_is_remembered_and_other_errors_are_not() -> None:
    connection: Any = libvirt.openReadOnly("test:///default")
    support = Support()
    asked: list[int] = []

    def call() -> object:
        asked.append(1)
        return connection.getMemoryStats(-1)

    assert support.ask("memory", call) is None
    assert support.ask("memory", call) is None
    assert len(asked) == 1
    with pytest.raises(libvirt.libvirtError):
        support.ask("lookup", lambda: connection.lookupByName("nobody"))
    assert support.ask("lookup", lambda: connection.lookupByName("test")) is not None
