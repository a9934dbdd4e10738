"""What `virtgauge dashboards export` writes, loaded by a real Prometheus that sends to a real Alertmanager."""

from __future__ import annotations

import json
import os
import time
from contextlib import ExitStack
from pathlib import Path

from exporter import cli
from exporter.demonstration.private_hypervisor import PrivateHypervisor
from exporter.demonstration.programs import find_program
from tests.live.conftest import StartExporter
from tests.live.servers import Prometheus, Server, free_port


def test_the_exported_rules_run_and_alerts_arrive(fresh_hypervisor: PrivateHypervisor, start_exporter: StartExporter,
                                                  tmp_path: Path) -> None:
    exporter = start_exporter(fresh_hypervisor.read_only_uri)
    assert cli.run(["dashboards", "export", str(tmp_path)]) == 0
    with ExitStack() as ending:
        alertmanager = ending.enter_context(started_alertmanager(tmp_path))
        prometheus = ending.enter_context(started_prometheus(tmp_path, exporter.address, alertmanager.address))
        prometheus.wait_for('libvirt_up{job="libvirt"} == 1')
        prometheus.wait_for('ALERTS{alertname="VirtgaugeWatchdog",alertstate="firing"}')
        fresh_hypervisor.stop_daemon()
        prometheus.wait_for('ALERTS{alertname="LibvirtDown",alertstate="pending"}')
        groups = json.loads(prometheus.get("/api/v1/rules"))["data"]["groups"]
        rules = [rule for group in groups for rule in group["rules"]]
        assert len(rules) > 40
        assert [(rule["name"], rule.get("lastError")) for rule in rules if rule["health"] == "err"] == []
        wait_for_alert(alertmanager, "VirtgaugeWatchdog")


def started_alertmanager(folder: Path) -> Server:
    port = free_port()
    command = [find_program("prometheus-alertmanager"), f"--config.file={folder / 'examples' / 'alertmanager.yml'}",
               f"--storage.path={folder / 'alertmanager'}", f"--web.listen-address=127.0.0.1:{port}",
               "--cluster.listen-address="]
    return started(Server(command, port, folder / "alertmanager.log", os.environ))


def started_prometheus(folder: Path, exporter: str, alertmanager: str) -> Prometheus:
    """With the shipped configuration; only addresses and the pace are this test's."""
    port = free_port()
    file = folder / "examples" / "prometheus.yml"
    text = file.read_text()
    for old, new in (("localhost:9177", exporter), ("localhost:9093", alertmanager),
                     ("_interval: 15s", "_interval: 1s"), ("scrape_timeout: 10s", "scrape_timeout: 1s")):
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)
    command = [find_program("prometheus"), f"--config.file={file}", f"--storage.tsdb.path={folder / 'tsdb'}",
               f"--web.listen-address=127.0.0.1:{port}"]
    server = Prometheus(command, port, folder / "prometheus.log", os.environ)
    started(server)
    return server


def started(server: Server) -> Server:
    server.start()
    try:
        server.wait_ready()
    except BaseException:
        server.stop()
        raise
    return server


def wait_for_alert(alertmanager: Server, name: str) -> None:
    deadline = time.monotonic() + 60
    while name not in [alert["labels"]["alertname"] for alert in json.loads(alertmanager.get("/api/v2/alerts"))]:
        assert time.monotonic() < deadline, f"{name} never reached Alertmanager:\n{alertmanager.log.read_text()}"
        time.sleep(0.2)
