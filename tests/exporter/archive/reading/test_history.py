"""History against the truth: documents whose numbers are known by formula, read through a real server."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from pymongo import MongoClient
from pymongo.monitoring import CommandListener

from collectors import COLLECTORS
from exporter.archive.document_reader import Unsent
from exporter.archive.documents import Host
from exporter.archive.domain_lookup import all_domains, find_domain
from exporter.archive.field_points import columns_of
from exporter.archive.history import History, resolution_text
from exporter.archive.history_errors import HistoryError
from exporter.archive.history_fields import HistoryFields
from exporter.archive.timespan import Span
from exporter.errors import UsageError
from tests.exporter.archive.reading.archived import (
    HOURLY,
    Guest,
    raw_documents,
    rollup_documents,
    samples,
    store,
)

pytestmark = pytest.mark.live

FIELDS = HistoryFields(COLLECTORS)
# A whole hour of a whole day, long past.
T0 = int(datetime(2026, 11, 20, 0, 0, tzinfo=UTC).timestamp())
HOUR = 3600


def read(database, guest, name, start, end, **more):
    return History(database).read(guest.uuid, [FIELDS.named(name)], Span(start, end), **more)


def only(reading):
    (series,) = reading.series
    return series.points


def test_a_rate_from_raw_samples_is_the_formula_at_every_sample(database):
    guest = Guest("web1", busy=lambda t: 0.25 + (t % 300) / 300)
    rows = samples(guest, T0 - 120, T0 + HOUR)
    store(database, raw_documents(guest, rows))
    reading = read(database, guest, "cpu.usage_cores", T0, T0 + HOUR)
    points = only(reading)
    assert reading.step_s == 0
    assert [part.resolution for part in reading.parts] == ["raw"]
    assert points.times_s.tolist() == [t for t, *_ in rows if t >= T0]
    assert points.average == pytest.approx([guest.busy(t) for t in points.times_s])
    ratio = only(read(database, guest, "cpu.usage", T0, T0 + HOUR))
    assert ratio.average == pytest.approx(points.average / 2)


def test_devices_are_series_of_their_own_and_in_base_units(database):
    guest = Guest("web1")
    store(database, raw_documents(guest, samples(guest, T0, T0 + 300)))
    history = History(database)
    reading = history.read(guest.uuid, FIELDS.all_named(["vcpu.usage_ratio", "disk.write", "disk.writes",
                                                         "block.write_latency_seconds", "network.receive"]),
                           Span(T0, T0 + 300))
    found = {(s.field.name, s.device): s.points.known().average for s in reading.series}
    assert set(found) == {("vcpu.usage_ratio", "0"), ("vcpu.usage_ratio", "1"),
                          ("block.write_bytes_per_second", "vda"), ("block.writes_per_second", "vda"),
                          ("block.write_latency_seconds", "vda"), ("interface.receive_bytes_per_second", "vnet0")}
    assert found["vcpu.usage_ratio", "1"] == pytest.approx([0.25] * 19)
    assert found["block.write_bytes_per_second", "vda"] == pytest.approx([1000.0] * 19)
    # 1000 ns for each byte, 100 bytes a request.
    assert found["block.write_latency_seconds", "vda"] == pytest.approx([1e-4] * 19)
    assert found["interface.receive_bytes_per_second", "vnet0"] == pytest.approx([2000.0] * 19)


def test_a_value_that_is_fresh_once_a_minute_has_no_gaps_and_no_invented_points(database):
    guest = Guest("web1")
    store(database, raw_documents(guest, samples(guest, T0, T0 + 600)))
    points = only(read(database, guest, "memory.used", T0, T0 + 600))
    assert points.times_s.tolist() == [T0 + 60 * n for n in range(10)]
    assert points.average.tolist() == [0.75] * 10


def test_a_restart_and_a_decrease_cost_one_rate_and_never_give_a_wrong_one(database):
    guest = Guest("web1", restarts=(T0 + 150, T0 + 300))
    store(database, raw_documents(guest, samples(guest, T0, T0 + 600)))
    points = only(read(database, guest, "disk.write", T0, T0 + 600))
    unknown = points.times_s[np.isnan(points.average)].tolist()
    assert unknown == [T0 + 150, T0 + 300]
    assert points.known().average == pytest.approx(1000.0)


def test_a_restart_is_seen_where_the_device_counter_stands_higher_afterwards(database):
    guest = Guest("web1", busy=lambda t: 1.0 if t < T0 + 150 else 0.1, written=lambda t: 10, restarts=(T0 + 150,))
    rows = samples(guest, T0, T0 + 600)
    for t, _, devices in rows:
        if t >= T0 + 150:
            devices["disks"]["vda"]["write_bytes"] += 10**9
    store(database, raw_documents(guest, rows))
    points = only(read(database, guest, "disk.write", T0, T0 + 600))
    assert points.known().maximum.max() == pytest.approx(10.0)


def test_a_gap_stays_a_gap(database):
    guest = Guest("web1")
    rows = [row for row in samples(guest, T0, T0 + 1200) if not T0 + 300 <= row[0] < T0 + 600]
    store(database, raw_documents(guest, rows))
    raw = only(read(database, guest, "cpu.usage_cores", T0, T0 + 1200))
    assert np.isnan(raw.between(T0 + 300, T0 + 601).average).all()
    memory = only(read(database, guest, "memory.usage_bytes", T0, T0 + 1200))
    assert np.isnan(memory.average).sum() == 1
    binned = only(read(database, guest, "cpu.usage_cores", T0, T0 + 1200, step_s=60.0))
    assert binned.times_s[np.isnan(binned.average)].tolist() == [T0 + 60 * n for n in range(5, 10)]


def test_a_device_that_is_known_at_two_far_samples_has_a_gap_between_them(database):
    guest = Guest("web1")
    rows = samples(guest, T0, T0 + HOUR)
    for number, (_, _, devices) in enumerate(rows):
        if number not in (3, 200):
            devices["disks"]["vda"].update(dict.fromkeys(devices["disks"]["vda"]))
    store(database, raw_documents(guest, rows))
    for name in ("disk.write", "block.write_latency_seconds"):
        assert np.isnan(only(read(database, guest, name, T0, T0 + HOUR)).average).all()
    size = only(read(database, guest, "block.capacity_bytes", T0, T0 + HOUR))
    assert np.isnan(size.average).tolist() == [False, True, False]


def test_a_spike_of_one_sample_survives_at_every_resolution(database):
    spike = T0 + 20 * HOUR + 45 * 7
    guest = Guest("web1", busy=lambda t: 2.0 if t == spike else 0.1)
    rows = samples(guest, T0, T0 + 24 * HOUR, every_s=45)
    store(database, [*rollup_documents(guest, rows), *rollup_documents(guest, rows, HOURLY),
                     *raw_documents(guest, [row for row in rows if row[0] >= T0 + 20 * HOUR])])
    for step_s, resolution in ((None, "five_minutes"), (60.0, "raw"), (600.0, "five_minutes"), (7200.0, "hourly")):
        start = T0 if step_s != 60.0 else T0 + 20 * HOUR
        reading = read(database, guest, "cpu.usage_cores", start, T0 + 24 * HOUR, step_s=step_s)
        assert [part.resolution for part in reading.parts] == [resolution]
        points = only(reading).known()
        assert points.maximum.max() == pytest.approx(2.0)
        assert points.maximum[points.times_s < T0 + 20 * HOUR - 7200] == pytest.approx(0.1)
        assert points.average.max() < 1.0 or step_s == 60.0
        assert len(points) <= 1000


def test_rollups_give_the_same_means_as_the_samples(database):
    guest = Guest("web1", busy=lambda t: 0.2 + (t % 7200) / 7200, written=lambda t: t % 1000)
    rows = samples(guest, T0, T0 + 5 * HOUR)
    store(database, [*raw_documents(guest, rows), *rollup_documents(guest, rows)])
    for name in ("cpu.usage_cores", "cpu.usage", "memory.used", "disk.write", "block.write_latency_seconds"):
        exact = only(read(database, guest, name, T0 + HOUR, T0 + 5 * HOUR, step_s=60.0))
        coarse = only(read(database, guest, name, T0 + HOUR, T0 + 5 * HOUR, step_s=300.0))
        by_hand = np.nanmean(exact.average.reshape(-1, 5), axis=1)
        # A latency's mean is weighted by requests in the one and by time in the other.
        assert coarse.average == pytest.approx(by_hand, rel=0.03 if "latency" in name else 1e-3), name
        if "latency" not in name:
            assert coarse.maximum == pytest.approx(np.nanmax(exact.maximum.reshape(-1, 5), axis=1), rel=1e-3), name


def test_where_rollups_end_the_samples_go_on_and_the_unsealed_minute_is_the_end(database):
    guest = Guest("web1")
    rows = samples(guest, T0, T0 + 10 * HOUR + 180, every_s=60)
    documents = raw_documents(guest, rows)
    store(database, [*rollup_documents(guest, [row for row in rows if row[0] < T0 + 9 * HOUR]), *documents[:-1]])
    # What is not acknowledged yet begins in the middle of a window that is stored.
    live = raw_documents(guest, rows[-2:], window_s=600)
    history = History(database, unsealed=lambda uuid, *_: Unsent(live if uuid == guest.uuid else []))
    reading = history.read(guest.uuid, [FIELDS.named("cpu.usage_cores")], Span(T0, T0 + 10 * HOUR + 180))
    assert [(p.resolution, p.start_s, p.end_s) for p in reading.parts] == [
        ("five_minutes", T0, T0 + 9 * HOUR), ("raw", T0 + 9 * HOUR, T0 + 10 * HOUR + 180)]
    assert reading.unsealed
    assert resolution_text(reading) == ("five_minutes until 2026-11-20T09:00:00Z, then raw, unsealed minute included")
    points = only(reading)
    assert not np.isnan(points.average).any()
    assert points.times_s[-1] == T0 + 10 * HOUR
    assert points.count.sum() == len(rows)


def test_a_window_that_is_read_from_its_middle_on_by_another_clock_is_not_doubled(database):
    guest = Guest("web1")
    rows = samples(guest, T0, T0 + 600)
    store(database, raw_documents(guest, rows))
    live = raw_documents(guest, rows[-10:], window_s=600)
    for document in live:
        document["start"] += timedelta(milliseconds=37)
    reading = History(database, lambda *_: Unsent(live)).read(guest.uuid, [FIELDS.named("cpu.usage_cores")],
                                                              Span(T0, T0 + 600))
    assert len(only(reading)) == 39


@pytest.mark.parametrize("back_s", [300.1, 300.5, 299.9])
def test_unsent_samples_beside_stored_ones_are_shown_after_the_clock_was_set_back(database, back_s):
    guest = Guest("web1")
    rows = samples(guest, T0, T0 + 660, every_s=1)
    store(database, raw_documents(guest, rows[:600]))
    live = raw_documents(guest, rows[600:])
    for document in live:
        document["start"] -= timedelta(seconds=back_s)
        document["end"] -= timedelta(seconds=back_s)
    history = History(database, lambda *_: Unsent(live))
    for name in ("memory.used", "block.write_bytes_total", "disk.write"):
        fields = [FIELDS.named(name)]
        stored = only(History(database).read(guest.uuid, fields, Span(T0, T0 + 600))).known()
        found = only(history.read(guest.uuid, fields, Span(T0, T0 + 600))).known()
        new = np.setdiff1d(found.times_s.round(3), stored.times_s.round(3))
        wanted = [t - back_s for t, values, _ in rows[600:] if values["memory_usable_kib"] or name != "memory.used"]
        # Each window's first rate goes: the one before it is not the sample before.
        assert new == pytest.approx(wanted[1:] if name == "disk.write" else wanted, abs=0.001)


def test_unsent_samples_that_are_older_than_all_that_is_stored_are_shown(database):
    """The clock is set back over midnight on the archive's first day."""
    guest = Guest("web1")
    rows = samples(guest, T0 + 120, T0 + 1020)
    store(database, [*raw_documents(guest, rows[:40]), *rollup_documents(guest, rows[:20])])
    live = raw_documents(guest, rows[40:])
    for document in live:
        document["start"] -= timedelta(hours=1)
        document["end"] -= timedelta(hours=1)

    def unsealed(_, span, columns):
        return Unsent([document for document in live if span.start_s < document["end"].timestamp()
                       and document["start"].timestamp() < span.end_s])

    reading = History(database, unsealed).read(guest.uuid, [FIELDS.named("cpu.usage_cores")],
                                               Span(T0 - 2 * HOUR, T0 + HOUR))
    assert [(part.resolution, part.start_s) for part in reading.parts] == [("raw", T0 + 720 - HOUR)]
    points = only(reading)
    assert (points.times_s < T0).sum() == 19
    assert (points.times_s >= T0).sum() == 40
    assert points.known().average == pytest.approx(0.5)


