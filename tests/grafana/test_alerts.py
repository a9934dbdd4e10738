"""The alerts: complete, each with its runbook, fired by promtool when they should and only then."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from exporter import monitoring_mixin
from exporter.control.rule_reading import load_rules
from tests import command_lines
from tests.conftest import Golden
from tests.grafana.alert_cases import ALWAYS, CASES, WEEK
from tests.grafana.alert_courses import ALERTS, ALL_RULES, FILE, KINDS, RECORDS, Test, courses
from tests.grafana.expressions import FILES, FOLDER, dashboard, metrics
from tests.grafana.known_metrics import known
from tests.samples import REPOSITORY

RUNBOOKS = FOLDER / "alerts" / "runbooks"
SAID = REPOSITORY / "tests" / "golden" / "alerts.txt"
EACH = pytest.mark.parametrize("name", sorted(ALERTS))


def promtool(*arguments: str | Path, fails: bool = False) -> str:
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=240)
    assert (done.returncode != 0) == fails, (done.stdout + done.stderr)[:4000]
    return done.stdout + done.stderr


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


@EACH
def test_every_alert_fires_stays_quiet_and_flaps_in_its_courses(name: str) -> None:
    """What is asked, before promtool is: a firing course that ends, a quiet one, and flapping ones."""
    asked = {kind: [[bool(check["exp_alerts"]) for check in one["alert_rule_test"]] for one in tests]
             for kind, tests in courses(name).items()}
    if name == ALWAYS:
        assert asked == {"firing": [[True]]}
        return
    assert set(asked) == set(KINDS)
    assert any(any(checks) and not checks[-1] for checks in asked["firing"])
    assert not any(any(checks) for checks in asked["quiet"])
    for told in asked["flapping"]:
        assert not any(told) or (all(told[:-1]) and not told[-1]), "never, or once: without a gap from first to last"
    assert any(any(told) for told in asked["flapping"])


@EACH
def test_alerts_fire_when_they_should_and_only_then(name: str, tmp_path: Path) -> None:
    tests = [one for tests in courses(name).values() for one in tests]
    promtool("test", "rules", written(tmp_path, name, tests))


def test_an_alert_says_what_it_is_about(tmp_path: Path, golden: Golden) -> None:
    """Each description and dashboard link as Prometheus fills them in; read them after a change.

    promtool shows what fires where nothing was expected.
    """
    files = []
    for name in ALERTS:
        course = courses(name)["firing"][0]
        for check in course["alert_rule_test"]:
            check["exp_alerts"] = []
        files.append(written(tmp_path, name, [course], annotations=True))
    shown = promtool("test", "rules", *files, fails=True)
    said = {}
    for name, texts in re.findall(r"alertname: (\w+), time:(?:(?!alertname: ).)*?Annotations:\{(.*?)\}\n", shown, re.S):
        filled = {key: json.loads(value) for key, value in re.findall(r'(\w+)=("(?:[^"\\]|\\.)*")', texts)}
        assert not re.search(r"<no value>|%!|NaN|\{\{|=(?:[&\s]|$)", " ".join(filled.values())), filled
        said[name] = f"{name}\n  {filled['description']}\n  {filled['dashboard_url']}\n"
    assert set(said) == set(ALERTS)
    golden.check(SAID, "".join(said[name] for name in sorted(said)))


def written(folder: Path, name: str, tests: list[Test], annotations: bool = False) -> Path:
    """A file for `promtool test rules` with the one alert and the records it reads.

    Without annotations the comparison is about labels.
    """
    needed = [rule for record, rule in RECORDS.items() if record in ALERTS[name]["expr"]]
    alert = {key: value for key, value in ALERTS[name].items() if annotations or key != "annotations"}
    rules = folder / f"{name}.rules.yml"
    rules.write_text(yaml.safe_dump({"groups": [{"name": "one", "rules": [*needed, alert]}]}))
    file = folder / f"{name}.tests.yml"
    file.write_text(yaml.safe_dump({"rule_files": [rules.name], "evaluation_interval": tests[0]["interval"],
                                    "tests": tests}))
    return file
