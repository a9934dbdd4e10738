"""Tests of the other exporters' names: each name of a family is on the page, ours or the old one, with its labels."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytest

from collectors import COLLECTORS
from collectors.batch import Builder
from collectors.compat import FIELDS, INFOS, OldPools, compat_collector, renamed, with_old_numbers
from collectors.connection import Opener, Session
from collectors.domain_xml import constants, parse
from collectors.inventory import Inventory
from collectors.layout import Compiler
from collectors.periodic import Scope
from collectors.sampling import sampling
from collectors.snapshot import Record, Subject
from collectors.storage import PoolSource
from exporter.exposition import Exposition
from tests.samples import (
    REPOSITORY,
    SYNTHETIC,
    builder,
    captured,
    captured_xml,
    computed_rows,
    exporter_record,
    record,
    series,
    snapshot,
    values_of,
)
from tests.written_stats import beside

# Every name of the families as read in the exporters' sources, with its type and the labels besides the domain's own,
# d (domain) or t (domain, target_device) or v (domain, vcpu); {a,b} are alternatives.
TINKOFF = """
up G -
versions_info G - hypervisor_running libvirtd_running libvirt_library
pool_info_{capacity,allocation,available}_bytes G - pool
domain_info_meta G d uuid instance_name flavor user_name user_uuid project_name project_uuid root_type root_uuid
domain_info_maximum_memory_bytes G d
domain_info_memory_usage_bytes G d
domain_info_virtual_cpus G d
domain_info_vstate G d
domain_info_cpu_time_seconds_total C d
domain_vcpu_{time,wait,delay}_seconds_total C v
domain_vcpu_{state,cpu} G v
domain_block_meta G t source_file serial bus disk_type driver_type cache discard
domain_block_stats_{read,write}_bytes_total C t
domain_block_stats_{read,write,flush}_requests_total C t
domain_block_stats_{read,write,flush}_time_seconds_total C t
domain_block_stats_{allocation,capacity_bytes,physicalsize_bytes} G t
domain_block_stats_limit_{total,read,write}_{bytes,requests} G t
domain_block_stats_limit_burst_{total,read,write}_{bytes,requests} G t
domain_block_stats_limit_burst_{total,read,write}_bytes_length_seconds G t
domain_block_stats_limit_burst_length_{total,read,write}_requests_seconds G t
domain_block_stats_size_iops_bytes G t
domain_interface_meta G t source_bridge virtual_interface
domain_interface_stats_{receive,transmit}_{bytes,packets,errors,drops}_total C t
domain_memory_stats_{major,minor}_fault_total C d
domain_memory_stats_{unused,available,actual_balloon,rss,usable,disk_cache}_bytes G d
domain_memory_stats_used_percent G d
"""
INOVEX = """
up G -
domain_openstack_info G d instance_name instance_id flavor_name user_name user_id project_name project_id
domain_info_state G d state_desc
domain_timed_out G d
domain_block_stats_info G t disk_type driver_type driver_cache driver_discard serial source_file source_protocol \
target_bus
domain_interface_stats_info G t source_bridge interface_type mac_address model_type mtu_size
domain_memory_stats_{current_balloon,maximum,disk_caches}_bytes G d
domain_memory_stats_{unused,available,usable,rss}_bytes G d
domain_memory_stats_{major,minor}_fault_total C d
domain_memory_stats_last_update_timestamp_seconds G d
domain_memory_stats_hugetlb_{pgalloc,pgfail}_total C d
domain_memory_stats_used_percent G d
storage_pool_{state,capacity_bytes,allocation_bytes,available_bytes} G - storage_pool
domain_vcpu_{current,maximum} G d
domain_vcpu_state G v
domain_job_info_type G d
domain_job_info_time_{elapsed,remaining}_seconds G d
domain_job_info_{data,memory,file}_{total,processed,remaining}_bytes G d
"""
KUMINA = """
up G -
domains_number G -
domain_state_code G d
domain_info_{maximum_memory,memory_usage}_bytes G d
domain_info_virtual_cpus G d
domain_info_cpu_time_seconds_total C d
domain_block_stats_{read,write}_bytes_total C t
domain_block_stats_{read,write,flush}_requests_total C t
domain_block_stats_{read,write,flush}_seconds_total C t
domain_interface_stats_{receive,transmit}_{bytes,packets,errors,drops}_total C t
"""
FAMILIES = {"tinkoff": TINKOFF, "inovex": INOVEX, "kumina": KUMINA}
# Names that are not served, since ours is another thing under the same name, or OpenMetrics could not tell the two
# apart, or there is nothing to say; docs/migrating.md tells of each.
NOT_SERVED = {
    "tinkoff": (),
    "inovex": ("libvirt_domain_info", "libvirt_domains", "libvirt_domain_memory_stats_swap_{in,out}_bytes",
               "libvirt_storage_pool_timed_out"),
    "kumina": ()}
LABELS = {"-": (), "d": ("domain",), "t": ("domain", "target_device"), "v": ("domain", "vcpu")}


def expand(text: str) -> Iterable[str]:
    match = re.search(r"\{(.*?)\}", text)
    if match is None:
        return [text]
    return [name for word in match.group(1).split(",")
            for name in expand(text[:match.start()] + word + text[match.end():])]


def rows(family: str) -> dict[str, tuple[str, set[str]]]:
    """A family's table: type and label names by name."""
    found = {}
    for line in FAMILIES[family].replace("\\\n", "").strip().splitlines():
        names, kind, own, *labels = line.split()
        for name in expand(names):
            found[f"libvirt_{name}"] = ({"G": "gauge", "C": "counter"}[kind], {*LABELS[own], *labels})
    return found


