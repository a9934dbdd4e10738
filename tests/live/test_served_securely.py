"""Prometheus itself over TLS: with a password, with a client certificate, and through a rotation."""

from __future__ import annotations

import http.client
import itertools
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import bcrypt
import pytest
import yaml

from tests.live.secured import SecureServer, make_pairs
from tests.live.servers import Prometheus, Server, exporter_server, prometheus_server

URI = "test:///default"
PASSWORD = "pass:wörd"


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pairs")
    make_pairs(made)
    return made


@pytest.fixture
def folder(pairs: Path, tmp_path: Path) -> Path:
    for file in pairs.iterdir():
        shutil.copy(file, tmp_path)
    return tmp_path


@pytest.fixture
def ending() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def start_exporter(ending: ExitStack, folder: Path, web: dict[str, Any], *flags: str) -> Server:
    """An exporter behind this web configuration, on libvirt's test driver."""
    config = folder / f"web-{len(list(folder.glob('web-*')))}.yml"
    config.write_text(yaml.safe_dump(web, allow_unicode=True))
    server = exporter_server(folder, URI, [f"--web.config.file={config}", f"--state.directory={folder}", *flags])
    secure = SecureServer(server._command, server.port, server.log, server._environment)
    ending.enter_context(secure)
    secure.start()
    secure.wait_ready()
    return secure


def start_prometheus(ending: ExitStack, folder: Path, jobs: dict[str, dict[str, Any]], interval: str) -> Prometheus:
    """Debian's Prometheus with one job for each entry: its target under `target`, the rest as Prometheus spells it."""
    server = prometheus_server(folder, [], interval)
    file = folder / f"prometheus-{server.port}.yml"
    configuration = yaml.safe_load(file.read_text())
    configuration["scrape_configs"] = [
        {"job_name": name, "scheme": "https", "static_configs": [{"targets": [job.pop("target")]}], **job}
        for name, job in jobs.items()
    ]
    file.write_text(yaml.safe_dump(configuration, allow_unicode=True))
    ending.enter_context(server)
    server.start()
    server.wait_ready()
    return server


def test_prometheus_over_tls_with_a_password_and_with_a_client_certificate(folder: Path, ending: ExitStack) -> None:
    pair = {"cert_file": "server.pem", "key_file": "server.key", "min_version": "TLS13"}
    hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(10)).decode()
    by_password = start_exporter(ending, folder, {"tls_server_config": pair, "basic_auth_users": {"prom": hashed}})
    demand = {"client_ca_file": "ca.pem", "client_auth_type": "RequireAndVerifyClientCert",
              "client_allowed_sans": ["prometheus.example"]}  # fmt: skip
    by_certificate = start_exporter(ending, folder, {"tls_server_config": pair | demand})
    trust = {"ca_file": str(folder / "ca.pem")}

    def with_certificate(name: str) -> dict[str, Any]:
        files = {"cert_file": str(folder / f"{name}.pem"), "key_file": str(folder / f"{name}.key")}
        return {"target": by_certificate.address, "tls_config": trust | files}

    def with_password(word: str) -> dict[str, Any]:
        basic = {"username": "prom", "password": word}
        return {"target": by_password.address, "tls_config": trust, "basic_auth": basic}

    jobs = {"password": with_password(PASSWORD), "wrong": with_password("wrong"),
            "certificate": with_certificate("client"), "other": with_certificate("other"),
            "none": {"target": by_certificate.address, "tls_config": trust}}  # fmt: skip
    prometheus = start_prometheus(ending, folder, jobs, "1s")
    for job in ("password", "certificate"):
        prometheus.wait_for(f'virtgauge_build_info{{job="{job}"}}')
        assert prometheus.value(f'up{{job="{job}"}}') == 1
    for job in ("wrong", "other", "none"):
        prometheus.wait_for(f'up{{job="{job}"}} == 0')
    # Each refusal is counted where an alert can see it.
    prometheus.wait_for('virtgauge_http_refused_total{job="password",reason="basic_auth"} > 0')
    prometheus.wait_for('virtgauge_http_refused_total{job="certificate",reason="client_certificate"} > 0')
    prometheus.wait_for('virtgauge_http_refused_total{job="certificate",reason="tls"} > 0')
    # Without an archive there is no API, so no path is without a password.
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    with closing(http.client.HTTPSConnection("localhost", by_password.port, timeout=30, context=context)) as stranger:
        stranger.request("GET", "/api/v1/history/domains")
        assert stranger.getresponse().status == 401
    errors = {target["labels"]["job"]: target["lastError"] for target in prometheus.targets()}
    assert "401" in errors["wrong"]
    assert errors["password"] == errors["certificate"] == ""


