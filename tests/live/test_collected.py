"""What the collectors serve of a real libvirt: one exporter with all of them on, and tiny guests that give them cause.

The guests are boot sectors and ROMs, so that the whole stage stands in a few seconds; what needs a guest with an
operating system is in test_collectors.py, test_misbehaving_guests.py, test_migration_watched.py, test_guest_agent.py.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import libvirt
import pytest
from prometheus_client.openmetrics import parser as openmetrics

from collectors import COLLECTORS
from collectors.owner_metadata import LABEL_MOST_CHARACTERS
from exporter.demonstration.private_hypervisor import PrivateHypervisor
from exporter.demonstration.programs import run_program
from tests.live.fleet import Fleet
from tests.live.operating import eventually
from tests.live.scraping import Page, Scraper
from tests.live.sector_guests import saying, sector_xml, setting_off_the_watchdog, writing
from tests.live.servers import exporter_server

# Some are read once a minute, and nothing tells that what they read has changed.
SLOW_S = 150.0
# Those that the kernel counts by itself, on any processor.
PERF_EVENTS = ("task_clock", "page_faults", "context_switches")
NETWORK = ("<network><name>{name}</name><bridge name='{name}0'/><ip address='{net}.1' netmask='255.255.255.0'/>"
           "</network>")
NOVA = ("<nova:instance xmlns:nova='http://openstack.org/xmlns/libvirt/nova/1.1'><nova:name>{}</nova:name>"
        "<nova:flavor name='m1'/></nova:instance>")
SITE = "<site:guest xmlns:site='urn:site'><site:team name='{}'>{}</site:team></site:guest>"


class Stage:
    """The guests and networks of this module, from setting to strike."""

    def __init__(self, hypervisor: PrivateHypervisor) -> None:
        self.hypervisor = hypervisor
        self.fleet = Fleet(hypervisor)
        self.connection: Any = libvirt.open(hypervisor.uri)
        self._networks: list[Any] = []
        self._domains: list[Any] = []

    def set(self) -> None:
        hypervisor = self.hypervisor
        for name, net in (("stage", "192.0.2"), ("curtain", "198.51.100")):
            network = self.connection.networkDefineXML(NETWORK.format(name=name, net=net))
            self._networks.append(network)
        self._networks[0].setAutostart(True)
        self._networks[0].create()
        for name in ("seen", "dark"):
            hypervisor.run("ip", "link", "add", f"{name}0", "type", "veth", "peer", "name", f"{name}1")
        for link in ("seen0", "seen1"):
            hypervisor.run("ip", "link", "set", link, "up")
        self.start(self._tuned(), persistent=True)
        self.start(self._chained(), persistent=True)
        self.start(self._on_qcow2("kept"), persistent=True)
        for name in ("one", "two"):
            hypervisor.virsh("snapshot-create-as", "kept", name)
        hypervisor.virsh("destroy", "kept")
        scsi = "<controller type='scsi' index='0' model='virtio-scsi'/>"
        writer = self._on_qcow2("writer", devices=scsi, sector=writing())
        self.start(writer.replace("<vcpu>", "<iothreads>2</iothreads><vcpu>"), persistent=True)
        for event in PERF_EVENTS:
            hypervisor.virsh("perf", "writer", "--enable", event)
        hypervisor.virsh("domdirtyrate-calc", "writer", "--seconds", "1")
        copy = hypervisor.folder / "images" / "copy.qcow2"
        hypervisor.virsh("blockcopy", "writer", "hda", "--dest", str(copy), "--transient-job", "--bandwidth", "65536",
                         "--bytes")
        self.start(self._on_qcow2("backed"), persistent=True)
        self._begin_backup("backed")
        self.start(self._bare())

    def start(self, xml: str, persistent: bool = False) -> Any:
        """A guest of this XML, running; struck with the stage."""
        domain = self.connection.defineXML(xml) if persistent else self.connection.createXML(xml, 0)
        self._domains.append(domain)
        if persistent:
            domain.create()
        return domain

    def end(self, domain: Any) -> None:
        domain.destroy()
        self._domains.remove(domain)

    def strike(self) -> None:
        for domain in self._domains:
            if domain.isActive():
                domain.destroy()
            if domain in self.connection.listAllDomains(0) or domain.name() in self.hypervisor.virsh(
                    "list", "--all", "--name").split():
                self.hypervisor.virsh("undefine", domain.name(), "--snapshots-metadata", "--checkpoints-metadata",
                                      "--managed-save")
        for network in self._networks:
            if network.isActive():
                network.destroy()
            network.undefine()
        for link in ("seen0", "dark0"):
            self.hypervisor.run("ip", "link", "delete", link)
        self.connection.close()

    def sector(self, name: str, sector: bytes | None = None, metadata: str = "", devices: str = "") -> str:
        """A guest that says its name and halts, or boots the sector given."""
        xml, _ = sector_xml(self.hypervisor, name, sector or saying(name))
        xml = xml.replace('<domain type="qemu"', f'<domain type="{self.fleet.kind}"')
        xml = xml.replace("</name>", f"</name><title>{name}</title><metadata>{metadata}</metadata>", 1)
        return xml.replace("</devices>", f"{devices}</devices>")

    def _begin_backup(self, name: str) -> None:
        """One that somebody may pull until it is ended: a job that lasts as long as a test wants."""
        file = self.hypervisor.folder / "definitions" / "backup.xml"
        socket = self.hypervisor.folder / "run" / "backup.sock"
        file.write_text(f"<domainbackup mode='pull'><server transport='unix' socket='{socket}'/></domainbackup>")
        self.hypervisor.virsh("backup-begin", name, "--backupxml", str(file))

    def hasten(self) -> None:
        """An event after which snapshots and settings are read at once, not only within the minute."""
        self.hypervisor.virsh("suspend", "chained")
        self.hypervisor.virsh("resume", "chained")

    def _tuned(self) -> str:
        xml = self._on_qcow2("tuned", metadata=NOVA.format("web") + SITE.format("a", "blue"), devices=(
            "<interface type='network'><source network='stage'/><target dev='tuned0'/><rom enabled='no'/></interface>"))
        xml = xml.replace("</devices>", "<graphics type='vnc' autoport='yes' listen='127.0.0.1'/></devices>")
        return xml.replace("<features>", "<cputune><vcpupin vcpu='0' cpuset='0'/></cputune><features>").replace(
            "</features>", "</features><cpu><topology sockets='1' dies='1' cores='1' threads='1'/></cpu>")

    def _chained(self) -> str:
        """A disk of three images: base, middle, top."""
        xml = self.sector("chained")
        base = self.hypervisor.folder / "images" / "chained.raw"
        below, kind = base, "raw"
        for word in ("middle", "top"):
            image = base.with_suffix(f".{word}.qcow2")
            run_program(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(below), "-F", kind, str(image)])
            below, kind = image, "qcow2"
        return xml.replace('name="qemu" type="raw"', 'name="qemu" type="qcow2"').replace(str(base), str(below))

    def _on_qcow2(self, name: str, metadata: str = "", devices: str = "", sector: bytes | None = None) -> str:
        xml = self.sector(name, sector, metadata, devices)
        raw = self.hypervisor.folder / "images" / f"{name}.raw"
        run_program(["qemu-img", "convert", "-O", "qcow2", str(raw), str(raw.with_suffix(".qcow2"))])
        return xml.replace('name="qemu" type="raw"', 'name="qemu" type="qcow2"').replace(
            str(raw), str(raw.with_suffix(".qcow2")))

    def _bare(self) -> str:
        """No disk, interface, balloon, serial line or agent, and not KVM's."""
        xml = self.fleet.xml("bare", disks=0).replace(f"type='{self.fleet.kind}'", "type='qemu'", 1)
        xml = re.sub("<interface.*</interface>", "", xml)
        return xml.replace("memballoon model='virtio'", "memballoon model='none'")


