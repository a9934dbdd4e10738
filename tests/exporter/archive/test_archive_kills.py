"""Killed with SIGKILL, the server or virtgauge, at random and at the worst moments: nothing lost, nothing twice.

The database is compared with what the test knows it sampled.  ``make test`` runs few rounds, ``make soak`` twenty.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from exporter.archive.spool import Spool
from exporter.archive.windows import groups
from tests.exporter.archive.archive_child import known
from tests.exporter.archive.archive_rig import (
    PATIENCE_S,
    CuttingProxy,
    assert_stored,
    raw_documents,
    rig,
    uri_of,
    wait_until,
)
from tests.exporter.archive.archive_samples import Guests, stored_of

pytestmark = [pytest.mark.live, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[3]
rounds = pytest.mark.parametrize("rounds", [4, pytest.param(20, marks=pytest.mark.soak)])


@rounds
def test_the_server_is_killed_while_it_is_written_to(own_server, tmp_path, rounds, record_property):
    rnd = random.Random(6)
    in_mid_write = 0
    with rig(tmp_path / "state", uri_of(own_server), "killed", guests=Guests(12)) as run:
        counts, killed = run.archive.writer.counts, None
        for _ in range(rounds):
            before = counts.documents
            run.sample(rnd.randrange(40, 90))  # they wait in the spool until the server is back from the last kill
            # Its next process: until the supervisor has seen the end of the last one, that one's URI counts.
            wait_until(lambda killed=killed: own_server.pid not in (None, killed), "the server is back")
            # Three starts killed in a row would move it to another port, which this archive's URI would not follow.
            own_server.uri(PATIENCE_S)
            wait_until(lambda before=before: counts.documents > before, "it writes", poll_s=0.002)
            time.sleep(rnd.uniform(0, 0.03))
            in_mid_write += not run.archive.writer.drained()
            killed = own_server.pid
            os.kill(killed, signal.SIGKILL)
            wait_until(lambda killed=killed: own_server.pid != killed, "it is gone", poll_s=0.002)
        run.drain()
        record_property("kills_in_mid_write", in_mid_write)
        assert in_mid_write >= rounds // 4, "hardly a kill met a window on its way"
        assert run.archive.spool.counts.dropped_samples["spool_full"] == 0
    assert_stored(uri_of(own_server), "killed", run.truth)


@rounds
def test_virtgauge_is_killed(archive_server, database_name, tmp_path, rounds, record_property):
    """Every second time at random; else where its window is sealed and not sent, or stored and not acknowledged."""
    rnd = random.Random(7)
    truth, state, uri = tmp_path / "truth", tmp_path / "state", uri_of(archive_server)
    moments = {"sealed": 0, "stored": 0}
    for number in range(rounds):
        proxy = CuttingProxy(uri)
        child = _start_child(state, proxy.uri, database_name, truth, number)
        try:
            # It writes a window every few samples until it dies.
            _wait_for_samples(child, truth, number, rnd.randrange(1, 40))
            time.sleep(rnd.uniform(0, 0.05))
            if number % 4 == 1:
                proxy.hold(to_server=True)
                _wait_for_samples(child, truth, number, known(truth).sampled(number) + 9)
            elif number % 4 == 3:
                _hold_an_acknowledgement(
                    proxy, lambda: _between(state, uri, database_name, tmp_path / "copy")["stored"])
        finally:
            child.kill()
            child.communicate()
            proxy.close()
        for moment, found in _between(state, uri, database_name, tmp_path / "copy").items():
            moments[moment] += bool(found)
    record_property("kills_between_seal_and_acknowledgement", moments)
    assert moments["sealed"] >= rounds // 2
    assert moments["stored"] >= rounds // 4
    with rig(state, uri, database_name, guests=Guests(1, seed=99)) as run:
        run.clock_s += 10**6
        run.sample(1)
        run.drain()
        assert run.archive.writer.counts.duplicates
    told = known(truth)
    found, doubled = stored_of(raw_documents(uri, database_name))
    assert not doubled
    # What a killed process said was spooled is there; what it was about to spool may be; nothing else is.
    assert run.truth.items() | told.safe.items() <= found.items()
    assert found.items() <= told.attempted.items() | run.truth.items()
    assert told.safe


def _hold_an_acknowledgement(proxy, stored):
    """Holds up what comes from the server until a window is stored whose acknowledgement is on its way.

    Where the connection was just given up, nothing more is sent over it: then it is tried on the next one.
    """
    for _ in range(60):
        proxy.hold(to_server=False)
        with contextlib.suppress(AssertionError):
            wait_until(stored, "a window is stored", timeout_s=6)
            return
        proxy.release()
        time.sleep(1)
    raise AssertionError("no window was stored whose acknowledgement was held up")


def _start_child(state, uri, database, truth, seed):
    command = [sys.executable, "-m", "tests.exporter.archive.archive_child", str(state), database, str(truth),
               str(seed)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TEST_ARCHIVE_URI": uri}
    return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def _wait_for_samples(child, truth, number, wanted):
    wait_until(lambda: known(truth).sampled(number) >= wanted or child.poll() is not None, "it samples")
    assert child.poll() is None, child.stderr.read().decode()


def _between(state, uri, database, copy):
    """How many documents of ended windows are not acknowledged, and how many of those the database has already."""
    folder = state / "archive" / "spool"
    shutil.rmtree(copy, ignore_errors=True)
    try:
        shutil.copytree(folder, copy)
    except (OSError, shutil.Error):  # a segment or the position was just replaced
        return {"sealed": 0, "stored": 0}
    spool = Spool(copy)
    ids = {bytes(document["_id"]) for group in groups(spool.frames(spool.acknowledged))
           for document in group.documents(spool.name)}
    spool.close()
    stored = {bytes(document["_id"]) for document in raw_documents(uri, database)}
    return {"sealed": len(ids), "stored": len(ids & stored)}
