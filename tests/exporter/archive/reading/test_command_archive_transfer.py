"""`virtgauge archive export` and `import`, from one real database to another."""

from __future__ import annotations

import csv
import itertools
import json
import os
import time
import uuid

import pytest
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument

from exporter import cli
from tests.exporter.archive.reading.archived import (
    HOURLY,
    Guest,
    raw_documents,
    rollup_documents,
    samples,
    store,
)

pytestmark = pytest.mark.live

NOW = int(time.time()) // 3600 * 3600
HOUR = 3600


@pytest.fixture
def fleet(database):
    """Two guests over midnight or not, with samples and roll-ups, and a host."""
    guests = Guest("web1", written=lambda t: 7), Guest("we\"b, 2\n")
    for guest in guests:
        rows = samples(guest, NOW - 3 * HOUR, NOW, every_s=120)
        store(database, [*rollup_documents(guest, rows), *rollup_documents(guest, rows, HOURLY),
                         *raw_documents(guest, rows)])
    database["hosts"].insert_one({"_id": "h", "name": "alpha", "version": "0.1.0"})
    return guests


@pytest.fixture
def other(archive_client):
    name = f"test_{uuid.uuid4().hex[:12]}"
    yield archive_client[name]
    archive_client.drop_database(name)


@pytest.fixture
def archive(capsys, monkeypatch, archive_uri):
    for name in list(os.environ):
        if name.startswith("VIRTGAUGE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("VIRTGAUGE_ARCHIVE_URI", archive_uri)

    def run(database, *arguments):
        status = cli.run(["archive", *map(str, arguments), "--archive.database", database.name])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def contents(database):
    """Every document's bytes by collection."""
    options = CodecOptions(document_class=RawBSONDocument)
    found = {name: database.get_collection(name, codec_options=options) for name in database.list_collection_names()}
    return {name: sorted(bytes(document.raw) for document in collection.find()) for name, collection in found.items()}


@pytest.mark.parametrize("name", ["a.ndjson", "a.ndjson.gz", "a.ndjson.zst"])
def test_an_imported_archive_is_equal_to_the_last_byte_and_twice_adds_nothing(archive, fleet, database, other,
                                                                              tmp_path, name):
    status, out, err = archive(database, "export", "--output", tmp_path / name)
    assert (status, out) == (0, ""), err
    assert [path.name for path in tmp_path.iterdir()] == [name]
    status, out, err = archive(other, "import", tmp_path / name)
    assert status == 0, err
    before, after = contents(database), contents(other)
    partitions = {name for name in before if name[-1].isdigit()}
    assert len(partitions) >= 3
    assert {name: after[name] for name in partitions} == {name: before[name] for name in partitions}
    assert set(after) == set(before)
    assert len(after["objects"]) == 2
    total = sum(len(before[name]) for name in partitions)
    assert out == (f"imported {total} documents into {other.name}, 0 were there already; "
                   "3 objects and hosts brought up to date\n")
    for partition in partitions:
        assert "uuid_1_start_1" in other[partition].index_information()
    _, out, _ = archive(other, "import", tmp_path / name)
    assert f"imported 0 documents into {other.name}, {total} were there already" in out
    assert contents(other) == after


def test_history_reads_the_same_from_the_imported_archive(archive, fleet, database, other, tmp_path, capsys):
    archive(database, "export", "--output", tmp_path / "a.ndjson")
    archive(other, "import", tmp_path / "a.ndjson")
    answers = []
    for one in (database, other):
        assert cli.run(["history", "web1", "--since", "4h", "--format", "csv", "--field", "disk.write",
                        "--archive.database", one.name, "--exporter", "none"]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]
    assert len(answers[0].splitlines()) > 50


def test_csv_holds_every_sample_of_the_guest(archive, fleet, database):
    status, out, err = archive(database, "export", "--format", "csv", "--domain", "web1", "--since", NOW - 7200)
    assert status == 0, err
    rows = list(csv.DictReader(out.splitlines()))
    assert {row["name"] for row in rows} == {"web1"}
    written = [int(row["value"]) for row in rows if row["column"] == "write_bytes"]
    assert len(written) == 60
    assert {b - a for a, b in itertools.pairwise(written)} == {7 * 120}
    usable = [row for row in rows if row["column"] == "memory_usable_kib"]
    assert len(usable) == len(written)
    assert {(row["group"], row["device"]) for row in rows if row["column"] == "time_ns"} == {("vcpus", "0"),
                                                                                               ("vcpus", "1")}


def test_a_name_with_quotes_and_line_breaks_survives_csv(archive, fleet, database, tmp_path):
    archive(database, "export", "--format", "csv", "--since", "3h", "--output", tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="") as file:
        assert {row["name"] for row in csv.DictReader(file)} == {"web1", 'we"b, 2\n'}


def _spoilt(lines, kind):
    header, first, *rest = lines
    if kind == "no header":
        return lines[1:]
    if kind == "empty":
        return []
    if kind == "another file":
        return ["name,value", "a,1"]
    if kind == "from the future":
        return [json.dumps({**json.loads(header), "schema": 9}), first, *rest]
    if kind == "cut off":
        return [*lines[:-1], lines[-1][: len(lines[-1]) // 2]]
    last = json.loads(lines[-1])
    if kind == "a document from the future":
        last["document"]["schema"] = 3
    elif kind == "a foreign collection":
        last["collection"] = "system.users"
    elif kind == "a wrong partition":
        last["collection"] = "raw_20200101"
    elif kind == "no id":
        del last["document"]["_id"]
    return [*lines[:-1], json.dumps(last)]


@pytest.mark.parametrize(("kind", "cause"), [
    ("no header", "line 1 does not say that this is a virtgauge archive"),
    ("empty", "the file is empty"),
    ("another file", "line 1 does not say that this is a virtgauge archive"),
    ("from the future", "schema version 9, this virtgauge knows 1"),
    ("cut off", "holds no document"),
    ("a document from the future", "schema version 3, this virtgauge knows 1"),
    ("a foreign collection", "collection 'system.users' is none of the archive"),
    ("a wrong partition", "start is not within raw_20200101"),
    ("no id", "no collection or document"),
])  # fmt: skip
def test_a_bad_file_is_refused_whole_and_nothing_is_written(archive, fleet, database, other, tmp_path, kind, cause):
    archive(database, "export", "--domain", "web1", "--output", tmp_path / "a.ndjson")
    lines = (tmp_path / "a.ndjson").read_text().splitlines()
    (tmp_path / "a.ndjson").write_text("\n".join(_spoilt(lines, kind)))
    status, out, err = archive(other, "import", tmp_path / "a.ndjson")
    assert (status, out) == (1, "")
    assert cause in err
    assert other.list_collection_names() == []


def test_files_that_cannot_be_read_or_written_are_told(archive, fleet, database, tmp_path):
    status, _, err = archive(database, "import", tmp_path / "missing")
    assert (status, "No such file" in err) == (2, True)
    (tmp_path / "a.zst").write_bytes(b"hello")
    status, _, err = archive(database, "import", tmp_path / "a.zst")
    assert (status, "a.zst" in err) == (2, True)
    status, _, err = archive(database, "export", "--output", tmp_path / "no" / "a")
    assert (status, "choose another --output" in err) == (1, True)
    status, _, err = archive(database, "export", "--domain", "wbe1", "--output", tmp_path / "b")
    assert (status, "the nearest is web1" in err) == (2, True)
    assert not (tmp_path / "b").exists()
