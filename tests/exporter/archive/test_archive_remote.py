"""A server of others: TLS with its own authority, client certificates, both SCRAM mechanisms, replica set, SRV."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote_plus

import pytest

from exporter.archive.embedded import program
from exporter.archive.faults import Fault
from tests.exporter.archive.archive_rig import TIMEOUTS, assert_stored, rig, wait_until
from tests.exporter.archive.remote_server import DATABASES, PASSWORD, RemoteServer, name_server
from tests.live.servers import exporter_server

pytestmark = pytest.mark.live
ROOT = Path(__file__).parents[3]
_databases = iter(DATABASES)
SECRETS = (PASSWORD, quote_plus(PASSWORD))


@pytest.fixture(scope="module")
def remote(tmp_path_factory):
    if program() is None:
        pytest.skip("secantusdb is not installed")
    server = RemoteServer(tmp_path_factory.mktemp("remote"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def database():
    """A database that no other test uses and the users may write."""
    return next(_databases)


def uri_for(remote, user="modern", hosts="", path="", options=""):
    return (f"mongodb://{user}:{quote_plus(PASSWORD)}@{hosts or f'localhost:{remote.port}'}/{path}?{remote.tls()}"
            f"{options}{TIMEOUTS}")


@pytest.mark.parametrize(("user", "path", "options"), [
    ("modern", "", "&authSource=people&authMechanism=SCRAM-SHA-256"),
    ("old", "", "&authSource=people&authMechanism=SCRAM-SHA-1"),
    ("modern", "people", ""),  # as in mongodb://root:...@mongo.example.org:27017/admin
    ("modern", "", "&authSource=people&replicaSet=secantus"),
])
def test_samples_arrive_over_tls_by_every_mechanism(remote, database, tmp_path, user, path, options):
    uri = uri_for(remote, user, path=path, options=options)
    with rig(tmp_path, uri, database) as run:
        run.sample(7)
        run.drain()
        assert not any(run.archive.writer.counts.retries.values())
    assert_stored(uri, database, run.truth)


def test_one_of_several_seeds_is_enough(remote, database, tmp_path):
    hosts = f"localhost:1,localhost:{remote.port}"
    uri = uri_for(remote, hosts=hosts, options="&authSource=people&replicaSet=secantus")
    with rig(tmp_path, uri, database) as run:
        run.sample(7)
        run.drain()
    assert_stored(uri, database, run.truth)


@pytest.mark.parametrize(("change", "fault", "word"), [
    (("/ca.pem", "/stranger.pem"), Fault.UNREACHABLE, "certificate verify failed"),
    (("&tlsCertificateKeyFile", "&x"), Fault.UNREACHABLE, ""),
    (("tls=true", "tls=false"), Fault.UNREACHABLE, ""),
    (("localhost:", "127.0.0.2:"), Fault.UNREACHABLE, "127.0.0.2"),
    (("authSource=people", "authSource=admin"), Fault.AUTHENTICATION, ""),
    (("replicaSet=secantus", "replicaSet=other"), Fault.UNREACHABLE, "other"),
    (("SCRAM-SHA-256", "SCRAM-SHA-1"), Fault.AUTHENTICATION, ""),
])
def test_what_is_wrong_is_told_without_the_password(remote, database, tmp_path, caplog, change, fault, word):
    options = "&authSource=people&replicaSet=secantus&authMechanism=SCRAM-SHA-256"
    uri = uri_for(remote, options=options).replace(*change)
    if "&x=" in uri:
        uri = "&".join(part for part in uri.split("&") if not part.startswith("x="))
    if "tls=false" in uri:
        uri = f"mongodb://modern:{quote_plus(PASSWORD)}@localhost:{remote.port}/?authSource=people{TIMEOUTS}"
    with rig(tmp_path, uri, database) as run:
        run.sample(7)
        wait_until(lambda: run.archive.writer.counts.fault is fault, f"{fault.value} is told")
        told = run.archive.writer.counts.last_error
    assert word in told
    for secret in SECRETS:
        assert secret not in told + caplog.text


@pytest.mark.parametrize(("uri", "more", "fault"), [
    ("mongodb://modern:{wrong}@localhost:{port}/?{tls}&authSource=people", {}, "authentication"),
    ("mongodb://localhost:{port}/?{tls}&authSource=people", {"USERNAME": "modern", "PASSWORD": "{wrong}"},
     "authentication"),
    ("mongodb://modern:{right}@localhost:{port}/?authSource=people&serverSelectionTimeoutMS=500", {}, "unreachable"),
    ("mongodb+srv://modern:{right}@nowhere.invalid/?authSource=people", {}, "unreachable"),
], ids=["URI", "environment", "no TLS", "SRV without a name server"])
def test_no_log_and_no_page_of_an_exporter_shows_a_password(remote, database, tmp_path, uri, more, fault):
    """At level debug, with the driver's own messages: wrong password, wrong transport, a name that nobody knows."""
    given = {"wrong": "wr0ng%21pass", "right": quote_plus(PASSWORD), "port": remote.port, "tls": remote.tls()}
    environment = {"VIRTGAUGE_ARCHIVE_URI": uri.format(**given), "VIRTGAUGE_ARCHIVE_DATABASE": database,
                   **{f"VIRTGAUGE_ARCHIVE_{name}": text.format(**given) for name, text in more.items()}}
    flags = ["--sampling.interval=1s", "--archive.window=10s", f"--state.directory={tmp_path}/state",
             "--log.level=debug"]
    with exporter_server(tmp_path, "test:///default", flags, environment=environment) as server:
        server.start()
        server.wait_ready(60)
        line = f'virtgauge_archive_fault{{fault="{fault}"}} 1'
        wait_until(lambda: line in server.get("/metrics"), f"{fault} is told")
        shown = server.get("/metrics") + server.get("/")
    log = server.log.read_text()
    assert f"fault={fault}" in log
    assert "level=debug" in log
    for secret in ("wr0ng", *SECRETS):
        assert secret not in shown + log


