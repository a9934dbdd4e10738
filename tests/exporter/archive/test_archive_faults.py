"""Nothing lost, nothing twice, nothing else: real server processes that are stopped, cut off and refuse.

After each fault the database is compared with what the test knows it sampled, value by value.
"""

from __future__ import annotations

import errno
import os
import signal
from uuid import UUID

import pytest
from pymongo import MongoClient

from exporter.archive.archive import Archive
from exporter.archive.documents import VALUES, Column, Host
from exporter.archive.errors import ArchiveBusyError
from exporter.archive.faults import Fault
from exporter.archive.lease import LEASE_S
from exporter.archive.seen_objects import SeenObjects
from exporter.archive.timespan import Span
from exporter.config import ArchiveSettings
from tests.exporter.archive.archive_rig import (
    HOST,
    PATIENCE_S,
    START_S,
    TIMEOUTS,
    CuttingProxy,
    Rig,
    assert_stored,
    raw_documents,
    rig,
    uri_of,
    wait_until,
)
from tests.exporter.archive.archive_samples import Guests, stored_of, truth_of, uuid_of

pytestmark = [pytest.mark.live, pytest.mark.timeout(900)]
CPU_TIME = Column(VALUES, "cpu_time_ns", True, 1e-9, "")


def test_every_sample_is_stored_once_and_equal(archive_server, database_name, tmp_path):
    with rig(tmp_path, uri_of(archive_server), database_name) as run:
        run.sample(14)
        run.drain()
        assert run.archive.writer.counts.duplicates == 0
    documents = assert_stored(uri_of(archive_server), database_name, run.truth)
    assert len(documents) == 9


def test_a_new_guest_is_known_before_its_first_window_ends(archive_server, database_name, tmp_path):
    uri = uri_of(archive_server)
    with MongoClient(uri) as client, rig(tmp_path, uri, database_name) as run:
        objects = client[database_name].objects
        run.sample(1)
        wait_until(lambda: objects.count_documents({}) == 3, "the guests are noted")
        assert raw_documents(uri, database_name) == []
        run.guests.stats[3] = run.guests._first(3, 2, 1, 1)
        run.guests.run[3] = 1
        run.sample(1)
        wait_until(lambda: objects.find_one({"name": "guest3"}), "the new guest is noted")
        assert raw_documents(uri, database_name) == []
        run.drain()
    assert_stored(uri, database_name, run.truth)


def test_guests_that_are_gone_are_not_remembered(archive_server, database_name, tmp_path):
    uri = uri_of(archive_server)
    with MongoClient(uri) as client, rig(tmp_path, uri, database_name) as run:
        run.sample(7)
        del run.guests.stats[0]
        run.clock_s += 3600
        run.monotonic_s += 3600
        run.sample(7)
        run.drain()
        assert len(run.archive.writer._objects._seen) == 2
        assert client[database_name].objects.count_documents({}) == 3
    assert_stored(uri, database_name, run.truth)


def test_a_defect_while_a_new_guest_is_noted_does_not_end_the_archive(archive_server, database_name, tmp_path,
                                                                      monkeypatch):
    real, failed = SeenObjects.note, []

    def failing(*arguments):
        if not failed:
            failed.append(True)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        real(*arguments)

    monkeypatch.setattr(SeenObjects, "note", failing)
    with rig(tmp_path, uri_of(archive_server), database_name) as run:
        run.sample(1)
        wait_until(lambda: failed, "the guests were to be noted")
        run.sample(6)
        run.drain()
    assert_stored(uri_of(archive_server), database_name, run.truth)


def test_a_stopped_server_stops_nothing_else(own_server, tmp_path):
    with rig(tmp_path / "state", uri_of(own_server), "stopped") as run:
        run.sample(7)
        wait_until(lambda: run.archive.writer.counts.documents, "the first window is stored")
        pid = own_server.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            before = run.archive.spool.counts.spooled_samples
            run.sample(14)
            assert run.archive.spool.counts.spooled_samples - before == 14 * 3
            wait_until(lambda: run.archive.writer.counts.fault is Fault.UNREACHABLE, "the fault is told")
            waiting = run.archive.unsealed(UUID(uuid_of(0)), Span(START_S, run.clock_s), [CPU_TIME]).documents
            assert sum(document["count"] for document in waiting) >= 14
        finally:
            os.kill(pid, signal.SIGCONT)
        run.drain()
        assert run.archive.writer.counts.fault is None
    assert_stored(uri_of(own_server), "stopped", run.truth)


def test_the_connection_is_cut_in_mid_batch(archive_server, database_name, tmp_path):
    proxy = CuttingProxy(uri_of(archive_server) + "&retryWrites=false")
    try:
        with rig(tmp_path, proxy.uri, database_name, guests=Guests(20, 4, 2, 2)) as run:
            run.sample(7)
            for count in (100, 5_000, 40_000, 90_000, 20_000):
                proxy.cut_after(count)
                run.sample(6)
                wait_until(lambda: run.archive.writer.drained(), "the cut batch is stored")
            run.drain()
            assert proxy.cuts >= 3
            assert run.archive.writer.counts.retries[Fault.UNREACHABLE] >= 1
    finally:
        proxy.close()
    assert_stored(uri_of(archive_server), database_name, run.truth)