def test_unsent_samples_that_are_left_out_are_spoken_of(database):
    guest = Guest("web1")
    rows = samples(guest, T0 + HOUR - 120, T0 + HOUR + 180, every_s=60)
    store(database, raw_documents(guest, rows[:1]))
    live = raw_documents(guest, rows[2:])
    history = History(database, unsealed=lambda *_: Unsent(live, T0 + HOUR))
    for since_s, told in ((T0, ", without what is unsent from before 2026-11-20T01:00:00Z"), (T0 + HOUR, "")):
        reading = history.read(guest.uuid, [FIELDS.named("cpu.usage_cores")], Span(since_s, T0 + HOUR + 180))
        assert resolution_text(reading) == "raw, unsealed minute included" + told


def test_what_is_sent_while_a_question_is_answered_is_not_missing(database):
    guest = Guest("web1")
    documents = raw_documents(guest, samples(guest, T0, T0 + 600, every_s=60))
    store(database, documents[:-4])

    def unsealed(*_):
        found = Unsent(documents[-4:])
        store(database, documents[-4:-2])  # the writer goes on meanwhile
        return found

    reading = History(database, unsealed).read(guest.uuid, [FIELDS.named("memory.used")], Span(T0, T0 + 600))
    assert len(only(reading)) == 10

    def sent(*_):
        store(database, documents[-2:])
        return Unsent()

    reading = History(database, sent).read(guest.uuid, [FIELDS.named("memory.used")], Span(T0, T0 + 600))
    assert len(only(reading)) == 10


