"""What a scrape and a minute cost: monitor commands and libvirt calls are counted, never timed."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from collectors.connection import Opener, Session
from collectors.inventory import Inventory
from collectors.job_reading import FAST_S, TURN_S, JobSource
from collectors.periodic import RunningDomain, Scope
from collectors.settings import SettingsSource
from collectors.snapshots import SnapshotSource
from exporter.demonstration.guest_definition import Guest
from exporter.demonstration.guest_image import GuestImage
from exporter.demonstration.private_hypervisor import PrivateHypervisor
from tests.benchmarks.fleet import domain_xml, firmware
from tests.live.conftest import StartExporter

LOGGING = 'log_filters = "1:qemu.qemu_monitor 1:libvirt.domain"\nlog_outputs = "1:file:/var/log/libvirt/monitor.log"\n'
READ_XML = "virDomainGetXMLDesc:"
SENT = re.compile(r'QEMU_MONITOR_SEND_MSG: .*"execute":"([a-z-]+)"')
CALLED = re.compile(r" : (vir(?:Domain|Connect)(?!Free|Ref)[A-Za-z]+):[0-9]+ : (?:dom|conn)=")
LOCAL = {"UUIDString", "ID", "name", "isAlive"}  # answered without the daemon
BLOCK = {"query-blockstats": 2, "query-named-block-nodes": 1}
BALLOON = {"query-balloon": 1, "qom-get": 1}


def log_monitors(hypervisor: PrivateHypervisor) -> None:
    """Starts the daemon again, so that it logs each monitor command."""
    hypervisor.stop_daemon()
    with (hypervisor.folder / "etc/libvirtd.conf").open("a") as file:
        file.write(LOGGING)
    hypervisor.start_daemon()


@pytest.fixture
def logging_hypervisor(fresh_hypervisor: PrivateHypervisor) -> PrivateHypervisor:
    """A private hypervisor whose daemon logs each monitor command."""
    log_monitors(fresh_hypervisor)
    return fresh_hypervisor


def start(hypervisor: PrivateHypervisor, image: GuestImage, name: str, balloon_period_s: int) -> None:
    disk = hypervisor.new_disk(name, 1 << 20)
    guest = Guest(name, disks=(disk,), interfaces=(hypervisor.new_interface(),), balloon_period_s=balloon_period_s)
    hypervisor.start_guest(guest, image).wait_ready()  # while it boots, events have its XML read again


class MonitorLog:
    """Commands sent to the monitors since the last look."""

    def __init__(self, hypervisor: PrivateHypervisor) -> None:
        self._file: Path = hypervisor.folder / "log/monitor.log"
        self._seen = self._file.stat().st_size

    def new(self) -> str:
        """What was logged since the last look."""
        with self._file.open(errors="replace") as file:
            file.seek(self._seen)
            text = file.read()
            self._seen = file.tell()
        return text

    def commands(self) -> Counter[str]:
        """Commands by name, and under READ_XML how often a domain's XML was read."""
        text = self.new()
        return Counter(SENT.findall(text)) + Counter({READ_XML: text.count(READ_XML)})


class Counted:
    """A libvirt object that counts the calls to the daemon by name, those of the domains that it returns too."""

    def __init__(self, real: Any, calls: Counter[str]) -> None:
        self._real = real
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)

        def call(*arguments: Any) -> Any:
            if name not in LOCAL:
                self._calls[name] += 1
            result = found(*arguments)
            if isinstance(result, list) and result and isinstance(result[0], libvirt.virDomain):
                return [Counted(one, self._calls) for one in result]
            return Counted(result, self._calls) if isinstance(result, libvirt.virDomain) else result

        return call


class CountingOpener(Opener):
    """Opens connections whose calls are counted."""

    def __init__(self, uri: str, calls: Counter[str]) -> None:
        super().__init__(uri)
        self._counter = calls

    def open(self) -> Any:
        return Counted(super().open(), self._counter)


def wait_for_a_second(log: MonitorLog) -> Counter[str]:
    time.sleep(1)
    return log.commands()


