"""The alerts: complete, each with its runbook, fired by promtool when they should and only then."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from exporter import monitoring_mixin
from exporter.control.rules import load_rules
from tests import command_lines
from tests.grafana.alert_cases import ALWAYS, CASES, WEEK, Case, Grows
from tests.grafana.expressions import FILES, FOLDER, dashboard, metrics
from tests.grafana.known_metrics import known
from tests.samples import REPOSITORY

FILE = FOLDER / "alerts" / "virtgauge.rules.yml"
RUNBOOKS = FOLDER / "alerts" / "runbooks"
ALL_RULES: list[dict[str, Any]] = [rule for group in yaml.safe_load(FILE.read_text())["groups"]
                                   for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in ALL_RULES if "alert" in rule}
RECORDS = {rule["record"]: rule for rule in ALL_RULES if "record" in rule}
EACH = pytest.mark.parametrize("name", sorted(ALERTS))


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, (done.stdout + done.stderr)[:4000]


def test_the_rules_are_those_of_the_template_with_the_knobs_by_default() -> None:
    assert FILE.read_text() == monitoring_mixin.rules(monitoring_mixin.knobs())


def test_promtool_accepts_the_rules() -> None:
    promtool("check", "rules", "--lint=all", "--lint-fatal", FILE)


@EACH
def test_every_alert_says_all_that_a_person_needs(name: str) -> None:
    rule = ALERTS[name]
    assert re.fullmatch(r"(Libvirt|Virtgauge)[A-Z]\w+", name)
    assert rule["labels"]["severity"] in {"critical", "warning", "info", "none"}
    annotations = rule["annotations"]
    assert set(annotations) == {"summary", "description", "runbook_url", "dashboard_url"}
    assert "{{" not in annotations["summary"]
    assert annotations["runbook_url"].endswith(f"/{name}.md")
    uid = re.search(r"/d/([\w-]+)", annotations["dashboard_url"])
    assert uid
    assert (FOLDER / "dashboards" / f"{uid[1]}.json").exists()
    assert name == ALWAYS or rule.get("keep_firing_for"), "one good sample would end it"


@pytest.mark.parametrize("rule", ALL_RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_every_metric_of_a_rule_exists_and_is_bound_to_the_job(rule: dict[str, Any]) -> None:
    if rule.get("alert") == ALWAYS:
        return
    assert metrics(rule["expr"]) - known() - set(RECORDS) == set()
    selectors = re.findall(r"\{([^}]*)\}", rule["expr"])
    assert selectors
    assert all('job="libvirt"' in one or 'job="virtgauge-control"' in one for one in selectors)


@pytest.mark.parametrize("name", sorted(RECORDS))
def test_recording_rules_are_named_level_metric_operations(name: str) -> None:
    level, metric, operations = name.split(":")
    assert level
    assert operations
    assert metric in known()


@pytest.mark.parametrize("document", ["README.md", "docs/dashboards.md"])
def test_documents_count_the_alerts_rightly(document: str) -> None:
    assert set(re.findall(r"(\d+) alerts", (REPOSITORY / document).read_text())) == {str(len(ALERTS))}


def test_an_alert_and_its_runbook_come_together() -> None:
    assert {file.stem for file in RUNBOOKS.iterdir()} == set(ALERTS)


@EACH
def test_a_runbook_leads_to_a_command(name: str) -> None:
    """Its commands are parsed in tests/test_documented_commands.py."""
    text = (RUNBOOKS / f"{name}.md").read_text()
    assert re.findall(r"^#+ (.*)$", text, re.M) == [name, "Meaning", "Impact", "Diagnosis", "Mitigation"]
    diagnosis, mitigation = text.split("## Diagnosis\n")[1].split("## Mitigation\n")
    uid = re.search(r"/d/([\w-]+)", ALERTS[name]["annotations"]["dashboard_url"])
    assert uid
    assert f"Look at the dashboard {uid[1]} first" in diagnosis
    assert len(diagnosis.split("```")[1].strip().splitlines()) >= 2
    assert list(command_lines.commands(mitigation))


@EACH
def test_a_runbook_says_what_its_rule_says(name: str) -> None:
    rule = ALERTS[name]
    wait = f"after {rule['for']}" if "for" in rule else "at once"
    assert f"(severity {rule['labels']['severity']}, {wait})." in (RUNBOOKS / f"{name}.md").read_text().splitlines()[2]


def test_what_runbooks_name_exists() -> None:
    """Metrics, the beginning of one in a grep, other alerts, documents, shipped rules, dashboards' rows."""
    texts = "\n".join(file.read_text() for file in RUNBOOKS.iterdir())
    for line in texts.splitlines():
        for metric in re.findall(r"\b(?:libvirt|virtgauge)_\w+", line):
            assert any(one.startswith(metric) for one in known()) if "grep" in line else metric in known(), line
    assert set(re.findall(r"\b(?:Libvirt|Virtgauge)[A-Z]\w+", texts)) <= set(ALERTS)
    for document in re.findall(r"docs/[\w-]+\.md", texts):
        assert (REPOSITORY / document).exists(), document
    shipped = {rule.name for rule in load_rules(FOLDER / "rules" / "virtgauge.control-rules.yml").rules}
    assert {name for names in re.findall(r"shipped rules? (`[^:]*`)", texts) for name in re.findall(r"`(.*?)`", names)
            } <= shipped
    rows = {panel["title"] for file in FILES for panel in dashboard(file)["panels"] if panel["type"] == "row"}
    assert all(any(row.startswith(named) for row in rows) for named in re.findall(r", row ([\w -]+)\)", texts))