def page(*families: str) -> str:
    compat = compat_collector(families)
    assert compat is not None
    builder = Builder(Compiler([sampling(COLLECTORS), *COLLECTORS, compat]))
    pools = Record(Subject("storage_pool", ("pool-uuid",), (("storage_pool", "default"),)), "storage",
                   {f"storage_pool.{word}": 2 for word in ("state", "capacity", "allocation", "available")}, 0.0)
    constant = [record({}, 0.0, r.subject.name, str(r.subject.key[0]), 1, "inventory", renamed(families)(r.constants))
                for r in captured_xml()]
    batches = []
    for place in (0, -1):
        records = [*captured("busy")[place], *captured("partial")[place], *constant, *beside(float(place)), pools,
                   exporter_record(float(place)), record(SYNTHETIC, float(place), "synthetic", "synthetic")]
        batches.append(builder.batch(snapshot(*(with_old_numbers(records) if "inovex" in families else records))))
    shown = Exposition(builder.catalogue.families)
    shown.update(batches[1], computed_rows(*batches))
    return shown.text().decode()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_name_of_a_family_is_on_the_page_with_its_type_and_labels(family: str) -> None:
    text = page(family)
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    labels: dict[str, set[str]] = {}
    for name in values_of(text):
        labels.setdefault(name.partition("{")[0], set()).update(re.findall(r'(?:{|,)([a-z_]+)="', name))
    wanted = rows(family)
    assert len(wanted) > 15
    assert {name: (kinds.get(name), labels.get(name)) for name in wanted} == wanted


@pytest.mark.parametrize("family", FAMILIES)
def test_every_name_that_differs_is_in_the_table_of_names_and_in_the_document(family: str) -> None:
    added = {d.name for d in FIELDS[family]} | {old.name for old in INFOS[family]}
    ours = {d.name for collector in (sampling(COLLECTORS), *COLLECTORS) for d in collector.declarations}
    assert added == rows(family).keys() - ours
    section = re.split("^## ", (REPOSITORY / "docs" / "migrating.md").read_text(), flags=re.MULTILINE)
    text, = (part for part in section if part.startswith(family))
    written = re.findall(r"`(libvirt_[a-z_{},*]+)", text)  # braces hold alternatives, or labels
    told = {name for one in written for name in (*expand(one), one.partition("{")[0])}
    not_served = {name for written in NOT_SERVED[family] for name in expand(written)}
    assert not_served & (added | rows(family).keys()) == set()
    for name in added | not_served:
        assert name in told or any(one.endswith("*") and name.startswith(one[:-1]) for one in told), name


