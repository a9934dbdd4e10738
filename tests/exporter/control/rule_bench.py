"""A rule engine of the test's own over libvirt's test driver, its clock in the test's hands."""

from __future__ import annotations

import functools
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from exporter.control.alert_store import AlertStore
from exporter.control.connection import Session
from exporter.control.executor import Executor
from exporter.control.folders import Folders
from exporter.control.rule_engine import RuleEngine
from exporter.control.rule_reading import parse_rules
from exporter.control.webhook import Alert, read_webhook

ACTED = ["rule-acts", "begin", "end", "rule-acted"]
RULES = """\
here:
  - instance =~ "alpha(:.*)?"
rules:
  - name: suspend-it
    mode: enforce
    match: [alertname = Bad]
    expect: {state: [running]}
    action: {operation: domain.suspend}
    undo: {operation: domain.resume}
    cooldown: 0s
    budget_per_hour: 100
"""

WITHOUT_UNDO = RULES.replace("    undo: {operation: domain.resume}\n", "")
PARSED = functools.cache(parse_rules)


def guests(folder: Path, count: int) -> str:
    """A URI of the test driver with so many running guests, web0 and so on."""
    domains = "".join(
        f"<domain type='test'><name>web{n}</name><uuid>00000000-0000-4000-8000-{n:012}</uuid><memory>1024</memory>"
        "<os><type>hvm</type></os><devices><disk type='file' device='disk'><source file='/x'/><target dev='vda'/>"
        "</disk></devices></domain>" for n in range(count))
    file = folder / "node.xml"
    file.write_text(f"<node>{domains}</node>")
    return f"test://{file}"


def alert(domain: str = "web0", status: str = "firing", number: int = 0, **labels: str) -> Alert:
    found = {"alertname": "Bad", "instance": "alpha:9177", "domain": domain, **labels}
    starts = datetime(2026, 11, 23, tzinfo=UTC).replace(minute=number % 60, hour=number // 60 % 24)
    body = {"alerts": [{"status": status, "labels": found, "startsAt": starts.isoformat()}]}
    return read_webhook(json.dumps(body).encode())[0]


class Bench:
    """An engine of the test's own."""

    def __init__(self, folder: Path, count: int = 3) -> None:
        self.uri = guests(folder, count)
        self.folders = Folders(folder / "control")
        self.text = RULES
        self.now_s = time.time()
        self.executor = Executor(Session(self.uri), self.folders)
        self.open()

    def open(self) -> None:
        self.store = AlertStore(self.folders.private(self.folders.state))
        self.engine = RuleEngine(lambda: PARSED(self.text), self.store, self.executor, lambda: self.now_s)

    def reopen(self) -> None:
        """As a new process finds it."""
        self.store.close()
        self.open()

    def domain(self, name: str = "web0") -> Any:
        """libvirt's own handle."""
        return self.executor.session.connection.lookupByName(name)

    def told(self, event: str) -> list[dict[str, Any]]:
        """The trail's records of an event."""
        return [dict(record) for record in self.executor.trail.records() if record["event"] == event]

    def send(self, *alerts: Alert) -> list[str]:
        """Judged all of them, the queue's and the due acts' work done; the events of the trail from here on."""
        before = len(self.executor.trail.records())
        self.engine.receive(list(alerts))
        self.settle()
        return [str(record.get("skipped") or record["event"]) for record in self.executor.trail.records()[before:]]

    def settle(self) -> None:
        while self.engine._one_alert() or self.engine._one_act():
            pass
        self.engine._trail.tell_counted()

    def state(self, name: str = "web0") -> str:
        number = self.executor.session.connection.lookupByName(name).state()[0]
        return {1: "running", 3: "paused", 5: "shutoff"}[number]