@pytest.fixture(scope="module")
def stage(hypervisor: PrivateHypervisor) -> Iterator[Stage]:
    made = Stage(hypervisor)
    try:
        made.set()
        yield made
    finally:
        made.strike()


@pytest.fixture(scope="module")
def scraper(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scraper]:
    """An exporter with every collector on, at a page on which each has been read."""
    folder = tmp_path_factory.mktemp("exporter")
    flags = [*(f"--collector.{c.name.replace('_', '-')}" for c in COLLECTORS), "--sampling.max-age=0s",
             "--metadata.namespaces=site=urn:site", "--metadata.labels=team=site:guest/site:team",
             "--metadata.labels=team_name=site:guest/site:team/@name"]
    with exporter_server(folder, stage.hypervisor.read_only_uri, flags) as server:
        server.start()
        server.wait_ready()
        made = Scraper(server, timeout_s=10)
        until(made, "every collector succeeds", lambda page: all(
            page.value("libvirt_scrape_collector_success", collector=collector.name) == 1 for collector in COLLECTORS))
        watchdog = "<watchdog model='ib700' action='pause'/>"
        stage.start(stage.sector("dog", setting_off_the_watchdog(), devices=watchdog))  # its BIOS takes its time
        yield made


def until(scraper: Scraper, what: str, true: Callable[[Page], bool], timeout_s: float = 60.0) -> Page:
    """The first page that is as wanted."""
    def seen() -> Page | None:
        page = scraper.scrape()
        return page if true(page) else None

    found: Page = eventually(seen, what, timeout_s)
    return found


def names(page: Page, domain: str) -> set[str]:
    return {name for name, _ in page.of_domain(domain)}


def labels(page: Page, name: str, domain: str) -> dict[str, str]:
    found, = (dict(pairs) for series, pairs in page.values if series == name and ("domain", domain) in pairs)
    return found


def promtool_has_nothing_to_say(text: str) -> None:
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, text=True, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_promtool_finds_nothing_to_say_of_the_page_with_every_collector_on(scraper: Scraper) -> None:
    text, _ = scraper.text()
    families = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    assert {"libvirt_domain_kvm_pages", "libvirt_domain_block_backing_images", "libvirt_network_info"} <= families
    promtool_has_nothing_to_say(text)