def test_what_is_sent_into_a_partition_that_was_made_for_it_is_not_missing(database):
    guest = Guest("web1")
    documents = raw_documents(guest, samples(guest, T0 - 360, T0 + 240, every_s=60))
    store(database, documents[:6])  # up to midnight

    def sent(*_):
        store(database, documents[6:])
        return Unsent()

    reading = History(database, sent).read(guest.uuid, [FIELDS.named("memory.used")], Span(T0 - 360, T0 + 240))
    assert len(only(reading)) == 10


@pytest.mark.parametrize("days", [1, 30])
def test_an_archive_without_any_rollup_yet_is_read_from_its_samples(database, days):
    guest = Guest("web1", busy=lambda t: 0.5)
    store(database, raw_documents(guest, samples(guest, T0, T0 + 600)))
    reading = read(database, guest, "cpu.usage_cores", T0 + 600 - days * 24 * HOUR, T0 + 600)
    assert only(reading).known().average == pytest.approx(0.5)
    assert reading.parts[-1].resolution == "raw"


def test_what_raw_does_not_reach_comes_from_coarser_points(database):
    guest = Guest("web1")
    rows = samples(guest, T0, T0 + 48 * HOUR, every_s=60)
    second_day = [row for row in rows if row[0] >= T0 + 24 * HOUR]
    store(database, [*rollup_documents(guest, rows, HOURLY), *raw_documents(guest, second_day)])
    reading = read(database, guest, "cpu.usage_cores", T0 + 22 * HOUR, T0 + 26 * HOUR)
    assert [(p.resolution, p.start_s) for p in reading.parts] == [
        ("hourly", T0 + 22 * HOUR), ("raw", T0 + 24 * HOUR)]
    assert only(reading).known().average == pytest.approx(0.5)


