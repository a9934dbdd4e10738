"""Benchmark of rules: from a webhook to the act begun and to its verified outcome, and a burst of a thousand alerts.

    python tests/benchmarks/bench_alerts.py [--alerts 200] [--burst 1000]

A real `virtgauge control serve` over HTTP, its queue and trail on the disk of the temporary folder, guests of libvirt's
test driver, so that the figures are virtgauge's own; tests/live/test_misbehaving_guests.py logs those of a real guest
(--log-cli-level=info). Prints milliseconds and writes tests/benchmarks/results/alerts.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from exporter.control.audit import Trail
from tests.control_service import ControlService
from tests.exporter.control.rule_bench import guests

RESULTS = Path(__file__).parent / "results"
RULES = """\
budget_per_hour: 10000
here: ['instance = alpha']
rules:
  - name: suspend-it
    mode: enforce
    match: [alertname = Bad]
    action: {operation: domain.suspend}
    budget_per_hour: BUDGET
"""


def alert(name: str) -> dict[str, object]:
    labels = {"alertname": "Bad", "instance": "alpha", "domain": name}
    return {"status": "firing", "labels": labels, "startsAt": datetime.now(UTC).isoformat()}


def started(folder: Path, count: int, budget: int) -> ControlService:
    service = ControlService(folder, guests(folder, count))
    (folder / "rules.yml").write_text(RULES.replace("BUDGET", str(budget)))
    return service.start(f"--control.rules-file={folder}/rules.yml")


def sent(service: ControlService, alerts: list[dict[str, object]]) -> float:
    """Milliseconds until the 202."""
    before = time.perf_counter()
    assert service.ask("POST", "/api/v1/alerts", {"alerts": alerts}, token="alerts")[0] == 202
    return (time.perf_counter() - before) * 1000


def one_by_one(count: int) -> dict[str, dict[str, float]]:
    answered, begun, done = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        service = started(Path(folder), count, 1000)
        trail = Trail(service.state / "control" / "audit.jsonl")
        for number in range(count):
            at_s = time.time()
            answered.append(sent(service, [alert(f"web{number}")]))
            while True:
                last = trail.records(newest=4)
                if last and last[-1]["event"] == "rule-acted" and last[-1]["subject"]["name"] == f"web{number}":
                    break
                time.sleep(0.002)
            times = {record["event"]: datetime.fromisoformat(str(record["time"])).timestamp() for record in last}
            begun.append((times["begin"] - at_s) * 1000)
            done.append((times["rule-acted"] - at_s) * 1000)
        service.stop()
    return {"answered_ms": spread(answered), "begun_ms": spread(begun), "outcome_ms": spread(done)}


def burst(count: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        service = started(Path(folder), 50, 7)
        before = time.perf_counter()
        answered_ms = sent(service, [{**alert(f"web{number % 50}"), "fingerprint": f"{number:016x}"}
                                     for number in range(count)])  # fmt: skip
        while "virtgauge_control_alerts_waiting 0.0" not in service.ask("GET", "/metrics", token="reader")[1]:
            time.sleep(0.05)
        seconds = time.perf_counter() - before
        service.stop()
    return {"alerts": count, "answered_ms": round(answered_ms, 1), "judged_s": round(seconds, 2)}


def spread(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {"median": round(statistics.median(ordered), 1), "p95": round(ordered[int(len(ordered) * 0.95)], 1),
            "most": round(ordered[-1], 1)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alerts", type=int, default=200)
    parser.add_argument("--burst", type=int, default=1000)
    given = parser.parse_args()
    found = {"one_by_one": one_by_one(given.alerts), "burst": burst(given.burst),
             "load": round(os.getloadavg()[0], 1), "cores": os.cpu_count()}  # fmt: skip
    text = json.dumps(found, indent=2)
    print(text)
    (RESULTS / "alerts.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
