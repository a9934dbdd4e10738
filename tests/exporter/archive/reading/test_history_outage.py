"""History while the database takes nothing for long: what was asked for is read from the spool, or said to be left out.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from uuid import UUID

import pytest
from pymongo import MongoClient

from collectors import COLLECTORS
from exporter.archive.documents import RAW, VALUES, Column, moment
from exporter.archive.history import History, resolution_text
from exporter.archive.history_fields import HistoryFields
from exporter.archive.remote_answers import RemoteAnswers, _Budget
from exporter.archive.spool import Spool
from exporter.archive.spool_frames import SEAL
from exporter.archive.ticks import wall_ms_of
from exporter.archive.timespan import Span
from exporter.archive.unsent import unsent
from exporter.remote_read import Matcher, MatchType, Query
from tests.exporter.archive.archive_rig import START_S, CuttingProxy, Rig, rig, uri_of, wait_until
from tests.exporter.archive.archive_samples import stored_of, uuid_of

pytestmark = pytest.mark.live
COLUMNS = [Column(VALUES, "cpu_time_ns", True, 1e-9, ""), Column("disks", "read_bytes", True, 1.0, "")]
TICKS = 200
WEB = UUID(uuid_of(1))


@pytest.fixture(scope="module")
def outage(archive_server, tmp_path_factory):
    """Half an hour of samples in several segments of a spool of which nothing is sent."""
    run = Rig(tmp_path_factory.mktemp("outage"), uri_of(archive_server), "outage")
    run.archive.spool._segment_bytes = 40_000
    run.archive._recorder.start()
    run.sample(TICKS)
    assert len(run.archive.spool._segments) > 2
    yield run
    run.archive._recorder.stop(5)
    run.archive.spool.close()


def of(truth, begin_s, end_s):
    wanted = {(group, column) for group, column in ((VALUES, "cpu_time_ns"), ("disks", "read_bytes"))}
    return {key: value for key, value in truth.items() if key[0] == str(WEB) and begin_s * 1000 <= key[1] < end_s * 1000
            and (key[2], key[4]) in wanted}


@pytest.mark.parametrize(("begin_s", "end_s"), [(-9999, 9999), (700, 1200), (1500, 9999), (-50, -10)])
def test_every_sample_of_the_span_is_found_in_the_spool_and_no_other(outage, begin_s, end_s):
    span = Span(START_S + begin_s, START_S + end_s)
    found = outage.archive.unsealed(WEB, span, COLUMNS)
    assert stored_of(found.documents) == (of(outage.truth, span.start_s, span.end_s), 0)
    assert found.left_out_before_s == 0
    starts = [document["start"] for document in found.documents]
    assert starts == sorted(starts)


def test_history_goes_on_over_the_whole_outage(archive_server, outage):
    span = Span(START_S - 60.0, outage.clock_s)
    fields = [HistoryFields(COLLECTORS).named(name) for name in ("cpu.usage_cores", "memory.used")]
    with MongoClient(uri_of(archive_server), tz_aware=True, uuidRepresentation="standard") as client:
        client["outage"].create_collection(RAW.collection(moment(START_S * 1000)))
        reading = History(client["outage"], outage.archive.unsealed).read(WEB, fields, span)
    assert [len(series.points) for series in reading.series] == [TICKS - 1, TICKS]
    assert resolution_text(reading) == "raw, unsealed minute included"


def test_history_of_a_fresh_database_is_the_whole_outage_too(archive_server, outage, database_name):
    """Nothing is stored yet, no partition made; the outage is months ago by the real clock."""
    span = Span(START_S - 60.0, outage.clock_s)
    with MongoClient(uri_of(archive_server), tz_aware=True, uuidRepresentation="standard") as client:
        history = History(client[database_name], outage.archive.unsealed)
        for step_s, points in ((None, TICKS), (300.0, 8)):
            reading = history.read(WEB, [HistoryFields(COLLECTORS).named("memory.used")], span, step_s)
            assert [len(series.points.known()) for series in reading.series] == [points]


def asked(run, client, name, begin_s, end_s):
    """Times of the remote-read samples of the first guest."""
    query = Query(int(begin_s * 1000), int(end_s * 1000), (
        Matcher(MatchType.EQUAL, "__name__", "libvirt_domain_cpu_usage_cores"),
        Matcher(MatchType.EQUAL, "domain", "guest1")))
    answers = RemoteAnswers(client[name], HistoryFields(COLLECTORS), run.archive.unsealed,
                            waiting_since_s=run.archive.waiting_since_s())
    return [series.times_ms.tolist() for (found,) in [answers.answer([query], {})] for series in found]


def test_remote_read_has_guests_that_the_database_last_heard_of_hours_before_the_span(
        archive_server, database_name, tmp_path):
    proxy = CuttingProxy(uri_of(archive_server))
    with rig(tmp_path, proxy.uri, database_name) as run, \
            MongoClient(uri_of(archive_server), tz_aware=True, uuidRepresentation="standard") as client:
        run.sample(6)
        run.archive._recorder._seal()
        wait_until(run.archive.writer.drained, "the first minute is stored")
        wait_until(lambda: run.archive.waiting_since_s() == float("inf"), "nothing waits")
        proxy.close()
        begun_s = run.clock_s
        run.sample(150, step_s=60.0)
        wait_until(lambda: run.archive.waiting_since_s() == begun_s, "the oldest that waits is known")
        times = asked(run, client, database_name, begun_s + 7200, begun_s + 9000)
        assert [len(found) for found in times] == [30]
        assert asked(run, client, database_name, START_S - 7200, START_S - 3600) == []


def test_what_would_take_too_much_is_left_out_oldest_first_and_said(outage):
    span = Span(START_S, outage.clock_s)
    few = unsent(outage.archive.spool, WEB, span, COLUMNS, most_values=500)
    assert START_S < few.left_out_before_s < outage.clock_s
    assert stored_of(few.documents) == (of(outage.truth, few.left_out_before_s, span.end_s), 0)
    assert 0 < sum(document["count"] for document in few.documents) <= 500 / 2
    none = unsent(outage.archive.spool, WEB, span, COLUMNS, most_s=-1)
    assert (none.documents, none.left_out_before_s) == ((), span.end_s)


def test_remote_read_goes_on_with_the_newest_minutes_once_the_spool_took_long(outage):
    budget = _Budget(spool_s=1e-9)
    span = Span(START_S, outage.clock_s)
    for begin_s in (START_S, outage.clock_s - 600, outage.clock_s - 600):  # of three guests
        found = budget.within(outage.archive.unsealed)(WEB, span, COLUMNS)
        assert stored_of(found.documents) == (of(outage.truth, begin_s, span.end_s), 0)


def counting(spool, monkeypatch):
    """How many frames are read of each segment that is read, newest first; clear it before each question."""
    read, real = [], spool.newest_first

    def each(frames):
        read.append(0)
        for frame in frames:
            read[-1] += 1
            yield frame

    monkeypatch.setattr(spool, "newest_first",
                        lambda after: [replace(one, frames=each(one.frames)) for one in real(after)])
    return read


def test_segments_outside_the_span_cost_nothing(outage, monkeypatch):
    segments = [[wall_ms_of(frame) for frame in one.frames] for one in outage.archive.spool.newest_first(0)]
    end_s = START_S + 700.0
    read = counting(outage.archive.spool, monkeypatch)
    budget = _Budget(spool_s=1e-9)
    for begin_s in (START_S, end_s - 600):  # of two guests
        read.clear()
        found = budget.within(outage.archive.unsealed)(WEB, Span(START_S, end_s), COLUMNS)
        assert stored_of(found.documents) == (of(outage.truth, begin_s, end_s), 0)
        assert found.left_out_before_s == 0
        inside = [len(times) for times in segments if times[0] < end_s * 1000 and times[-1] >= begin_s * 1000]
        assert read == inside
        assert len(inside) < len(segments) - 1


def test_the_times_of_segments_are_known_again_after_a_start(outage, tmp_path):
    copy = tmp_path / "spool"
    shutil.copytree(outage.archive.spool.folder, copy)
    again = Spool(copy, wall_ms_of=wall_ms_of)
    times = [(one.oldest_ms, one.newest_ms) for one in again.newest_first(0)]
    assert times == [(one.oldest_ms, one.newest_ms) for one in outage.archive.spool.newest_first(0)]
    assert len(times) > 2
    again.close()


def test_a_seal_at_the_begin_of_a_segment_hides_neither_its_time_nor_its_samples(outage, tmp_path, monkeypatch):
    spool = Spool(tmp_path, wall_ms_of=wall_ms_of)
    *older, newest = outage.archive.spool.frames(0)
    spool.append(SEAL, b"", 0)
    for frame in older:
        spool.append(frame.kind, frame.payload, frame.samples)
    spool._segment_bytes = 1
    spool.append(newest.kind, newest.payload, newest.samples)
    spool.sync()
    read = counting(spool, monkeypatch)
    for span, counts in ((Span(START_S - 99, START_S), []), (Span(START_S, outage.clock_s), [1, TICKS])):
        read.clear()
        found = unsent(spool, WEB, span, COLUMNS)
        assert stored_of(found.documents) == (of(outage.truth, span.start_s, span.end_s), 0)
        assert read == counts
    spool.close()


@pytest.fixture
def set_back(archive_server, tmp_path):
    """Ten minutes of samples in many segments, then the clock was set back by 45 minutes: twenty more."""
    run = Rig(tmp_path, uri_of(archive_server), "set_back")
    run.archive.spool._segment_bytes = 10_000
    run.archive._recorder.start()
    run.clock_s += 4000
    run.sample(60)
    run.clock_s -= 3300 + 0.5
    run.sample(120)
    assert len(run.archive.spool._segments) > 5
    yield run
    run.archive._recorder.stop(5)
    run.archive.spool.close()


@pytest.mark.parametrize(("begin_s", "end_s"), [(4000, 4600), (1300, 2499), (1400, 2300), (0, 9999), (2500, 3999)])
def test_after_a_clock_that_was_set_back_every_segment_of_the_span_is_read(set_back, begin_s, end_s):
    span = Span(START_S + begin_s, START_S + end_s)
    found = set_back.archive.unsealed(WEB, span, COLUMNS)
    assert stored_of(found.documents) == (of(set_back.truth, span.start_s, span.end_s), 0)


@pytest.mark.parametrize("back_s", [95.0, 90.1])
def test_samples_earlier_than_stored_ones_are_shown_before_they_are_sent(archive_server, database_name, tmp_path,
                                                                         back_s):
    """The clock is set back while the database takes nothing, to between the stored samples or just beside them."""
    uri = uri_of(archive_server)
    run = Rig(tmp_path, uri, database_name)
    run.archive._recorder.start()
    run.sample(12)
    run.archive._recorder._seal()
    run.archive.writer.start()
    wait_until(lambda: run.archive.writer.drained() and run.archive.spool.acknowledged >= 12, "two minutes are stored")
    run.archive.writer.stop(60)
    run.clock_s -= back_s
    run.sample(6)
    span = Span(START_S - 60.0, START_S + 600.0)
    fields = [HistoryFields(COLLECTORS).named(name) for name in ("cpu.usage_cores", "memory.used")]
    with MongoClient(uri, tz_aware=True, uuidRepresentation="standard") as client:
        stored = History(client[database_name]).read(WEB, fields, span)
        reading = History(client[database_name], run.archive.unsealed).read(WEB, fields, span)
    assert [len(series.points) for series in stored.series] == [11, 12]
    memory = reading.series[1].points
    truth = {key[1] / 1000 for key in run.truth if key[0] == str(WEB) and key[4] == "cpu_time_ns"}
    assert memory.known().times_s.tolist() == sorted(truth)
    assert len(truth) == 18
    run.archive._recorder.stop(5)
    run.archive.spool.close()


def test_what_is_sent_once_the_spool_was_read_counts_once(archive_server, database_name, tmp_path):
    """What was read begins in the middle of a window."""
    uri = uri_of(archive_server)
    run = Rig(tmp_path, uri, database_name)
    run.archive._recorder.start()
    run.sample(20)
    read = []

    def unsealed(uuid, _, columns):
        found = run.archive.unsealed(uuid, Span(START_S + 33.0, START_S + 600.0), columns)
        read.append(sum(document["count"] for document in found.documents))
        run.archive.writer.start()
        run.drain()
        return found

    fields = [HistoryFields(COLLECTORS).named(name) for name in ("memory.used", "disk.read", "cpu.usage_cores")]
    with MongoClient(uri, tz_aware=True, uuidRepresentation="standard") as client:
        reading = History(client[database_name], unsealed).read(WEB, fields, Span(START_S - 60.0, START_S + 600.0))
    run.archive.writer.stop(60)
    run.archive.spool.close()
    assert read == [16]
    assert [len(series.points) for series in reading.series] == [20, 19, 19]


def test_after_a_clock_that_was_set_back_the_latest_samples_are_there(archive_server, tmp_path):
    run = Rig(tmp_path, uri_of(archive_server), "set_back")
    run.archive._recorder.start()
    run.sample(3)
    run.clock_s -= 3600
    span = Span(run.clock_s, run.clock_s + 60)
    run.sample(6)
    found = run.archive.unsealed(WEB, span, COLUMNS)
    assert stored_of(found.documents) == (of(run.truth, span.start_s, span.end_s), 0)
    assert of(run.truth, span.start_s, span.end_s)
    run.archive._recorder.stop(5)
    run.archive.spool.close()
