"""Rule files and webhooks, read strictly: every mistake is named with its line, and no label is more than data."""

from __future__ import annotations

import json
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from exporter.command_rules import SHIPPED
from exporter.control.errors import InvalidError
from exporter.control.rule_file import RulesInForce
from exporter.control.rule_openapi import EXAMPLE_ALERTS
from exporter.control.rule_reading import RuleFileError, load_rules, parse_rules
from exporter.control.webhook import read_webhook
from exporter.demonstration.programs import find_program

GOOD = """\
here: [instance = alpha]
rules:
  - name: one
    match: [alertname = X]
    action: {operation: domain.resume}
"""


def mistakes(text: str) -> str:
    with pytest.raises(RuleFileError) as caught:
        parse_rules(text, "f")
    return caught.value.cause


def with_rule(text: str) -> str:
    return GOOD + "".join(f"    {line}\n" for line in text.splitlines())


def test_a_changed_file_with_a_mistake_leaves_the_earlier_in_force(tmp_path: Path) -> None:
    file = tmp_path / "rules.yml"
    file.write_text(GOOD)
    in_force = RulesInForce(file)
    for text in (GOOD + "oops: 1\n", ""):
        file.write_text(text)
        assert in_force().rules[0].name == "one"
        assert in_force.mistakes
    file.unlink()
    assert in_force().rules[0].name == "one"
    file.write_text(GOOD.replace("name: one", "name: two"))
    assert (in_force().rules[0].name, in_force.mistakes) == ("two", "")


def test_a_password_file_that_all_may_read_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    password, file = tmp_path / "password", tmp_path / "rules.yml"
    password.write_text("hidden")
    file.write_text(f"alertmanager: {{url: http://x, username: me, password_file: {password}}}\n" + GOOD)
    for mode in (0o600, 0o644):
        password.chmod(mode)
        RulesInForce(file)
        assert ("can read what lets the rules in at http://x" in caplog.text) == (mode == 0o644)


def test_what_is_not_said_is_careful() -> None:
    rule = parse_rules(GOOD).rules[0]
    assert (rule.mode, rule.on, rule.retry, rule.undo) == ("dry-run", "firing", None, None)
    assert (rule.cooldown, rule.budget_per_hour, rule.failures_to_open) == (900, 5, 3)


def test_the_shipped_rules_are_good_and_off_each_for_a_shipped_alert() -> None:
    file = load_rules(SHIPPED)
    assert {rule.mode for rule in file.rules} == {"off"}
    shipped = (SHIPPED.parent.parent / "alerts" / "virtgauge.rules.yml").read_text()
    for rule in file.rules:
        alerts = next(m.value for m in rule.match if m.label == "alertname").split("|")
        assert all(f"- alert: {alert}\n" in shipped for alert in alerts)


@pytest.mark.parametrize(("text", "told"), [
    ("here: [instance = a]\nrules: [\n", "f:3: no YAML"),
    ("", "f:1: the file: should be keys with values"),
    ("rules: []\n", "f:1: here: is missing"),
    (with_rule("mode: always"), "f:6: rules.0.mode"),
    (with_rule("mdoe: off"), "f:6: rules.0.mdoe: there is no such key; the nearest is mode"),
    (GOOD + "hear: []\n", "f:6: hear: there is no such key; the nearest is here"),
    (with_rule("retry: {time: 1}"), "f:6: rules.0.retry.time: there is no such key; the nearest is times"),
    (with_rule("budget_per_hour: yes"), "f:6: rules.0.budget_per_hour: should be a valid integer"),
    (with_rule("quiet: [{from: 22:00, to: '02:00'}]"), "f:6: rules.0.quiet.0.from: is no time of the day; write it"),
    (with_rule("quiet: [{from: '22:00', to: '26:00'}]"), "f:6: rules.0.quiet.0.to: is no time of the day"),
    (GOOD.replace("name: one", "name: One"), "f:3: rules.0.name: is no name of up to 63 small letters"),
    (GOOD.replace("[alertname = X]", "[]"), "f:4: rules.0.match: is empty; name at least one"),
    (GOOD.replace("{operation: domain.resume}", "domain.resume"), "f:5: rules.0.action: should be keys with values"),
    ("protected: {domains: x}\n" + GOOD, "f:1: protected.domains: should be a list"),
    (with_rule("name: two"), "f:6: 'name' is there twice"),
    (with_rule("cooldown: soon"), "f:6: rules.0.cooldown"),
    (with_rule("expect:\n  state: running"), "f:7: rules.0.expect.state"),
    (with_rule("retry: {times: 0}"), "f:6: rules.0.retry.times"),
    (GOOD.replace("alertname = X", "alertname"), "f:4: rules.0.match.0: is no matcher"),
    (GOOD.replace("alertname = X", "'a =~ \"(\"'"), "f:4: rules.0.match.0: '(' is no regular expression"),
    (GOOD.replace("domain.resume", "domain.undefine"), "f:5: rules.0.action.operation: 'domain.undefine' is none"),
    (GOOD.replace("domain.resume", "domain.start, parameters: {pause: true}"), "pause is unknown"),
    (GOOD.replace("domain.resume", "domain.start, parameters: {paused: 7}"), "paused 7"),
    (GOOD.replace("domain.resume}", "domain.reboot}\n    retry: {times: 2}"), "not safe to do twice"),
    (GOOD + GOOD.partition("rules:\n")[2], "rules.1.name: two rules are named one"),
    (GOOD.replace("domain.resume", "\n      domain.set-block-limit\n      , parameters: {device: {from_label: disk},\n"
                  "      total_bytes_sec: lots}"), "f:8: rules.0.action.parameters.total_bytes_sec"),
    (GOOD.replace("domain.resume", "domain.resume, parameters: {force: {from_label: x}}"), "takes no such parameter"),
    (with_rule("expect: {state: [runing]}"), "'runing' is no state"),
    (with_rule("expect: {reason: [ioerror]}"), "'ioerror' is no reason"),
    (with_rule("undo: reverse"), "f:6: rules.0.undo: domain.resume cannot tell what leads back"),
    (with_rule("undo:\n  operation: domain.undefine"), "f:7: rules.0.undo.operation: 'domain.undefine' is none"),
    ("prometheus: ftp://x\n" + GOOD, "f:1: prometheus.url"),
    ("alertmanager: {url: http://x, username: me}\n" + GOOD, "username and password_file belong together"),
    (GOOD.replace("domain.resume", "domain.start, parameters: {paused: 2026-01-01}"), "paused"),
])  # fmt: skip
def test_each_mistake_is_told_with_its_line(text: str, told: str) -> None:
    assert told in mistakes(text)