# What libvirt 9.0 takes for a name: quotes, a backslash, a new line, a tab, blanks, braces, other scripts, U+2028.
ODD_NAME = "  it's \"odd\" \\n\n\t{x=\"y\"},# 日本語\u2028\u202e😀 "


def test_an_odd_guest_leaves_a_page_that_every_parser_takes(scraper: Scraper, stage: Stage) -> None:
    xml = stage.fleet.xml("odd", vcpus=32, disks=20)
    escaped = escape(ODD_NAME, {"\n": "&#10;", "\t": "&#9;"})
    title = escape(ODD_NAME.replace("\n", ""))  # of which libvirt wants one line
    guest = stage.start(xml.replace("<name>odd</name>", f"<name>{escaped}</name><title>{title}</title>"))
    try:
        page = until(scraper, "all of it", lambda page: len(page.labelled_of(ODD_NAME, "vcpu")) == 32 and len(
            page.labelled_of(ODD_NAME, "target_device")) == 21)  # and its interface
        assert page.value("libvirt_domain_persistent", domain=ODD_NAME) in (0, None)
        assert labels(page, "libvirt_domain_info", ODD_NAME)["title"] == ODD_NAME.replace("\n", "").strip()
        promtool_has_nothing_to_say(scraper.text()[0])
        accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
        families = openmetrics.text_string_to_metric_families(scraper.server.get("/metrics", accept))
        assert ODD_NAME in {sample.labels.get("domain") for family in families for sample in family.samples}
    finally:
        stage.end(guest)


def test_a_guest_with_none_of_the_optional_parts_yields_no_series_for_them(scraper: Scraper) -> None:
    own = names(scraper.scrape(), "bare")
    assert {"libvirt_domain_info", "libvirt_domain_state", "libvirt_domain_vcpu_time_seconds_total",
            "libvirt_domain_info_memory_usage_bytes", "libvirt_domain_autostart"} <= own
    optional = ("block", "interface", "limit", "affinity", "job", "snapshot", "checkpoint", "iothread", "bandwidth",
                "cache_occupancy", "perf_", "_kvm_", "agent")
    assert [name for name in own if any(word in name for word in optional)] == []
    # Without a balloon its size is all of the guest's memory, libvirt says.
    assert {name for name in own if "memory_stats" in name} <= {
        f"libvirt_domain_memory_stats_{word}_bytes" for word in ("rss", "actual_balloon")}


def test_virtual_networks_and_the_host_s_interfaces(scraper: Scraper, stage: Stage) -> None:
    page = scraper.scrape()
    for name, active in (("stage", 1), ("curtain", 0)):
        values = [page.value(f"libvirt_network_{word}", network=name) for word in ("active", "autostart", "persistent")]
        assert values == [active, active, 1]
    assert page.value("libvirt_network_dhcp_leases", network="stage") == 0
    assert page.value("libvirt_network_dhcp_leases", network="curtain") is None
    infos = {dict(pairs)["network"]: dict(pairs)["bridge"] for name, pairs in page.values
             if name == "libvirt_network_info"}
    assert infos["stage"] == "stage0"
    known = stage.connection.listAllNetworks(0)
    counts = [page.value("libvirt_networks", state=state) for state in ("active", "inactive")]
    assert counts == [sum(n.isActive() for n in known), sum(not n.isActive() for n in known)]
    assert page.value("libvirt_node_interface_active", interface="seen0") == 1
    assert page.value("libvirt_node_interface_active", interface="dark0") == 0
    macs = {dict(pairs)["interface"]: dict(pairs)["mac"] for name, pairs in page.values
            if name == "libvirt_node_interface_info"}
    assert re.fullmatch("([0-9a-f]{2}:){5}[0-9a-f]{2}", macs["dark0"])


def test_kvm_s_own_counters(scraper: Scraper, stage: Stage) -> None:
    if stage.fleet.kind != "kvm":
        pytest.skip("this machine has no /dev/kvm that may be used")
    page = scraper.scrape()
    exits = page.value("libvirt_domain_vcpu_kvm_exits_total", domain="tuned", vcpu="0")
    assert exits is not None
    assert exits > 0
    assert page.value("libvirt_domain_kvm_pages", domain="tuned", size="4096") is not None
    assert page.value("libvirt_domain_kvm_halt_poll_success_seconds_total", domain="tuned") is not None
    assert {"libvirt_domain_kvm_stat_total", "libvirt_domain_vcpu_kvm_stat_total"} <= names(page, "tuned")  # kvm.all
    with stage.fleet.hung(["tuned"]):
        until(scraper, "a hung guest has none", lambda page: not [n for n in names(page, "tuned") if "_kvm_" in n])
    until(scraper, "they are there again", lambda page: page.value(
        "libvirt_domain_vcpu_kvm_exits_total", domain="tuned", vcpu="0") is not None)