def test_counters_go_on_through_every_resolution_without_a_step(database):
    guest = Guest("web1")
    rows = samples(guest, T0, T0 + 10 * HOUR, every_s=60)
    store(database, [*rollup_documents(guest, [row for row in rows if row[0] < T0 + 8 * HOUR]),
                     *raw_documents(guest, [row for row in rows if row[0] >= T0 + 8 * HOUR - 60])])
    points = only(read(database, guest, "block.write_bytes_total", T0, T0 + 10 * HOUR)).known()
    assert np.diff(points.average).min() >= 0
    assert points.average[-1] == rows[-1][2]["disks"]["vda"]["write_bytes"]


@pytest.mark.parametrize(("ahead_s", "back_s"), [(0, 293), (7, 298), (7, 20)])
def test_overlapping_documents_after_the_clock_was_set_back_give_no_absurd_rate(database, ahead_s, back_s):
    """In each minute the samples after it come last, or first: 7 s behind it the earlier ones, 2 s the later ones."""
    guest = Guest("web1")
    rows = samples(guest, T0, T0 + 1200)
    moved = [(t + ahead_s if t < T0 + 600 else t - back_s, values, devices) for t, values, devices in rows]
    store(database, [*raw_documents(guest, moved[:40]), *raw_documents(guest, moved[40:])])
    points = only(read(database, guest, "disk.write", T0, T0 + 1200))
    assert points.known().maximum.max() == pytest.approx(1000.0)
    assert points.known().minimum.min() == pytest.approx(1000.0)
    assert len(points.known()) >= 50  # within each document
    assert (np.diff(points.times_s) >= 0).all()


