"""Nothing lost, nothing twice, on a disk that is full, fails or damages what it holds, and in a spool that is full."""

from __future__ import annotations

import ctypes
import errno
import os

import pytest

from tests.exporter.archive.archive_rig import (
    TIMEOUTS,
    assert_stored,
    raw_documents,
    rig,
    uri_of,
    wait_until,
)
from tests.exporter.archive.archive_samples import Guests, stored_of, truth_of

pytestmark = [pytest.mark.live, pytest.mark.timeout(900)]


def test_a_full_disk_is_waited_out(archive_server, database_name, tmp_path):
    libc = ctypes.CDLL(None, use_errno=True)
    mount = tmp_path / "state"
    mount.mkdir()
    if libc.mount(b"tmpfs", bytes(mount), b"tmpfs", 0, b"size=512k"):
        pytest.skip(f"no right to mount a small disk: {os.strerror(ctypes.get_errno())}")
    try:
        with rig(mount, uri_of(archive_server), database_name) as run:
            run.sample(3)
            filler = mount / "filler"
            try:
                with open(filler, "wb") as file:
                    while True:
                        file.write(bytes(4096))
                        file.flush()
            except OSError:
                pass
            batches = [run.guests.batch(run.clock_s + 10 * n, run.monotonic_s + 10 * n) for n in range(8)]
            for batch in batches:
                run.truth |= truth_of(batch)
                held = len(run.archive._recorder._held)
                run.archive.record(batch)
                wait_until(lambda held=held: len(run.archive._recorder._held) > held, "it is held in memory")
            assert run.archive.spool.counts.dropped_samples["disk_full"] == 0
            filler.unlink()
            run.clock_s += 80
            run.monotonic_s += 80
            run.sample(1)
            assert not run.archive._recorder._held
            run.drain()
        assert_stored(uri_of(archive_server), database_name, run.truth)
    finally:
        libc.umount2(bytes(mount), 2)


def test_a_spool_that_is_damaged_in_its_middle(archive_server, database_name, tmp_path):
    dead = f"mongodb://127.0.0.1:1/?x{TIMEOUTS}".replace("?x&", "?")
    kept = {}
    with rig(tmp_path, dead, database_name) as run:
        for number in range(13):
            for batch in run.sample(1):
                if number != 4:
                    kept |= truth_of(batch)
        frames = list(run.archive.spool.frames(0))
    (path,) = (tmp_path / "archive" / "spool").glob("*.spool")
    data = bytearray(path.read_bytes())
    data[data.index(frames[4].payload) + 50] ^= 1
    path.write_bytes(data)
    with rig(tmp_path, uri_of(archive_server), database_name) as again:
        assert again.archive.spool.counts.damaged_stretches == 1
        again.drain()
    assert_stored(uri_of(archive_server), database_name, kept)


def test_samples_that_a_failing_disk_did_not_take_are_written_again(archive_server, database_name, tmp_path,
                                                                    monkeypatch):
    real, refused = os.fdatasync, []

    def failing(file):
        if len(refused) < 6 and os.readlink(f"/proc/self/fd/{file}").endswith(".spool"):
            refused.append(file)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(file)

    with rig(tmp_path, uri_of(archive_server), database_name) as run:
        run.sample(3)
        monkeypatch.setattr(os, "fdatasync", failing)
        batches = [run.guests.batch(run.clock_s + 10 * n, run.monotonic_s + 10 * n) for n in range(8)]
        for number, batch in enumerate(batches):
            run.truth |= truth_of(batch)
            run.archive.record(batch)
            held = number + 1 if number < 6 else 0
            wait_until(lambda held=held, number=number: len(run.archive._recorder._held) == held
                       and len(refused) == min(number + 1, 6), "it was tried")
        assert len(refused) == 6
        run.drain()
        assert run.archive.spool.counts.spooled_samples == 11 * 3
        assert not any(run.archive.spool.counts.dropped_samples.values())
        assert run.archive.writer.counts.duplicates == 0
    assert_stored(uri_of(archive_server), database_name, run.truth)


def test_a_full_spool_counts_what_it_drops_and_stores_the_rest(archive_server, database_name, tmp_path):
    dead = "mongodb://127.0.0.1:1/?serverSelectionTimeoutMS=300"
    with rig(tmp_path, dead, database_name, guests=Guests(30, 4, 2, 2), spool={"limit": 1 << 20}) as run:
        sampled = {}
        while not run.archive.spool.counts.dropped_samples["spool_full"]:
            run.sample(1)
        sampled |= run.truth
        dropped = run.archive.spool.counts.dropped_samples["spool_full"]
        assert run.archive.spool.size_bytes <= 1 << 20
    with rig(tmp_path, uri_of(archive_server), database_name, guests=run.guests) as again:
        again.drain()
    found, doubled = stored_of(raw_documents(uri_of(archive_server), database_name))
    assert not doubled
    assert found.items() <= sampled.items()
    lost = {key[:2] for key in sampled.keys() - found.keys()}
    assert len(lost) == dropped
