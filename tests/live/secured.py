"""Exporters behind TLS and passwords for the live tests, and the certificates for them."""

from __future__ import annotations

import socket
import time
from pathlib import Path

from tests.exporter import certificates
from tests.live.servers import Server


class SecureServer(Server):
    """An exporter that is ready once its port takes connections, since its pages ask for more."""

    def wait_ready(self, timeout_s: float = 30.0) -> None:
        assert self._process is not None
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
                return
            except OSError:
                assert self._process.poll() is None, self.log.read_text()
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.1)


def make_pairs(folder: Path) -> None:
    """Certificates and keys in `folder`: an authority (ca), servers (server, second) and clients (client, other)."""
    certificates.authority(folder)
    for name in ("server", "second"):
        certificates.signed(folder, name, "DNS:localhost,IP:127.0.0.1")
    certificates.signed(folder, "client", "DNS:prometheus.example")
    certificates.signed(folder, "other", "DNS:somebody.example")
