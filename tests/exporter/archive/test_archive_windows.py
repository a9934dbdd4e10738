"""From Batches through frames to documents: exactly what was sampled, whatever happens to guests and clocks."""

from __future__ import annotations

import sys

import bson
import pytest

from collectors.snapshot import Record, Snapshot, Subject
from exporter.archive.spool_frames import SAMPLES, SEAL, Frame
from exporter.archive.ticks import TickDecoder, TickEncoder, present
from exporter.archive.windows import Grouper, groups
from tests.exporter.archive.archive_samples import HOST, Guests, stored_of, truth_of, uuid_of

WHOLE_MINUTE = 1_700_000_040


def frames_of(batches, window_s=60):
    encoder = TickEncoder(window_s)
    encoded = [encoder.encode(batch, HOST) for batch in batches]
    return [Frame(number, SAMPLES, samples, payload)
            for number, (payload, samples) in enumerate(encoded, 1) if samples]


def documents_of(frames):
    sealed = [*frames, Frame(frames[-1].number + 1, SEAL, 0, b"")]
    return [document for group in groups(sealed) for document in group.documents(b"spool")]


def check(batches):
    """The documents of these Batches, after comparing every value with what was sampled."""
    documents = documents_of(frames_of(batches))
    found, doubled = stored_of(documents)
    expected = {}
    for batch in batches:
        expected |= truth_of(batch)
    assert found == expected
    assert not doubled
    assert len({bytes(document["_id"]) for document in documents}) == len(documents)
    return documents


def test_every_value_of_every_guest_is_in_the_right_place():
    guests = Guests(5, vcpus=3, disks=2, nics=2)
    documents = check([guests.batch(WHOLE_MINUTE + 10 * n, 500 + 10 * n) for n in range(15)])
    assert [d["count"] for d in documents] == [6] * 10 + [3] * 5
    assert documents[0]["offsets_ms"] == [0, 10_000, 20_000, 30_000, 40_000, 50_000]
    assert documents[0]["state"] == "running"
    assert [d["device"] for d in documents[0]["disks"]] == ["vda", "vdb"]


def test_the_same_frames_give_the_same_bytes():
    guests = Guests(3)
    frames = frames_of([guests.batch(WHOLE_MINUTE + 10 * n, 500 + 10 * n) for n in range(9)])
    assert [bson.encode(d) for d in documents_of(frames)] == [bson.encode(d) for d in documents_of(frames)]


def test_guests_come_and_go():
    guests = Guests(4)
    only = [[0, 1], [0, 1, 2], [0, 2], [0, 2, 3], [3]]
    documents = check([guests.batch(WHOLE_MINUTE + 10 * n, 500 + 10 * n, only[n]) for n in range(5)])
    assert len(documents) == 4


def test_a_change_of_state_and_a_restart_begin_a_new_document():
    guests = Guests(1)
    batches = []
    for number in range(6):
        state = {0: {"state.state": 3, "state.reason": 1}} if number in (2, 3) else {}
        guests.run[0] = 1 if number < 5 else 2
        batches.append(guests.batch(WHOLE_MINUTE + 10 * number, 500 + 10 * number, extra=state))
    documents = check(batches)
    assert [(d["state"], d["count"]) for d in documents] == [("running", 3), ("paused", 2), ("running", 1)]


def test_an_answer_in_part_leaves_nulls_and_not_zeros():
    guests = Guests(1, disks=2)
    batches = []
    for number in range(4):
        whole = guests.stats[0]
        if number == 2:
            guests.stats[0] = {k: v for k, v in whole.items() if k.startswith(("state", "cpu", "vcpu"))}
        batches.append(guests.batch(WHOLE_MINUTE + 10 * number, 500 + 10 * number))
        if number == 2:
            guests.stats[0] = whole
    (document,) = check(batches)
    assert document["disks"][1]["read_bytes"][2] is None
    assert None not in document["values"]["cpu_time_ns"]


def test_a_hot_plugged_disk_and_one_of_another_name():
    guests = Guests(1, disks=1)
    plugged = {"block.1.name": "vdz", "block.1.rd.bytes": 7, "block.count": 2}
    batches = [guests.batch(WHOLE_MINUTE, 500), guests.batch(WHOLE_MINUTE + 10, 510, extra={0: plugged}),
               guests.batch(WHOLE_MINUTE + 20, 520)]
    (document,) = check(batches)
    assert {d["device"]: d["read_bytes"] for d in document["disks"]}["vdz"] == [None, 7, None]


def test_what_was_carried_over_is_not_stored_again():
    guests = Guests(2)
    first = guests.batch(WHOLE_MINUTE, 500)
    again = guests.batch(WHOLE_MINUTE + 10, 500)
    assert [frame.number for frame in frames_of([first, again])] == [1]


@pytest.mark.parametrize("step_s", [-3600, -40, -20, 3600])
def test_a_clock_that_was_set_begins_a_new_document(step_s):
    guests = Guests(2)
    batches = [guests.batch(WHOLE_MINUTE + 10 * n + (step_s if n >= 4 else 0), 500 + 10 * n) for n in range(8)]
    encoded = frames_of(batches)
    documents = documents_of(encoded)
    assert len({bytes(d["_id"]) for d in documents}) == len(documents)
    assert sum(d["count"] for d in documents) == 16
    for document in documents:
        assert document["offsets_ms"] == sorted(document["offsets_ms"])
        assert document["offsets_ms"][-1] <= 60_000