def test_perf_events_io_threads_and_the_dirty_rate(scraper: Scraper, stage: Stage) -> None:
    page = scraper.scrape()
    ran = page.value("libvirt_domain_perf_task_clock_seconds_total", domain="writer")
    assert ran is not None
    assert 0 < ran < 3600
    assert (page.value("libvirt_domain_perf_page_faults_total", domain="writer") or 0) > 0
    assert {name for name in names(page, "writer") if "_perf_" in name} == {
        "libvirt_domain_perf_task_clock_seconds_total", "libvirt_domain_perf_page_faults_total",
        "libvirt_domain_perf_context_switches_total"}
    assert not [name for name in names(page, "tuned") if "_perf_" in name or "iothread" in name]
    assert page.value("libvirt_domain_iothreads", domain="writer") == 2
    polling = stage.connection.lookupByName("writer")
    stats = stage.connection.domainListGetStats([polling], libvirt.VIR_DOMAIN_STATS_IOTHREAD)[0][1]
    assert page.value("libvirt_domain_iothread_poll_max_seconds", domain="writer", iothread="2") == stats[
        "iothread.2.poll-max-ns"] / 1e9
    # Read every 15 s, and measured over one.
    page = until(scraper, "measured", lambda page: page.value(
        "libvirt_domain_dirtyrate_status", domain="writer", status="measured") == 1)
    assert page.value("libvirt_domain_dirtyrate_period_seconds", domain="writer") == 1
    assert page.value("libvirt_domain_dirtyrate_mode", domain="writer", mode="page-sampling") == 1
    assert page.value("libvirt_domain_dirtyrate_mode", domain="tuned", mode="page-sampling") is None
    assert page.value("libvirt_domain_dirtyrate_bytes_per_second", domain="writer") is not None
    assert page.value("libvirt_domain_dirtyrate_status", domain="tuned", status="unstarted") == 1
    assert page.value("libvirt_domain_dirtyrate_bytes_per_second", domain="tuned") is None


def test_limits_follow_the_event_that_tells_of_them(scraper: Scraper, stage: Stage) -> None:
    page = scraper.scrape()
    assert labels(page, "libvirt_domain_vcpu_affinity_info", "tuned")["cpuset"] == "0"
    limit = {"name": "libvirt_domain_block_stats_limit_total_bytes", "domain": "tuned", "target_device": "hda"}
    assert page.value(**limit) is None
    stage.hypervisor.virsh("blkdeviotune", "tuned", "hda", "--total-bytes-sec", "1048576")
    page = until(scraper, "the limit", lambda page: page.value(**limit) == 1 << 20)  # by the TUNABLE event
    assert page.value("libvirt_domain_events_total", domain="tuned", event="tunable", detail="none") == 1
    stage.hypervisor.virsh("vcpupin", "tuned", "0", "0-1")
    until(scraper, "the affinity", lambda page: labels(page, "libvirt_domain_vcpu_affinity_info", "tuned")[
        "cpuset"] == "0-1")
    stage.hypervisor.virsh("blkdeviotune", "tuned", "hda", "--total-bytes-sec", "0")
    until(scraper, "no limit", lambda page: page.value(**limit) is None)


def test_the_configuration_that_somebody_may_want(scraper: Scraper, stage: Stage) -> None:
    page = scraper.scrape()
    display = labels(page, "libvirt_domain_graphics_info", "tuned")
    assert (display["type"], display["listen"]) == ("vnc", "127.0.0.1")
    assert int(display["port"]) == 5900 + int(stage.hypervisor.virsh("vncdisplay", "tuned").rpartition(":")[2])
    assert labels(page, "libvirt_domain_cpu_info", "tuned")["cores"] == "1"
    assert not [name for name in names(page, "bare") if "graphics" in name or "host_device" in name]
    # A guest that is off says who it is, and nothing of what it would use.
    assert page.value("libvirt_domain_state", domain="kept", state="shutoff") == 1
    assert labels(page, "libvirt_domain_info", "kept")["title"] == "kept"
    assert not [name for name in names(page, "kept") if "vcpu" in name or "memory" in name or "block" in name]


def test_how_often_a_guest_reports_its_memory(scraper: Scraper, stage: Stage) -> None:
    """The balloon's statistics period: 0 where nobody asked for one, absent without a balloon."""
    period = "libvirt_domain_memory_stats_period_seconds"
    reporting = stage.start(stage.fleet.xml("reporting", disks=0).replace(
        "<memballoon model='virtio'/>", "<memballoon model='virtio'><stats period='7'/></memballoon>"))
    silent = stage.start(stage.fleet.xml("silent", disks=0))
    try:
        page = until(scraper, "both", lambda page: {"reporting", "silent"} <= page.labelled(period, "domain"))
        assert (page.value(period, domain="reporting"), page.value(period, domain="silent")) == (7, 0)
        assert page.value(period, domain="bare") is None
        # No driver in these guests: nothing of what they would report, neither zero nor NaN.
        assert page.value("libvirt_domain_memory_stats_last_update_timestamp_seconds", domain="reporting") is None
    finally:
        stage.end(reporting)
        stage.end(silent)


def count(page: Page, domain: str, event: str, detail: str = "none") -> float:
    """Events that were counted, 0 where none was."""
    return page.value("libvirt_domain_events_total", domain=domain, event=event, detail=detail) or 0