def test_monitor_commands_of_the_default_page(logging_hypervisor: PrivateHypervisor, image: GuestImage,
                                              start_exporter: StartExporter) -> None:
    start(logging_hypervisor, image, "plain", balloon_period_s=0)
    start(logging_hypervisor, image, "reporting", balloon_period_s=5)
    exporter = start_exporter(logging_hypervisor.read_only_uri, ["--sampling.max-age=0s", "--sampling.interval=1h"])
    exporter.get("/metrics")
    log = MonitorLog(logging_hypervisor)

    def of_four_pages() -> Counter[str]:
        log.new()
        for _ in range(4):
            exporter.get("/metrics")
        return log.commands()

    until_s = time.monotonic() + 60
    # What belongs to the start (libvirt's own questions, events) may come late; then it is over, and the XML is kept.
    while (found := of_four_pages()).keys() - BLOCK.keys() - BALLOON.keys():
        assert time.monotonic() < until_s, found
        wait_for_a_second(log)
    assert {name: found[name] for name in BLOCK} == {name: 4 * 2 * count for name, count in BLOCK.items()}
    assert found["query-stats"] == 0, "vCPU and CPU figures come from the kernel"
    # Balloon is asked of the one guest that reports, at most once in these few seconds.
    assert all(found[name] <= count for name, count in BALLOON.items())

    logging_hypervisor.virsh("blkdeviotune", "plain", "vda", "--total-bytes-sec", "1048576")
    limit = 'libvirt_domain_block_stats_limit_total_bytes{domain="plain",target_device="vda"} 1048576'
    until_s = time.monotonic() + 30
    while limit not in exporter.get("/metrics"):
        assert time.monotonic() < until_s
        time.sleep(0.1)
    told = log.commands()
    while READ_XML in (found := wait_for_a_second(log)):
        told += found
    assert 1 <= told[READ_XML] <= 2, "the event has it read once; it may come while it is being read"
    exporter.get("/metrics")
    assert READ_XML not in log.commands()


def test_without_the_kernel_the_bulk_groups_are_asked(logging_hypervisor: PrivateHypervisor, image: GuestImage,
                                                      start_exporter: StartExporter) -> None:
    start(logging_hypervisor, image, "plain", balloon_period_s=0)
    flags = ["--sampling.max-age=0s", "--sampling.interval=1h", "--sampling.kernel=off"]
    exporter = start_exporter(logging_hypervisor.read_only_uri, flags)
    exporter.get("/metrics")
    log = MonitorLog(logging_hypervisor)
    exporter.get("/metrics")
    found = log.commands()
    assert found["query-blockstats"] == 2
    assert found["query-stats"] <= 2


def test_disabled_collectors_are_not_asked_for(logging_hypervisor: PrivateHypervisor, image: GuestImage,
                                               start_exporter: StartExporter) -> None:
    start(logging_hypervisor, image, "plain", balloon_period_s=0)
    exporter = start_exporter(logging_hypervisor.read_only_uri, ["--sampling.max-age=0s", "--no-collector.block"])
    exporter.get("/metrics")
    time.sleep(2)
    log = MonitorLog(logging_hypervisor)
    until_s = time.monotonic() + 60
    page = exporter.get("/metrics")
    while found := log.commands():  # an event of the guest's start may have come late: its XML is read again
        assert set(found) == {READ_XML}
        assert time.monotonic() < until_s
        page = exporter.get("/metrics")
    assert "libvirt_domain_block_stats" not in page


@pytest.fixture
def guests(hypervisor: PrivateHypervisor) -> Iterator[list[str]]:
    """Eight guests with two disks each that do nothing."""
    (hypervisor.folder / "images/halt.rom").write_bytes(firmware())
    connection = libvirt.open(hypervisor.uri)
    domains = [connection.createXML(domain_xml(hypervisor, number, "qemu")) for number in range(8)]
    yield [domain.name() for domain in domains]
    for domain in domains:
        domain.destroy()
    connection.close()


