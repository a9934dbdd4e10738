"""A database on a real server process (secantusd-py), with a small fleet in it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from pymongo import MongoClient
from pymongo.errors import PyMongoError


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture(scope="session")
def archive_uri(tmp_path_factory):
    """URI of a running archive server without a password, on loopback; ended with the session."""
    program = Path(sys.executable).with_name("secantusd-py")
    if not program.exists() and not shutil.which("secantusd-py"):
        pytest.fail("secantusd-py is missing; install the extra 'embedded'")
    folder = tmp_path_factory.mktemp("archive")
    (folder / "empty.toml").touch()
    port = free_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(program) if program.exists() else "secantusd-py", "--host", "127.0.0.1", "--port", str(port),
             "--storage-path", str(folder / "data"), "--oplog-max-entries", "1000",
             "--config", str(folder / "empty.toml")],
            stdout=log, stderr=log, start_new_session=True,
        )
    try:
        uri = f"mongodb://127.0.0.1:{port}/?directConnection=true&serverSelectionTimeoutMS=2000"
        _wait(uri, process, folder / "log")
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(uri, process, log):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            with MongoClient(uri) as client:
                client.admin.command("ping")
                return
        except PyMongoError:
            time.sleep(0.1)
    pytest.fail(f"the archive server did not start: {log.read_text()[-2000:]}")


@pytest.fixture(scope="session")
def archive_client(archive_uri):
    with MongoClient(archive_uri, tz_aware=True) as client:
        yield client


@pytest.fixture
def database(archive_client):
    """An empty database of its own."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    yield archive_client[name]
    archive_client.drop_database(name)
