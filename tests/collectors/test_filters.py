"""Tests of the choice of domains and devices, and of the caps on series."""

from __future__ import annotations

import logging
import re

import pytest

from collectors import COLLECTORS
from collectors.batch import Builder
from collectors.domain_xml import Definition, parse
from collectors.filters import Cap, Choice, Filters
from collectors.layout import Compiler
from collectors.snapshot import Record
from tests.samples import FIXTURES, captured, captured_xml, record, series, snapshot
from tests.written_stats import beside


def choice(include: str | None = None, exclude: str | None = None) -> Choice:
    return Choice(re.compile(include) if include else None, re.compile(exclude) if exclude else None)


@pytest.mark.parametrize(("chosen", "name", "taken"), [
    (choice(), "a", True), (choice("web.*"), "web1", True), (choice("web"), "web1", False),
    (choice(None, "web.*"), "web1", False), (choice(None, "web.*"), "db", True), (choice("w.*", "web2"), "web2", False),
    (choice("w.*", "web2"), "web1", True)])
def test_both_ways_and_whole_texts(chosen: Choice, name: str, taken: bool) -> None:
    assert chosen.takes((name,)) is taken
    assert Filters(domain=chosen).wants("uuid", name) is taken
    assert Filters(uuid=chosen).wants(name, "name") is taken


def test_devices_are_left_out_with_all_their_series() -> None:
    records = [*captured("busy")[-1], *captured_xml()]
    whole = series(Builder(Compiler(COLLECTORS)).batch(snapshot(*records)))
    filters = Filters(device=choice(None, "vdb|vg.*"))
    found = series(Builder(Compiler(COLLECTORS)).batch(snapshot(*filters.chosen(records, lambda *_: None))))
    assert found.keys() < whole.keys()
    assert {name for name in whole if name not in found} == {
        name for name in whole if re.search('target_device="(vdb|vg.*?)"', name)}
    only = filters_of_one("vda")
    assert {match for name in series(Builder(Compiler(COLLECTORS)).batch(snapshot(*only.chosen(
        records, lambda *_: None)))) for match in re.findall('target_device="(.*?)"', name)} == {"vda"}


def test_every_source_s_series_of_a_device_go_with_it() -> None:
    """A collector that names devices under another key must be known to the filter."""
    records = [record(r.stats, 0.0, constants=r.constants) for r in (*captured("busy")[-1], *beside(0.0))
               if r.subject.kind == "domain"]
    named = {field.label_key.partition(".")[0] for collector in COLLECTORS for field in collector.fields()
             if field.label == "target_device"}
    assert named <= {key.partition(".")[0] for r in records for key in r.stats}
    only = Filters(device=choice("no such"))
    for one in records:
        batch = Builder(Compiler(COLLECTORS)).batch(snapshot(*only.chosen([one], lambda *_: None)))
        assert not [name for name in series(batch) if "target_device" in name]


def filters_of_one(device: str) -> Filters:
    return Filters(device=choice(device))


def test_a_record_without_hidden_devices_stays_the_same_object() -> None:
    one = record({"block.0.name": "vda", "cpu.time": 1})
    assert Filters(device=choice(None, "vdb")).chosen([one], lambda *_: None)[0] is one


def test_metadata_choose_domains_and_nothing_else() -> None:
    definition = parse((FIXTURES / "xml" / "nova.xml").read_text())
    project = definition.owner.project_name
    assert project

    def details(uuid: str, id_: int) -> Definition | None:
        return definition if uuid == "nova" else None

    records = [record({"cpu.time": 1}, identity="nova"), record({"cpu.time": 1}, identity="other", name="other")]

    def names(filters: Filters) -> list[str]:
        return [str(r.subject.key[0]) for r in filters.chosen(records, details)]

    assert names(Filters(metadata=choice(f"project_name={project}"))) == ["nova"]
    assert names(Filters(metadata=choice(None, f"project_name={project}"))) == ["other"]
    assert names(Filters(metadata=choice("project_name=no such"))) == []


def guests(*sizes: int) -> list[Record]:
    return [record({f"vcpu.{n}.delay": n for n in range(size)}, name=f"g{place}", identity=f"u{place}")
            for place, size in enumerate(sizes)]


def shown(cap: Cap, records: list[Record]) -> dict[str, int]:
    found: dict[str, int] = {}
    batch = Builder(Compiler(COLLECTORS), cap=cap).batch(snapshot(*records))
    for name in series(batch):
        domain = re.findall('domain="(.*?)"', name)[0]
        found[domain] = found.get(domain, 0) + 1
    return found


def test_caps_cut_whole_domains_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    cap = Cap(per_domain=10)
    assert shown(cap, guests(2, 8, 3)) == {"g0": 2, "g2": 3}  # each delay has a ratio, too
    assert dict(cap.own_record(0.0).stats) == {"cut.domain": 1, "cut.all": 0}
    assert [r.getMessage() for r in caplog.records] == [
        "1 domains are not on the page, since filter.max_series_per_domain is 10: g1"]
    assert shown(cap, guests(2, 8, 3)) == {"g0": 2, "g2": 3}
    assert len(caplog.records) == 1
    assert set(shown(cap, guests(2, 2, 3))) == {"g0", "g1", "g2"}
    assert dict(cap.own_record(0.0).stats) == {"cut.domain": 0, "cut.all": 0}


def test_the_cap_on_all_keeps_domains_in_the_order_of_their_names() -> None:
    cap = Cap(all_series=12)
    assert set(shown(cap, guests(3, 4, 2))) == {"g0", "g2"}
    assert dict(cap.own_record(0.0).stats) == {"cut.domain": 0, "cut.all": 1}
