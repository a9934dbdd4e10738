"""`virtgauge archive status | verify | rollup | prune` on a real server."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import termios
from datetime import UTC, datetime
from pathlib import Path

import bson
import pytest
from pymongo import MongoClient

from exporter.archive.documents import moment, partition_span
from exporter.archive.inspection import problems
from exporter.cli import run as virtgauge
from tests.exporter.archive.archive_rig import rig

pytestmark = pytest.mark.live
ROOT = Path(__file__).parents[3]


@pytest.fixture
def filled(archive_server, database_name, tmp_path, monkeypatch):
    """A database with 20 minutes of three guests; the variables name it, so that no flag holds the password."""
    uri = archive_server.uri(120)
    with rig(tmp_path, uri, database_name) as run:
        run.sample(120)
        run.drain()
    monkeypatch.setenv("VIRTGAUGE_ARCHIVE_URI", uri)
    monkeypatch.setenv("VIRTGAUGE_ARCHIVE_DATABASE", database_name)
    monkeypatch.setenv("VIRTGAUGE_STATE_DIRECTORY", str(tmp_path))
    with MongoClient(uri, tz_aware=True, uuidRepresentation="standard") as client:
        yield client[database_name]


def test_status_verify_rollup_and_prune(filled, tmp_path, capsys):
    assert virtgauge(["archive", "status"]) == 0
    out = capsys.readouterr().out
    assert "schema     1" in out
    assert "objects    3" in out
    assert "host       alpha" in out
    assert "partition  raw_20260921" in out
    # 120 samples, 10 s apart, and the end of the last window.
    assert "bytes, acknowledged up to frame 121, a sample of 2026-09-21 14:33:50Z\n" in out
    assert "refused" not in out
    aside = bson.encode({"_id": b"1", "name": "guest1"})
    (tmp_path / "archive" / "spool" / "quarantine.bson").write_bytes(aside * 3)
    assert virtgauge(["archive", "status"]) == 0
    assert f"refused    3 documents by the database for good: {3 * len(aside)} bytes of at most 1073741824 in " in (
        capsys.readouterr().out)

    assert virtgauge(["archive", "verify"]) == 0
    assert "60 documents in 1 partitions are right" in capsys.readouterr().out

    assert virtgauge(["archive", "rollup", "--repair", "--since", "2026-09-21T14:00Z", "--until",
                      "2026-09-21T16:00Z"]) == 0
    (hours,) = [name for name in filled.list_collection_names() if name.startswith("five_minutes")]
    assert filled[hours].find_one()["values"]["cpu_time_ns"]["increase"]
    capsys.readouterr()

    filled["raw_20200101"].insert_one({"x": 1})
    assert virtgauge(["archive", "prune", "--dry-run"]) == 0
    assert capsys.readouterr().out == "would drop raw_20200101\n"
    assert "raw_20200101" in filled.list_collection_names()
    assert virtgauge(["archive", "prune"]) == 0
    assert capsys.readouterr().out == "dropped raw_20200101\n"
    for more in ([], ["--dry-run"]):
        assert virtgauge(["archive", "prune", *more]) == 0
        assert capsys.readouterr().out == "nothing is past archive.retention\n"


def on_terminal(*arguments):
    """(status, stdout, what a terminal of 100 columns showed) of a command whose stderr is that terminal."""
    terminal, end = os.openpty()
    termios.tcsetwinsize(end, (30, 100))
    with subprocess.Popen([sys.executable, "-c", "from exporter.cli import main; main()", "archive", *arguments],
                          stdout=subprocess.PIPE, stderr=end, cwd=ROOT,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}) as process:
        os.close(end)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: its last writer has gone
            while piece := os.read(terminal, 65536):
                shown += piece
        out = process.stdout.read().decode()
    os.close(terminal)
    return process.returncode, out, shown.decode()


def test_long_work_shows_how_far_it_is_on_a_terminal_and_nothing_of_it_elsewhere(filled, tmp_path):
    (raw,) = [name for name in filled.list_collection_names() if name.startswith("raw_")]
    file = str(tmp_path / "a.ndjson.zst")
    filled["raw_20200101"].insert_one({"x": 1})
    span = ("--since", "2026-09-21T14:00Z", "--until", "2026-09-21T16:00Z")
    for arguments, words in (
            (("prune",), ("dropping raw_20200101", "1/1")),
            (("verify",), (f"verifying {raw}", "1/1", "60 documents")),
            (("rollup", "--repair", *span), ("Rolling up", "100%")),
            (("export", "--output", file), ("exporting hourly_2026", "5/5", "70 documents")),
            (("import", file), ("checking", "importing hourly_2026", "70/70")),
    ):
        status, out, shown = on_terminal(*arguments)
        assert status == 0, shown
        for word in words:
            assert word in shown, (arguments, shown)
        assert "\x1b" not in out
        assert "\u2501" in shown, "there is no bar"


def test_verify_names_what_is_wrong(filled, capsys):
    name = next(name for name in filled.list_collection_names() if name.startswith("raw_"))
    victim = filled[name].find_one({"name": "guest1"})
    filled[name].update_one({"_id": victim["_id"]}, {"$push": {"values.cpu_time_ns": 5}})
    assert virtgauge(["archive", "verify"]) == 1
    told = capsys.readouterr()
    assert "values.cpu_time_ns has 7 places for 6 samples" in told.out
    assert "1 of 60 documents are not right" in told.err


def test_each_wrong_document_is_told(filled):
    (document, *_) = [filled[name].find_one() for name in filled.list_collection_names() if name.startswith("raw_")]
    span = partition_span("raw_20260921")
    assert span == (datetime(2026, 9, 21, tzinfo=UTC), datetime(2026, 9, 22, tzinfo=UTC))
    assert problems(document, span) == []
    for change, word in (({"schema": 2}, "schema 2"), ({"count": 3}, "samples"), ({"start": moment(0)}, "outside"),
                         ({"offsets_ms": [0, 5, 4, 3, 2, 1]}, "offsets"), ({"end": moment(0)}, "offsets"),
                         ({"start": "x"}, "no document")):
        assert any(word in problem for problem in problems(document | change, span)), change


def test_a_span_that_ends_before_it_starts(filled, capsys):
    assert virtgauge(["archive", "rollup", "--repair", "--since", "1h", "--until", "2h"]) == 2
    assert "error" in capsys.readouterr().err
