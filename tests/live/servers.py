"""Real servers for the live tests: `virtgauge exporter` and Debian's Prometheus, each on a free port of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode

import yaml

from exporter.demonstration.programs import find_program


def free_port() -> int:
    """A TCP port of the loopback address that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class Server:
    """A child process that serves HTTP on the loopback address; ended by stop() whatever state it is in.

    A context manager. `log` is the file with its standard output and error.
    """

    def __init__(self, command: Sequence[str], port: int, log: Path, environment: Mapping[str, str]) -> None:
        self.port = port
        self.log = log
        self._command = list(command)
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        assert self._process is not None, "start() first"
        return self._process.pid

    @property
    def address(self) -> str:
        """HOST:PORT, as a scrape target is written."""
        return f"127.0.0.1:{self.port}"

    def url(self, path: str) -> str:
        return f"http://{self.address}{path}"

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment
            )

    def wait_ready(self, timeout_s: float = 30.0) -> None:
        """Wait for an answer 200 of /-/ready; fails with the log where the process ended or time ran out."""
        assert self._process is not None, "start() first"
        deadline = time.monotonic() + timeout_s
        while self._status("/-/ready") != 200:
            ended = self._process.poll()
            assert ended is None, f"{self._command[0]} ended with status {ended}:\n{self.log.read_text()}"
            assert time.monotonic() < deadline, f"not ready after {timeout_s:g} s:\n{self.log.read_text()}"
            time.sleep(0.1)

    def get(self, path: str, headers: Mapping[str, str] | None = None, timeout_s: float = 15.0) -> str:
        """The body of a page. Raises urllib.error.HTTPError for any status but 200."""
        request = urllib.request.Request(self.url(path), headers=dict(headers or {}))
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            body: bytes = answer.read()
        return body.decode()

    def stop(self, timeout_s: float = 10.0) -> int | None:
        """End it (SIGTERM, then SIGKILL after `timeout_s` seconds); returns its exit status."""
        if self._process is None:
            return None
        if self._process.poll() is None:
            # A test may have left it stopped, and a stopped process takes no SIGTERM.
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            try:
                self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        return self._process.returncode

    def _status(self, path: str) -> int:
        try:
            with urllib.request.urlopen(self.url(path), timeout=5) as answer:
                status: int = answer.status
                return status
        except urllib.error.HTTPError as error:
            error.close()
            return error.code
        except OSError:
            return 0


def exporter_server(folder: Path, uri: str, flags: Sequence[str] = (), prefix: Sequence[str] = (),
                    environment: Mapping[str, str] | None = None) -> Server:
    """`virtgauge exporter` on libvirt `uri` with more `flags`, not yet started; its log is in `folder`.

    `prefix` is what runs it (setpriv with its arguments, for instance) and becomes it; `environment` is added to ours.
    """
    port = free_port()
    command = [
        *prefix,
        str(Path(sys.executable).with_name("virtgauge")),
        "exporter",
        f"--libvirt.uri={uri}",
        f"--web.listen-address=127.0.0.1:{port}",
        *flags,
    ]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VIRTGAUGE_")}
    return Server(command, port, folder / f"exporter-{port}.log", {**kept, **(environment or {})})


class Prometheus(Server):
    """Debian's Prometheus with a private folder, scraping given targets."""

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The result vector of an instant query: dictionaries with `metric` and `value` ([time, text])."""
        answer = json.loads(self.get("/api/v1/query?" + urlencode({"query": expression})))
        result: list[dict[str, Any]] = answer["data"]["result"]
        return result

    def value(self, expression: str) -> float | None:
        """The value of a query with one series; None without any."""
        result = self.query(expression)
        assert len(result) <= 1, f"{expression} has {len(result)} series"
        return float(result[0]["value"][1]) if result else None

    def targets(self) -> list[dict[str, Any]]:
        """The active targets, with `health` and `lastError`."""
        found: list[dict[str, Any]] = json.loads(self.get("/api/v1/targets"))["data"]["activeTargets"]
        return found

    def wait_for(self, expression: str, timeout_s: float = 30.0) -> list[dict[str, Any]]:
        """Wait until a query has a result, and return it."""
        deadline = time.monotonic() + timeout_s
        while not (result := self.query(expression)):
            assert time.monotonic() < deadline, f"no {expression} after {timeout_s:g} s; targets: {self.targets()}"
            time.sleep(0.2)
        return result


def prometheus_server(
    folder: Path, targets: Sequence[str], interval: str = "1s", rule_files: Sequence[Path] = (), *,
    job: str = "virtgauge", alertmanager: str | None = None, more_jobs: Sequence[Mapping[str, Any]] = (),
) -> Prometheus:
    """Prometheus scraping `targets` (HOST:PORT each) every `interval`, not yet started; its data are in `folder`.

    `alertmanager` (HOST:PORT) gets the alerts of the rules; `more_jobs` are scraped, too, as Prometheus has them.
    """
    port = free_port()
    configuration: dict[str, Any] = {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "rule_files": [str(path) for path in rule_files],
        "scrape_configs": [{"job_name": job, "static_configs": [{"targets": list(targets)}]}, *more_jobs],
    }
    if alertmanager is not None:
        managers = {"static_configs": [{"targets": [alertmanager]}]}
        configuration["alerting"] = {"alertmanagers": [managers]}
    file = folder / f"prometheus-{port}.yml"
    file.write_text(yaml.safe_dump(configuration))
    command = [
        find_program("prometheus"),
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / f'prometheus-{port}'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=info",
    ]
    return Prometheus(command, port, folder / f"prometheus-{port}.log", os.environ)
