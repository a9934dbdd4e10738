"""Documents that a server refuses for good: put aside, each once, and their neighbours stored."""

from __future__ import annotations

import errno
import os
import tracemalloc
from dataclasses import replace

import bson
import pytest
from bson import Binary
from pymongo import MongoClient

from exporter.archive.documents import RAW, moment
from exporter.archive.quarantine import Quarantine, QuarantineFullError, kept_in
from tests.exporter.archive.archive_rig import PATIENCE_S, START_S, assert_stored, rig, uri_of, wait_until
from tests.exporter.archive.archive_samples import Guests, truth_of, uuid_of

pytestmark = [pytest.mark.live, pytest.mark.timeout(900)]
LIMIT = 1 << 20


def test_a_document_that_the_server_never_takes_is_put_aside(archive_server, database_name, tmp_path):
    uri = uri_of(archive_server)
    with MongoClient(uri) as client, rig(tmp_path, uri, database_name) as run:
        name = RAW.collection(moment(START_S * 1000))
        client[database_name].create_collection(name, validator={"name": {"$ne": "guest1"}})
        run.sample(7)
        run.drain()
        assert run.archive.writer.counts.quarantined == 2
        told = run.archive.own_record(0.0).stats
        assert (told["archive.quarantined"], told["archive.dropped.refused"], told["archive.stored"]) == (2, 7, 14)
        aside = bson.decode_all((run.archive.spool.folder / "quarantine.bson").read_bytes())
    assert {document["name"] for document in aside} == {"guest1"}
    kept = {key: value for key, value in run.truth.items() if key[0] != uuid_of(1)}
    assert_stored(uri, database_name, kept)


def test_what_no_longer_fits_beside_those_put_aside_is_counted_once_and_sending_goes_on(
        archive_server, database_name, tmp_path):
    uri, spool = uri_of(archive_server), tmp_path / "archive" / "spool"
    spool.mkdir(parents=True)
    earlier = bson.encode({"_id": Binary(b"earlier"), "name": "x" * (127 << 10)})
    (spool / "quarantine.bson").write_bytes(earlier)
    with MongoClient(uri) as client, rig(tmp_path, uri, database_name, spool={"limit": 1 << 20}) as run:
        name = RAW.collection(moment(START_S * 1000))
        client[database_name].create_collection(name, validator={"name": {"$ne": "guest1"}})
        run.sample(7)
        run.drain()
        told = run.archive.own_record(0.0).stats
        words = ("archive.quarantined", "archive.discarded", "archive.dropped.refused", "archive.stored")
        assert [told[word] for word in words] == [0, 2, 7, 14]
        assert (spool / "quarantine.bson").read_bytes() == earlier
    kept = {key: value for key, value in run.truth.items() if key[0] != uuid_of(1)}
    assert_stored(uri, database_name, kept)


def test_the_file_stays_below_its_limit_and_what_fits_still_comes_in(tmp_path):
    file = tmp_path / "quarantine.bson"
    large, small = {"_id": Binary(b"1"), "name": "a" * 700}, {"_id": Binary(b"2"), "name": "b"}
    aside = Quarantine(file, 1000)
    assert aside.add(large)
    with pytest.raises(QuarantineFullError, match=r"quarantine\.bson has reached its limit"):
        aside.add(large | {"_id": Binary(b"3")})
    again = Quarantine(file, 1000)  # it knows its size after a restart, too
    with pytest.raises(QuarantineFullError):
        again.add(large | {"_id": Binary(b"3")})
    assert [again.add(document) for document in (large, small)] == [False, True]
    assert kept_in(tmp_path) == (2, file.stat().st_size)
    assert file.stat().st_size <= 1000


def test_the_file_is_read_one_document_at_a_time(tmp_path):
    file = tmp_path / "quarantine.bson"
    with open(file, "wb") as out:
        for number in range(40):
            out.write(bson.encode({"_id": Binary(bytes([number])), "name": "x" * (1 << 20)}))
    added = []
    most_bytes = _most_bytes(lambda: added.append(Quarantine(file, 1 << 30).add({"_id": Binary(bytes([39]))})))
    assert (added, most_bytes < 8 << 20) == ([False], True)


