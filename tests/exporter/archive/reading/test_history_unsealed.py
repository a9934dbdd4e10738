"""The last minute, end to end: a real exporter, its embedded server, the API over HTTP and the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pymongo import MongoClient

from exporter.archive.embedded import program, running_uri
from exporter.token_changes import create_token
from exporter.tokens import Role
from tests.exporter.archive.archive_rig import raw_documents, wait_until
from tests.live.servers import Server, exporter_server

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]
FIELD = "domain.virtual_cpus"
FLAGS = ("--sampling.interval=1s", "--archive.uri=embedded", "--archive.window=20s", "--host.name=alpha")


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """(exporter, state folder, token) once a window of the test driver's domain is in the database."""
    if program() is None:
        pytest.skip("secantusdb is not installed")
    folder = tmp_path_factory.mktemp("unsealed")
    state = folder / "state"
    state.mkdir(mode=0o700)
    token = create_token(state / "tokens.yml", "reader", Role.READER, ("*",), datetime.now(UTC), None)[1]
    with exporter_server(folder, "test:///default", [*FLAGS, f"--state.directory={state}"]) as server:
        server.start()
        server.wait_ready(60)
        wait_until(lambda: _stored_times(state), "a window is stored")
        yield server, state, token


def _stored_times(state: Path) -> set[int]:
    """Milliseconds of every sample of the domain `test` in the database, read past all code of the reader."""
    uri = running_uri(state / "archive" / "embedded")
    if uri is None:
        return set()
    with MongoClient(uri) as client:
        if "virtgauge" not in client.list_database_names():
            return set()
    return {round(document["start"].timestamp() * 1000) + offset for document in raw_documents(uri, "virtgauge")
            if document["name"] == "test" for offset in document["offsets_ms"]}


def _by_api(server: Server, token: str) -> tuple[list[dict[str, object]], str]:
    request = urllib.request.Request(server.url(f"/api/v1/history/query?domain=test&field={FIELD}&since=10m"),
                                     headers={"Authorization": f"Bearer {token}"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer), answer.headers["X-Virtgauge-Unsealed"]


def _by_command(server: Server, state: Path, token: str, exporter: str) -> tuple[list[dict[str, object]], str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VIRTGAUGE_")}
    environment = {**kept, "VIRTGAUGE_HISTORY_TOKEN": token, "VIRTGAUGE_STATE_DIRECTORY": str(state),
                   **({"VIRTGAUGE_ARCHIVE_URI": "embedded"} if exporter == "none" else {})}
    done = subprocess.run(
        [Path(sys.executable).with_name("virtgauge"), "history", "test", "--field", FIELD, "--since", "10m",
         "--format", "json", "--exporter", exporter], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def _times(rows: list[dict[str, object]]) -> list[int]:
    return [round(datetime.fromisoformat(str(row["time"])).timestamp() * 1000) for row in rows
            if row["avg"] is not None]


def test_samples_that_are_not_in_the_database_yet_are_in_the_answer(running):
    server, state, token = running
    for ask in (lambda: _by_api(server, token), lambda: _by_command(server, state, token, f"http://{server.address}")):
        for _ in range(5):  # a window may be sealed just between the two questions
            rows, told = ask()
            times = _times(rows)
            missing = set(times) - _stored_times(state)
            if missing:
                break
            time.sleep(2)
        assert missing, "only what the database has was shown"
        assert max(missing) == max(times)
        assert "true" in told or "unsealed minute included" in told
        assert len(set(times)) == len(times)
        assert times == sorted(times)
        assert len(times) == len(rows), "a gap where the database ends and the spool begins"
        assert {(row["domain"], row["host"], row["avg"]) for row in rows} == {("test", "alpha", rows[0]["avg"])}


def test_without_an_exporter_the_command_shows_what_the_database_has_and_says_so(running):
    server, state, token = running
    rows, told = _by_command(server, state, token, "none")
    assert set(_times(rows)) <= _stored_times(state)
    assert rows
    assert "from database, without what is not archived yet" in told
