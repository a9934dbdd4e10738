"""Roll-ups against figures worked out from the samples by hand-written loops; retention by names and on the server."""

from __future__ import annotations

import math
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from uuid import UUID

import pytest
from pymongo import MongoClient
from pymongo.monitoring import CommandListener

from exporter.archive import rollups
from exporter.archive.documents import FIVE_MINUTES, HOURLY, RAW, Host, Object, Window, moment, window_origin
from exporter.archive.partitions import prepare_partition
from exporter.archive.retention import drop_expired, expired
from exporter.archive.rollups import DAY_MS, HOUR_MS, roll_up_day, roll_up_hour
from exporter.archive.upkeep import Upkeep
from exporter.config import ArchiveRetentionSettings
from tests.exporter.archive.archive_rig import HOST, rig
from tests.exporter.archive.archive_samples import uuid_of

pytestmark = pytest.mark.live
HOUR = 1_790_002_800_000 // HOUR_MS * HOUR_MS
WEB = Object(HOST, "domain", UUID(int=5), "web")


@pytest.fixture
def database(archive_server, database_name):
    with MongoClient(archive_server.uri(120), tz_aware=True, uuidRepresentation="standard") as client:
        yield client[database_name]


@contextmanager
def overheard(archive_server, database, hear):
    """The database over a connection of its own, of which `hear` is told each command that starts."""
    class Listener(CommandListener):
        def started(self, event):
            hear(event)

        def succeeded(self, event):
            pass

        def failed(self, event):
            pass

    with MongoClient(archive_server.uri(120), tz_aware=True, uuidRepresentation="standard",
                     event_listeners=[Listener()]) as client:
        yield client[database.name]


def store(database, windows):
    for number, window in enumerate(windows):
        name = RAW.collection(moment(window.start_ms))
        prepare_partition(database, name, False)
        database[name].insert_one(window.document(window_origin(b"test", number)))
    about = {"kind": "domain", "uuid": UUID(int=5), "host": HOST.uuid}
    times = [moment(window.start_ms) for window in windows]
    database.objects.update_one({"_id": b"web"}, {"$set": about, "$min": {"first_seen": min(times)},
                                                  "$max": {"last_seen": max(times)}}, upsert=True)


def minute(start_ms, values, disks=None, step_ms=15_000, count=4):
    return Window(WEB, start_ms, [step_ms * n for n in range(count)], values, {"disks": disks} if disks else {})


def only(database, resolution):
    (document,) = database[resolution.collection(moment(HOUR))].find()
    return document


