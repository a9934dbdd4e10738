"""The history API over a real server and socket, and a real Prometheus that reads the archive through it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from datetime import UTC, datetime

import pytest
from cramjam import snappy
from starlette.applications import Starlette

from collectors import COLLECTORS
from exporter.archive.history_errors import HistoryError
from exporter.archive.history_fields import HistoryFields
from exporter.history_api import HistoryApi
from tests.exporter import served
from tests.exporter.archive.reading.archived import (
    HOURLY,
    Guest,
    raw_documents,
    rollup_documents,
    samples,
    store,
)
from tests.exporter.archive.reading.conftest import free_port

pytestmark = pytest.mark.live

FIELDS = HistoryFields(COLLECTORS)
T0 = int(datetime(2026, 11, 20, 0, 0, tzinfo=UTC).timestamp())
HOUR = 3600
DAY_BEFORE = T0 - 24 * HOUR


@contextlib.contextmanager
def serving(api):
    """The API on a real socket; gives its address as http://host:port."""
    with served.serving(Starlette(routes=api.routes())) as port:
        yield f"http://127.0.0.1:{port}"


def get(url, **parameters):
    """(status, headers, parsed JSON)."""
    full = f"{url}?{urllib.parse.urlencode(parameters, doseq=True)}" if parameters else url
    try:
        with urllib.request.urlopen(full, timeout=60) as answer:
            return answer.status, answer.headers, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, json.load(error)


@pytest.fixture
def archive(database):
    """Two guests: web1 with 30 minutes of samples, web2 with ten hours of roll-ups of the day before."""
    web1, web2 = Guest("web1", busy=lambda t: 0.25 + (t % 600) / 600), Guest("web2", busy=lambda t: 1.0)
    store(database, raw_documents(web1, samples(web1, T0 + 10 * HOUR, T0 + 10 * HOUR + 1800)))
    rows = samples(web2, DAY_BEFORE, DAY_BEFORE + 10 * HOUR, every_s=60)
    store(database, [*rollup_documents(web2, rows), *rollup_documents(web2, rows, HOURLY)])
    return web1, web2


@pytest.fixture
def url(database, archive):
    with serving(HistoryApi(lambda: database, FIELDS, clock=lambda: T0 + 10 * HOUR + 1800)) as address:
        yield address


def test_a_query_gives_flat_rows_that_infinity_reads_as_they_are(url, archive):
    status, headers, rows = get(f"{url}/api/v1/history/query", domain="web1", field=["cpu.cores", "disk.write"])
    assert status == 200
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Virtgauge-Resolution"] == "raw"
    assert headers["X-Virtgauge-Unsealed"] == "false"
    assert all(set(row) == {"time", "domain", "host", "field", "device", "min", "avg", "max"} for row in rows)
    cpu = {row["time"]: row["avg"] for row in rows if row["field"] == "cpu.usage_cores"}
    assert len(cpu) == 119
    for text, value in cpu.items():
        assert value == pytest.approx(archive[0].busy(datetime.fromisoformat(text).timestamp()))
    assert {row["device"] for row in rows if row["field"].startswith("block")} == {"vda"}


def test_what_there_is_is_listed(url):
    _, _, domains = get(f"{url}/api/v1/history/domains")
    assert [(row["domain"], row["host"]) for row in domains] == [("web1", "alpha"), ("web2", "alpha")]
    _, _, fields = get(f"{url}/api/v1/history/fields")
    assert {row["field"]: row["unit"] for row in fields}["block.read_bytes_per_second"] == "B/s"


@pytest.mark.parametrize(
    ("parameters", "cause"),
    [
        ({}, "parameter domain is missing"),
        ({"domain": "web1", "feild": "x"}, "unknown parameter 'feild'; the nearest is field"),
        ({"domain": "wbe1"}, "no domain 'wbe1'; the nearest is web1"),
        ({"domain": "web1", "field": "cpu.usge"}, "unknown history field 'cpu.usge'; the nearest is cpu.usage"),
        ({"domain": "web1", "since": "1h", "until": "2h"}, "the span ends before it starts"),
        ({"domain": "web1", "since": "later"}, "time 'later' is not understood"),
        ({"domain": "web1", "step": "1ms"}, "step '1ms' is not between"),
        ({"domain": "web1", "points": "1e9"}, "points '1e9' is not a number"),
        ({"domain": "web1", "since": "20y", "step": "1s"}, "more than 11000; take a step of"),
        ({"domain": "\x00" * 100}, "no domain"),
    ],
)
def test_a_bad_question_is_answered_with_the_cause(url, parameters, cause):
    status, _, answer = get(f"{url}/api/v1/history/query", **parameters)
    assert status == 400
    assert cause in answer["error"]


