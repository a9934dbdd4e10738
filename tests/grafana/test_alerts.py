"""The alerts: complete, each with its runbook, fired by promtool when they should and only then."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from exporter import cli, monitoring_mixin
from tests.grafana.alert_cases import ALWAYS, CASES, WEEK, Case, Grows
from tests.grafana.expressions import FOLDER, metrics
from tests.grafana.known_metrics import known

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


def test_an_alert_and_its_runbook_come_together() -> None:
    assert {file.stem for file in RUNBOOKS.iterdir()} == set(ALERTS)


@EACH
def test_a_runbook_leads_to_a_command(name: str) -> None:
    text = (RUNBOOKS / f"{name}.md").read_text()
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    assert headings == [name, "Meaning", "Impact", "Diagnosis", "Mitigation"]
    assert "virtgauge " in text
    for line in re.findall(r"(?:^|`)(virtgauge [a-z][^`\n]*)", text, re.M):
        words = shlex.split(line)
        if words[1] in cli.COMMANDS:
            check_command(words[1:], line)


def check_command(words: list[str], line: str) -> None:
    """The command exists, and so do its flags."""
    command: click.Command = cli.build()
    context = click.Context(command)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(context, words.pop(0))
        assert found, line
        command = found
    flags = {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    asked = {word.partition("=")[0].rstrip(".,") for word in words if word.startswith("-")}
    assert asked <= flags | {"--help"}, line


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
    end = f"{case.minutes}m"
    fired = [expected(name, own_labels(name, case))]
    flapping = {**case.good, **case.bad}
    flaps = {series: [case.bad.get(series, value), case.good.get(series)] for series, value in flapping.items()}
    found = [
        one_test(case, {series: constant(value, case.minutes) for series, value in case.bad.items()}, name, end, fired),
        one_test(case, {series: constant(value, case.minutes) for series, value in case.good.items()}, name, end, []),
    ]
    if case.at_once:  # one burst: it fires, is held for a while, and ends
        burst = {series: "0x30 1+0x90" for series in case.bad}
        found.append(one_test(case, burst, name, "34m", fired))
        found.append(one_test(case, burst, name, "110m", []))
        begins = {series: "_x30 1+0x90" for series in case.bad}  # a counter that begins with its first event
        found.append(one_test(case, begins, name, "34m", fired))
    else:  # two bad minutes in every ten never last
        found.append(one_test(case, {series: flap(bad, good, case.minutes) for series, (bad, good) in flaps.items()},
                              name, end, []))
    return found


def one_test(case: Case, series: dict[str, str], name: str, at: str, alerts: list[dict[str, Any]]) -> dict[str, Any]:
    return {"interval": "1m", "input_series": [{"series": bound(one, case.job), "values": values}
                                               for one, values in series.items()],
            "alert_rule_test": [{"eval_time": at, "alertname": name, "exp_alerts": alerts}]}


def bound(series: str, job: str) -> str:
    metric, _, labels = series.rstrip("}").partition("{")
    instance = "h2" if 'cell="b"' in labels else "h"
    return f'{metric}{{job="{job}",instance="{instance}"{"," if labels else ""}{labels}}}'


def constant(value: float | Grows, minutes: int) -> str:
    if isinstance(value, Grows):
        start = 1e6 if value.by < 0 else 0
        return f"{start:.0f}{value.by:+.0f}x{minutes}"
    return f"{value}+0x{minutes}"


def flap(bad: float | Grows | None, good: float | Grows | None, minutes: int) -> str:
    """Two bad minutes, eight good ones, and so on; the test looks at the end of the good ones."""
    samples = []
    total = 1e6 if any(isinstance(one, Grows) and one.by < 0 for one in (bad, good)) else 0.0
    for minute in range(minutes + 1):
        value = bad if minute % 10 in (4, 5) else good
        if isinstance(value, Grows):
            total += value.by
            samples.append(f"{total:.0f}")
        elif isinstance(bad, Grows) or isinstance(good, Grows):
            samples.append(f"{total:.0f}")
        else:
            samples.append("stale" if value is None else str(value))
    return " ".join(samples)


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