def test_a_disk_and_an_interface_that_come_and_go(scraper: Scraper, stage: Stage) -> None:
    """A SCSI disk, since that one goes without the guest's help."""
    file = stage.hypervisor.folder / "images" / "plugged.raw"
    file.write_bytes(bytes(2 << 20))
    read = {"name": "libvirt_domain_block_stats_read_bytes_total", "domain": "writer"}
    before = scraper.scrape()
    assert before.value(**read, target_device="sdb") is None
    written = {"name": "libvirt_domain_block_write_bytes_per_second", "domain": "writer", "target_device": "hda"}
    until(scraper, "a rate of the disk that stays", lambda page: page.value(**written) is not None)
    stage.hypervisor.virsh("attach-disk", "writer", str(file), "sdb", "--targetbus", "scsi", "--live")
    page = scraper.scrape()
    assert page.value(**read, target_device="sdb") is not None
    assert page.value(**written) is not None
    page = until(scraper, "what the disk is", lambda page: page.value(
        "libvirt_domain_block_stats_capacity_bytes", domain="writer", target_device="sdb") == 2 << 20 and any(
        name == "libvirt_domain_block_info" and {("domain", "writer"), ("target_device", "sdb")} <= set(pairs)
        for name, pairs in page.values))
    assert count(page, "writer", "device_added") == 1
    stage.hypervisor.virsh("attach-interface", "writer", "network", "stage", "--target", "plugged0", "--model",
                           "virtio", "--live")
    page = until(scraper, "the interface", lambda page: page.value(
        "libvirt_domain_interface_stats_receive_bytes_total", domain="writer", target_device="plugged0") is not None)
    stage.hypervisor.virsh("detach-disk", "writer", "sdb", "--live")
    page = until(scraper, "the disk is gone", lambda page: not any(
        {("domain", "writer"), ("target_device", "sdb")} <= set(pairs) for _, pairs in page.values))
    assert page.value(**written) is not None
    assert (count(page, "writer", "device_added"), count(page, "writer", "device_removed")) == (2, 1)


def test_a_write_beyond_the_threshold_and_a_reset(scraper: Scraper, stage: Stage) -> None:
    """Both are told, neither is asked for."""
    threshold = {"name": "libvirt_domain_block_stats_threshold_bytes", "domain": "chained", "target_device": "hda"}
    assert scraper.scrape().value(**threshold) is None
    stage.hypervisor.virsh("domblkthreshold", "chained", "hda", "65536")
    assert scraper.scrape().value(**threshold) == 65536
    stage.hypervisor.virsh("domblkthreshold", "writer", "hda", "4096")
    until(scraper, "the guest's own writes pass it", lambda page: count(page, "writer", "block_threshold", "hda") >= 1)
    reboots = count(scraper.scrape(), "writer", "reboot")
    stage.hypervisor.virsh("reset", "writer")
    until(scraper, "the reset", lambda page: count(page, "writer", "reboot") > reboots)


def test_a_domain_s_job_while_it_runs_and_its_end(scraper: Scraper, stage: Stage) -> None:
    assert not [name for name in names(scraper.scrape(), "chained") if "_domain_job_" in name]
    running = {"name": "libvirt_domain_job_info", "domain": "backed", "operation": "backup", "type": "unbounded"}
    page = until(scraper, "the job", lambda page: page.value(**running) == 1, SLOW_S)
    elapsed = page.value("libvirt_domain_job_elapsed_seconds", domain="backed")
    assert elapsed is not None
    # The backup's scratch file, which libvirt lists among the disk's images, is none of its chain.
    assert page.value("libvirt_domain_block_backing_images", domain="backed", target_device="hda") == 1
    page = until(scraper, "its time goes on", lambda page: (page.value(
        "libvirt_domain_job_elapsed_seconds", domain="backed") or 0) > elapsed + 1)
    stage.hypervisor.virsh("domjobabort", "backed")
    page = until(scraper, "its end", lambda page: page.value(**running) is None and any(
        name == "libvirt_domain_job_last_info" and ("domain", "backed") in pairs for name, pairs in page.values))
    last = labels(page, "libvirt_domain_job_last_info", "backed")
    assert (last["operation"], last["result"]) == ("backup", "completed")  # so a pulled backup is ended
    assert (page.value("libvirt_domain_job_last_elapsed_seconds", domain="backed") or 0) > 1
    assert count(page, "backed", "job_completed", "backup") == 1


def test_a_disk_s_job_while_it_runs_and_its_end(scraper: Scraper, stage: Stage) -> None:
    disk = {"domain": "writer", "target_device": "hda"}
    page = until(scraper, "the job", lambda page: page.value(
        "libvirt_domain_block_job_info", **disk, type="copy") == 1, SLOW_S)
    assert (page.value("libvirt_domain_block_job_end_bytes", **disk) or 0) > 0
    assert page.value("libvirt_domain_block_job_limit_bytes_per_second", **disk) == 65536
    assert page.value("libvirt_domain_block_backing_images", **disk) == 1  # nor is the copy
    stage.hypervisor.virsh("blockjob", "writer", "hda", "--abort")
    page = until(scraper, "its end", lambda page: not [name for name in names(page, "writer") if "block_job" in name])
    until(scraper, "the event", lambda page: count(page, "writer", "block_job", "copy_canceled") + count(
        page, "writer", "block_job", "copy_completed") == 1)