def test_a_matcher_with_quotes_in_a_list_of_one_line_is_explained() -> None:
    with pytest.raises(RuleFileError) as caught:
        parse_rules(GOOD.replace("[instance = alpha]", '[instance =~ "alpha(:.*)?"]'), "f")
    assert caught.value.cause.startswith("f:1: no YAML")
    shown = caught.value.next_step.rpartition(": ")[2]
    assert parse_rules(GOOD.replace("[instance = alpha]", shown)).here[0].matches({"a": "x"})


def test_a_labels_text_is_read_as_the_parameters_type() -> None:
    text = GOOD.replace("domain.resume", "domain.set-block-limit, parameters: {total_bytes_sec: {from_label: limit}}")
    action = parse_rules(text).rules[0].action
    assert action.resolved({"limit": "4096"}).model_dump()["total_bytes_sec"] == 4096
    for wrong in ("", "4k", "-1", "0x10", "[1]", "null", "1e9", "\uff11"):
        with pytest.raises(InvalidError, match="total_bytes_sec"):
            action.resolved({"limit": wrong})
    with pytest.raises(InvalidError, match="no label limit"):
        action.resolved({})


def test_several_mistakes_are_told_at_once_each_once_by_line() -> None:
    wrong = with_rule("mode: always\nquiet: [{to: 1}]\nbudget_per_hour: 0").replace("alertname = X", "alertname")
    told = mistakes(wrong).splitlines()
    assert [line.split(":")[1] for line in told] == ["4", "6", "7", "7", "8"]


@pytest.mark.parametrize(("matcher", "labels", "matches"), [
    ('a = "x y"', {"a": "x y"}, True), ("a = x", {"a": "y"}, False), ("a != x", {}, True), ("a =", {}, True),
    ('a =~ "x|y"', {"a": "y"}, True), ('a =~ "x"', {"a": "xx"}, False), ('a !~ "x.*"', {"a": "xy"}, False),
    ('a =~ ".*"', {"a": "two\nlines"}, False), (r'a = "q\"q"', {"a": 'q"q'}, True),
])  # fmt: skip
def test_matchers_are_alertmanagers(matcher: str, labels: dict[str, str], matches: bool) -> None:
    rule = parse_rules(GOOD.replace("[alertname = X]", json.dumps([matcher]))).rules[0]
    assert rule.matches(labels) is matches


def test_matchers_are_those_that_amtool_reads(tmp_path: Path) -> None:
    """Debian's own Alertmanager is asked which of them match; escapes, quotes, absent labels, newlines."""
    matchers = [r'a = "x\d"', r'a =~ "x\\d"', r'a =~ "x\\\\d"', r"a =~ x\\d", r"a = x\\d", "a = 'x'", 'a = "x\\ny"',
                'a =~ "x|y"', "a =~ x.*", 'a !~ "x.*"', "a != x5", "b =", 'b = ""', 'b =~ ".*"', 'a=~"(?i)X5"',
                r'a = "q\"q"', "a =~ 5"]  # fmt: skip
    routes = [{"receiver": f"r{n}", "continue": True, "matchers": [text]} for n, text in enumerate(matchers)]
    config = {"receivers": [{"name": name} for name in ("none", *(f"r{n}" for n in range(len(matchers))))],
              "route": {"receiver": "none", "routes": routes}}  # fmt: skip
    (tmp_path / "am.yml").write_text(json.dumps(config))
    read = [parse_rules(GOOD.replace("[alertname = X]", json.dumps([text]))).rules[0] for text in matchers]
    for value in (r"x\d", "x5", "'x'", "x\ny", "y", 'q"q', "X5", ""):
        quoted = '"' + value.replace("\\", r"\\").replace('"', r'\"').replace("\n", r"\n") + '"'
        asked = subprocess.run(
            [find_program("amtool"), "config", "routes", "test", f"--config.file={tmp_path}/am.yml", f"a={quoted}"],
            capture_output=True, text=True, check=True, timeout=30)  # fmt: skip
        ours = [f"r{n}" for n, rule in enumerate(read) if rule.matches({"a": value})]
        assert asked.stdout.strip().split(",") == (ours or ["none"]), value