def test_a_wrong_password_and_then_the_right_one(archive_server, database_name, tmp_path):
    whole = archive_server.uri(PATIENCE_S)
    user, _, rest = whole.removeprefix("mongodb://").partition("@")
    name, _, password = user.partition(":")
    file = tmp_path / "password"
    file.write_text("not the password\n")
    uri = f"mongodb://{rest}{TIMEOUTS}"
    with rig(tmp_path / "state", uri, database_name, username=name, password_file=file) as run:
        run.sample(7)
        wait_until(lambda: run.archive.writer.counts.fault is Fault.AUTHENTICATION, "the refusal is told")
        assert "not the password" not in run.archive.writer.counts.last_error
        file.write_text(password + "\n")
        run.drain()
    assert_stored(uri_of(archive_server), database_name, run.truth)


@pytest.mark.parametrize(("data", "fault"), [
    ({"errorCode": 10107}, Fault.NOT_PRIMARY),
    ({"errorCode": 11600}, Fault.NOT_PRIMARY),
    ({"errorCode": 14031}, Fault.DISK_FULL),
    ({"errorCode": 13}, Fault.AUTHENTICATION),
    ({"errorCode": 8}, Fault.OTHER),
    ({"writeConcernError": {"code": 64, "errmsg": "waiting for replication timed out"}}, Fault.WRITE_CONCERN),
    ({"closeConnection": True}, Fault.UNREACHABLE),
])
def test_each_refusal_is_told_apart_and_overcome(archive_server, database_name, tmp_path, data, fault):
    uri = uri_of(archive_server)
    with MongoClient(uri) as client, rig(tmp_path, uri + "&retryWrites=false", database_name) as run:
        run.sample(7)
        wait_until(lambda: run.archive.writer.drained(), "the first window is stored")
        client.admin.command({"configureFailPoint": "failCommand", "mode": {"times": 3},
                              "data": {"failCommands": ["insert"], **data}})
        try:
            run.sample(6)
            wait_until(lambda: run.archive.writer.counts.retries[fault], f"{fault.value} is told")
            run.drain()
        finally:
            client.admin.command({"configureFailPoint": "failCommand", "mode": "off"})
        others = {f: n for f, n in run.archive.writer.counts.retries.items() if n and f is not fault}
        assert not others
    assert_stored(uri, database_name, run.truth)


def test_a_clock_that_is_set_back(archive_server, database_name, tmp_path):
    with rig(tmp_path, uri_of(archive_server), database_name) as run:
        run.sample(9)
        run.clock_s -= 43.211  # not onto earlier samples, so that the test can tell them apart
        run.sample(9)
        run.drain()
        counts = run.archive.writer.counts
        assert counts.duplicates == 0
    assert_stored(uri_of(archive_server), database_name, run.truth)


def test_a_clock_that_is_set_back_onto_earlier_samples(archive_server, database_name, tmp_path):
    with rig(tmp_path, uri_of(archive_server), database_name) as run:
        run.sample(6)
        run.clock_s = float(START_S)
        run.sample(6)
        run.drain()
    documents = raw_documents(uri_of(archive_server), database_name)
    assert sorted(document["count"] for document in documents) == [6] * 6
    assert len({document["start"] for document in documents}) == 3


def test_two_hosts_on_one_database(archive_server, database_name, tmp_path):
    uri = uri_of(archive_server)
    beta = Host(UUID(int=77), "beta")
    with rig(tmp_path / "a", uri, database_name) as one, \
            rig(tmp_path / "b", uri, database_name, host=beta, guests=Guests(2, seed=5)) as two:
        for _ in range(8):
            one.sample(1)
            two.sample(1)
        one.drain()
        two.drain()
    documents = raw_documents(uri, database_name)
    for run, host in ((one, HOST), (two, beta)):
        found, doubled = stored_of([d for d in documents if d["host"] == host.uuid])
        assert found == run.truth
        assert not doubled
    assert {d["host_name"] for d in documents} == {"alpha", "beta"}


def test_the_same_host_twice_is_refused(archive_server, database_name, tmp_path):
    uri = uri_of(archive_server)
    with rig(tmp_path, uri, database_name) as run:
        with pytest.raises(ArchiveBusyError, match=rf"in use by process {os.getpid()}: virtgauge runs already"):
            Archive(ArchiveSettings(uri=uri, database=database_name), tmp_path, lambda: HOST)
        run.sample(7)
        run.drain()
    assert_stored(uri, database_name, run.truth)
    with rig(tmp_path, uri, database_name):
        pass  # free again


