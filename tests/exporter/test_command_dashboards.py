"""`virtgauge dashboards export`: all files, with the knobs turned; nothing written where a knob is wrong."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from exporter import cli, monitoring_mixin
from tests.samples import REPOSITORY


def test_all_is_written_as_it_lies_in_the_project(tmp_path: Path) -> None:
    assert cli.run(["dashboards", "export", str(tmp_path)]) == 0
    for folder in ("dashboards", "alerts/runbooks", "provisioning", "provisioning-more", "examples"):
        for file in (REPOSITORY / "grafana" / folder).rglob("*"):
            if file.is_file():
                assert (tmp_path / file.relative_to(REPOSITORY / "grafana")).read_text() == file.read_text()
    assert (tmp_path / monitoring_mixin.RULES).read_text() == (
        REPOSITORY / "grafana" / monitoring_mixin.RULES).read_text()


def test_the_knobs_reach_the_rules_and_the_dashboards(tmp_path: Path) -> None:
    assert cli.run(["dashboards", "export", str(tmp_path), "--job", "vm.*", "--runbooks", "https://runbooks.test/",
                    "--grafana", "https://grafana.test", "--set", "steal_warning_ratio=0.25"]) == 0
    text = (tmp_path / monitoring_mixin.RULES).read_text()
    alerts = {rule.get("alert"): rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]}
    high = alerts["LibvirtDomainStealHigh"]
    assert high["expr"].strip().endswith("> 0.25")
    assert 'job=~"vm.*"' in high["expr"]
    assert high["annotations"]["runbook_url"] == "https://runbooks.test/LibvirtDomainStealHigh.md"
    assert high["annotations"]["dashboard_url"].startswith("https://grafana.test/d/virtgauge-host?")
    assert 'job="libvirt"' not in text
    for name, regex in (("fleet", "/vm.*/"), ("exporter", "/vm.*/"), ("control", None)):  # which has its own job
        document = json.loads((tmp_path / "dashboards" / f"virtgauge-{name}.json").read_text())
        assert [v.get("regex") for v in document["templating"]["list"] if v["name"] == "job"] == [regex]
    links = {link for file in (tmp_path / "dashboards").iterdir()
             for link in re.findall(r'"(http[^"]*)"', file.read_text())}
    assert links == {"https://runbooks.test/${__data.fields.alertname}.md"}
    done = subprocess.run(["promtool", "check", "rules", "--lint=all", "--lint-fatal",
                           str(tmp_path / monitoring_mixin.RULES)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_says_where_the_runbooks_are_while_links_lead_nowhere(tmp_path: Path,
                                                                 capsys: pytest.CaptureFixture[str]) -> None:
    links = {"--runbooks": "https://runbooks.test", "--grafana": "https://grafana.test"}
    for given in ((), ("--runbooks",), ("--grafana",), ("--runbooks", "--grafana")):
        flags = [word for flag in given for word in (flag, links[flag])]
        assert cli.run(["dashboards", "export", str(tmp_path), *flags]) == 0
        told = capsys.readouterr().err
        assert {flag for flag in links if flag in told} == links.keys() - set(given)
        assert (f"{tmp_path}/alerts/runbooks" in told) is (len(given) < 2)
        placeholders = (tmp_path / monitoring_mixin.RULES).read_text().count("example.org")
        assert bool(placeholders) is (len(given) < 2)


def test_the_examples_are_accepted_by_prometheus_and_alertmanager(tmp_path: Path) -> None:
    assert cli.run(["dashboards", "export", str(tmp_path)]) == 0
    for command in (["promtool", "check", "config", "examples/prometheus.yml"],
                    ["amtool", "check-config", "examples/alertmanager.yml"]):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_alertmanager_of_the_rules_tells_people_as_well(tmp_path: Path) -> None:
    """Made by the command of docs/alert-driven-control.md, run as printed, but for its folders."""
    assert cli.run(["dashboards", "export", str(tmp_path)]) == 0
    text = (Path(__file__).parents[2] / "docs" / "alert-driven-control.md").read_text()
    (line,) = [line.strip() for line in text.splitlines() if line.strip().startswith("sed -e")]
    line = line.replace("/etc/prometheus/virtgauge/", f"{tmp_path}/").replace("/etc/prometheus/", f"{tmp_path}/")
    subprocess.run(line, shell=True, check=True)

    def told(file: str, *labels: str) -> str:
        command = ["amtool", "config", "routes", "test", f"--config.file={tmp_path / file}", *labels]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    crashed = ("alertname=LibvirtDomainCrashed", "severity=critical")
    assert told("examples/alertmanager.yml", *crashed) == "people"
    assert told("alertmanager.yml", *crashed) == "virtgauge,people"
    assert told("alertmanager.yml", "alertname=LibvirtPoolFull", "severity=critical") == "people"
    assert told("alertmanager.yml", "alertname=LibvirtDomainX", "severity=info") == "virtgauge,nobody"
    assert told("alertmanager.yml", "alertname=VirtgaugeWatchdog") == "watchdog"


@pytest.mark.parametrize(("flags", "words"), [
    (["--set", "steal_warning_ratioo=1"], "steal_warning_ratio"), (["--set", "pool_days=many"], "number"),
    (["--set", "pool_days"], "NAME=VALUE"), (["--grafana", 'https://x"y'], "YAML"),
])
def test_a_wrong_knob_is_named_and_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                                      flags: list[str], words: str) -> None:
    assert cli.run(["dashboards", "export", str(tmp_path / "new"), *flags]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_every_knob_is_used_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    template = (REPOSITORY / "grafana" / "alerts" / "virtgauge.rules.template.yml").read_text()
    assert cli.run(["dashboards", "knobs"]) == 0
    shown = capsys.readouterr().out
    for name in monitoring_mixin.knobs():
        assert f"<<{name}>>" in template
        assert f"{name}=" in shown


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert cli.run(["dashboards", "export", str(tmp_path / "file" / "inside")]) == 1
    assert "inside" in capsys.readouterr().err


def test_the_readme_and_the_documents_name_files_that_are_exported(tmp_path: Path) -> None:
    assert cli.run(["dashboards", "export", str(tmp_path)]) == 0
    text = "".join((REPOSITORY / name).read_text() for name in ("README.md", "docs/dashboards.md"))
    named = set(re.findall(r"/etc/prometheus/virtgauge/([\w/.-]*\w)", text))
    named |= set(re.findall(r"`((?:alerts|dashboards|examples|provisioning|provisioning-more)/[\w/.-]*)`", text))
    assert len(named) > 5
    assert [name for name in named if not (tmp_path / name).exists()] == []