@pytest.mark.parametrize("family", FAMILIES)
def test_only_names_that_differ_are_added(family: str) -> None:
    ours = {d.name for collector in (sampling(COLLECTORS), *COLLECTORS) for d in collector.declarations}
    added = {d.name for d in FIELDS[family]} | {old.name for old in INFOS[family]}
    assert added & ours == set()
    # OpenMetrics knows a counter by its name without _total: a gauge of that name would be a second family.
    stems = [name.removesuffix("_total") for name in ours | added]
    assert len(stems) == len(set(stems))


def test_values_and_labels() -> None:
    found = values_of(page("tinkoff", "inovex", "kumina"))
    assert found['libvirt_domain_info_vstate{domain="busy"}'] == 1
    assert found['libvirt_domain_info_state{domain="busy",state_desc="running"}'] == 1
    assert found['libvirt_domain_timed_out{domain="busy"}'] == 0
    assert found['libvirt_domain_timed_out{domain="hung"}'] == 1
    assert found['libvirt_domain_job_info_type{domain="written"}'] == 2  # unbounded
    used = 100 * found['libvirt_domain_memory_used_ratio{domain="busy"}']
    assert found['libvirt_domain_memory_stats_used_percent{domain="busy"}'] == pytest.approx(used)
    meta, = (name for name in found if name.startswith('libvirt_domain_info_meta{domain="xml-nova"'))
    assert re.findall(r'([a-z_]+)="', meta) == ["domain", "uuid", "instance_name", "flavor", "user_name", "user_uuid",
                                                "project_name", "project_uuid", "root_type", "root_uuid"]
    assert 'root_type="image",root_uuid="5f0c2d3e-7a61-4b58-9d34-c1e2f3a4b5c6"' in meta
    port, = (name for name in found if name.startswith("libvirt_domain_interface_meta{") and "tap5f0c2d3e-7a" in name)
    assert 'virtual_interface="8f1d0c52-6f0e-4a0c-9f0f-0d6b1c2a3e4f"' in port
    assert {re.findall('source_protocol="(.*?)"', name)[0] for name in found
            if name.startswith("libvirt_domain_block_stats_info{")} == {""}


def test_the_protocol_of_a_network_disk() -> None:
    xml = ("<domain id='1'><devices><disk type='network'><source protocol='rbd' name='pool/a'/><target dev='vda'/>"
           "</disk><disk type='file'><source file='/a:b'/><target dev='vdb'/></disk></devices></domain>")
    found = {dict(c.labels)["target_device"]: dict(c.labels)["source_protocol"]
             for c in renamed(["inovex"])(constants(parse(xml))) if c.name == "libvirt_domain_block_stats_info"}
    assert found == {"vda": "rbd", "vdb": ""}


def test_the_state_of_vcpus_whose_times_the_kernel_tells() -> None:
    """libvirt, asked, says 1 for each that is plugged in; with the kernel's figures it is not asked."""
    kernel, = with_old_numbers([record({"vcpu.current": 2, "vcpu.0.time": 5, "vcpu.10.time": 6}, source="kernel")])
    compat = compat_collector(["tinkoff"])
    assert compat is not None
    found = series(builder([*COLLECTORS, compat]).batch(snapshot(kernel)))
    assert {name: value for name, value in found.items() if "vcpu_state" in name} == {
        f'libvirt_domain_vcpu_state{{domain="guest",vcpu="{number}"}}': 1 for number in ("0", "10")}


def test_nothing_is_added_unless_asked_for() -> None:
    assert compat_collector(()) is None
    assert renamed(())(()) == ()


def test_pools_stand_under_both_labels() -> None:
    session = Session(Opener("test:///default"))
    source = OldPools(PoolSource(Inventory()))
    records = [r for part in source.parts(session, Scope()) for r in source.read(session, part)]
    assert [r.subject.labels for r in records] == [(("pool", "default-pool"),), (("storage_pool", "default-pool"),)]
    assert set(records[1].stats) == {f"storage_pool.{w}" for w in ("state", "capacity", "allocation", "available")}
    session.close()
