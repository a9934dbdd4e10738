"""Tests of the other exporters' names: each name of a family is on the page, ours or the old one, with its labels."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pytest

from collectors import COLLECTORS
from collectors.batch import Builder
from collectors.compat import FIELDS, INFOS, OldPools, compat_collector, renamed
from collectors.connection import Opener, Session
from collectors.inventory import Inventory
from collectors.layout import Compiler
from collectors.periodic import Scope
from collectors.sampling import sampling
from collectors.snapshot import Record, Subject
from collectors.storage import PoolSource
from exporter.exposition import Exposition
from tests.samples import (
    SYNTHETIC,
    captured,
    captured_xml,
    computed_rows,
    exporter_record,
    record,
    snapshot,
    values_of,
)
from tests.written_stats import beside

# As read in the exporters' sources; {a,b} are alternatives.
NAMES = {
    "tinkoff": """up versions_info pool_info_{capacity,allocation,available}_bytes domain_info_meta
domain_info_maximum_memory_bytes domain_info_memory_usage_bytes domain_info_virtual_cpus domain_info_vstate
domain_info_cpu_time_seconds_total domain_vcpu_{time,wait,delay}_seconds_total domain_vcpu_state domain_vcpu_cpu
domain_block_meta domain_block_stats_{read,write}_bytes_total domain_block_stats_{read,write,flush}_requests_total
domain_block_stats_{read,write,flush}_time_seconds_total domain_block_stats_allocation
domain_block_stats_capacity_bytes domain_block_stats_physicalsize_bytes
domain_block_stats_limit_{total,read,write}_{bytes,requests}
domain_block_stats_limit_burst_{total,read,write}_{bytes,requests}
domain_block_stats_limit_burst_{total,read,write}_bytes_length_seconds
domain_block_stats_limit_burst_length_{total,read,write}_requests_seconds domain_block_stats_size_iops_bytes
domain_interface_meta domain_interface_stats_{receive,transmit}_{bytes,packets,errors,drops}_total
domain_memory_stats_{major,minor}_fault_total
domain_memory_stats_{unused,available,actual_balloon,rss,usable,disk_cache}_bytes domain_memory_stats_used_percent""",
    "inovex": """domain_openstack_info domain_info_state domains domain_block_stats_info domain_interface_stats_info
domain_memory_stats_current_balloon_bytes domain_memory_stats_maximum_bytes domain_memory_stats_disk_caches_bytes
domain_memory_stats_last_update_timestamp_seconds domain_memory_stats_hugetlb_{pgalloc,pgfail}_total
storage_pool_state storage_pool_{capacity,allocation,available}_bytes domain_vcpu_{current,maximum}
domain_job_info_time_{elapsed,remaining}_seconds
domain_job_info_{data,memory,file}_{total,processed,remaining}_bytes""",
    "kumina": """domain_state_code domain_block_stats_{read,write,flush}_seconds_total
domain_interface_stats_{receive,transmit}_{bytes,packets,errors,drops}_total""",
}


def expand(text: str) -> Iterable[str]:
    match = re.search(r"\{(.*?)\}", text)
    if match is None:
        return [text]
    return [name for word in match.group(1).split(",")
            for name in expand(text[:match.start()] + word + text[match.end():])]


def page(*families: str) -> str:
    compat = compat_collector(families)
    assert compat is not None
    builder = Builder(Compiler([sampling(COLLECTORS), *COLLECTORS, compat]))
    pools = Record(Subject("storage_pool", ("pool-uuid",), (("storage_pool", "default"),)), "storage",
                   {f"storage_pool.{word}": 2 for word in ("state", "capacity", "allocation", "available")}, 0.0)
    constant = [record({}, 0.0, r.subject.name, str(r.subject.key[0]), 1, "inventory", renamed(families)(r.constants))
                for r in captured_xml()]
    batches = [builder.batch(snapshot(
        *captured("busy")[place], *constant, *beside(float(place)), pools, exporter_record(float(place)),
        record(SYNTHETIC, float(place), "synthetic", "synthetic"))) for place in (0, -1)]
    shown = Exposition(builder.catalogue.families)
    shown.update(batches[1], computed_rows(*batches))
    return shown.text().decode()


@pytest.mark.parametrize("family", NAMES)
def test_every_name_of_a_family_is_on_the_page(family: str) -> None:
    names = {name.partition("{")[0] for name in values_of(page(family))}
    wanted = {f"libvirt_{name}" for text in NAMES[family].split() for name in expand(text)}
    assert wanted - names == set()


@pytest.mark.parametrize("family", NAMES)
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
    used = 100 * found['libvirt_domain_memory_used_ratio{domain="busy"}']
    assert found['libvirt_domain_memory_stats_used_percent{domain="busy"}'] == pytest.approx(used)
    meta, = (name for name in found if name.startswith('libvirt_domain_info_meta{domain="xml-nova"'))
    assert re.findall(r'([a-z_]+)="', meta) == ["domain", "uuid", "instance_name", "flavor", "user_name", "user_uuid",
                                                "project_name", "project_uuid", "root_type", "root_uuid"]


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