def test_a_document_that_is_put_aside_is_not_decoded_for_its_id_nor_read_for_its_length(tmp_path):
    file = tmp_path / "quarantine.bson"
    stored = {"_id": Binary(b"1"), "values": {"cpu_time_ns": list(range(1 << 40, (1 << 40) + 200_000))}}
    file.write_bytes(bson.encode(stored))
    size = file.stat().st_size
    aside, again = Quarantine(file, 1 << 30), {"_id": Binary(b"1")}
    assert _most_bytes(lambda: aside.add(again)) < 2 * size  # its numbers would be four times that
    assert aside.add({"_id": Binary(b"2")})
    assert _most_bytes(lambda: kept_in(tmp_path)) < 100_000
    assert kept_in(tmp_path) == (2, file.stat().st_size)


def _most_bytes(act):
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_document_above_what_the_server_takes_is_put_aside_and_its_neighbours_are_stored(
        archive_server, database_name, tmp_path):
    guests = Guests(2)
    guests.stats[0] = guests._first(0, 2, 550, 1)  # with 550 disks, five times a second: above 16 MiB a minute
    uri = archive_server.uri(PATIENCE_S)  # without the tests' short timeouts: 17 MB take longer on a loaded machine
    with rig(tmp_path, uri, database_name, guests=guests) as run:
        batch = guests.batch(run.clock_s, run.monotonic_s)
        small = {key: value for key, value in truth_of(batch).items() if key[0] == uuid_of(1)}
        kept = {}
        for number in range(290):
            later = replace(batch, times_s=batch.times_s + number / 5, wall_time_s=batch.wall_time_s + number / 5)
            kept |= {(key[0], key[1] + 200 * number, *key[2:]): value for key, value in small.items()}
            before = run.archive.spool.counts.spooled_samples
            run.archive.record(later)
            wait_until(lambda before=before: run.archive.spool.counts.spooled_samples > before, "it is spooled",
                       poll_s=0.001)
        run.drain()
        counts = run.archive.writer.counts
        assert (counts.quarantined, counts.fault) == (1, None)
        (aside,) = bson.decode_all((run.archive.spool.folder / "quarantine.bson").read_bytes())
    assert aside["name"] == "guest0"
    assert len(bson.encode(aside)) > 16 << 20
    assert_stored(uri, database_name, kept)


def test_what_is_put_aside_is_there_once_however_often_it_is_sent(tmp_path):
    file = tmp_path / "quarantine.bson"
    one, two = {"_id": Binary(b"1"), "name": "a"}, {"_id": Binary(b"2"), "name": "b"}
    assert [Quarantine(file, LIMIT).add(document) for document in (one, two, one)] == [True, True, False]
    file.write_bytes(file.read_bytes() + bson.encode(one)[:-3])  # a crash tore the last one
    again = Quarantine(file, LIMIT)
    assert [again.add(document) for document in (two, {"_id": Binary(b"3")})] == [False, True]
    assert [bytes(document["_id"]) for document in bson.decode_all(file.read_bytes())] == [b"1", b"2", b"3"]


def test_what_a_full_disk_took_of_a_document_costs_no_other(tmp_path, monkeypatch):
    file = tmp_path / "quarantine.bson"
    one, two = {"_id": Binary(b"1"), "name": "a" * 100}, {"_id": Binary(b"2"), "name": "b"}
    aside = Quarantine(file, LIMIT)
    real = os.fsync

    def full(number):
        os.truncate(number, 50)
        monkeypatch.setattr(os, "fsync", real)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        aside.add(one)
    assert [aside.add(document) for document in (two, one)] == [True, True]
    assert not Quarantine(file, LIMIT).add(two)
    assert [bytes(document["_id"]) for document in bson.decode_all(file.read_bytes())] == [b"2", b"1"]
