"""The spool: what was synced is there again after a torn end, damage in the middle, a full limit or a lost position."""

from __future__ import annotations

import errno
import os
import random
import shutil

import pytest

from exporter.archive.errors import SpoolError
from exporter.archive.spool import Spool, SpoolFullError
from exporter.archive.spool_frames import SAMPLES


def filled(folder, payloads, **options):
    spool = Spool(folder, **options)
    for payload in payloads:
        spool.append(SAMPLES, payload, 1)
    spool.sync()
    return spool


def payloads_in(spool, after=0):
    return [frame.payload for frame in spool.frames(after)]


def only_segment(folder):
    (path,) = folder.glob("*.spool")
    return path


def test_frames_come_back_in_order_and_only_once_synced(tmp_path):
    spool = Spool(tmp_path)
    spool.append(SAMPLES, b"one", 3)
    assert payloads_in(spool) == []
    spool.sync()
    spool.append(SAMPLES, b"two", 1)
    spool.sync()
    assert [(f.number, f.samples, f.payload) for f in spool.frames(0)] == [(1, 3, b"one"), (2, 1, b"two")]
    assert payloads_in(spool, after=1) == [b"two"]
    spool.close()
    again = Spool(tmp_path)
    assert payloads_in(again) == [b"one", b"two"]
    assert again.name == spool.name
    assert again.append(SAMPLES, b"three", 1) == 3


def test_torn_at_every_byte_of_the_last_frame(tmp_path):
    filled(tmp_path / "whole", [b"first", b"second", b"x" * 40]).close()
    size = only_segment(tmp_path / "whole").stat().st_size
    before = size - 40 - 25
    for cut in range(before, size):
        folder = tmp_path / f"cut{cut}"
        shutil.copytree(tmp_path / "whole", folder)
        with open(only_segment(folder), "r+b") as file:
            file.truncate(cut)
        spool = Spool(folder)
        assert payloads_in(spool) == [b"first", b"second"], cut
        spool.append(SAMPLES, b"next", 1)
        spool.sync()
        spool.close()
        assert payloads_in(Spool(folder)) == [b"first", b"second", b"next"], cut


def test_garbage_behind_the_last_frame_is_cut_off(tmp_path):
    filled(tmp_path, [b"first"]).close()
    with open(only_segment(tmp_path), "ab") as file:
        file.write(b"VGf\xf1" + random.Random(1).randbytes(500))
    spool = Spool(tmp_path)
    assert payloads_in(spool) == [b"first"]
    assert spool.counts.damaged_stretches == 1


def test_damage_anywhere_in_a_frame_costs_that_frame_only(tmp_path):
    payloads = [b"a" * 10, b"b" * 10, b"c" * 10]
    filled(tmp_path / "whole", payloads).close()
    data = only_segment(tmp_path / "whole").read_bytes()
    start = data.index(b"b" * 10) - 25
    for at in range(start, start + 35):
        folder = tmp_path / f"bad{at}"
        shutil.copytree(tmp_path / "whole", folder)
        damaged = bytearray(data)
        damaged[at] ^= 0x55
        only_segment(folder).write_bytes(damaged)
        spool = Spool(folder)
        assert payloads_in(spool) == [payloads[0], payloads[2]], at
        assert spool.counts.damaged_stretches == 1


def test_a_damaged_older_segment_leaves_the_others(tmp_path):
    payloads = [bytes([number]) * 900 for number in range(20)]
    filled(tmp_path, payloads, limit_bytes=1 << 20, segment_bytes=4096).close()
    paths = sorted(tmp_path.glob("*.spool"))
    assert len(paths) > 3
    paths[1].write_bytes(b"nothing that was a segment")
    left = payloads_in(Spool(tmp_path))
    assert left == [p for p in payloads if p in left]
    assert 12 <= len(left) < 20
    assert left[-1] == payloads[-1]


def test_acknowledged_segments_go_and_the_position_survives(tmp_path):
    payloads = [bytes([number]) * 900 for number in range(20)]
    spool = filled(tmp_path, payloads, limit_bytes=1 << 20, segment_bytes=4096)
    before = len(list(tmp_path.glob("*.spool")))
    spool.acknowledge(12, {"hours": [5]})
    assert len(list(tmp_path.glob("*.spool"))) < before
    spool.close()
    again = Spool(tmp_path, limit_bytes=1 << 20, segment_bytes=4096)
    assert (again.acknowledged, again.notes) == (12, {"hours": [5]})
    assert payloads_in(again, again.acknowledged) == payloads[12:]
    again.acknowledge(20, {})
    again.close()
    empty = Spool(tmp_path)
    assert payloads_in(empty, empty.acknowledged) == []
    assert empty.append(SAMPLES, b"more", 1) == 21