def test_the_same_host_twice_with_two_state_folders_waits_for_its_turn(archive_server, database_name, tmp_path):
    uri = uri_of(archive_server)
    with rig(tmp_path / "first", uri, database_name) as first, \
            rig(tmp_path / "second", uri, database_name, guests=Guests(3, seed=8)) as second:
        first.sample(7)
        wait_until(lambda: first.archive.writer.counts.documents, "the first one writes")
        second.clock_s += 5
        second.sample(7)
        counts = second.archive.writer.counts
        wait_until(lambda: counts.fault is Fault.HOST_BUSY, "the second one is refused")
        for part in (f"host {HOST.name} ({HOST.uuid})", f"process {os.getpid()} on", f"state folder {tmp_path}/first",
                     "stop one of the two", "another archive.database"):
            assert part in counts.last_error
        first.sample(6)
        first.drain()
        assert not counts.documents
        assert_stored(uri, database_name, first.truth)
        second.clock_s += 10 * LEASE_S  # the first one renews no more
        second.drain()
        assert counts.fault is None
    assert_stored(uri, database_name, first.truth | second.truth)
    with rig(tmp_path / "second", uri, database_name, guests=second.guests) as again:  # its own lease, at once
        again.clock_s = second.clock_s
        again.sample(7)
        again.drain()
        assert not any(again.archive.writer.counts.retries.values())


def test_a_host_that_was_stopped_cleanly_is_free_at_once_for_another_state_folder(
        archive_server, database_name, tmp_path):
    uri, key = uri_of(archive_server), {"_id": f"writer of {HOST.uuid}"}
    with MongoClient(uri) as client:
        meta = client[database_name].meta
        with rig(tmp_path / "first", uri, database_name) as first:
            first.sample(7)
            first.drain()
            assert meta.find_one(key)["folder"] == f"{tmp_path}/first"
        assert meta.find_one(key) is None
        with rig(tmp_path / "second", uri, database_name, guests=first.guests) as second:
            second.clock_s, second.monotonic_s = first.clock_s, first.monotonic_s
            second.sample(7)
            second.drain()
            assert not any(second.archive.writer.counts.retries.values())
            first.archive.writer.stop(1)  # what holds nothing takes nothing from others
            assert meta.find_one(key)["folder"] == f"{tmp_path}/second"
    assert_stored(uri, database_name, first.truth | second.truth)


def test_a_schema_from_the_future_is_left_alone(archive_server, database_name, tmp_path):
    uri = uri_of(archive_server)
    with MongoClient(uri) as client:
        client[database_name].meta.insert_one({"_id": "schema", "version": 99})
        with rig(tmp_path, uri, database_name) as run:
            run.sample(7)
            wait_until(lambda: run.archive.writer.counts.fault is Fault.SCHEMA, "the refusal is told")
            assert "99" in run.archive.writer.counts.last_error
            assert client[database_name].list_collection_names() == ["meta"]
            client[database_name].meta.update_one({"_id": "schema"}, {"$set": {"version": 1}})
            run.drain()
    assert_stored(uri, database_name, run.truth)


def test_how_far_the_database_is_behind_is_known_after_a_restart_without_it(archive_server, database_name, tmp_path):
    def lag_s(run):
        return run.archive.own_record(0.0).stats.get("archive.lag")

    with rig(tmp_path, uri_of(archive_server), database_name) as run:
        assert lag_s(run) is None  # it has nothing yet
        run.sample(7)
        run.drain()
        newest_s = run.clock_s - 10
    dead = "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=200"
    with rig(tmp_path, dead, database_name, guests=run.guests) as again:
        again.clock_s = newest_s + 1000
        assert lag_s(again) == 1000


def test_samples_wait_until_libvirt_tells_the_host(archive_server, database_name, tmp_path):
    told = []
    run = Rig(tmp_path, uri_of(archive_server), database_name)
    run.archive._recorder._host = lambda: told[0] if told else None
    run.archive.start()
    try:
        dropped = run.archive.spool.counts.dropped_samples
        for number in range(5):
            batch = run.guests.batch(run.clock_s + number, run.monotonic_s + number)
            run.truth |= truth_of(batch)
            run.archive.record(batch)
        told.append(HOST)
        wait_until(lambda: run.archive.spool.counts.spooled_samples == 5 * 3, "they are spooled")
        assert not dropped.get("no_host")
        told.clear()
        for number in range(20, 40):
            run.archive.record(run.guests.batch(run.clock_s + number, run.monotonic_s + number))
            wait_until(lambda: run.archive._recorder._hostless, "the host is missed")
        wait_until(lambda: dropped.get("no_host"), "what has no room is told")
        told.append(HOST)
        counts = run.archive.spool.counts
        wait_until(lambda: counts.spooled_samples + sum(dropped.values()) == 25 * 3, "each is counted")
        run.drain()
    finally:
        run.archive.stop()
    found, doubled = stored_of(raw_documents(uri_of(archive_server), database_name))
    assert not doubled
    assert run.truth.items() <= found.items()
    assert len({key[:2] for key in found}) == run.archive.spool.counts.spooled_samples


def test_sampling_never_waits_for_the_archive(tmp_path):
    run = Rig(tmp_path, "mongodb://127.0.0.1:1/", "none")  # its threads are not even started
    try:
        for number in range(50):
            run.archive.record(run.guests.batch(START_S + number, float(number)))
        # Eight wait, one has three guests: each of the others is counted.
        assert run.archive.spool.counts.dropped_samples["late"] == (50 - 8) * 3
    finally:
        run.archive.stop()