def close(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        assert one is None or math.isclose(one, other, rel_tol=1e-9), (found, expected)


def test_points_are_what_the_samples_say(database):
    windows, gauge, counter = [], [], []
    for number in range(-1, 60):
        rss = [1000 + 10 * number + n for n in range(4)]
        cpu = [10**9 * (number + 1) + 10**7 * n * n for n in range(4)]
        windows.append(minute(HOUR + 60_000 * number, {"memory_rss_kib": rss, "cpu_time_ns": cpu}))
        gauge += [(HOUR + 60_000 * number + 15_000 * n, value) for n, value in enumerate(rss)]
        counter += [(HOUR + 60_000 * number + 15_000 * n, value) for n, value in enumerate(cpu)]
    store(database, windows)
    assert roll_up_hour(database, HOST.uuid, HOUR) == 1
    document = only(database, FIVE_MINUTES)
    assert document["offsets_ms"] == [300_000 * n for n in range(12)]
    assert document["samples"] == [20] * 12
    rates = [(t2, (v2 - v1) / (t2 - t1) * 1000) for (t1, v1), (t2, v2) in pairwise(counter)]
    for bin_ in range(12):
        begin, end = HOUR + bin_ * 300_000, HOUR + (bin_ + 1) * 300_000
        inside = [value for time, value in gauge if begin <= time < end]
        rss = document["values"]["memory_rss_kib"]
        assert (rss["min"][bin_], rss["max"][bin_]) == (min(inside), max(inside))
        assert math.isclose(rss["avg"][bin_], sum(inside) / len(inside))
        cpu = document["values"]["cpu_time_ns"]
        of_bin = [rate for time, rate in rates if begin <= time < end]
        close([cpu["min"][bin_], cpu["max"][bin_]], [min(of_bin), max(of_bin)])
        assert math.isclose(cpu["avg"][bin_], sum(of_bin) / len(of_bin))
    every = [value for time, value in counter if time >= HOUR - 15_000]
    assert sum(document["values"]["cpu_time_ns"]["increase"]) == every[-1] - every[0]
    assert "increase" not in document["values"]["memory_rss_kib"]


def test_a_reset_counts_for_nothing_and_a_gap_for_no_rate(database):
    disks = [{"vda": {"read_bytes": [1000, 2000, 50, 150], "write_bytes": [5, 5, 9000, 9100]}},
             {"vda": {"read_bytes": [250, 350, 450, 550], "write_bytes": [9200, 9300, 9400, 9500]}}]
    store(database, [minute(HOUR, {}, disks[0]), minute(HOUR + 600_000, {}, disks[1])])
    roll_up_hour(database, HOST.uuid, HOUR)
    document = only(database, FIVE_MINUTES)
    assert document["offsets_ms"] == [0, 600_000]
    (vda,) = document["disks"]
    assert vda["read_bytes"]["increase"] == [1100, 300]  # the fall itself says nothing, nor do ten minutes of gap
    assert vda["write_bytes"]["increase"] == [100, 300]  # what stands beside it on the device began anew as well
    close(vda["read_bytes"]["max"], [1000 / 15, 100 / 15])


@pytest.mark.parametrize(("ahead_ms", "back_ms"), [(0, 293_000), (7_000, 298_000), (7_000, 20_000), (0, 1_200_000)])
def test_a_clock_that_was_set_back_gives_no_absurd_rate(database, ahead_ms, back_ms):
    """Half an hour; from its middle on the same minutes come again, with counters that went on."""
    windows = []
    for number in range(60):
        start_ms = HOUR + 30_000 * number + (ahead_ms if number < 30 else -back_ms)
        cpu = [10**9 * (30 * number + 10 * n) for n in range(3)]
        windows.append(minute(start_ms, {"cpu_time_ns": cpu}, step_ms=10_000, count=3))
    store(database, windows)
    roll_up_hour(database, HOST.uuid, HOUR)
    cpu = only(database, FIVE_MINUTES)["values"]["cpu_time_ns"]
    close(cpu["max"], [1e9] * len(cpu["max"]))
    close(cpu["min"], [1e9] * len(cpu["min"]))
    assert 0.3 * 1800e9 < sum(cpu["increase"]) <= 1800e9


def test_a_pause_within_a_window_costs_no_rate(database):
    """Two documents of one window, whose samples alternate."""
    running = Window(WEB, HOUR, [0, 10_000, 30_000], {"cpu_time_ns": [0, 10**10, 3 * 10**10]}, {})
    paused = Window(WEB, HOUR + 20_000, [0], {"cpu_time_ns": [2 * 10**10]}, {})
    for window in (running, paused):
        name = RAW.collection(moment(HOUR))
        prepare_partition(database, name, False)
        database[name].insert_one(window.document(window_origin(b"test", 1)))
    database.objects.insert_one({"_id": b"web", "kind": "domain", "uuid": UUID(int=5), "host": HOST.uuid,
                                 "first_seen": moment(HOUR), "last_seen": moment(HOUR)})
    roll_up_hour(database, HOST.uuid, HOUR)
    cpu = only(database, FIVE_MINUTES)["values"]["cpu_time_ns"]
    assert (cpu["increase"], cpu["max"]) == ([3 * 10**10], [10**9])


def test_a_restart_is_told_by_the_process_too_where_every_counter_stands_higher_afterwards(database):
    first = {"cpu_time_ns": [10**9 * n for n in range(4)], "started_s": [1000.1, 1000.1, 1000.2, 1000.1]}
    second = {"cpu_time_ns": [10**9 * (4 + n) for n in range(4)], "started_s": [1058.0] * 4}
    store(database, [minute(HOUR, first, {"vda": {"read_bytes": [0, 10, 20, 30]}}),
                     minute(HOUR + 60_000, second, {"vda": {"read_bytes": [10**9 + 10 * n for n in range(4)]}})])
    roll_up_hour(database, HOST.uuid, HOUR)
    document = only(database, FIVE_MINUTES)
    assert document["values"]["cpu_time_ns"]["increase"] == [6 * 10**9]
    assert document["disks"][0]["read_bytes"]["increase"] == [60]


def test_a_counter_that_is_fresh_once_a_minute_has_its_rate(database):
    """The monitor is asked for the balloon's once a minute."""
    store(database, [minute(HOUR + 60_000 * n, {"cpu_time_ns": [10**9 * (4 * n + k) for k in range(4)],
                                                "memory_major_fault": [600 * n, None, None, None]})
                     for n in range(-1, 10)])
    roll_up_hour(database, HOST.uuid, HOUR)
    faults = only(database, FIVE_MINUTES)["values"]["memory_major_fault"]
    assert faults == {"min": [10, 10], "max": [10, 10], "avg": [10, 10], "increase": [3000, 3000]}


def test_a_counter_that_is_known_at_two_far_samples_of_an_hour_has_no_rate_across_them(database):
    """What is read more rarely than once a minute was away meanwhile: its own usual interval says nothing."""
    read_bytes = [1000 * n if n in (3, 200) else None for n in range(240)]
    store(database, [minute(HOUR + 60_000 * n, {"cpu_time_ns": [10**9 * (4 * n + k) for k in range(4)]},
                            {"vda": {"read_bytes": read_bytes[4 * n:4 * n + 4]}}) for n in range(60)])
    roll_up_hour(database, HOST.uuid, HOUR)
    document = only(database, FIVE_MINUTES)
    assert "disks" not in document
    assert sum(document["values"]["cpu_time_ns"]["increase"]) == 239 * 10**9


@pytest.mark.parametrize("step_ms", [600_000, 120_000])
def test_samples_that_are_rarer_than_a_minute_have_their_rates(database, step_ms):
    store(database, [Window(WEB, HOUR + step_ms * n, [0], {"cpu_time_ns": [n * step_ms * 1000]}, {})
                     for n in range(HOUR_MS // step_ms)])
    roll_up_hour(database, HOST.uuid, HOUR)
    cpu = only(database, FIVE_MINUTES)["values"]["cpu_time_ns"]
    assert {rate for rate in cpu["max"] if rate is not None} == {10**6}


def test_counters_that_lack_the_same_samples_are_reckoned_at_once(database, monkeypatch):
    """One answer that is missing must not cost every column of the guest a round of its own."""
    reckoned, real = [], rollups._steps

    def steps(values, *rest):
        reckoned.append(len(values))
        return real(values, *rest)

    monkeypatch.setattr(rollups, "_steps", steps)
    disks = {f"vd{letter}": {"read_bytes": [0, 150, None, 450], "write_bytes": [0, 15, 30, 45]}
             for letter in "abcdefgh"}
    store(database, [minute(HOUR, {"memory_rss_kib": [1, None, 1, 1]}, disks)])
    roll_up_hour(database, HOST.uuid, HOUR)
    assert reckoned == [8, 8]
    for disk in only(database, FIVE_MINUTES)["disks"]:
        assert disk["read_bytes"] == {"min": [10], "max": [10], "avg": [10], "increase": [450]}
        assert disk["write_bytes"] == {"min": [1], "max": [1], "avg": [1], "increase": [45]}


def test_unknown_stays_unknown(database):
    unknown = [None, None, None, None]
    store(database, [minute(HOUR, {"memory_rss_kib": unknown, "memory_usable_kib": [None, 5, 7, None]}),
                     minute(HOUR + 300_000, {"memory_rss_kib": [1, 1, 1, 1]})])
    roll_up_hour(database, HOST.uuid, HOUR)
    values = only(database, FIVE_MINUTES)["values"]
    assert values["memory_rss_kib"]["avg"] == [None, 1]
    assert values["memory_usable_kib"] == {"min": [5, None], "max": [7, None], "avg": [6, None]}


def test_doing_it_again_changes_nothing_and_late_samples_are_taken_up(database):
    store(database, [minute(HOUR, {"memory_rss_kib": [1, 2, 3, 4]})])
    roll_up_hour(database, HOST.uuid, HOUR)
    first = only(database, FIVE_MINUTES)
    roll_up_hour(database, HOST.uuid, HOUR)
    assert only(database, FIVE_MINUTES) == first
    store(database, [minute(HOUR + 60_000, {"memory_rss_kib": [9, 9, 9, 9]})])
    roll_up_hour(database, HOST.uuid, HOUR)
    again = only(database, FIVE_MINUTES)
    assert again["_id"] == first["_id"]
    assert again["values"]["memory_rss_kib"]["max"] == [9]
    assert again["samples"] == [8]


def test_a_day_is_made_of_its_hours(database):
    day = HOUR // DAY_MS * DAY_MS
    for hour in (3, 4):
        at = day + hour * HOUR_MS
        store(database, [minute(at, {"memory_rss_kib": [hour, hour, hour, 10 * hour], "cpu_time_ns": [0, 15, 30, 45]}),
                         minute(at + 600_000, {"memory_rss_kib": [1, 1, 1, 1]})])
        assert roll_up_hour(database, HOST.uuid, at) == 1
    assert roll_up_day(database, HOST.uuid, day) == 1
    (document,) = database[HOURLY.collection(moment(day))].find()
    assert document["offsets_ms"] == [3 * HOUR_MS, 4 * HOUR_MS]
    assert document["samples"] == [8, 8]
    rss = document["values"]["memory_rss_kib"]
    assert (rss["min"], rss["max"]) == ([1, 1], [30, 40])
    close(rss["avg"], [(3 * 3 + 30 + 4) / 8, (4 * 3 + 40 + 4) / 8])
    assert document["values"]["cpu_time_ns"]["increase"] == [45, 45]


def test_guests_that_were_not_there_are_not_asked_for(archive_server, database):
    """With hundreds of short-lived guests a day, an hour's roll-up would otherwise ask for all there ever were."""
    store(database, [minute(HOUR, {"memory_rss_kib": [1, 2, 3, 4]})])
    for number, hours in enumerate((-3, -1, 1, 3)):  # last seen is noted once an hour, so -1 may have been there
        seen = moment(HOUR + HOUR_MS // 2 + hours * HOUR_MS)
        database.objects.insert_one({"kind": "domain", "uuid": UUID(int=50 + number), "host": HOST.uuid,
                                     "first_seen": seen, "last_seen": seen})
    asked = []

    def hear(event):
        if event.command.get("find", "").startswith("raw_"):
            asked.append(event.command["filter"]["uuid"])

    with overheard(archive_server, database, hear) as asking:
        assert roll_up_hour(asking, HOST.uuid, HOUR) == 1
    assert {UUID(bytes=bytes(uuid.bytes)) for uuid in asked} == {UUID(int=5), UUID(int=51)}


def test_every_read_of_a_roll_up_takes_its_own_documents_from_the_index(archive_server, database):
    """An object's hour may not cost a walk through everyone's: 2,000 guests would never be done."""
    store(database, [minute(HOUR + 60_000 * n, {"cpu_time_ns": [n, n, n, n]}) for n in range(20)])
    for other in range(6, 26):
        guest = Object(HOST, "domain", UUID(int=other), f"other{other}")
        windows = [Window(guest, HOUR + 60_000 * n, [0], {"memory_rss_kib": [n]}) for n in range(5)]
        database[RAW.collection(moment(HOUR))].insert_many(
            [window.document(window_origin(b"test", other)) for window in windows])
    sent = []

    def hear(event):
        if event.command_name == "find":
            sent.append(dict(event.command))

    with overheard(archive_server, database, hear) as asking:
        assert roll_up_hour(asking, HOST.uuid, HOUR) == 1
        assert roll_up_day(asking, HOST.uuid, HOUR // DAY_MS * DAY_MS) == 1
    read = [command for command in sent if command["find"].startswith(("raw_", "five_minutes_"))]
    assert len(read) == 2
    for command in read:
        query = {key: command[key] for key in ("find", "filter", "hint") if key in command}
        plan = database.command("explain", query, verbosity="executionStats", codec_options=database.codec_options)
        assert "IXSCAN" in str(plan["queryPlanner"]["winningPlan"])
        statistics = plan["executionStats"]
        assert statistics["nReturned"] in (1, 20)
        assert statistics["totalKeysExamined"] <= statistics["nReturned"] + 1, query


def test_a_partition_is_made_once_for_all_guests_of_an_hour_or_day(archive_server, database):
    """Asking for it anew took longer than all else that a guest's hour costs."""
    at = HOUR // DAY_MS * DAY_MS
    for number in range(4):
        guest = Object(HOST, "domain", UUID(int=30 + number), f"guest{number}")
        store(database, [Window(guest, at, [0], {"memory_rss_kib": [number]})])
        about = {"kind": "domain", "uuid": UUID(int=30 + number), "host": HOST.uuid, "first_seen": moment(at),
                 "last_seen": moment(at)}
        database.objects.insert_one(about)
    made = []

    def hear(event):
        if event.command_name in ("create", "createIndexes"):
            made.append((event.command_name, event.command[event.command_name]))

    with overheard(archive_server, database, hear) as asking:
        assert roll_up_hour(asking, HOST.uuid, at) == 4
        assert roll_up_day(asking, HOST.uuid, at) == 4
    names = [FIVE_MINUTES.collection(moment(at)), HOURLY.collection(moment(at))]
    assert made == [(word, name) for name in names for word in ("create", "createIndexes")]


@pytest.mark.parametrize(("elsewhere", "words"), [(True, {"_id", "uuid", "start"}), (False, {"_id"})])
def test_a_roll_up_is_stored_by_the_shard_key_where_the_server_may_be_a_cluster(archive_server, database, elsewhere,
                                                                                words):
    store(database, [minute(HOUR, {"memory_rss_kib": [1, 2, 3, 4]})])
    asked = []

    def hear(event):
        if event.command_name == "update":
            asked.extend(set(update["q"]) for update in event.command["updates"])

    with overheard(archive_server, database, hear) as asking:
        for _ in range(2):
            roll_up_hour(asking, HOST.uuid, HOUR, elsewhere)
    assert asked == [words, words]
    assert only(database, FIVE_MINUTES)["values"]["memory_rss_kib"]["max"] == [4]


def test_another_host_with_the_same_guest_is_left_out(database):
    other = Object(Host(UUID(int=9), "beta"), "domain", UUID(int=5), "web")
    store(database, [minute(HOUR, {"memory_rss_kib": [1, 2, 3, 4]}),
                     Window(other, HOUR, [0], {"memory_rss_kib": [1_000_000]})])
    roll_up_hour(database, HOST.uuid, HOUR)
    assert only(database, FIVE_MINUTES)["values"]["memory_rss_kib"]["max"] == [4]


def test_upkeep_rolls_up_each_hour_once_it_is_over(archive_server, database, tmp_path):
    with rig(tmp_path, archive_server.uri(120), database.name) as run:
        run.sample(20, step_s=240.0)  # over an hour of guests
        run.drain()
        upkeep = Upkeep(run.archive.writer, run.archive._address, ArchiveRetentionSettings(), lambda: HOST,
                        lambda: run.clock_s)
        hours, _ = run.archive.writer.pending()
        assert len(hours) >= 2
        upkeep.roll_up(database, HOST)
        left, days = run.archive.writer.pending()
        assert len(left) < len(hours)
        run.clock_s += 2 * 86400
        upkeep.roll_up(database, HOST)
        assert run.archive.writer.pending() == ({}, [])
        assert days
    names = [name for name in database.list_collection_names() if name.startswith(("five_minutes", "hourly"))]
    assert len(names) >= 2
    hourly = next(name for name in names if name.startswith("hourly"))
    assert {str(d["uuid"]) for d in database[hourly].find()} == {uuid_of(n) for n in range(3)}


NAMES = ["raw_20261101", "raw_20261110", "raw_20261114", "raw_20261121", "raw_2026111407", "five_minutes_202601",
         "five_minutes_202611", "hourly_2023", "hourly_2026", "objects", "meta", "users", "raw_notes"]


def test_what_is_past_its_retention_goes_oldest_first():
    now = datetime(2026, 11, 22, 12, tzinfo=UTC)
    found = expired(NAMES, ArchiveRetentionSettings(), now)
    assert set(found) == {"raw_20261101", "raw_20261110", "raw_20261114", "raw_2026111407", "five_minutes_202601",
                          "hourly_2023"}
    assert found.index("raw_20261101") < found.index("raw_20261110") < found.index("raw_20261114")
    assert expired(NAMES, ArchiveRetentionSettings(raw=365 * 86400.0), now) == ["hourly_2023", "five_minutes_202601"]


def test_a_clock_far_ahead_leaves_the_newest():
    found = expired(NAMES, ArchiveRetentionSettings(), datetime(2099, 1, 1, tzinfo=UTC))
    assert not {"raw_20261121", "five_minutes_202611", "hourly_2026"} & set(found)


def test_partitions_are_dropped_on_the_server(database):
    for name in ("raw_20200101", "raw_20200102", "raw_20200301", "objects"):
        database[name].insert_one({"x": 1})
    assert list(drop_expired(database, ArchiveRetentionSettings())) == ["raw_20200101", "raw_20200102"]
    assert set(database.list_collection_names()) == {"raw_20200301", "objects"}