def test_a_lost_position_sends_everything_again(tmp_path, caplog):
    spool = filled(tmp_path, [b"one", b"two"])
    spool.acknowledge(1, {})
    spool.close()
    (tmp_path / "acknowledged.json").write_text("{torn")
    again = Spool(tmp_path)
    assert again.name == spool.name
    assert payloads_in(again, again.acknowledged) == [b"one", b"two"]
    assert "sent again" in caplog.text


def test_a_full_spool_drops_its_oldest_and_counts_them(tmp_path):
    spool = Spool(tmp_path, limit_bytes=64 << 10, drop="oldest", segment_bytes=4096)
    payloads = [number.to_bytes(4, "big") * 225 for number in range(200)]
    for payload in payloads:
        spool.append(SAMPLES, payload, 2)
    spool.sync()
    left = payloads_in(spool)
    assert spool.size_bytes <= 64 << 10
    assert left[-1] == payloads[-1]
    assert left[0] == payloads[0]  # what may be on its way to the database stays
    assert (len(payloads) - len(left)) * 2 == spool.counts.dropped_samples["spool_full"] > 0
    spool.close()
    assert payloads_in(Spool(tmp_path)) == left


def test_a_full_spool_can_keep_what_it_has_instead(tmp_path):
    spool = Spool(tmp_path, limit_bytes=16 << 10, drop="newest", segment_bytes=4096)
    kept = []
    while spool.size_bytes < 15 << 10:
        kept.append(len(kept).to_bytes(4, "big") * 225)
        spool.append(SAMPLES, kept[-1], 1)
    with pytest.raises(SpoolFullError):
        spool.append(SAMPLES, b"x" * 4000, 1)
    spool.sync()
    assert payloads_in(spool) == kept
    spool.acknowledge(len(kept) - 1, {})
    spool.append(SAMPLES, b"room again", 1)


def test_a_folder_that_cannot_be_used_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolError, match=r"archive spool .*file.* check"):
        Spool(tmp_path / "file" / "spool")


def test_what_the_disk_did_not_take_is_appended_again_and_is_there_once(tmp_path, monkeypatch):
    """After a failed fdatasync the kernel takes the lost pages for written, so a second one alone proves nothing."""
    spool = filled(tmp_path, [b"safe"])
    real = os.fdatasync
    for payload in (b"one", b"two"):
        spool.append(SAMPLES, payload, 2)

    def failing(_file):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", failing)
    with pytest.raises(OSError, match="Input/output"):
        spool.sync()
    monkeypatch.setattr(os, "fdatasync", real)
    assert payloads_in(spool) == [b"safe"]
    assert (spool.pending_samples, only_segment(tmp_path).stat().st_size) == (1, spool.size_bytes)
    assert [spool.append(SAMPLES, payload, 2) for payload in (b"one", b"two")] == [2, 3]
    spool.sync()
    assert payloads_in(spool) == [b"safe", b"one", b"two"]
    spool.close()
    assert payloads_in(Spool(tmp_path)) == [b"safe", b"one", b"two"]


def test_a_frame_larger_than_a_segment_is_appended_again_too(tmp_path, monkeypatch):
    spool = filled(tmp_path, [b"first"], segment_bytes=100)
    real, refused = os.fdatasync, []

    def failing(file):
        if os.readlink(f"/proc/self/fd/{file}").endswith("2.spool") and not refused:
            refused.append(file)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(file)

    monkeypatch.setattr(os, "fdatasync", failing)
    assert spool.append(SAMPLES, b"x" * 200, 1) == 2
    with pytest.raises(OSError, match="Input/output"):
        spool.sync()
    assert [spool.append(SAMPLES, payload, 1) for payload in (b"x" * 200, b"third")] == [2, 3]
    spool.sync()
    assert payloads_in(spool) == [b"first", b"x" * 200, b"third"]
    spool.close()
    assert payloads_in(Spool(tmp_path)) == [b"first", b"x" * 200, b"third"]


