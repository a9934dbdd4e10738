"""A real `virtgauge control serve` for tests: started, asked over HTTP, killed, started again."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from exporter.token_changes import create_token
from exporter.tokens import Role

PROGRAM = [sys.executable, "-c", "from exporter.cli import main; main()"]


class ControlService:
    """A control service on a free port with five tokens: alerts, reader, operator, admin, and web for domains web*."""

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder = folder
        self.uri = uri
        self.state = folder / "state"
        self.state.mkdir(mode=0o700)
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("VIRTGAUGE_")}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.tokens = {role: self.token(role, role, "*") for role in ("alerts", "reader", "operator", "admin")}
        self.tokens["web"] = self.token("web", "admin", "web*")
        self.headers: Any = {}
        self.uri_flags = ["--libvirt.uri", uri]
        self.tls: ssl.SSLContext | None = None
        """What to trust where it is started behind TLS."""
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """`virtgauge WORDS` with this service's state folder."""
        command = [*PROGRAM, *words, "--state.directory", str(self.state)]
        return subprocess.run(command, capture_output=True, text=True, env=self.environment, timeout=120, check=False)

    def token(self, name: str, role: str, domain: str) -> str:
        file = self.state / "tokens.yml"
        return create_token(file, name, Role.parse(role), (domain,), datetime.now(UTC), None)[1]

    def start(self, *flags: str) -> ControlService:
        """Starts it, with more flags, and waits until libvirt has answered it."""
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*PROGRAM, "control", "serve", "--control.listen-address", f"127.0.0.1:{self.port}",
                 *self.uri_flags, "--state.directory", str(self.state), *flags],
                env=self.environment, stderr=log, stdout=log,
            )  # fmt: skip
        end_s = time.monotonic() + 60
        while time.monotonic() < end_s:
            try:
                if self.ask("GET", "/-/ready", token=None)[0] == 200:
                    return self
            except OSError:
                time.sleep(0.1)
        self.stop(signal.SIGKILL)
        raise AssertionError((self.folder / "log").read_text())

    def stop(self, number: int = signal.SIGTERM) -> int | None:
        """Its exit status; None where it did not run."""
        if self.process is None:
            return None
        self.process.send_signal(number)
        status = self.process.wait(30)
        self.process = None
        return status

    def ask(self, method: str, path: str, body: Any = None, token: str | None = "admin", **headers: str) -> Any:
        """Status and document; `token` is one of `tokens` or a text of its own. Headers are kept in `headers`."""
        if token is not None:
            headers["Authorization"] = f"Bearer {self.tokens.get(token, token)}"
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if isinstance(body, dict):
            body, headers = json.dumps(body), {"Content-Type": "application/json", **headers}
        address = ("127.0.0.1", self.port)
        connection = (http.client.HTTPSConnection(*address, timeout=60, context=self.tls) if self.tls
                      else http.client.HTTPConnection(*address, timeout=60))  # fmt: skip
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        self.headers = answer.headers
        is_json = "json" in answer.headers.get("content-type", "")
        return answer.status, json.loads(content) if is_json else content.decode()

    def problem(self, *words: Any, **more: Any) -> tuple[int, str]:
        """Status and kind of a refusal, whose form is checked."""
        status, document = self.ask(*words, **more)
        assert self.headers["content-type"] == "application/problem+json", document
        assert document["status"] == status
        assert document["type"].startswith("urn:virtgauge:problem:")
        assert document["detail"]
        return status, document["type"].rpartition(":")[2]

    def finished(self, location: str) -> dict[str, Any]:
        """The job once it no longer runs."""
        end_s = time.monotonic() + 90
        while True:
            status, job = self.ask("GET", location)
            if job["state"] != "running":
                return dict(job)
            assert (status, time.monotonic() < end_s) == (200, True), job
            time.sleep(0.1)
