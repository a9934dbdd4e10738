"""Exporter, Prometheus and Alertmanager as an operator sets them up, with two minutes made a second.

The rules are those that `virtgauge dashboards export` writes. Only their times are shortened (`hastened`): every
`for`, `keep_firing_for`, range and offset is divided by 120, to a second at least; scrapes and evaluations come each
second.
"""

from __future__ import annotations

import http.server
import json
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import yaml

from exporter import monitoring_mixin
from exporter.demonstration.programs import find_program
from tests.live.operating import eventually
from tests.live.servers import Prometheus, Server, exporter_server, free_port, prometheus_server

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_FOR = re.compile(r"(?m)^(\s+(?:for|keep_firing_for): )(\d+)([smhdw])$")
_RANGE = re.compile(r"(\[|offset )(\d+)([smhdw])(?=\]|\W)")
FASTER = 120


def hastened(rules: str) -> str:
    """The rules with every duration divided by FASTER, of at least a second."""
    def shorter(found: re.Match[str]) -> str:
        return f"{found[1]}{max(1, int(found[2]) * _UNITS_S[found[3]] // FASTER)}s"

    return _RANGE.sub(shorter, _FOR.sub(shorter, rules))


class Alerting:
    """All three, started by the constructor's caller with `start`; a context manager. `urls` take the webhooks.

    Each has its bearer token, which may be empty. `knobs` are those of the shipped rules. `control` is the control
    service's HOST:PORT and token, scraped as well.
    """

    def __init__(self, folder: Path, libvirt_uri: str, urls: Mapping[str, str], knobs: dict[str, str],
                 flags: Sequence[str] = (), control: tuple[str, str] | None = None) -> None:
        self._ending = ExitStack()
        quick = ("--sampling.max-age=200ms", "--sampling.interval=1s")
        self.exporter = exporter_server(folder, libvirt_uri, [*quick, *flags])
        rules = folder / "rules.yml"
        rules.write_text(hastened(monitoring_mixin.rules(monitoring_mixin.turned(knobs))))
        self.alertmanager = alertmanager_server(folder, urls)
        jobs = [{"job_name": "virtgauge-control", "authorization": {"credentials": control[1]},
                 "static_configs": [{"targets": [control[0]]}]}] if control is not None else []  # fmt: skip
        self.prometheus: Prometheus = prometheus_server(folder, [self.exporter.address], "1s", [rules], job="libvirt",
                                                        alertmanager=self.alertmanager.address, more_jobs=jobs)

    def __enter__(self) -> Self:
        try:
            for server in (self.exporter, self.alertmanager, self.prometheus):
                self._ending.enter_context(server)
                server.start()
            for server in (self.exporter, self.alertmanager, self.prometheus):
                server.wait_ready()
        except BaseException:
            self._ending.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.close()

    def restart_exporter(self) -> None:
        """So that it asks for the guests' memory now, and not within its minute."""
        self.exporter.stop()
        self.exporter.start()
        self.exporter.wait_ready()

    def firing(self, alert: str, domain: str) -> bool:
        """Whether Prometheus fires this alert for this guest."""
        return bool(self.prometheus.query(f'ALERTS{{alertname="{alert}",domain="{domain}",alertstate="firing"}}'))

    def wait_firing(self, alert: str, domain: str, *, now: bool = True, timeout_s: float = 90.0) -> None:
        """Waits until it fires, or, with `now` False, no longer does."""
        state = "fires" if now else "no longer fires"
        eventually(lambda: self.firing(alert, domain) is now, f"{alert} {state} for {domain}", timeout_s)


def alertmanager_server(folder: Path, urls: Mapping[str, str], ca_file: Path | None = None) -> Server:
    """Debian's Alertmanager with one receiver, not yet started: every alert at once, and again when it resolves.

    `urls` with the bearer token of each, which may be empty; `ca_file` is what it trusts, else the system's.
    """
    port = free_port()
    webhooks: list[dict[str, Any]] = []
    for number, (url, token) in enumerate(urls.items()):
        webhooks.append({"url": url, "send_resolved": True})
        if token:
            file = folder / f"webhook{number}.token"
            file.write_text(token)
            webhooks[-1]["http_config"] = {"authorization": {"credentials_file": str(file)}}
            if ca_file is not None:
                webhooks[-1]["http_config"]["tls_config"] = {"ca_file": str(ca_file)}
    configuration = {
        "route": {"receiver": "virtgauge", "group_by": ["alertname", "instance", "domain"], "group_wait": "0s",
                  "group_interval": "1s", "repeat_interval": "1h"},
        "receivers": [{"name": "virtgauge", "webhook_configs": webhooks}],
    }
    file = folder / "alertmanager.yml"
    file.write_text(yaml.safe_dump(configuration))
    command = [find_program("prometheus-alertmanager"), f"--config.file={file}",
               f"--storage.path={folder / 'alertmanager'}", f"--web.listen-address=127.0.0.1:{port}",
               "--cluster.listen-address="]
    return Server(command, port, folder / "alertmanager.log", os.environ)


class RecordedWebhooks:
    """A webhook receiver that keeps what came: (monotonic seconds, path, headers, document). A context manager."""

    def __init__(self) -> None:
        self.received: list[tuple[float, dict[str, str], dict[str, Any]]] = []
        recorder = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                recorder.received.append((time.monotonic(), dict(self.headers), json.loads(body)))
                self.send_response(202)
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def alerts(self, name: str, domain: str, status: str) -> list[dict[str, Any]]:
        """Each alert that came, of all groups, of this name, guest (empty: of none) and status."""
        return [alert for _, _, document in list(self.received) for alert in document["alerts"]
                if alert["status"] == status and alert["labels"].get("domain", "") == domain
                and alert["labels"]["alertname"] == name]

    def wait_for(self, name: str, domain: str, status: str, timeout_s: float = 90.0) -> dict[str, Any]:
        """The first of them."""
        seen: Callable[[], Any] = lambda: self.alerts(name, domain, status)  # noqa: E731
        found: list[dict[str, Any]] = eventually(seen, f"{name} {status} for {domain}", timeout_s)
        return found[0]
