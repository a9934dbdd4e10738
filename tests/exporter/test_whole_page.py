"""The exporter as it is put together, on libvirt's test driver: settings in, the whole page out."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from collectors.owner_metadata import LABEL_MOST_CHARACTERS
from exporter.config import Settings
from exporter.negotiation import negotiate_format
from exporter.service import Exporter
from exporter.setting_catalogue import collector_defaults
from exporter.setting_loading import load_settings
from tests.samples import values_of

UUIDS = {name: f"6695eb01-f6a4-8304-79aa-97f2502e19{number:02}" for number, name in enumerate(
    ("web1", "web2", "db", "off"))}
TUNED = ("<memtune><hard_limit unit='MiB'>64</hard_limit><soft_limit unit='KiB'>32768</soft_limit></memtune><cputune>"
         "<shares>512</shares><period>100000</period><quota>25000</quota><global_period>100000</global_period>"
         "<global_quota>150000</global_quota><vcpupin vcpu='1' cpuset='0,2-3'/></cputune>")
BANDWIDTH = "<bandwidth><inbound average='100' peak='200' burst='300'/><outbound average='50'/></bandwidth>"
STOPPED = "<test:runstate>5</test:runstate>"


def domain(name: str) -> str:
    project = "blue" if name.startswith("web") else "red"
    return (f"<domain type='test' xmlns:test='http://libvirt.org/schemas/domain/test/1.0'><name>{name}</name>"
            f"<uuid>{UUIDS[name]}</uuid><title>{name} of {project}</title><metadata><nova:instance "
            f"xmlns:nova='http://openstack.org/xmlns/libvirt/nova/1.1'><nova:owner><nova:project>{project}"
            "</nova:project></nova:owner></nova:instance></metadata><memory>8192</memory><vcpu>2</vcpu>"
            f"{TUNED if name == 'db' else ''}<os><type>hvm</type></os><devices>"
            "<disk type='file'><source file='/a'/><target dev='vda'/></disk>"
            "<disk type='file'><source file='/b'/><target dev='vdb'/></disk>"
            f"<interface type='bridge'><mac address='52:54:00:00:00:{UUIDS[name][-2:]}'/><source bridge='br0'/>"
            f"<target dev='{name}-net'/>{BANDWIDTH if name == 'db' else ''}</interface></devices>"
            f"{STOPPED if name == 'off' else ''}</domain>")


class Pages:
    """The page of an exporter with some flags, as a scrape gets it."""

    def __init__(self, exporter: Exporter) -> None:
        self._exporter = exporter

    def text(self, collect: frozenset[str] | None = None) -> str:
        form = negotiate_format(None)
        return bytes(asyncio.run(self._exporter.page.page(form, 10, collect))).decode()

    def once(self, true: Callable[[dict[str, float]], bool], span_s: float = 30) -> dict[str, float]:
        """The page's series once they are as wanted."""
        until_s = time.monotonic() + span_s
        while not true(found := values_of(self.text())):
            assert time.monotonic() < until_s, sorted(found)
            time.sleep(0.02)
        return found

    def settled(self) -> dict[str, float]:
        """The page's series once every collector has been read."""
        return self.once(lambda found: all(
            f'libvirt_scrape_collector_success{{collector="{name}"}}' in found for name in self.enabled))

    @property
    def enabled(self) -> list[str]:
        return sorted(self._exporter.background.collectors)


@contextmanager
def exporting(folder: Path, more: str = "", **flags: object) -> Iterator[Pages]:
    """An exporter on four domains, ``off`` among them not running; flags by key with ``__`` for the dot.

    ``more`` is the XML of other domains.
    """
    node = folder / "node.xml"
    node.write_text(f"<node>{''.join(map(domain, UUIDS))}{more}</node>")
    given = {"libvirt.uri": f"test://{node}", "sampling.max_age": "0s", "sampling.interval": "1s",
             **{key.replace("__", "."): value for key, value in flags.items()}}
    settings = load_settings(Settings, flags=given, environ={}, collectors=collector_defaults(), is_root=True)
    exporter = Exporter(settings)
    exporter.start()
    try:
        yield Pages(exporter)
    finally:
        exporter.stop()


def shown(found: dict[str, float], label: str) -> set[str]:
    return {value for name in found for value in re.findall(rf'[{{,]{label}="(.*?)"', name)}