def test_a_database_that_the_user_may_not_write_is_an_authentication_fault(remote, database, tmp_path):
    with rig(tmp_path, uri_for(remote, options="&authSource=people"), "elsewhere") as run:
        run.sample(7)
        wait_until(lambda: run.archive.writer.counts.fault is Fault.AUTHENTICATION, "the refusal is told")
        assert "elsewhere" in run.archive.writer.counts.last_error


@pytest.mark.parametrize("way", ["environment", "file"])
def test_an_srv_uri_with_credentials_from_outside(remote, database, tmp_path, way):
    if os.geteuid():
        pytest.skip("a name server on port 53 takes root")
    uri = uri_for(remote, options="&authSource=people")
    with rig(tmp_path / "state", uri, database) as run:
        run.sample(7)
        run.drain()
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "VIRTGAUGE_ARCHIVE_URI": f"mongodb+srv://archive.test/?{remote.tls()}",
        "VIRTGAUGE_ARCHIVE_DATABASE": database, "VIRTGAUGE_ARCHIVE_USERNAME": "modern",
        "VIRTGAUGE_STATE_DIRECTORY": str(tmp_path / "state")}
    if way == "environment":
        environment["VIRTGAUGE_ARCHIVE_PASSWORD"] = PASSWORD
    else:
        (tmp_path / "password").write_text(PASSWORD + "\n")
        environment["VIRTGAUGE_ARCHIVE_PASSWORD_FILE"] = str(tmp_path / "password")
    with name_server(tmp_path, "127.99.0.53", "archive.test", "db1.archive.test", remote.port,
                     "authSource=people&replicaSet=secantus") as within:
        done = subprocess.run([*within, sys.executable, "-c", "from exporter.cli import main; main()",
                               "archive", "status"], env=environment,
                              cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "host       alpha" in done.stdout
    for secret in SECRETS:
        assert secret not in done.stdout + done.stderr