def test_a_guest_that_is_suspended_and_goes_on(scraper: Scraper, stage: Stage) -> None:
    stage.hypervisor.virsh("suspend", "bare")
    until(scraper, "suspended", lambda page: page.value(
        "libvirt_domain_state_reason", domain="bare", state="paused", reason="user") == 1)
    stage.hypervisor.virsh("resume", "bare")
    page = until(scraper, "resumed", lambda page: count(page, "bare", "resumed", "unpaused") == 1)
    assert count(page, "bare", "suspended", "paused") == 1
    # Counted from zero, so that an alert sees the first one, too.
    assert page.value("libvirt_domain_events_total", domain="bare", event="crashed", detail="panicked") == 0


def test_a_guest_saved_to_disk_and_started_again(scraper: Scraper, stage: Stage) -> None:
    saved = {"name": "libvirt_domain_managed_save", "domain": "tuned"}
    read = {"name": "libvirt_domain_block_stats_read_bytes_total", "domain": "tuned", "target_device": "hda"}
    stage.hypervisor.virsh("managedsave", "tuned")
    page = until(scraper, "the image", lambda page: page.value(**saved) == 1, SLOW_S)
    page = until(scraper, "the events", lambda page: count(page, "tuned", "stopped", "saved") == 1 and count(
        page, "tuned", "job_completed", "save") == 1)
    assert page.value("libvirt_domain_state", domain="tuned", state="shutoff") == 1
    assert page.value(**read) is None
    assert not [name for name in names(page, "tuned") if any(word in name.replace("_job_last_memory_", "_job_last_")
                                                             for word in ("vcpu", "block", "memory"))]
    # The job ended its domain, and is kept all the same.
    page = until(scraper, "the save", lambda page: "libvirt_domain_job_last_info" in names(page, "tuned"))
    last = labels(page, "libvirt_domain_job_last_info", "tuned")
    assert (last["operation"], last["result"]) == ("save", "completed")
    told = dict(stage.connection.lookupByName("tuned").jobStats(
        libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED | libvirt.VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED))
    for word, key, scale in (("elapsed_seconds", "time_elapsed", 1000), ("downtime_seconds", "downtime", 1000),
                             ("memory_normal_bytes", "memory_normal_bytes", 1), ("memory_iterations",
                                                                                 "memory_iteration", 1)):
        assert page.value(f"libvirt_domain_job_last_{word}", domain="tuned") == told[key] / scale
    stage.hypervisor.virsh("start", "tuned")
    page = until(scraper, "it runs", lambda page: page.value(**read) is not None and page.value(**saved) == 0, SLOW_S)
    assert count(page, "tuned", "started", "restored") == 1


def test_the_owner_s_labels_follow_the_metadata(scraper: Scraper, stage: Stage) -> None:
    own = labels(scraper.scrape(), "libvirt_domain_info", "tuned")
    assert (own["title"], own["instance_name"], own["flavor"]) == ("tuned", "web", "m1")
    assert (own["team"], own["team_name"]) == ("blue", "a")
    assert labels(scraper.scrape(), "libvirt_domain_info", "bare")["team"] == ""
    stage.hypervisor.virsh("metadata", "tuned", "urn:site", "--key", "site", "--live", "--set",
                           "<guest><team name='b'>red</team></guest>")
    stage.hypervisor.virsh("desc", "tuned", "--live", "--new-desc", "ask Ada\nfirst")
    until(scraper, "the new owner", lambda page: labels(page, "libvirt_domain_info", "tuned")["team"] == "red")
    own = labels(until(scraper, "the description", lambda page: labels(page, "libvirt_domain_info", "tuned")[
        "description"] != ""), "libvirt_domain_info", "tuned")
    assert (own["description"], own["team_name"], own["instance_name"]) == ("ask Ada\nfirst", "b", "web")


ENTITY = '<!DOCTYPE domain [<!ENTITY x "X"><!ENTITY y "&x;&x;&x;&x;"><!ENTITY z "&y;&y;&y;&y;">]>'
FILE = '<!DOCTYPE domain [<!ENTITY z SYSTEM "file:///etc/hostname">]>'
CROWD = f"<crowd:x xmlns:crowd='urn:crowd'>{'<crowd:y/>' * 100_000}</crowd:x>"


@pytest.mark.parametrize(("doctype", "metadata", "expected"), [
    (ENTITY, NOVA.format("a&z;b") + SITE.format("a", "blue"), {"instance_name": "", "flavor": "m1", "team": "blue"}),
    (FILE, NOVA.format("&z;") + SITE.format("a", "blue"), {"instance_name": "", "flavor": "m1", "team": "blue"}),
    (ENTITY, NOVA.format("w") + SITE.format("&z;", "blue"), {"instance_name": "w", "team": "blue", "team_name": ""}),
    ("", NOVA.format("n" * 2**20) + SITE.format("m" * 2**20, "blue"), {"flavor": "m1", "team": "blue"}),
    ("", NOVA.format("web") + CROWD + SITE.format("a", "blue"), {"instance_name": "web", "team": "blue"}),
    ("", NOVA.format("<![CDATA[</metadata><vcpu>9</vcpu>]]>") + SITE.format("a", "blue"),
     {"instance_name": "</metadata><vcpu>9</vcpu>", "team": "blue"})],
    ids=["entities", "external entity", "entity in an attribute", "megabytes", "100,000 elements", "a false end"])