def test_what_runbooks_ask_of_virsh_exists() -> None:
    texts = "\n".join(file.read_text() for file in RUNBOOKS.iterdir())
    asked = {tuple(command_lines.words_of(line.text)[1:]) for line in command_lines.commands(texts, "virsh")}
    assert len(asked) > 10
    for words in sorted(asked):
        words = words[2:] if words[0] in {"-c", "--connect"} else words
        verb, *flags = [word for word in words if word != "--readonly"]
        shown = subprocess.run(["virsh", "help", verb], capture_output=True, text=True, check=False, timeout=30)
        assert shown.returncode == 0, words
        assert all(flag in shown.stdout for flag in flags if flag.startswith("--")), words


def test_every_alert_has_a_case() -> None:
    assert set(CASES) | {WEEK, ALWAYS} == set(ALERTS)


def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    files = [written(tmp_path, name, cases_of(name, case)) for name, case in CASES.items()]
    files.append(written(tmp_path, ALWAYS, [{"interval": "1m", "alert_rule_test": [
        {"eval_time": "5m", "alertname": ALWAYS, "exp_alerts": [expected(ALWAYS, {})]}]}]))
    promtool("test", "rules", *files)


def test_a_disk_is_compared_with_its_own_week(tmp_path: Path) -> None:
    """Eight days at 4 ms, then 40 ms; a disk that was always at 40 ms is silent."""
    name = 'libvirt_domain_block_write_latency_seconds{job="libvirt",instance="h",domain="web1",target_device="%s"}'
    slower, always = "0.004+0x2304 0.04+0x60", "0.04+0x2364"
    labels = {"job": "libvirt", "instance": "h", "domain": "web1", "target_device": "vda"}
    tests = [{"interval": "5m",
              "input_series": [{"series": name % "vda", "values": slower}, {"series": name % "vdb", "values": always}],
              "alert_rule_test": [
                  {"eval_time": "11500m", "alertname": WEEK, "exp_alerts": []},
                  {"eval_time": "11640m", "alertname": WEEK, "exp_alerts": [expected(WEEK, labels)]}]}]
    promtool("test", "rules", written(tmp_path, WEEK, tests, "5m"))


def written(folder: Path, name: str, tests: list[dict[str, Any]], interval: str = "1m") -> Path:
    """A file for `promtool test rules` with the one alert and the records it reads.

    Annotations are left out of the rules, so that the comparison is about labels; others have their own test.
    """
    needed = [rule for record, rule in RECORDS.items() if record in ALERTS[name]["expr"]]
    alert = {key: value for key, value in ALERTS[name].items() if key != "annotations"}
    rules = folder / f"{name}.rules.yml"
    rules.write_text(yaml.safe_dump({"groups": [{"name": "one", "rules": [*needed, alert]}]}))
    file = folder / f"{name}.tests.yml"
    file.write_text(yaml.safe_dump({"rule_files": [rules.name], "evaluation_interval": interval, "tests": tests}))
    return file


