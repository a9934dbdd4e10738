"""From the embedded server to a replica set with TLS and users, as docs/archive-moving.md tells it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote_plus

import pytest
from pymongo import MongoClient

from exporter.archive.embedded import program
from tests.exporter.archive.archive_rig import TIMEOUTS, assert_stored, rig, wait_until
from tests.exporter.archive.remote_server import DATABASES, PASSWORD, RemoteServer

pytestmark = [pytest.mark.live, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[3]


@pytest.fixture
def replica_set(tmp_path):
    """(URI with a password, URI without one) of a replica set that others run."""
    if program() is None:
        pytest.skip("secantusdb is not installed")
    folder = tmp_path / "remote"
    folder.mkdir()
    server = RemoteServer(folder)
    server.start()
    options = f"localhost:{server.port}/?{server.tls()}&authSource=people&replicaSet=secantus"
    yield f"mongodb://modern:{quote_plus(PASSWORD)}@{options}", f"mongodb://{options}"
    server.stop()


def archive(state, *arguments, **variables):
    """Standard output of `virtgauge archive ...`; the variables stand for VIRTGAUGE_ARCHIVE_*."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "VIRTGAUGE_STATE_DIRECTORY": str(state),
                   "VIRTGAUGE_ARCHIVE_DATABASE": DATABASES[0],
                   **{f"VIRTGAUGE_ARCHIVE_{name.upper()}": str(value) for name, value in variables.items()}}
    done = subprocess.run([sys.executable, "-c", "from exporter.cli import main; main()", "archive", *arguments],
                          cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert PASSWORD not in done.stdout + done.stderr
    return done.stdout


def test_everything_moves_while_samples_go_on(replica_set, tmp_path):
    whole, bare = replica_set
    state, file, secret = tmp_path / "state", str(tmp_path / "archive.ndjson.zst"), tmp_path / "password"
    secret.write_text(PASSWORD + "\n")
    elsewhere = {"uri": bare, "username": "modern", "password_file": secret}
    with rig(state, "embedded", DATABASES[0]) as before:
        before.sample(20)
        before.drain()
    with rig(state, whole + TIMEOUTS, DATABASES[0], guests=before.guests) as after:  # 1: new samples go there
        after.clock_s, after.monotonic_s = before.clock_s, before.monotonic_s
        after.sample(13)
        wait_until(lambda: after.archive.writer.counts.documents, "the new server is written to")
        archive(state, "export", "--output", file, uri="embedded")  # 2: while the exporter runs and holds its folder
        moved = archive(state, "import", file, **elsewhere)  # 3
        assert "0 were there already" in moved
        assert "0 documents" not in moved
        assert "imported 0 documents" in archive(state, "import", file, **elsewhere)
        begin = "2026-09-21T14:00Z"
        archive(state, "rollup", "--repair", "--since", begin, "--until", "2026-09-21T16:00Z", **elsewhere)  # 4
        assert "are right" in archive(state, "verify", **elsewhere)  # 5
        assert "host       alpha" in archive(state, "status", **elsewhere)
        after.drain()
    assert_stored(whole, DATABASES[0], before.truth | after.truth)
    with MongoClient(whole, tz_aware=True) as client:
        hours = client[DATABASES[0]]["five_minutes_202609"].find({"name": "guest0"}).to_list()
    # One point of samples from both servers: the hour in which they changed is whole.
    assert sum(sum(hour["samples"]) for hour in hours) >= 20 + 6
