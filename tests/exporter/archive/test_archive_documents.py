"""The schema: names of columns and collections, ids that are the same each time and sort by series and time."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from uuid import UUID

import bson
import pytest

from collectors import COLLECTORS
from exporter.archive.documents import (
    FIVE_MINUTES,
    HOURLY,
    NO_ORIGIN,
    RAW,
    Host,
    Object,
    RollUp,
    Window,
    columns,
    document_id,
    object_uuid,
    partition_span,
    window_origin,
)

HOST = Host(UUID(int=1), "alpha")
WEB = Object(HOST, "domain", UUID(int=2), "web")


def at(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)


def test_columns_are_words_and_none_is_declared_twice():
    table = columns(COLLECTORS)
    declared = [f.archive for c in COLLECTORS for f in c.fields() if f.archive]
    assert len(table) == len(declared)
    assert {group for group, _ in table} >= {"values", "vcpus", "disks", "interfaces"}
    for group, name in table:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", name), (group, name)
    assert ("disks", "read_time_ns") in table
    assert ("interfaces", "receive_packets") in table
    assert table["vcpus", "delay_ns"].counter
    assert not table["values", "memory_rss_kib"].counter
    assert table["values", "memory_rss_kib"].scale == 1024


def test_a_window_is_a_document_that_reads_like_words():
    window = Window(WEB, 1_700_000_000_123, [0, 10_000], {"cpu_time_ns": [5, None]},
                    {"disks": {"vda": {"read_bytes": [1, 2]}}}, "running")
    document = window.document(window_origin(b"spool", 7))
    assert document["start"] == at(2023, 11, 14, 22, 13, 20, 123000)
    assert document["end"] == at(2023, 11, 14, 22, 13, 30, 123000)
    assert (document["name"], document["host_name"], document["kind"], document["count"]) == (
        "web", "alpha", "domain", 2)
    assert document["disks"] == [{"device": "vda", "read_bytes": [1, 2]}]
    assert document["values"] == {"cpu_time_ns": [5, None]}
    assert "interfaces" not in document
    assert bson.encode(document) == bson.encode(window.document(window_origin(b"spool", 7)))
    assert document["_id"] != window.document(window_origin(b"spool", 8))["_id"]
    assert document["_id"] != window.document(window_origin(b"other", 7))["_id"]


def test_a_roll_up_is_one_document_an_hour_whatever_is_in_it():
    points = {"cpu_time_ns": {"min": [1.0], "max": [3.0], "avg": [2.0], "increase": [600]}}
    document = RollUp(WEB, FIVE_MINUTES, 1_700_000_000_000, [0], [20], points).document()
    other = RollUp(WEB, FIVE_MINUTES, 1_700_000_000_000, [0, 300_000], [20, 3], {}).document()
    assert document["_id"] == other["_id"]
    assert document["values"] == points
    assert (document["step_s"], document["samples"]) == (300, [20])


def test_ids_sort_by_series_then_time_and_differ_by_host():
    origin = window_origin(b"spool", 1)
    ids = [document_id(WEB, RAW, ms, origin) for ms in (-5, 0, 255, 256, 1_700_000_000_000)]
    assert ids[1:] == sorted(ids[1:])
    assert len({bytes(i)[:13] for i in ids}) == 1
    assert all(len(i) == 25 for i in ids)
    elsewhere = Object(Host(UUID(int=9), "alpha"), "domain", UUID(int=2), "web")
    assert document_id(elsewhere, RAW, 0, origin) != document_id(WEB, RAW, 0, origin)
    assert document_id(WEB, FIVE_MINUTES, 0, NO_ORIGIN) != document_id(WEB, HOURLY, 0, NO_ORIGIN)


def test_what_has_no_uuid_gets_the_same_one_each_time():
    assert object_uuid(HOST.uuid, "domain", str(UUID(int=5))) == UUID(int=5)
    assert object_uuid(HOST.uuid, "pool", "default") == object_uuid(HOST.uuid, "pool", "default")
    assert object_uuid(HOST.uuid, "pool", "default") != object_uuid(HOST.uuid, "host", "default")


@pytest.mark.parametrize(
    ("name", "begin", "end"),
    [
        ("raw_20261231", at(2026, 12, 31), at(2027, 1, 1)),
        ("raw_2026123123", at(2026, 12, 31, 23), at(2027, 1, 1)),
        ("five_minutes_202612", at(2026, 12, 1), at(2027, 1, 1)),
        ("hourly_2026", at(2026, 1, 1), at(2027, 1, 1)),
    ],
)
def test_a_partition_says_which_time_it_holds(name, begin, end):
    assert partition_span(name) == (begin, end)


@pytest.mark.parametrize("name", ["raw_20261301", "raw_x", "raw", "meta", "system_2026", "raw_٢٠٢٦", "hourly_0000"])
def test_other_collections_are_no_partition(name):
    assert partition_span(name) is None


def test_partitions_for_a_span_come_in_order_whatever_their_unit():
    names = ["raw_20261122", "raw_2026112107", "hosts", "raw_20261120", "hourly_2026", "raw_2026112106"]
    found = RAW.collections(names, at(2026, 11, 21, 6, 30), at(2026, 11, 22, 1))
    assert found == ["raw_2026112106", "raw_2026112107", "raw_20261122"]
    assert RAW.collection(at(2026, 11, 22, 7, 59)) == "raw_20261122"
    assert RAW.collection(at(2026, 11, 22, 7, 59), "%Y%m%d%H") == "raw_2026112207"
    assert HOURLY.collections(names, at(2026, 1, 2), at(2026, 1, 3)) == ["hourly_2026"]