def test_a_certificate_rotates_without_a_failed_scrape(folder: Path, ending: ExitStack) -> None:
    web = {"tls_server_config": {"cert_file": "server.pem", "key_file": "server.key"}}
    exporter = start_exporter(ending, folder, web)
    # Prometheus keeps its connection, so most of its scrapes see no handshake: ten jobs with one of their own each,
    # and a client that connects anew.
    trust = {"ca_file": str(folder / "ca.pem")}
    jobs = {f"j{n}": {"target": exporter.address, "tls_config": trust, "params": {"n": [str(n)]}} for n in range(10)}
    # Its timeout is no longer than its interval, and a loaded machine needs a little.
    prometheus = start_prometheus(ending, folder, jobs, "2s")
    prometheus.wait_for("count(up == 1) == 10")
    begun_s = time.time()
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    serials = [_serial(exporter, context)]
    kept = folder / "kept"
    kept.mkdir()
    for name in ("server.pem", "server.key", "second.pem", "second.key"):
        shutil.copy(folder / name, kept)
    for name in ("second", "server", "second"):
        for kind in ("pem", "key"):
            shutil.copy(kept / f"{name}.{kind}", folder / "draft")
            (folder / "draft").replace(folder / f"server.{kind}")
            # Scrapes go on while the halves do not fit; new connections get the last whole pair.
            _serial(exporter, context)
            prometheus.wait_for(f"min(timestamp(up)) > {time.time():.3f}")
        serials.append(_serial(exporter, context))
    assert all(before != after for before, after in itertools.pairwise(serials))
    rotating = f"{int(time.time() - begun_s)}s"  # and not the scrapes before, while Prometheus started
    assert prometheus.value(f"count(min_over_time(up[{rotating}]) == 1)") == 10
    assert prometheus.value(f"min(count_over_time(up[{rotating}]))") > 4
    assert "bad certificate" not in prometheus.log.read_text()


def _serial(exporter: Server, context: ssl.SSLContext) -> str:
    with closing(http.client.HTTPSConnection("localhost", exporter.port, timeout=30, context=context)) as connection:
        connection.request("GET", "/-/healthy")
        certificate: dict[str, Any] = connection.sock.getpeercert()
        assert connection.getresponse().status == 200
        return str(certificate["serialNumber"])


@pytest.mark.skipif(not shutil.which("systemd-socket-activate"), reason="needs systemd's socket activation")
def test_sockets_from_systemd(tmp_path: Path) -> None:
    path, log = tmp_path / "activated.sock", tmp_path / "log"
    virtgauge = str(Path(sys.executable).with_name("virtgauge"))
    command = ["systemd-socket-activate", "-l", str(path), virtgauge, "exporter", "--web.systemd-socket",
               f"--libvirt.uri={URI}", f"--state.directory={tmp_path}"]  # fmt: skip
    environ = {name: value for name, value in os.environ.items() if not name.startswith("VIRTGAUGE_")}
    command[3:3] = [f"-E{name}" for name in ("PYTHONPATH", "HOME") if name in environ]
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output, env=environ) as process:
        try:
            deadline = time.monotonic() + 30
            while not path.exists():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            with closing(socket.socket(socket.AF_UNIX)) as client:
                client.settimeout(60)
                client.connect(str(path))
                client.sendall(b"GET /-/healthy HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                assert client.recv(100).startswith(b"HTTP/1.1 200"), log.read_text()
        finally:
            process.terminate()
            process.wait(30)