def test_every_query_that_is_sent_uses_an_index(database, archive_uri):
    guests = [Guest("web1"), Guest("web2")]
    for guest in guests:
        rows = samples(guest, T0, T0 + 2 * HOUR)
        store(database, [*raw_documents(guest, rows), *rollup_documents(guest, rows),
                         *rollup_documents(guest, rows, HOURLY)])
    sent = []

    class Listener(CommandListener):
        def started(self, event):
            if event.command_name in ("find", "aggregate", "count", "distinct"):
                sent.append(dict(event.command))

        def succeeded(self, event):
            pass

        def failed(self, event):
            pass

    with MongoClient(archive_uri, event_listeners=[Listener()]) as client:
        watched = client[database.name]
        find_domain(watched, "web1", Span(T0, T0 + HOUR))
        find_domain(watched, str(guests[0].uuid), Span(T0, T0 + HOUR))
        for length in (1800, 7 * HOUR, 15 * 24 * HOUR):
            read(watched, guests[0], "cpu.usage", T0 + 600, T0 + 600 + length)
    used = {command["find"] for command in sent}
    assert {"raw_20261120", "five_minutes_202611", "hourly_2026", "objects", "meta"} <= used
    for command in sent:
        query = {key: command[key] for key in ("find", "filter", "sort", "hint", "projection") if key in command}
        plan = database.command("explain", query, verbosity="executionStats")
        winning = str(plan["queryPlanner"]["winningPlan"])
        assert "IXSCAN" in winning or "IDHACK" in winning, (query, winning)
        statistics = plan["executionStats"]
        assert statistics["totalKeysExamined"] <= 1.1 * statistics["nReturned"] + 1, query