def test_an_archive_that_is_not_there_is_a_503():
    def none():
        raise HistoryError("archive embedded: starts; ask again in a moment")

    with serving(HistoryApi(none, FIELDS)) as url:
        status, _, answer = get(f"{url}/api/v1/history/query", domain="web1")
    assert (status, answer["error"]) == (503, "archive embedded: starts; ask again in a moment")


def post(url, body):
    """Status of the answer; None where the server closed before it had read all."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=body, method="POST"), timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except urllib.error.URLError:
        return None


CUT_OFF = bytes(snappy.compress_raw(b"\x0a\xff"))
# A few bytes that say that they unpack to 4 GiB.
BOMB = b"\xff\xff\xff\xff\x0f" + b"\x00" * 20


@pytest.mark.parametrize("body", [b"hello", b"\xff" * 40, CUT_OFF, BOMB, b"\x00" * (2 << 20)],
                         ids=["text", "garbage", "cut off", "bomb", "too large"])
def test_garbage_sent_to_remote_read_is_a_400_and_the_next_question_is_answered(url, body):
    status = post(f"{url}/api/v1/read", body)
    assert status == 400 or (status is None and len(body) > 1 << 20)
    assert get(f"{url}/api/v1/history/domains")[0] == 200


@pytest.fixture
def prometheus(url, tmp_path):
    """Address of a real Prometheus with an empty store of its own that reads from the archive."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed")
    port = free_port()
    (tmp_path / "prometheus.yml").write_text(
        f"remote_read:\n- url: {url}/api/v1/read?job=fleet\n  read_recent: true\n")
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
             f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=5):
                    break
            except OSError:
                assert process.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def evaluated(prometheus, query, start, end, step):
    """{sorted labels: [(time, value)]} of a range query."""
    status, _, answer = get(f"{prometheus}/api/v1/query_range", query=query, start=start, end=end, step=step)
    assert status == 200, answer
    assert not answer.get("warnings"), answer
    return {tuple(sorted(series["metric"].items())): [(t, float(v)) for t, v in series["values"]]
            for series in answer["data"]["result"]}


def test_prometheus_reads_the_archive(prometheus, url, archive):
    start, end = T0 + 10 * HOUR, T0 + 10 * HOUR + 1785
    # A gauge, sample by sample.
    found = evaluated(prometheus, 'libvirt_domain_cpu_usage_cores{domain="web1"}', start + 15, end, 15)
    ((labels, points),) = found.items()
    assert dict(labels) == {"__name__": "libvirt_domain_cpu_usage_cores", "domain": "web1", "instance": "alpha",
                            "job": "fleet"}
    assert len(points) == 118 + 1
    for t, value in points:
        assert value == pytest.approx(archive[0].busy(t))
    # A counter under rate(), by device, chosen by a pattern.
    query = 'rate(libvirt_domain_block_stats_write_bytes_total{domain=~"web[1]",target_device!="vdb"}[2m])'
    ((labels, points),) = evaluated(prometheus, query, start + 300, end, 60).items()
    assert dict(labels)["target_device"] == "vda"
    assert [value for _, value in points] == pytest.approx([1000.0] * len(points))
    # Where only roll-ups are left, graphs and rates go on.
    query = 'libvirt_domain_cpu_usage_cores{domain="web2"}'
    ((_, points),) = evaluated(prometheus, query, DAY_BEFORE + HOUR, DAY_BEFORE + 9 * HOUR, 60).items()
    assert len(points) == 8 * 60 + 1
    assert [value for _, value in points] == pytest.approx([1.0] * len(points))
    query = 'rate(libvirt_domain_info_cpu_time_seconds_total{domain="web2"}[30m])'
    ((_, points),) = evaluated(prometheus, query, DAY_BEFORE + 2 * HOUR, DAY_BEFORE + 9 * HOUR, 600).items()
    assert [value for _, value in points] == pytest.approx([1.0] * len(points), rel=1e-6)
    # Every field of every domain at once, and none at all.
    found = evaluated(prometheus, 'count by (domain) ({job="fleet"})', end - 60, end, 60)
    assert (("domain", "web1"),) in found
    assert evaluated(prometheus, 'libvirt_domain_cpu_usage_cores{domain="nobody"}', start, end, 60) == {}
    assert evaluated(prometheus, 'up{job="fleet"}', start, end, 60) == {}


def test_no_pattern_can_hang_the_exporter(prometheus):
    # A pattern that Go takes and that would hang a backtracking engine is answered at once.
    query = 'libvirt_domain_cpu_usage_cores{domain=~"(a+)+' + "b?" * 50 + '$"}'
    assert evaluated(prometheus, query, T0, T0 + 60, 60) == {}