def test_hostile_metadata_cost_the_field_that_they_are_in(
    scraper: Scraper, stage: Stage, doctype: str, metadata: str, expected: dict[str, str]
) -> None:
    guest = stage.start(doctype + stage.sector("hostile", metadata=metadata))
    try:
        page = until(scraper, "the guest's inventory", lambda page: bool(
            names(page, "hostile") >= {"libvirt_domain_info", "libvirt_domain_block_info"}))
        own = labels(page, "libvirt_domain_info", "hostile")
        assert {name: own[name] for name in expected} == expected
        assert own["title"] == "hostile"
        assert all(len(value) <= LABEL_MOST_CHARACTERS for value in own.values())
        assert page.value("libvirt_domain_info_virtual_cpus", domain="hostile") == 1
        assert page.value("libvirt_domain_block_stats_capacity_bytes", domain="hostile", target_device="hda") == 1 << 20
        assert labels(page, "libvirt_domain_info", "chained")["title"] == "chained"
        harmless = not doctype and "crowd" not in metadata
        success = {"name": "libvirt_scrape_collector_success", "collector": "inventory"}
        until(scraper, "it is told", lambda page: page.value(**success) == float(harmless))
        if not harmless:
            assert "domain hostile: its metadata:" in scraper.server.log.read_text()
        secret = Path("/etc/hostname").read_text().strip()
        assert secret not in own.values()
    finally:
        stage.end(guest)
    until(scraper, "it is over", lambda page: page.value(**success) == 1 and not names(page, "hostile"))


def test_a_chain_of_images_and_its_commit(scraper: Scraper, stage: Stage) -> None:
    disk = {"domain": "chained", "target_device": "hda"}
    page = scraper.scrape()
    assert page.value("libvirt_domain_block_backing_images", **disk) == 3
    assert page.value("libvirt_domain_block_backing_images", domain="writer", target_device="hda") == 1
    images = stage.hypervisor.folder / "images"
    files = [images / "chained.top.qcow2", images / "chained.middle.qcow2", images / "chained.raw"]
    for level, file in enumerate(files):
        size = page.value("libvirt_domain_block_backing_physicalsize_bytes", level=str(level), **disk)
        assert size == file.stat().st_blocks * 512
    assert page.value("libvirt_domain_block_backing_capacity_bytes", level="2", **disk) == 1 << 20
    assert page.value("libvirt_domain_block_backing_images", domain="bare", target_device="hda") is None
    stage.hypervisor.virsh("blockcommit", "chained", "hda", "--top", str(files[1]), "--base", str(files[2]), "--wait")
    page = until(scraper, "two images", lambda page: page.value("libvirt_domain_block_backing_images", **disk) == 2)
    counted = page.value("libvirt_domain_events_total", domain="chained", event="block_job",
                         detail="commit_completed")
    assert counted == 1


def test_a_watchdog_that_nobody_feeds(scraper: Scraper) -> None:
    page = until(scraper, "the guest is paused", lambda page: page.value(
        "libvirt_domain_state_reason", domain="dog", state="paused", reason="watchdog") == 1)
    counted = {"name": "libvirt_domain_events_total", "domain": "dog"}
    page = until(scraper, "the events", lambda page: page.value(**counted, event="watchdog", detail="pause") == 1)
    assert page.value(**counted, event="suspended", detail="watchdog") == 1
    assert page.value("libvirt_domain_state", domain="dog", state="paused") == 1


def test_which_disk_is_full(scraper: Scraper, stage: Stage) -> None:
    """A disk's file on storage that is smaller than the disk: its guest stands still until there is room."""
    folder = stage.hypervisor.folder / "images" / "full"
    folder.mkdir()
    stage.hypervisor.run("mount", "-t", "tmpfs", "-o", "size=128k", "full", str(folder))
    xml = stage.sector("full", writing())
    image = stage.hypervisor.folder / "images" / "full.raw"
    small = folder / "full.raw"
    stage.hypervisor.run("dd", f"if={image}", f"of={small}", "bs=512", "count=1", "status=none")
    stage.hypervisor.run("truncate", "-s", str(1 << 20), str(small))
    error = {"name": "libvirt_domain_block_error_info", "domain": "full", "target_device": "hda", "error": "no_space"}
    guest = stage.start(xml.replace(str(image), str(small)))
    try:
        page = until(scraper, "it is paused", lambda page: page.value(
            "libvirt_domain_state_reason", domain="full", state="paused", reason="io_error") == 1)
        page = until(scraper, "the disk and why", lambda page: page.value(**error) == 1)
        assert count(page, "full", "io_error", "enospc") >= 1
        assert page.labelled("libvirt_domain_block_error_info", "domain") == {"full"}
        stage.hypervisor.run("mount", "-o", "remount,size=4m", str(folder))
        stage.hypervisor.virsh("resume", "full")
        until(scraper, "it goes on", lambda page: page.value(**error) is None and page.value(
            "libvirt_domain_state", domain="full", state="running") == 1)
    finally:
        stage.end(guest)
        stage.hypervisor.run("umount", "--lazy", str(folder))