def test_calls_that_the_driver_does_not_support_are_named_and_not_made_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with exporting(tmp_path) as pages:
        found = pages.settled()
        calls = shown(found, "call")
        # What libvirt 9's test driver has no function for, of what is asked by default.
        assert {"getMemoryStats", "jobStats", "blockJobInfo"} <= calls
        assert calls.isdisjoint({"info", "vcpus", "getCPUStats", "listAllSnapshots", "autostart"})
        assert not [name for name in found if "libvirt_node_memory_free" in name]
        failed = [name for name, value in found.items() if "collector_success" in name and value != 1]
        assert failed == []
        for _ in range(3):
            pages.text()
    said = [r.getMessage() for r in caplog.records if "does not support it" in r.getMessage()]
    assert len(said) == len(set(said)) == len(calls)


@pytest.mark.parametrize(("flags", "domains"), [
    ({}, {"web1", "web2", "db", "off"}),
    ({"filter.domain_include": "web.*"}, {"web1", "web2"}),
    ({"filter.domain_exclude": "web.*"}, {"db", "off"}),
    ({"filter.domain_include": "web.*|off", "filter.domain_exclude": "web2"}, {"web1", "off"}),
    ({"filter.uuid_include": f"{UUIDS['db']}|{UUIDS['off']}"}, {"db", "off"}),
    ({"filter.uuid_exclude": UUIDS["db"]}, {"web1", "web2", "off"}),
    ({"filter.metadata_include": "project_name=blue"}, {"web1", "web2"}),
    ({"filter.metadata_exclude": "project_name=b.*"}, {"db", "off"}),
    ({"filter.metadata_include": "project_name=red"}, {"db", "off"}),
    ({"filter.metadata_exclude": "title=off.*"}, {"web1", "web2", "db"}),
    ({"filter.metadata_include": "title=web1 .*"}, {"web1"})])
def test_no_series_of_a_domain_that_is_not_chosen(tmp_path: Path, flags: dict[str, str], domains: set[str]) -> None:
    with exporting(tmp_path, **flags) as pages:
        found = pages.once(lambda found: {"libvirt_domain_persistent", "libvirt_domain_events_total"} <= {
            name.partition("{")[0] for name in found})
        assert shown(found, "domain") == domains
        names = {name for name in UUIDS if any(f'domain="{name}"' in series and "vcpu_time" in series
                                               for series in found)}
        assert names == domains - {"off"}


@pytest.mark.parametrize(("flags", "devices"), [
    ({"filter.device_include": "vda"}, {"vda"}), ({"filter.device_include": "vda|db-net"}, {"vda", "db-net"}),
    ({"filter.device_exclude": "vd.*"}, {"web1-net", "web2-net", "db-net"}),
    ({"filter.device_exclude": ".*-net"}, {"vda", "vdb"})])
def test_no_series_of_a_device_that_is_not_chosen(tmp_path: Path, flags: dict[str, str], devices: set[str]) -> None:
    with exporting(tmp_path, **flags) as pages:
        found = pages.once(lambda found: any("block_stats" in name or "interface_stats" in name for name in found))
        assert shown(found, "target_device") == devices
        assert shown(found, "domain") == set(UUIDS)


