"""A server as others run it: with TLS, client certificates and users of their own, not the embedded one's way."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from exporter.archive.embedded import program
from tests.exporter.archive.archive_rig import PATIENCE_S, wait_until
from tests.exporter.certificates import authority, signed

USERS = {"modern": "SCRAM-SHA-256", "old": "SCRAM-SHA-1"}
DATABASES = [f"history{number}" for number in range(20)]
"""Those that the users may write."""
PASSWORD = "s3cr%t/wo:rd@"  # needs escaping in a URI


class RemoteServer:
    """``certificates`` has ca.pem, server.pem, client.pem and others; the server asks for a client's certificate."""

    def __init__(self, folder: Path) -> None:
        self.certificates = folder / "certificates"
        self.certificates.mkdir()
        authority(self.certificates)
        authority(self.certificates, "stranger")
        signed(self.certificates, "server", "DNS:localhost,DNS:db1.archive.test,IP:127.0.0.1")
        signed(self.certificates, "client", "DNS:virtgauge")
        parts = [(self.certificates / name).read_text() for name in ("client.pem", "client.key")]
        (self.certificates / "client.both").write_text("".join(parts))
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            self.port = listening.getsockname()[1]
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def tls(self, client: bool = True) -> str:
        """The URI's options for TLS."""
        own = f"&tlsCertificateKeyFile={self.certificates}/client.both" if client else ""
        return f"tls=true&tlsCAFile={self.certificates}/ca.pem{own}"

    def start(self) -> None:
        """Makes the users over a first start without TLS and passwords, then starts with both."""
        self._launch(f"mongodb://127.0.0.1:{self.port}/")
        with MongoClient(f"mongodb://127.0.0.1:{self.port}/", directConnection=True) as client:
            for user, mechanism in USERS.items():
                client["people"].command({"createUser": user, "pwd": PASSWORD, "mechanisms": [mechanism],
                                          "roles": [{"role": "readWrite", "db": name} for name in DATABASES]})
        self.stop()
        folder = self.certificates
        self._launch(f"mongodb://127.0.0.1:{self.port}/?{self.tls()}", "--auth",
                     "--tls-cert-file", f"{folder}/server.pem", "--tls-key-file", f"{folder}/server.key",
                     "--tls-ca-file", f"{folder}/ca.pem", "--tls-require-client-cert")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(PATIENCE_S)

    def _launch(self, uri: str, *more: str) -> None:
        (self._folder / "empty.toml").write_text("")
        command = [program(), "--host", "127.0.0.1", "--port", str(self.port), "--storage-path",
                   str(self._folder / "data"), "--config", str(self._folder / "empty.toml"), *more]
        with open(self._folder / "server.log", "ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                             start_new_session=True)
        wait_until(lambda: self._answers(uri) or self._process.poll() is not None, "the server answers")
        assert self._process.poll() is None, (self._folder / "server.log").read_text()

    @staticmethod
    def _answers(uri: str) -> bool:
        with contextlib.suppress(PyMongoError), MongoClient(uri, serverSelectionTimeoutMS=500) as client:
            client.admin.command("ping")
            return True
        return False


@contextlib.contextmanager
def name_server(folder: Path, address: str, srv_host: str, target: str, port: int, text: str) -> Iterator[list[str]]:
    """A DNS server on ``address``:53 that knows one SRV, one TXT and one A record; yields how to run a command with it.

    The command has a mount namespace with an /etc/resolv.conf of its own.
    """
    resolv = folder / "resolv.conf"
    resolv.write_text(f"nameserver {address}\noptions timeout:1 attempts:2\n")
    records = {f"_mongodb._tcp.{srv_host}. SRV": f"0 0 {port} {target}.", f"{srv_host}. TXT": f'"{text}"',
               f"{target}. A": "127.0.0.1"}
    command = [sys.executable, "-m", "tests.exporter.archive.name_server", address,
               *(f"{name} {data}" for name, data in records.items())]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
                               stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"ready\n"
        yield ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/resolv.conf && exec "$@"', str(resolv)]
    finally:
        process.kill()
        process.communicate()