def test_a_window_that_begins_in_the_same_millisecond_has_another_id():
    guests = Guests(1)
    batches = [guests.batch(WHOLE_MINUTE, 500), guests.batch(WHOLE_MINUTE, 510)]
    first, second = documents_of(frames_of(batches))
    assert first["start"] == second["start"]
    assert first["_id"] != second["_id"]


def test_a_window_goes_on_after_a_restart_of_virtgauge():
    guests = Guests(2)
    batches = [guests.batch(WHOLE_MINUTE + 10 * n, 500 + 10 * n) for n in range(7)]
    before, after = frames_of(batches[:3]), frames_of(batches[3:])
    frames = [Frame(n, f.kind, f.samples, f.payload) for n, f in enumerate([*before, *after], 1)]
    documents = documents_of(frames)
    assert [d["count"] for d in documents] == [6, 6, 1, 1]


def test_odd_numbers_stay_what_they_are():
    guests = Guests(1)
    odd = {0: {"cpu.time": 2**62, "cpu.user": 1.5, "cpu.system": "no number", "vcpu.0.time": -1}}
    (document,) = check([guests.batch(WHOLE_MINUTE, 500, extra=odd)])
    assert document["values"]["cpu_time_ns"] == [float(2**62)]
    assert document["values"]["cpu_user_ns"] == [1.5]
    assert "cpu_system_ns" not in document["values"]
    assert bson.decode(bson.encode(document))["values"] == document["values"]


def test_a_column_that_two_records_of_a_guest_have_is_stored_once_the_last_counts():
    guests = Guests(1, disks=2)
    subject = Subject("domain", (uuid_of(0), 1), (("domain", "guest0"),))
    stats = guests.stats[0]
    second = {key: value + 5 for key, value in stats.items() if key in ("cpu.time", "balloon.rss")}
    names = {key: stats[key] for key in ("block.0.name", "block.1.name", "block.count")}
    third = {**names, "block.1.rd.bytes": 77}
    records = tuple(Record(subject, source, found, 500.0)
                    for source, found in (("bulk", stats), ("kernel", second), ("late", third)))
    own = Record(Subject("exporter", ("exporter",), ()), "sampling", {"libvirt.up": True}, 500.0)
    batch = guests.builder.batch(Snapshot(1, 500.0, 500.1, WHOLE_MINUTE, True, (own, *records)))
    (document,) = documents_of(frames_of([batch]))
    assert document["values"]["cpu_time_ns"] == [second["cpu.time"]]
    assert document["values"]["memory_rss_kib"] == [second["balloon.rss"]]
    assert document["values"]["cpu_user_ns"] == [stats["cpu.user"]]
    reads = {disk["device"]: disk["read_bytes"] for disk in document["disks"]}
    assert reads == {"vda": [stats["block.0.rd.bytes"]], "vdb": [77]}


def test_a_new_domain_costs_no_more_than_its_own_names():
    """Counted in calls, not in time: the shapes of guests that are alike are made once."""
    counts = {}
    for number in (50, 100):
        guests = Guests(number, vcpus=4, disks=2, nics=2)
        batch = guests.batch(WHOLE_MINUTE, 500)
        calls = [0]

        def count(frame, event, argument, calls=calls):
            calls[0] += event == "call"

        encoder = TickEncoder(60)
        sys.setprofile(count)
        try:
            encoder.encode(batch, HOST)
        finally:
            sys.setprofile(None)
        counts[number] = calls[0]
    assert (counts[100] - counts[50]) / 50 < 20, counts


@pytest.mark.parametrize("payload", [b"", b"x" * 27, b"\xff" * 200])
def test_bytes_that_no_encoder_wrote_cost_their_own_tick_only(payload):
    with pytest.raises(ValueError, match=r"not readable|too short"):
        TickDecoder().decode(payload)
    guests = Guests(1)
    frames = frames_of([guests.batch(WHOLE_MINUTE + 10 * n, 500 + 10 * n) for n in range(3)])
    frames[1] = Frame(2, SAMPLES, 1, payload)
    (document,) = documents_of(frames)
    assert document["count"] == 2


def test_nothing_archived_is_no_frame():
    batch = Guests(0).batch(WHOLE_MINUTE, 500)
    assert TickEncoder(60).encode(batch, HOST) == (b"", 0)


def test_the_open_window_shows_what_is_there_so_far():
    guests = Guests(2)
    grouper = Grouper()
    for frame in frames_of([guests.batch(WHOLE_MINUTE + 10 * n, 500 + 10 * n) for n in range(3)]):
        assert grouper.add(frame) is None
    tick = grouper.open.ticks[-1]
    assert present(tick) == [0, 1]
    only = list(grouper.open.windows(tick.entries[1].subject.uuid))
    assert [str(w.subject.uuid) for w in only] == [uuid_of(1)]
