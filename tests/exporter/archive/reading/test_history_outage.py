"""History while the database takes nothing for long: what was asked for is read from the spool, or said to be left out.
"""

from __future__ import annotations

from uuid import UUID

import pytest
from pymongo import MongoClient

from collectors import COLLECTORS
from exporter.archive.documents import RAW, VALUES, Column, moment
from exporter.archive.history import History, resolution_text
from exporter.archive.history_fields import HistoryFields
from exporter.archive.remote_answers import _Budget
from exporter.archive.spool import Spool
from exporter.archive.spool_frames import SEAL
from exporter.archive.ticks import wall_ms_of
from exporter.archive.timespan import Span
from exporter.archive.unsent import unsent
from tests.exporter.archive.archive_rig import START_S, Rig, uri_of
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
    """How many frames are read of each segment, newest first; clear it before each question."""
    read, real = [], spool.frames_newest_first

    def each(frames):
        for frame in frames:
            read[-1] += 1
            yield frame

    def counted(after):
        for frames in real(after):
            read.append(0)
            yield each(frames)

    monkeypatch.setattr(spool, "frames_newest_first", counted)
    return read


def test_segments_newer_than_the_span_cost_one_frame_each_for_every_guest(outage, monkeypatch):
    segments = [list(frames) for frames in outage.archive.spool.frames_newest_first(0)]
    end_s = START_S + 700.0
    newer = sum(wall_ms_of(frames[0].payload) >= end_s * 1000 for frames in segments)
    assert newer > 2
    read = counting(outage.archive.spool, monkeypatch)
    budget = _Budget(spool_s=1e-9)
    for begin_s in (START_S, end_s - 600):  # of two guests
        read.clear()
        found = budget.within(outage.archive.unsealed)(WEB, Span(START_S, end_s), COLUMNS)
        assert stored_of(found.documents) == (of(outage.truth, begin_s, end_s), 0)
        assert found.left_out_before_s == 0
        assert read[:newer] == [len(segments[0])] + [1] * (newer - 1)
        assert read[newer:] == [len(frames) for frames in segments[newer:len(read)]]


def test_a_seal_at_the_begin_of_a_segment_hides_neither_its_time_nor_its_samples(outage, tmp_path, monkeypatch):
    spool = Spool(tmp_path)
    *older, newest = outage.archive.spool.frames(0)
    spool.append(SEAL, b"", 0)
    for frame in older:
        spool.append(frame.kind, frame.payload, frame.samples)
    spool._segment_bytes = 1
    spool.append(newest.kind, newest.payload, newest.samples)
    spool.sync()
    read = counting(spool, monkeypatch)
    for span, counts in ((Span(START_S - 99, START_S), [1, 2]), (Span(START_S, outage.clock_s), [1, TICKS])):
        read.clear()
        found = unsent(spool, WEB, span, COLUMNS)
        assert stored_of(found.documents) == (of(outage.truth, span.start_s, span.end_s), 0)
        assert read == counts
    spool.close()


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