def test_a_window_over_midnight() -> None:
    text = with_rule("quiet:\n  - {days: [fri], from: '22:00', to: '02:00'}")
    window = parse_rules(text).rules[0].quiet[0]
    held = [datetime.fromisoformat(f"2026-11-{at}") for at in ("20T21:59", "20T22:00", "21T01:59", "21T02:00")]
    assert [window.holds(at) for at in held] == [False, True, True, False]


def payload(**changes: Any) -> dict[str, Any]:
    alert = {"status": "firing", "labels": {"alertname": "X", "domain": "test"}, "annotations": {}, "generatorURL": "",
             "startsAt": "2026-11-23T01:00:00.123Z", "endsAt": "0001-01-01T00:00:00Z", "fingerprint": "ab12"}
    return {"version": "4", "status": "firing", "new": {"later": 1}, "alerts": [{**alert, **changes}]}


def read(document: Any) -> list[Any]:
    return read_webhook(json.dumps(document).encode())


def test_a_webhook_is_read_alert_by_alert() -> None:
    document = payload()
    document["alerts"].append({**document["alerts"][0], "status": "resolved"})
    assert [alert.status for alert in read(document)] == ["firing", "resolved"]
    assert read(payload())[0].starts_at == "2026-11-23T01:00:00.123000+00:00"


def test_grafanas_webhook_is_read_as_well() -> None:
    """Its fields as Grafana documents them (configure the webhook notifier); Grafana itself was not at hand."""
    labels = {"alertname": "LibvirtDomainCrashed", "grafana_folder": "virtgauge", "domain": "test"}
    alert = {"status": "resolved", "labels": labels, "annotations": {"summary": "A guest crashed"},
             "startsAt": "2026-11-23T03:00:00.157076+02:00", "endsAt": "2026-11-23T03:05:00Z", "fingerprint":
             "c6eadffa33fcdf37", "generatorURL": "", "silenceURL": "", "dashboardURL": "", "panelURL": "",
             "values": {"B": 44.2, "C": None}, "valueString": "[ var='B' value=44.2 ]", "imageURL": ""}
    document = {"receiver": "virtgauge", "status": "firing", "orgId": 1, "alerts": [alert], "groupLabels": {},
                "commonLabels": labels, "commonAnnotations": {}, "externalURL": "", "version": "1", "groupKey": "{}:{}",
                "truncatedAlerts": 0, "title": "[FIRING:1]", "state": "alerting", "message": "**Firing**"}
    (found,) = read(document)
    assert (found.status, found.labels["domain"], found.fingerprint) == ("resolved", "test", "c6eadffa33fcdf37")
    assert found.starts_at == "2026-11-23T01:00:00.157076+00:00"


def test_a_fingerprint_that_is_absent_is_made_of_the_labels() -> None:
    first, again = read(payload(fingerprint=None)), read(payload(fingerprint="../../etc"))
    assert first[0].fingerprint == again[0].fingerprint
    assert first[0].fingerprint != read(payload(fingerprint=None, labels={"alertname": "Y"}))[0].fingerprint


def test_the_example_of_the_api_document_is_taken() -> None:
    (alert,) = read_webhook(json.dumps(EXAMPLE_ALERTS).encode())
    assert alert.labels["domain"] == "web1"


@pytest.mark.parametrize("body", [
    b"", b"\xff", b"[]", b"{}", b'{"alerts": {}}', b'{"alerts": [1]}', b"[" * 100_000,
    b'{"a": ' * 50 + b"1" + b"}" * 50,
    *(json.dumps(payload(**changes)).encode() for changes in (
        {"labels": None}, {"labels": {"a": 1}}, {"labels": {"a": {"b": "c"}}}, {"labels": {"a": "x" * 5000}},
        {"labels": {str(n): "" for n in range(101)}}, {"status": "suppressed"}, {"startsAt": "yesterday"},
        {"startsAt": None}, {"startsAt": 7}, {"startsAt": "2026-11-23T01:00:00"},
        {"startsAt": "0001-01-01T00:00:00+14:00"})),
    json.dumps({"alerts": payload()["alerts"] * 2001}).encode(),
], ids=range(20))  # fmt: skip
def test_a_body_that_is_wrong_in_part_is_refused_whole(body: bytes) -> None:
    with pytest.raises(InvalidError):
        read_webhook(body)
