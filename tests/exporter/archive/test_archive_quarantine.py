"""Documents that a server refuses for good: put aside, each once, and their neighbours stored."""

from __future__ import annotations

import errno
import os
from dataclasses import replace

import bson
import pytest
from bson import Binary
from pymongo import MongoClient

from exporter.archive.documents import RAW, moment
from exporter.archive.quarantine import Quarantine
from tests.exporter.archive.archive_rig import PATIENCE_S, START_S, assert_stored, rig, uri_of, wait_until
from tests.exporter.archive.archive_samples import Guests, truth_of, uuid_of

pytestmark = [pytest.mark.live, pytest.mark.timeout(900)]


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
    assert [Quarantine(file).add(document) for document in (one, two, one)] == [True, True, False]
    file.write_bytes(file.read_bytes() + bson.encode(one)[:-3])  # a crash tore the last one
    again = Quarantine(file)
    assert [again.add(document) for document in (two, {"_id": Binary(b"3")})] == [False, True]
    assert [bytes(document["_id"]) for document in bson.decode_all(file.read_bytes())] == [b"1", b"2", b"3"]


def test_what_a_full_disk_took_of_a_document_costs_no_other(tmp_path, monkeypatch):
    file = tmp_path / "quarantine.bson"
    one, two = {"_id": Binary(b"1"), "name": "a" * 100}, {"_id": Binary(b"2"), "name": "b"}
    aside = Quarantine(file)
    real = os.fsync

    def full(number):
        os.truncate(number, 50)
        monkeypatch.setattr(os, "fsync", real)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        aside.add(one)
    assert [aside.add(document) for document in (two, one)] == [True, True]
    assert not Quarantine(file).add(two)
    assert [bytes(document["_id"]) for document in bson.decode_all(file.read_bytes())] == [b"2", b"1"]