def look(source: Any, session: Session, scope: Scope) -> None:
    """Read a source once, as the background does each period."""
    for part in source.parts(session, scope):
        list(source.read(session, part))


def test_an_idle_domain_costs_few_calls_a_minute(hypervisor: PrivateHypervisor, guests: list[str]) -> None:
    calls: Counter[str] = Counter()
    session, inventory, now_s = Session(CountingOpener(hypervisor.read_only_uri, calls)), Inventory(), [1000.0]
    try:
        found = session.connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
        domains = [RunningDomain(d.UUIDString(), d.ID(), d.name()) for d in found if d.name() in guests]
        others = len(session.connection.listAllDomains(0)) - len(domains)
        scope, count = Scope(tuple(domains)), len(domains)
        inventory.refresh(session, [(d.uuid, d.id) for d in domains])
        jobs = JobSource(inventory, lambda: now_s[0])
        settings = SettingsSource(inventory, lambda: now_s[0])
        sources: list[Any] = [jobs, settings, SnapshotSource(inventory)]
        for source in sources:
            look(source, session, scope)  # the first look, at every domain
        calls.clear()
        begun_s = now_s[0]
        for turn in range(40):  # ten minutes
            now_s[0] = begun_s + 15 * turn
            for source in sources if turn % 4 == 0 else [jobs]:
                look(source, session, scope)
        # Of each domain: its job, each disk's job and its warnings once a minute; a job once more, where its first
        # look after the start comes before a whole period is over.
        assert 9 * count <= calls.pop("jobStats") <= 11 * count
        assert 2 * 9 * count <= calls.pop("blockJobInfo") <= 2 * 11 * count
        assert 9 * count <= calls.pop("messages") <= 9 * count + 10 * others
        assert calls.pop("lookupByUUIDString", 0) <= 2 * others
        # And for all domains together: three switches and the list; snapshots and checkpoints.
        assert calls == {"listAllDomains": 10 * (4 + 2)}
        for source in sources:
            look(source, session, scope)  # what is due at the end of the ten minutes
        jobs.invalidate(domains[3].uuid)
        settings.invalidate(domains[3].uuid)
        calls.clear()
        for source in sources:
            look(source, session, scope)
        # Only the domain that the event speaks of; its last job, too.
        assert (calls["jobStats"], calls["blockJobInfo"], calls["messages"]) == (2, 2, 1)
    finally:
        session.close()


def test_a_domain_that_is_off_costs_one_look_at_its_last_job(hypervisor: PrivateHypervisor) -> None:
    calls: Counter[str] = Counter()
    writer = libvirt.open(hypervisor.uri)
    domain = writer.defineXML(domain_xml(hypervisor, 90, "qemu"))
    session = Session(CountingOpener(hypervisor.read_only_uri, calls))
    try:
        off = len(writer.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_INACTIVE))
        now_s = [1000.0]
        source = JobSource(Inventory(), lambda: now_s[0])
        look(source, session, Scope())
        assert calls["jobStats"] == off
        calls.clear()
        for _ in range(40):
            now_s[0] += 15
            look(source, session, Scope())
        assert calls == {}
        source.invalidate(domain.UUIDString())  # what an event does
        look(source, session, Scope())
        assert calls["jobStats"] == 1
    finally:
        session.close()
        domain.undefine()
        writer.close()