def test_a_segment_that_cannot_be_ended_safely_is_not_left_behind(tmp_path, monkeypatch):
    spool = filled(tmp_path, [b"a" * 2000], limit_bytes=1 << 20, segment_bytes=4096)
    spool.append(SAMPLES, b"b" * 1900, 1)
    real = os.fdatasync
    failures = [OSError(errno.EIO, "x")]
    monkeypatch.setattr(os, "fdatasync", lambda file: real(file) if not failures else _raise(failures.pop()))
    with pytest.raises(OSError, match="x"):
        spool.append(SAMPLES, b"c" * 1000, 1)  # begins the next segment
    for payload in (b"b" * 1900, b"c" * 1000):
        spool.append(SAMPLES, payload, 1)
    spool.sync()
    assert payloads_in(spool) == [b"a" * 2000, b"b" * 1900, b"c" * 1000]


@pytest.mark.parametrize("before", [[b"safe"], []])
def test_what_cannot_be_cut_off_either_counts_for_nothing(tmp_path, monkeypatch, caplog, before):
    """A disk that takes neither a sync nor a truncation: the file still holds what is appended again."""
    spool = filled(tmp_path, before)
    for payload in (b"one", b"two"):
        spool.append(SAMPLES, payload, 2)
    for name in ("fdatasync", "ftruncate"):
        monkeypatch.setattr(os, name, lambda *_: _raise(OSError(errno.EIO, os.strerror(errno.EIO))))
    with pytest.raises(OSError, match="Input/output"):
        spool.sync()
    assert payloads_in(spool) == before
    if before:
        with pytest.raises(OSError, match="Input/output"):
            spool.append(SAMPLES, b"one", 2)  # the other segment cannot be begun yet
    monkeypatch.undo()
    spool.sync()
    assert payloads_in(spool) == before, "a later sync took for safe what the kernel had forgotten"
    numbers = [spool.append(SAMPLES, payload, 2) for payload in (b"ONE", b"TWO", b"three")]
    assert numbers == [len(before) + place for place in (1, 2, 3)]
    spool.sync()
    assert payloads_in(spool) == [*before, b"ONE", b"TWO", b"three"]
    assert spool.pending_samples == len(before) + 6
    spool.close()
    again = Spool(tmp_path)
    assert payloads_in(again) == [*before, b"ONE", b"TWO", b"three"]
    assert (again.counts.damaged_stretches, "torn" in caplog.text) == (0, False)
    assert again.append(SAMPLES, b"four", 1) == len(before) + 4


def test_a_frame_that_is_lost_before_what_could_not_be_cut_off_is_counted(tmp_path, monkeypatch, caplog):
    spool = filled(tmp_path, [b"safe", b"lost"])
    spool.append(SAMPLES, b"one", 1)
    for name in ("fdatasync", "ftruncate"):
        monkeypatch.setattr(os, name, lambda *_: _raise(OSError(errno.EIO, os.strerror(errno.EIO))))
    with pytest.raises(OSError, match="Input/output"):
        spool.sync()
    monkeypatch.undo()
    spool.append(SAMPLES, b"ONE", 1)
    spool.close()
    older = min(tmp_path.glob("*.spool"))
    older.write_bytes(older.read_bytes().replace(b"lost", b"LOST"))
    again = Spool(tmp_path)
    assert payloads_in(again) == [b"safe", b"ONE"]
    assert (again.counts.damaged_stretches, "torn" in caplog.text) == (1, True)


@pytest.mark.parametrize("before", [[b"safe"], []])
def test_a_part_of_a_frame_that_cannot_be_cut_off_costs_no_other(tmp_path, monkeypatch, before):
    spool = filled(tmp_path, before)
    spool.append(SAMPLES, b"first", 1)
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[:50]) if len(data) > 50 else _raise(
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    monkeypatch.setattr(os, "ftruncate", lambda *_: _raise(OSError(errno.EIO, os.strerror(errno.EIO))))
    with pytest.raises(OSError, match="No space"):
        spool.append(SAMPLES, b"x" * 60, 1)
    monkeypatch.undo()
    spool.append(SAMPLES, b"second", 1)
    spool.append(SAMPLES, b"third", 1)
    monkeypatch.setattr(os, "fdatasync", lambda *_: _raise(OSError(errno.EIO, os.strerror(errno.EIO))))
    with pytest.raises(OSError, match="Input/output"):
        spool.sync()
    monkeypatch.undo()
    assert payloads_in(spool) == [*before, b"first"]  # it was synced when the second segment was begun
    spool.append(SAMPLES, b"second again", 1)
    spool.sync()
    spool.close()
    again = Spool(tmp_path)
    assert payloads_in(again) == [*before, b"first", b"second again"]
    assert again.counts.damaged_stretches == 0


def _raise(error):
    raise error