def test_the_host_as_its_own_kernel_tells_it(scraper: Scraper, stage: Stage) -> None:
    page = scraper.scrape()
    assert page.value("libvirt_node_cpus") == os.cpu_count()
    kernel = dict(zip(("user", "nice", "kernel", "idle", "iowait", "irq", "softirq"), map(
        int, Path("/proc/stat").read_text().split("\n")[0].split()[1:8]), strict=True))
    ticks = os.sysconf("SC_CLK_TCK")
    for mode, total in (("user", kernel["user"] + kernel["nice"]), ("idle", kernel["idle"])):
        shown = page.value("libvirt_node_cpu_seconds_total", mode=mode) or 0.0
        assert total / ticks - 120 <= shown <= total / ticks  # read every 15 s, before the kernel's figure here
    pages = {(labels["size"], labels["cell"]): value for (name, pairs), value in page.values.items()
             if name == "libvirt_node_huge_pages" for labels in (dict(pairs),)}
    sizes = {str(int(path.name.removeprefix("hugepages-").removesuffix("kB")) * 1024): path
             for path in Path("/sys/kernel/mm/hugepages").iterdir()}
    assert {size for size, _ in pages} == sizes.keys()
    for size, path in sizes.items():
        assert sum(value for (known, _), value in pages.items() if known == size) == int(
            (path / "nr_hugepages").read_text())
    merged = Path("/sys/kernel/mm/ksm/pages_sharing")
    if merged.exists():
        assert page.value("libvirt_node_ksm_pages", state="sharing") == int(merged.read_text())
    cells = page.labelled("libvirt_node_cell_memory_total_bytes", "cell")
    assert page.value("libvirt_node_cells") == len(cells) > 0
    running = [domain for domain in stage.connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)]

    def allocated(page: Page) -> bool:
        return (page.value("libvirt_node_vcpus_allocated"), page.value("libvirt_node_memory_allocated_bytes")) == (
            sum(d.info()[3] for d in running), sum(d.info()[1] for d in running) * 1024)

    until(scraper, "what the guests were promised", allocated)
    stage.connection.lookupByName("bare").setVcpus(2)  # of which no event tells
    until(scraper, "and the vCPU that was plugged in", allocated)


def test_snapshots_and_checkpoints_with_their_age(scraper: Scraper, stage: Stage) -> None:
    page = scraper.scrape()

    def made(kind: str, domain: str, name: str) -> int:
        xml = stage.hypervisor.virsh(f"{kind}-dumpxml", domain, name)
        return int(re.findall("<creationTime>([0-9]+)<", xml)[0])

    assert page.value("libvirt_domain_snapshots", domain="kept") == 2  # and it does not run
    oldest, newest = (page.value(f"libvirt_domain_snapshot_{word}_timestamp_seconds", domain="kept")
                      for word in ("oldest", "newest"))
    assert (oldest, newest) == (made("snapshot", "kept", "one"), made("snapshot", "kept", "two"))
    assert page.value("libvirt_domain_snapshots", domain="chained") is None
    assert page.value("libvirt_domain_checkpoints", domain="kept") is None
    assert page.value("libvirt_domain_checkpoints", domain="tuned") is None
    stage.hypervisor.virsh("snapshot-delete", "kept", "one")
    stage.hypervisor.virsh("checkpoint-create-as", "tuned", "first")
    stage.hasten()
    until(scraper, "one snapshot", lambda page: page.value("libvirt_domain_snapshots", domain="kept") == 1, SLOW_S)
    page = until(scraper, "the checkpoint", lambda page: page.value(
        "libvirt_domain_checkpoints", domain="tuned") == 1, SLOW_S)
    for word in ("oldest", "newest"):
        assert page.value(f"libvirt_domain_checkpoint_{word}_timestamp_seconds", domain="tuned") == made(
            "checkpoint", "tuned", "first")
    stage.hypervisor.virsh("checkpoint-delete", "tuned", "first")


def test_where_a_disk_lies_after_an_external_snapshot(scraper: Scraper, stage: Stage) -> None:
    """libvirt sends no event for it, and backup programs make them without libvirt's keeping a list."""
    def source(page: Page) -> str:
        return next(dict(pairs)["source_file"] for name, pairs in page.values if name == "libvirt_domain_block_info"
                    and {("domain", "tuned"), ("target_device", "hda")} <= set(pairs))

    assert source(scraper.scrape()).endswith("/tuned.qcow2")
    stage.hypervisor.virsh("snapshot-create-as", "tuned", "outside", "--disk-only", "--no-metadata")
    until(scraper, "the new image", lambda page: source(page).endswith("/tuned.outside"), 10)