def test_caps_cut_whole_domains_say_so_and_leave_a_page_that_parses(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with exporting(tmp_path, filter__max_series_per_domain="40") as pages:
        found = pages.settled()
        assert shown(found, "domain") == {"off"}  # the others have two disks, an interface and two vCPUs
        assert found['virtgauge_series_cut_domains{limit="domain"}'] == 3
        assert found["libvirt_domains{state=\"running\"}"] == 3
    assert [r.getMessage() for r in caplog.records if "not on the page" in r.getMessage()] == [
        "3 domains are not on the page, since filter.max_series_per_domain is 40: db, web1, web2"]
    with exporting(tmp_path) as pages:
        whole = pages.settled()
    with exporting(tmp_path, filter__max_series=str(len(whole) - 20)) as pages:
        found = pages.settled()
        assert 0 < found['virtgauge_series_cut_domains{limit="all"}'] < 4
        assert set() < shown(found, "domain") < set(UUIDS)
        kept = shown(found, "domain")
        # Of what is left, nothing is missing.
        own = {name for name in whole if shown({name: 0.0}, "domain") <= kept and "_events_total" not in name}
        assert own - found.keys() == set()
        assert found["libvirt_up"] == 1


def test_limits_that_need_cgroups_and_traffic_control_where_there_are_some(tmp_path: Path) -> None:
    """A private hypervisor has neither; libvirt writes the same XML of the test driver's domains."""
    with exporting(tmp_path) as pages:
        found = pages.settled()
    interface = 'libvirt_domain_interface_limit_%s{domain="db",target_device="db-net"}'
    assert {name: value for name, value in found.items() if "_limit_" in name} == {
        'libvirt_domain_limit_cpu_shares{domain="db"}': 512, 'libvirt_domain_limit_vcpu_cores{domain="db"}': 0.25,
        'libvirt_domain_limit_cores{domain="db"}': 1.5, 'libvirt_domain_limit_memory_hard_bytes{domain="db"}': 64 << 20,
        'libvirt_domain_limit_memory_soft_bytes{domain="db"}': 32 << 20,
        interface % "receive_average_bytes_per_second": 100_000, interface % "receive_peak_bytes_per_second": 200_000,
        interface % "receive_burst_bytes": 300 << 10, interface % "transmit_average_bytes_per_second": 50_000}
    assert found['libvirt_domain_vcpu_affinity_info{domain="db",vcpu="1",cpuset="0,2-3"}'] == 1


def test_a_domain_that_is_off_says_who_it_is(tmp_path: Path) -> None:
    with exporting(tmp_path) as pages:
        found = pages.settled()
    info, = (name for name in found if name.startswith('libvirt_domain_info{domain="off"'))
    assert UUIDS["off"] in info
    assert 'title="off of red"' in info
    assert 'project_name="red"' in info
    # And nothing that sums over the domains would count.
    assert not [name for name in found if 'domain="off"' in name and any(
        word in name.partition("{")[0] for word in ("memory", "vcpu", "virtual_cpus", "block", "interface", "limit"))]


def test_other_exporters_names_beside_ours(tmp_path: Path) -> None:
    with exporting(tmp_path, compat__names="tinkoff,inovex,kumina", filter__device_exclude="vdb") as pages:
        found = pages.settled()
    assert found["libvirt_domains_number"] == 3
    for domain, state in (("db", 1), ("off", 5)):
        assert found[f'libvirt_domain_info_vstate{{domain="{domain}"}}'] == state
        assert found[f'libvirt_domain_state_code{{domain="{domain}"}}'] == state
    assert {name for name in found if "timed_out" in name} == {
        f'libvirt_domain_timed_out{{domain="{name}"}}' for name in ("web1", "web2", "db")}
    assert found['libvirt_domain_timed_out{domain="db"}'] == 0
    meta, = (name for name in found if name.startswith('libvirt_domain_info_meta{domain="db"'))
    assert 'project_name="red"' in meta
    assert {name for name in shown(found, "target_device") if name.startswith("vd")} == {"vda"}


def test_labels_of_the_settings_choose_domains_too(tmp_path: Path) -> None:
    nova = "http://openstack.org/xmlns/libvirt/nova/1.1"
    labels = {"metadata.namespaces": [f"n={nova}"], "metadata.labels": ["team=n:instance/n:owner/n:project"]}
    with exporting(tmp_path, **labels, filter__metadata_include="team=red") as pages:
        found = pages.settled()
    assert shown(found, "domain") == {"db", "off"}
    assert shown(found, "team") == {"red"}


def test_a_name_of_a_megabyte_is_cut_on_each_of_its_series(tmp_path: Path) -> None:
    """QEMU's driver has files by that name, so that there are none such; others do not."""
    name = "n" * 2**20
    xml = domain("web2").replace("<name>web2<", f"<name>{name}<").replace(UUIDS["web2"], UUIDS["web2"][:-1] + "9")
    with exporting(tmp_path, xml) as pages:
        found = pages.settled()
        assert len(pages.text()) < 300_000
    long, = shown(found, "domain") - set(UUIDS)
    assert len(long) == LABEL_MOST_CHARACTERS
    own = {series.replace(long, "web2").partition("{")[0] for series in found if long in series}
    assert own == {series.partition("{")[0] for series in found if 'domain="web2"' in series}


def test_only_the_families_of_the_collectors_asked_for(tmp_path: Path) -> None:
    with exporting(tmp_path) as pages:
        pages.settled()
        found = values_of(pages.text(frozenset({"settings", "block"})))
        own = {name.partition("{")[0] for name in found if name.startswith("libvirt_domain_")}
        assert "libvirt_domain_autostart" in own
        assert "libvirt_domain_block_stats_read_bytes_total" in own
        assert {name for name in own if "block" not in name} <= {
            "libvirt_domain_autostart", "libvirt_domain_persistent", "libvirt_domain_managed_save"}
        assert "libvirt_up" in found
