"""`virtgauge report` over a real database, against numbers that are known by formula."""

from __future__ import annotations

import json
import os
import time

import pytest

from exporter import cli
from exporter.archive.documents import Host
from tests.exporter.archive.reading.archived import HOST, MIB, Guest, raw_documents, rollup_documents, samples, store

pytestmark = pytest.mark.live

# Whole hours, so that the last one is rolled up.
NOW = int(time.time()) // 3600 * 3600
HOUR = 3600


@pytest.fixture
def fleet(database):
    """idle: 5 % of a core; busy: two cores of two all the time; both for ten hours, most of them rolled up."""
    idle = Guest("idle", busy=lambda t: 1.5 if t == NOW - 9000 else 0.05, written=lambda t: 100)
    busy = Guest("busy", host=Host(HOST.uuid, "alpha"), busy=lambda t: 1.95, written=lambda t: 50_000)
    for guest in (idle, busy):
        rows = samples(guest, NOW - 10 * HOUR, NOW, every_s=60)
        store(database, [*rollup_documents(guest, [row for row in rows if row[0] < NOW - 2 * HOUR]),
                         *raw_documents(guest, [row for row in rows if row[0] >= NOW - 2 * HOUR - 60])])
    return idle, busy


@pytest.fixture
def report(capsys, monkeypatch, archive_uri, database):
    for name in list(os.environ):
        if name.startswith("VIRTGAUGE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("VIRTGAUGE_ARCHIVE_URI", archive_uri)
    monkeypatch.setenv("VIRTGAUGE_ARCHIVE_DATABASE", database.name)

    def run(*arguments):
        status = cli.run(["report", *arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_the_numbers_are_those_of_the_guests(report, fleet):
    status, out, err = report("--since", "11h", "--format", "json")
    assert status == 0, err
    found = {row["domain"]: row for row in json.loads(out)}
    assert list(found) == ["busy", "idle"]
    idle, busy = found["idle"], found["busy"]
    assert idle["cpu_cores"]["p50"] == pytest.approx(0.05)
    assert idle["cpu_cores"]["max"] == pytest.approx(1.5)  # the spike of one sample, out of a roll-up
    assert busy["cpu_cores"]["p95"] == pytest.approx(1.95)
    assert (busy["vcpus"], busy["allotted_bytes"]) == (2.0, 1 << 30)
    # A quarter of the memory is usable.
    assert busy["memory_bytes"]["p50"] == pytest.approx(0.75 * (1 << 30))
    assert busy["steal"]["p95"] == pytest.approx(1.95 / 20)
    assert busy["disks"][0]["device"] == "vda"
    assert busy["disks"][0]["mean"] == pytest.approx(50_000, rel=1e-3)
    assert busy["interfaces"][0]["mean"] == pytest.approx(150_000, rel=1e-3)
    (growth,) = busy["growth"]
    assert growth["bytes_per_day"] == pytest.approx(1024 * 86400, rel=0.01)
    left = 100 * MIB - growth["allocation_bytes"]
    assert growth["days_to_full"] == pytest.approx(left / (1024 * 86400), rel=0.01)
    assert busy["advice"] == ["CPU too small", "waits for pCPUs", "vda full in 1 d"]
    assert "CPU too large" not in idle["advice"]  # it used 1.5 of 2 once


def test_the_table_has_a_line_a_guest(report, fleet):
    status, out, _ = report("--since", "11h", "--domain", "busy", "--host", "alpha")
    assert status == 0
    heading, line = out.splitlines()
    assert heading.split()[:4] == ["domain", "host", "CPU", "p50"]
    assert line.split()[:6] == ["busy", "alpha", "1.95", "1.95", "1.95", "2"]
    assert "CPU too small" in line


def test_a_span_without_guests_says_so(report, fleet):
    assert report("--since", "2020-01-01", "--until", "2020-02-01")[:2] == (0, "no guest was seen in this span\n")


@pytest.mark.parametrize(("arguments", "cause"), [
    (("--domain", "bsuy"), "no domain 'bsuy'; the nearest is busy"),
    (("--host", "alhpa"), "no host 'alhpa'; the nearest is alpha"),
    (("--since", "1h", "--until", "3h"), "the span ends before it starts"),
])  # fmt: skip
def test_bad_input_is_one_clear_error(report, fleet, arguments, cause):
    status, out, err = report(*arguments)
    assert (status, out) == (2, "")
    assert cause in err