def test_a_job_that_ended_its_guest_is_found_whatever_the_last_sample_knew(hypervisor: PrivateHypervisor) -> None:
    """An event comes at once, while a sample may be fifteen seconds old."""
    calls: Counter[str] = Counter()
    (hypervisor.folder / "images/halt.rom").write_bytes(firmware())
    writer = libvirt.open(hypervisor.uri)
    domain = writer.defineXML(domain_xml(hypervisor, 91, "qemu"))
    session = Session(CountingOpener(hypervisor.read_only_uri, calls))
    try:
        domain.create()
        uuid, now_s = domain.UUIDString(), [1000.0]
        running = Scope((RunningDomain(uuid, domain.ID(), domain.name()),))
        source = JobSource(Inventory(), lambda: now_s[0])
        look(source, session, running)
        domain.managedSave()
        source.invalidate(uuid)
        look(source, session, running)
        records = [record for part in source.parts(session, Scope()) if part.uuid == uuid
                   for record in source.read(session, part)]
        info, = (dict(c.labels) for r in records for c in r.constants if c.name == "libvirt_domain_job_last_info")
        assert (info["operation"], info["result"]) == ("save", "completed")
        calls.clear()
        for _ in range(8):
            now_s[0] += 15
            look(source, session, Scope())
        assert calls == {}  # neither it nor anything else that is off is asked again
        domain.managedSaveRemove(0)
        domain.rename("renamed-after-its-save")
        source.invalidate(uuid)
        part, = (part for part in source.parts(session, Scope()) if part.uuid == uuid)
        record, = source.read(session, part)
        assert dict(record.subject.labels)["domain"] == "renamed-after-its-save"
        domain.undefine()
        source.invalidate(uuid)
        look(source, session, Scope())
        calls.clear()
        look(source, session, Scope())
        assert calls == {}  # nor is it looked for once it is gone
    finally:
        session.close()
        for known in writer.listAllDomains(0):
            if known.UUIDString() == domain.UUIDString():
                known.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)
        writer.close()


def test_jobs_are_read_faster_while_one_runs(hypervisor: PrivateHypervisor, guests: list[str]) -> None:
    session, inventory = Session(Opener(hypervisor.read_only_uri)), Inventory()
    try:
        domain = session.connection.lookupByName(guests[0])
        uuid = domain.UUIDString()
        scope = Scope((RunningDomain(uuid, domain.ID(), domain.name()),))
        inventory.refresh(session, [(uuid, domain.ID())])
        source = JobSource(inventory)
        look(source, session, scope)
        assert source.period_s == TURN_S
        copy = hypervisor.folder / "images" / "faster.raw"
        hypervisor.virsh("blockcopy", guests[0], "vda", "--dest", str(copy), "--transient-job")  # until it is ended
        source.invalidate(uuid)
        look(source, session, scope)
        assert source.period_s == FAST_S < TURN_S
        hypervisor.virsh("blockjob", guests[0], "vda", "--abort")
        look(source, session, scope)  # no event needed: while a job runs, each turn looks
        assert source.period_s == TURN_S
    finally:
        session.close()


def test_a_served_domain_costs_few_calls_beside_the_sampling(
        logging_hypervisor: PrivateHypervisor, start_exporter: StartExporter) -> None:
    (logging_hypervisor.folder / "images/halt.rom").write_bytes(firmware())
    connection, count = libvirt.open(logging_hypervisor.uri), 6
    for number in range(count):
        connection.createXML(domain_xml(logging_hypervisor, number, "qemu"))
    connection.close()
    exporter = start_exporter(logging_hypervisor.read_only_uri, ["--sampling.interval=1h"])
    exporter.get("/metrics")
    log = MonitorLog(logging_hypervisor)
    before, quiet = exporter.get("/metrics"), 0
    while quiet < 6:  # the first look at every domain is over when nothing is asked for three seconds
        time.sleep(0.5)
        quiet = 0 if CALLED.search(log.new()) else quiet + 1
    assert 'libvirt_domain_persistent{domain="fleet-0"} 0' in exporter.get("/metrics"), before
    log.new()
    time.sleep(16)  # one turn of the jobs
    text = log.new()
    calls = Counter(CALLED.findall(text))
    # At most one look at each domain's jobs; of the rest, what is asked once a minute for the host.
    assert calls.pop("virDomainGetJobStats", 0) <= count
    assert calls.pop("virDomainGetBlockJobInfo", 0) <= 2 * count
    assert calls.pop("virDomainGetMessages", 0) <= count // 2
    assert calls.total() <= 20, calls
    assert not SENT.findall(text)
