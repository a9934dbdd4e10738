"""`virtgauge history` over a real database and a real exporter's API."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from datetime import datetime

import pytest

from collectors import COLLECTORS
from exporter import cli
from exporter.archive.document_reader import Unsent
from exporter.archive.history_fields import HistoryFields
from exporter.history_api import HistoryApi
from exporter.history_output import with_unit
from tests.exporter.archive.reading.archived import Guest, raw_documents, samples, store
from tests.exporter.archive.reading.conftest import free_port
from tests.exporter.archive.reading.test_history_api import serving

pytestmark = pytest.mark.live

NOW = int(time.time()) // 60 * 60
NOBODY = "http://127.0.0.1:1"


@pytest.fixture
def guest(database):
    """web1, which ran for the last 30 minutes until a minute ago, with a gap of five minutes in it."""
    guest = Guest("web1", busy=lambda t: 0.5 + (t % 600) / 1200)
    rows = [row for row in samples(guest, NOW - 1800, NOW - 60) if not NOW - 1200 <= row[0] < NOW - 900]
    store(database, raw_documents(guest, rows))
    return guest


@pytest.fixture
def history(capsys, monkeypatch, archive_uri, database, tmp_path):
    for name in list(os.environ):
        if name.startswith("VIRTGAUGE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("VIRTGAUGE_ARCHIVE_URI", archive_uri)
    monkeypatch.setenv("VIRTGAUGE_ARCHIVE_DATABASE", database.name)
    monkeypatch.setenv("COLUMNS", "110")

    def run(*arguments, exporter="none"):
        status = cli.run(["history", *arguments, "--exporter", exporter])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_csv_and_json_hold_the_numbers(history, guest):
    status, out, err = history("web1", "--format", "csv", "--field", "cpu.cores", "--field", "disk.write")
    assert status == 0, err
    assert "points from database, without what is not archived yet (raw)" in err
    rows = list(csv.DictReader(io.StringIO(out)))
    cpu = {datetime.fromisoformat(row["time"]).timestamp(): row["avg"] for row in rows
           if row["field"] == "cpu.usage_cores"}
    known = {t: float(value) for t, value in cpu.items() if value}
    assert known == pytest.approx({t: guest.busy(t) for t in known})
    assert len(known) == 94
    assert len(cpu) == 95  # the gap is one empty line
    _, out, _ = history(str(guest.uuid), "--format", "json", "--field", "cpu.cores")
    assert [row["avg"] for row in json.loads(out)] == [float(value) if value else None for value in cpu.values()]


def test_a_table_has_units_and_fits_a_screen(history, guest):
    status, out, _ = history("web1", "--field", "cpu.usage", "--field", "disk.write")
    assert status == 0
    lines = out.splitlines()
    assert lines[0].split() == ["time", "field", "device", "min", "avg", "max"]
    assert len(lines) <= 2 * 31 + 1
    assert any("1000 B/s" in line and "vda" in line for line in lines)
    assert any("cpu.usage_ratio" in line and line.endswith("%") for line in lines)


def test_a_plot_shows_the_curve_in_plain_characters(history, guest):
    status, out, _ = history("web1", "--format", "plot", "--field", "cpu.usage")
    assert status == 0
    assert "\x1b" not in out
    assert "web1, 1h to now cpu.usage_ratio" in out
    assert "0.0 %┤" in out
    braille = [line for line in out.splitlines() if any("\u2800" < c < "\u2900" for c in line)]
    assert len(braille) > 3


def test_no_two_marks_of_a_short_plot_read_the_same(history, guest):
    span = ("--since", str(NOW - 480), "--until", str(NOW - 300))
    status, out, err = history("web1", "--format", "plot", "--field", "memory.used", *span)
    assert status == 0, err
    marks = out.rstrip().splitlines()[-1].split()
    assert len(set(marks)) == len(marks) == 5


@pytest.mark.parametrize(("name", "magic"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml")])
def test_a_picture_is_written(history, guest, tmp_path, name, magic):
    status, out, err = history("web1", "--field", "cpu.usage", "--field", "disk.write", "--output",
                               str(tmp_path / name))
    assert (status, out) == (0, ""), err
    assert (tmp_path / name).read_bytes().startswith(magic)
    if name.endswith(".svg"):  # it has its labels as text, too
        text = (tmp_path / name).read_text()
        for label in ("web1, 1h to now", "cpu.usage_ratio", "40.0 %", "block.write_bytes_per_second", "800 B/s"):
            assert label in text


def test_a_file_is_written(history, guest, tmp_path):
    assert history("web1", "--format", "csv", "--output", str(tmp_path / "a.csv"))[:2] == (0, "")
    assert (tmp_path / "a.csv").read_text().startswith("time,domain,host,field,device,min,avg,max\n")
    status, _, err = history("web1", "--output", str(tmp_path / "no" / "a.csv"))
    assert status == 2
    assert "choose another --output" in err


def test_a_running_exporter_is_asked_first_and_has_the_unsealed_minute(history, guest, database):
    live = raw_documents(guest, samples(guest, NOW - 1800, NOW)[-4:])
    with serving(HistoryApi(lambda: database, HistoryFields(COLLECTORS), lambda *_: Unsent(live))) as url:
        status, out, err = history("web1", "--format", "json", exporter=url)
        assert status == 0, err
        assert f"points from exporter at {url} (raw, unsealed minute included)" in err
        newest = max(row["time"] for row in json.loads(out))
        assert datetime.fromisoformat(newest).timestamp() == NOW - 15
        # Its refusals are the same as ours.
        status, _, err = history("wbe1", exporter=url)
        assert (status, "no domain 'wbe1'; the nearest is web1" in err) == (2, True)


def test_without_an_exporter_the_database_answers_and_it_is_said(history, guest):
    status, out, err = history("web1", "--format", "json", exporter=f"http://127.0.0.1:{free_port()}")
    assert status == 0
    assert "from database, since no exporter answers at http://127.0.0.1:" in err
    assert "what is not archived yet is missing (raw)" in err
    assert json.loads(out)


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ((), "history needs a domain"),
        (("web1", "--field", "cpu.usgae"), "unknown history field 'cpu.usgae'; the nearest is cpu.usage"),
        (("web2",), "the archive knows no domain 'web2'; the nearest is web1"),
        (("web1", "--host", "alhpa"), "no host 'alhpa'; the nearest is alpha"),
        (("web1", "--since", "1h", "--until", "2h"), "the span ends before it starts"),
        (("web1", "--since", "yesterday"), "time 'yesterday' is not understood"),
        (("web1", "--step", "0"), "step '0' is not between"),
        (("web1", "--format", "xml"), "'xml' is not one of"),
        (("web1", "--archive.uri", "mongodb://user:sesame@:::/"), "archive.uri"),
        (("web1", "--archive.uri", "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=300"), "127.0.0.1:1"),
        (("web1", "--archive.uri", "mongodb://root:sesame@127.0.0.1:1/"), "a flag must not hold a password"),
    ],
)
def test_bad_input_is_one_clear_error_without_a_secret(history, guest, database, arguments, cause):
    before = {name: database[name].find().to_list() for name in database.list_collection_names()}
    status, out, err = history(*arguments)
    assert status in (1, 2)
    assert out == ""
    assert err.startswith("virtgauge: error: ")
    assert cause in err
    assert "sesame" not in err
    assert {name: database[name].find().to_list() for name in database.list_collection_names()} == before


def test_an_archive_from_the_future_is_refused(history, guest, database):
    database["meta"].update_one({"_id": "schema"}, {"$set": {"version": 99}})
    status, _, err = history("web1")
    assert status == 1
    assert "schema version 99" in err


def test_all_fields_are_listed(history):
    status, out, _ = history("--fields")
    assert status == 0
    assert "block.write_bytes_per_second (or disk.write): Bytes a second the guest writes" in out


@pytest.mark.parametrize(("value", "unit", "text"), [
    (0.125, "ratio", "12.5 %"), (1536, "B/s", "1.5 KiB/s"), (12, "B", "12 B"), (0.0025, "s", "2.5 ms"),
    (0.0000025, "s", "2.5 us"), (3.5, "cores", "3.5 cores"), (None, "B", "-"), (7, "", "7"),
])  # fmt: skip
def test_numbers_have_units(value, unit, text):
    assert with_unit(value, unit) == text