def cases_of(name: str, case: Case) -> list[dict[str, Any]]:
    """Firing, not firing, flapping."""
    fired = [expected(name, own_labels(name, case))]
    end = case.minutes
    good = {series: constant(value, end) for series, value in case.good.items()}
    found = [one_test(case, good, name, {end: []})]
    if case.at_once:  # one burst: it fires, is held for a while, and ends
        found.append(one_test(case, {series: constant(value, end) for series, value in case.bad.items()}, name,
                              {end: fired}))
        found.append(one_test(case, dict.fromkeys(case.bad, "0x30 1+0x90"), name, {34: fired, 110: []}))
        begins = dict.fromkeys(case.bad, "_x30 1+0x90")  # a counter that begins with its first event
        found.append(one_test(case, begins, name, {34: fired}))
        return found
    both = {series: (case.bad.get(series), case.good.get(series)) for series in {**case.good, **case.bad}}
    # Two bad minutes in every ten never make it fire.
    flapping = [minute % 10 not in (4, 5) for minute in range(end + 1)]
    found.append(one_test(case, {one: samples(*values, flapping) for one, values in both.items()}, name, {end: []}))
    # It fires; two good minutes do not end it, so that it is told once; good ones for good do.
    course = [False] * (end + 1) + [True] * 2 + [False] * 10 + [True] * case.ended
    found.append(one_test(case, {one: samples(*values, course) for one, values in both.items()}, name,
                          {end: fired, end + 2: fired, end + 8: fired, len(course) - 1: []}))
    return found


def one_test(case: Case, series: dict[str, str], name: str, checks: dict[int, list[dict[str, Any]]]) -> dict[str, Any]:
    """`checks`: the alerts that must fire after so many minutes."""
    return {"interval": "1m", "input_series": [{"series": bound(one, case.job), "values": values}
                                               for one, values in series.items()],
            "alert_rule_test": [{"eval_time": f"{at}m", "alertname": name, "exp_alerts": alerts}
                                for at, alerts in checks.items()]}


def bound(series: str, job: str) -> str:
    metric, _, labels = series.rstrip("}").partition("{")
    instance = "h2" if 'cell="b"' in labels else "h"
    return f'{metric}{{job="{job}",instance="{instance}"{"," if labels else ""}{labels}}}'


def constant(value: float | Grows, minutes: int) -> str:
    if isinstance(value, Grows):
        start = 1e6 if value.by < 0 else 0
        return f"{start:.0f}{value.by:+.0f}x{minutes}"
    return f"{value}+0x{minutes}"


def samples(bad: float | Grows | None, good: float | Grows | None, course: Sequence[bool]) -> str:
    """A sample a minute: of `good` where it is true, else of `bad`; a counter goes on from where it is."""
    found = []
    total = 1e6 if any(isinstance(one, Grows) and one.by < 0 for one in (bad, good)) else 0.0
    for is_good in course:
        value = good if is_good else bad
        if isinstance(value, Grows):
            total += value.by
            found.append(f"{total:.0f}")
        elif isinstance(bad, Grows) or isinstance(good, Grows):
            found.append(f"{total:.0f}")
        else:
            found.append("stale" if value is None else str(value))
    return " ".join(found)


def own_labels(name: str, case: Case) -> dict[str, str]:
    """The labels the alert must have: those of the first bad series, as the expression keeps them."""
    if not case.bad:
        return {"job": case.job}
    first = bound(next(iter(case.bad)), case.job)
    labels = dict(re.findall(r'(\w+)="([^"]*)"', first))
    if name == "LibvirtNoRoomForOneHostLess":
        return {"job": case.job}
    if name.startswith("LibvirtDomainSteal"):
        labels.pop("vcpu")
    return labels


def expected(name: str, labels: dict[str, str]) -> dict[str, Any]:
    return {"exp_labels": {"severity": ALERTS[name]["labels"]["severity"], **labels}}