def test_a_database_of_a_newer_schema_is_refused(database):
    guest = Guest("web1")
    store(database, raw_documents(guest, samples(guest, T0, T0 + 120)))
    database["meta"].update_one({"_id": "schema"}, {"$set": {"version": 2}})
    with pytest.raises(HistoryError, match=r"schema version 2, this virtgauge knows 1"):
        read(database, guest, "cpu.usage", T0, T0 + 120)
    database["meta"].update_one({"_id": "schema"}, {"$set": {"version": 1}})
    database["raw_20261120"].update_one({}, {"$set": {"schema": 7}})
    with pytest.raises(HistoryError, match=r"raw_20261120 has schema version 7"):
        read(database, guest, "cpu.usage", T0, T0 + 120)


def test_an_empty_archive_and_a_span_without_data_give_nothing(database):
    guest = Guest("web1")
    assert read(database, guest, "cpu.usage", T0, T0 + 120).series == ()
    store(database, raw_documents(guest, samples(guest, T0, T0 + 120)))
    assert read(database, guest, "cpu.usage", T0 - 9 * HOUR, T0 - 8 * HOUR).series == ()


def test_a_step_that_gives_too_many_points_is_refused_with_one_that_does_not(database):
    with pytest.raises(UsageError, match=r"86400 points, more than 11000; take a step of 10s"):
        read(database, Guest("web1"), "cpu.usage", T0, T0 + 24 * HOUR, step_s=1.0)


def test_a_server_that_is_not_there_is_told_without_credentials():
    with MongoClient("mongodb://root:sesame@127.0.0.1:1/?serverSelectionTimeoutMS=200") as client:
        with pytest.raises(HistoryError, match=r"archive database 'x': not reachable .*127\.0\.0\.1:1") as caught:
            read(client["x"], Guest("web1"), "cpu.usage", T0, T0 + 120)
        assert "sesame" not in str(caught.value)


def test_domains_are_found_by_name_and_uuid_and_the_nearest_is_named(database):
    guest, twin = Guest("web1"), Guest("web1", host=Host(uuid.uuid4(), "beta"))
    twin.uuid = uuid.uuid4()
    span = Span(T0, T0 + 120)
    with pytest.raises(UsageError, match="holds no domain yet"):
        find_domain(database, "web1", span)
    store(database, raw_documents(guest, samples(guest, T0, T0 + 120)))
    found = find_domain(database, "web1", span)
    assert (found.uuid, found.host_name, found.first_seen_s) == (guest.uuid, "alpha", T0)
    assert find_domain(database, str(guest.uuid), span) == found
    store(database, raw_documents(twin, samples(twin, T0 + 9000, T0 + 9120)))
    # Only one of the two was there in the span.
    assert find_domain(database, "web1", span).uuid == guest.uuid
    with pytest.raises(UsageError, match=f"several domains are called 'web1' .*{twin.uuid} on beta.*--host"):
        find_domain(database, "web1", Span(T0, T0 + 9120))
    assert find_domain(database, "web1", Span(T0, T0 + 9120), host="beta").uuid == twin.uuid
    with pytest.raises(UsageError, match="no domain 'wbe1'; the nearest is web1"):
        find_domain(database, "wbe1", span)
    with pytest.raises(UsageError, match="no host 'bet'; the nearest is beta"):
        find_domain(database, "web1", span, host="bet")
    assert [d.host_name for d in all_domains(database)] == ["alpha", "beta"]


def test_every_field_of_the_page_that_is_archived_can_be_asked_for():
    for field in FIELDS:
        assert FIELDS.named(field.metric) is field
        assert columns_of(field)


def test_an_unknown_field_names_the_nearest():
    with pytest.raises(UsageError, match=r"unknown history field 'cpu.usag'; the nearest is cpu\.usage"):
        FIELDS.named("cpu.usag")
