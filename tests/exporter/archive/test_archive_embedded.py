"""The embedded server: a process of its own that dies with its parent and whose password nobody sees."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pymongo import MongoClient
from pymongo.errors import OperationFailure
from pymongo.write_concern import WriteConcern

from exporter.archive.connection import opened
from exporter.archive.embedded import EmbeddedServer, Watch, _Silence, running_uri
from exporter.archive.errors import ArchiveError, EmbeddedServerError
from exporter.config import ArchiveSettings
from exporter.errors import SettingsError
from tests.exporter.archive.archive_rig import PATIENCE_S, assert_stored, rig, wait_until

pytestmark = pytest.mark.live
ROOT = Path(__file__).parents[3]
PARENT = """\
import sys, time
from pathlib import Path
from exporter.archive.embedded import EmbeddedServer
server = EmbeddedServer(Path(sys.argv[1]))
server.start()
server.uri(120)
print(server.pid, flush=True)
time.sleep(600)
"""


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_password_is_in_one_private_file_only(archive_server):
    uri = archive_server.uri(PATIENCE_S)
    password = uri.partition("@")[0].rpartition(":")[2]
    folder = archive_server._folder
    assert len(password) > 20
    assert (folder / "password").read_text() == password
    assert stat.S_IMODE((folder / "password").stat().st_mode) == 0o600
    pid = archive_server.pid
    for name in ("cmdline", "environ"):
        assert password.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()
    assert password not in (folder / "server.log").read_text()
    with MongoClient(uri.replace(password, "wrong")) as client, pytest.raises(OperationFailure) as caught:
        client.x.y.find_one()
    assert caught.value.code == 18
    port = uri.rpartition(":")[2].partition("/")[0]
    with MongoClient(f"mongodb://127.0.0.1:{port}/") as client, pytest.raises(OperationFailure) as caught:
        client.x.y.find_one()
    assert caught.value.code == 13


def test_it_dies_with_its_parent_however_that_ends(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path / "server")], stdout=subprocess.PIPE,
                              env=environment)
    try:
        pid = int(parent.stdout.readline())
        assert alive(pid)
        os.kill(pid, signal.SIGSTOP)  # even one that hangs
    finally:
        parent.kill()
        parent.communicate()
    wait_until(lambda: not alive(pid), "the server is gone")


def test_one_that_hangs_is_started_again_and_one_that_was_only_silent_for_a_while_is_not(tmp_path):
    watch = Watch(every_s=0.0, again_s=0.0, silent_s=10.0, stop_s=0.5)
    server = EmbeddedServer(tmp_path / "server", watch=watch)
    server.start()
    try:
        server.uri(PATIENCE_S)
        pid = server.pid
        os.kill(pid, signal.SIGSTOP)
        time.sleep(3)
        os.kill(pid, signal.SIGCONT)
        with MongoClient(server.uri(PATIENCE_S)) as client:
            client.x.get_collection("y", write_concern=WriteConcern(1, j=True)).insert_one({"_id": 1})
            assert server.pid == pid
            os.kill(pid, signal.SIGSTOP)
            wait_until(lambda: server.pid not in (pid, None), "another one is started")
            server.uri(PATIENCE_S)
            wait_until(lambda: client.x.y.find_one() == {"_id": 1}, "it answers at the same place")
        assert not alive(pid)
    finally:
        server.stop()


@pytest.mark.parametrize(("is_busy", "hangs"), [(True, False), (False, True)])
def test_one_that_computes_is_slow_and_does_not_hang(is_busy, hangs):
    """A process that answers nobody, on a port that takes connections and is silent."""
    program = "while True: pass" if is_busy else "import time; time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", program]) as process, \
            socket.create_server(("127.0.0.1", 0)) as listening:
        try:
            silence = _Silence(process.pid, listening.getsockname()[1], Watch(0.0, 0.0, silent_s=1.0, busy_s=900.0))
            assert not silence.too_long()  # silent for the first time
            assert silence.too_long() == hangs
        finally:
            process.kill()


def test_it_keeps_what_it_has_over_a_restart_and_a_command_finds_it(tmp_path):
    settings = ArchiveSettings(uri="embedded")
    with rig(tmp_path, "embedded", "virtgauge") as run:
        run.sample(7)
        run.drain()
        uri = running_uri(tmp_path / "archive" / "embedded")
        assert uri is not None
        with opened(settings, tmp_path) as database:  # while it runs: the same server
            assert database.objects.find_one() is not None
    assert running_uri(tmp_path / "archive" / "embedded") is None
    with opened(settings, tmp_path):  # while it does not: started for the command
        assert_stored(running_uri(tmp_path / "archive" / "embedded"), "virtgauge", run.truth)
    assert running_uri(tmp_path / "archive" / "embedded") is None


def test_without_an_archive_or_a_server_a_command_says_what_to_do(tmp_path):
    with pytest.raises(SettingsError, match=r"archive\.uri: there is no archive"), opened(ArchiveSettings(), tmp_path):
        pass
    dead = ArchiveSettings(uri="mongodb://root:hidden@127.0.0.1:1/?serverSelectionTimeoutMS=200")
    with pytest.raises(ArchiveError, match="check archive") as caught, opened(dead, tmp_path):
        pass
    assert "hidden" not in str(caught.value)


def test_a_server_that_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmbeddedServerError, match=r"pip install 'virtgauge\[embedded\]'"):
        EmbeddedServer(tmp_path)
