"""Alertmanager itself sends the webhook over TLS: with the right token, with a wrong one, and to a stranger."""

from __future__ import annotations

import json
import re
import signal
import ssl
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from exporter.control.audit import Trail
from tests.control_service import ControlService
from tests.exporter import certificates
from tests.live.alerting import alertmanager_server
from tests.live.operating import eventually
from tests.live.servers import Server

RULES = """\
here: ['instance = alpha']
rules:
  - name: suspend-it
    mode: enforce
    match: [alertname = Bad]
    action: {operation: domain.suspend}
    cooldown: 0s
"""


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ControlService]:
    certificates.authority(tmp_path)
    certificates.signed(tmp_path, "server", "IP:127.0.0.1")
    (tmp_path / "rules.yml").write_text(RULES)
    web = {"tls_server_config": {"cert_file": "server.pem", "key_file": "server.key"}}
    (tmp_path / "web.yml").write_text(yaml.safe_dump(web))
    (tmp_path / "node.xml").write_text(
        "<node><domain type='test'><name>web1</name><memory>1024</memory><os><type>hvm</type></os></domain></node>")
    service = ControlService(tmp_path, f"test://{tmp_path}/node.xml")
    service.tls = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    try:
        yield service.start(f"--web.config.file={tmp_path}/web.yml", f"--control.rules-file={tmp_path}/rules.yml")
    finally:
        service.stop(signal.SIGKILL)


def fire(alertmanager: Server, name: str) -> None:
    """An alert, as Prometheus posts it."""
    alerts = [{"labels": {"alertname": name, "instance": "alpha", "domain": "web1"},
               "startsAt": datetime.now(UTC).isoformat()}]  # fmt: skip
    request = urllib.request.Request(alertmanager.url("/api/v2/alerts"), json.dumps(alerts).encode(),
                                     {"Content-Type": "application/json"})  # fmt: skip
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200


def counted(page: str, name: str) -> float:
    """The sum of a counter's series."""
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", page, re.MULTILINE))


def test_alertmanager_over_tls(service: ControlService, tmp_path: Path) -> None:
    (tmp_path / "right").mkdir()
    (tmp_path / "wrong").mkdir()
    (tmp_path / "stranger").mkdir()
    url = f"https://127.0.0.1:{service.port}/api/v1/alerts"
    failed = "alertmanager_notifications_failed_total"
    with (
        alertmanager_server(tmp_path / "right", {url: service.tokens["alerts"]}, tmp_path / "ca.pem") as right,
        alertmanager_server(tmp_path / "wrong", {url: "forged" * 8}, tmp_path / "ca.pem") as wrong,
        # It trusts the system's authorities, and ours is none of them.
        alertmanager_server(tmp_path / "stranger", {url: service.tokens["alerts"]}) as stranger,
    ):
        for server in (right, wrong, stranger):
            server.start()
        for server in (wrong, stranger):
            server.wait_ready()
            fire(server, "Bad")
            eventually(lambda server=server: counted(server.get("/metrics"), failed) > 0, "the webhook is refused", 60)
        page = service.ask("GET", "/metrics", token="reader")[1]
        assert counted(page, "virtgauge_control_alerts_received_total") == 0
        assert counted(page, "virtgauge_http_refused_total") >= 1
        assert "forged" not in (service.folder / "log").read_text()

        right.wait_ready()
        fire(right, "Bad")
        trail = Trail(service.state / "control" / "audit.jsonl")
        eventually(lambda: "rule-acted" in [record["event"] for record in trail.records()], "the rule acts", 60)
        assert counted(right.get("/metrics"), failed) == 0
    assert service.ask("GET", "/api/v1/domains/web1")[1]["details"]["state"] == "paused"
