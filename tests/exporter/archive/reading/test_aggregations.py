"""The aggregations of docs/archive.md, read out of the page and run against a real server."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest
from bson import json_util

from tests.exporter.archive.reading.archived import Guest, raw_documents, rollup_documents, samples, store
from tests.samples import REPOSITORY

pytestmark = pytest.mark.live

# The page's day.
T0 = int(datetime(2026, 11, 22, 8, 0, tzinfo=UTC).timestamp())
HOUR = 3600


def aggregations():
    """(what it answers, collection, pipeline) of each block of the page."""
    page = (REPOSITORY / "docs" / "archive.md").read_text()
    found = re.findall(r"\n([^\n]+:)\n\n```js\ndb\.(\w+)\.aggregate\((.*?)\)\n```", page, flags=re.DOTALL)
    return [(title, collection, parsed(text)) for title, collection, text in found]


def parsed(text):
    """A pipeline from mongosh's spelling: bare keys, ISODate and UUID."""
    text = re.sub(r'ISODate\(("[^"]*")\)', r'{"$date": \1}', text)
    text = re.sub(r'UUID\(("[^"]*")\)', r'{"$uuid": \1}', text)
    text = re.sub(r"([{,]\s*)(\$?[A-Za-z_]\w*)\s*:", r'\1"\2":', text)
    return json_util.loads(text)


@pytest.fixture
def fleet(database):
    web1 = Guest("web1", busy=lambda t: 0.5, written=lambda t: 1000)
    db1 = Guest("db1", busy=lambda t: 1.0, written=lambda t: 5000, memory_kib=1 << 21)
    for guest in (web1, db1):
        rows = samples(guest, T0, T0 + 6 * HOUR, every_s=60)
        if guest is db1:
            for _, values, _ in rows:
                values["memory_usable_kib"] = values["memory_available_kib"] * 3 // 4
        store(database, [*raw_documents(guest, rows[-240:]), *rollup_documents(guest, rows)])
    return database


def run(database, number):
    _, collection, pipeline = aggregations()[number]
    return list(database[collection].aggregate(pipeline))


def test_there_are_five():
    assert len(aggregations()) == 5


def test_the_busiest_disks(fleet):
    found = run(fleet, 0)
    assert [row["_id"] for row in found] == [{"domain": "db1", "disk": "vda"}, {"domain": "web1", "disk": "vda"}]
    assert found[0]["bytes"] == 5000 * (6 * HOUR - 60)


def test_steal_by_host(fleet):
    (row,) = run(fleet, 1)
    assert row["_id"] == "alpha"
    # A twentieth of each guest's CPU time: 0.025 and 0.05.
    assert row["mean"] == pytest.approx(0.0375)
    assert row["highest"] == pytest.approx(0.05)


def test_one_field_as_a_table(fleet):
    found = run(fleet, 2)
    assert len(found) == 240
    assert found[0]["time"] == datetime(2026, 11, 22, 10, 0, tzinfo=UTC)
    assert {row["memory_kib"] for row in found} == {1 << 20}
    assert sorted(found, key=lambda row: row["time"]) == found


def test_core_hours_by_quarter_of_the_day(fleet):
    found = {(row["_id"]["domain"], row["_id"]["from"].hour): row["core_hours"] for row in run(fleet, 3)}
    # 8 to 12 o'clock is in the quarter from 6, the rest in that from 12.
    assert found[("db1", 6)] == pytest.approx(4.0, abs=0.02)
    assert found[("db1", 12)] == pytest.approx(2.0, abs=0.02)
    assert found[("web1", 12)] == pytest.approx(1.0, abs=0.02)


def test_who_never_uses_half_of_its_memory(fleet):
    assert run(fleet, 4) == [{"_id": "db1", "least_usable_kib": (1 << 21) * 3 // 4, "memory_kib": 1 << 21}]
