"""`virtgauge control rules check|test|shipped|stop|go|reset` and `control pending list|approve|refuse`."""

from __future__ import annotations

import getpass
import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from exporter.command_archive_options import settings_of
from exporter.control.errors import InvalidError, NotFoundError
from exporter.operation_output import render, result_console

if TYPE_CHECKING:
    from exporter.config import Settings
    from exporter.control.rules import Rule, RuleFile
    from exporter.control.webhook import Alert

_HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
SHIPPED = Path(__file__).parent / "grafana" / "rules" / "virtgauge.control-rules.yml"


def build_rules() -> click.Group:
    """The group `rules`."""
    group = click.Group("rules", help="Rules from alerts to operations.", context_settings=dict(_HELP))
    file = click.Argument(["file"], type=click.Path(dir_okay=False, path_type=Path))
    group.add_command(click.Command(
        "check", callback=_check, params=[file], help="Check a rule file; each mistake with its line."))
    group.add_command(click.Command(
        "test", callback=_test, help="Say, rule by rule, what the alerts of a webhook would lead to, and why.",
        params=[file, click.Option(["--alert"], required=True, type=click.File("rb"), metavar="FILE",
                                   help="A webhook's JSON, or one alert's; - is standard input."),
                *_places("libvirt.uri")]))
    group.add_command(click.Command(
        "shipped", callback=_shipped, help="Write the rules that come with virtgauge, all of them off."))
    for word, text in (("stop", "The kill switch: no rule acts from now on."), ("go", "Let the rules act again.")):
        group.add_command(click.Command(word, callback=_switch(word), params=_places(), help=text))
    group.add_command(click.Command(
        "reset", callback=_reset, params=[click.Argument(["rule"]), *_places()],
        help="Close the circuit breaker of a rule that failed several times in a row."))
    return group


def build_pending() -> click.Group:
    """The group `pending`."""
    group = click.Group("pending", help="Acts of rules that wait for approval.", context_settings=dict(_HELP))
    group.add_command(click.Command("list", callback=_list, params=_places(), help="Show them."))
    for word, text in (("approve", "Let it be done."), ("refuse", "It is not to be done.")):
        group.add_command(click.Command(
            word, callback=_decide(word), params=[click.Argument(["action"], type=int), *_places()], help=text))
    return group


def _places(*more: str) -> list[click.Parameter]:
    texts = {"state.directory": "State folder of the service.", "config.file": "YAML file with settings.",
             "libvirt.uri": "libvirt to look for the guests at."}  # fmt: skip
    return [click.Option([f"--{key}", key.replace(".", "__")], metavar=key.rpartition(".")[2].upper(),
                         help=texts[key]) for key in ("state.directory", "config.file", *more)]  # fmt: skip


def _check(file: Path) -> None:
    from exporter.control.rules import load_rules

    rules = load_rules(file).rules
    by_mode = ", ".join(f"{sum(rule.mode == mode for rule in rules)} {mode}"
                        for mode in ("off", "dry-run", "approve", "enforce"))  # fmt: skip
    click.echo(f"{file}: {len(rules)} rules ({by_mode})")


def _shipped() -> None:
    click.echo(SHIPPED.read_text(), nl=False)


def _test(file: Path, alert: Any, **values: str | None) -> None:
    from exporter.control.rules import load_rules
    from exporter.control.webhook import read_webhook

    settings, rules = settings_of(values), load_rules(file)
    body = alert.read()
    document = json.loads(body) if body.strip().startswith(b"{") else {}
    if "labels" in document:
        body = json.dumps({"alerts": [{"status": "firing", "startsAt": datetime.now(UTC).isoformat(), **document}]})
    rows = [row for one in read_webhook(body) for row in _rows(settings, rules, one)]
    render({"details": {"rows": rows}}, "table", result_console(sys.stdout, sys.stdout.isatty()))


def _rows(settings: Settings, file: RuleFile, alert: Alert) -> list[dict[str, Any]]:
    from exporter.control.errors import ControlError

    elsewhere = [str(m) for m in file.here if not m.matches(alert.labels)]
    rows = []
    for rule in file.rules:
        missed = [str(m) for m in rule.match if not m.matches(alert.labels)]
        try:
            if elsewhere:
                found = f"not of this host: {elsewhere[0]}"
            elif missed:
                found = f"does not match {missed[0]}"
            elif rule.mode == "off":
                found = "matches, but is off"
            else:
                found = _would(settings, file, rule, alert)
        except ControlError as error:
            found = f"does nothing: {error.cause}"
        rows.append({"alert": alert.name, "status": alert.status, "rule": rule.name, "mode": rule.mode, "what": found})
    return rows


def _would(settings: Settings, file: RuleFile, rule: Rule, alert: Alert) -> str:
    from exporter.control.alert_store import AlertStore
    from exporter.control.connection import Session
    from exporter.control.executor import Actor, Executor, Request
    from exporter.control.rule_guards import Guards, KillSwitch, find_target
    from exporter.control.startup import control_folders

    undo = rule.on == "firing" and not alert.is_firing
    action = rule.undo if undo else rule.action
    if action is None or (rule.on == "resolved" and alert.is_firing):
        return f"does nothing: the alert is {alert.status}"
    folders = control_folders(settings)
    session = Session(settings.libvirt.uri)
    store, executor = AlertStore(folders.private(folders.state)), Executor(session, folders)
    try:
        target = find_target(session, alert)
        now = datetime.now().astimezone()
        against = Guards(store, KillSwitch(folders.state), session).reason_against(
            file, rule, alert, target, now.timestamp(), now, resolved=not alert.is_firing)  # fmt: skip
        if against is not None:
            return f"does nothing ({against[0]}): {against[1]}"
        parameters = action.resolved(alert.labels)
        assert parameters is not None
        request = Request(Actor("rules test", "command line"), dry_run=True)
        plan = executor.run(action.declared, target.uuid, parameters, request).plan
        steps = "; ".join(plan.steps) if plan is not None and not plan.nothing_to_do else "nothing to do"
        does = {"dry-run": "would only tell", "approve": "would ask for approval", "enforce": "would do"}[rule.mode]
        return f"{does}: {action.operation} of {target.name}: {steps}"
    finally:
        store.close()
        executor.close()


def _switch(word: str) -> Any:
    def run(**values: str | None) -> None:
        from exporter.control.rule_guards import KillSwitch

        folder, trail = _control(values)
        KillSwitch(folder).turn(word == "stop", _person())
        trail.append("rule-stopped" if word == "stop" else "rule-resumed", {"actor": _person(), "way": "command line"})
        click.echo("the rules are stopped" if word == "stop" else "the rules may act")

    return run


def _reset(rule: str, **values: str | None) -> None:
    from exporter.control.alert_store import AlertStore

    folder, trail = _control(values)
    store = AlertStore(folder)
    try:
        if rule not in store.failures():
            raise NotFoundError(f"rule {rule!r} has not failed", next_step="see 'control audit'")
        store.close_breaker(rule)
    finally:
        store.close()
    trail.append("rule-reset", {"rule": rule, "actor": _person(), "way": "command line"})
    click.echo(f"rule {rule} may act again")


def _list(**values: str | None) -> None:
    from exporter.control.alert_store import AlertStore

    store = AlertStore(_control(values)[0])
    try:
        rows = [{"action": act.id, "rule": act.rule, "domain": act.domain, "alert": act.alert.name,
                 "waits_s": round(time.time() - act.made_s)} for act in store.in_state("pending")]  # fmt: skip
    finally:
        store.close()
    render({"details": {"rows": rows}}, "table", result_console(sys.stdout, sys.stdout.isatty()))


def _decide(word: str) -> Any:
    def run(action: int, **values: str | None) -> None:
        from exporter.control.alert_store import AlertStore
        from exporter.control.rule_api import decision_facts

        folder, trail = _control(values)
        store = AlertStore(folder)
        try:
            done = {"approve": "approved", "refuse": "refused"}[word]
            act = store.decide(action, done, _person(), time.time())
        finally:
            store.close()
        trail.append(f"rule-{done}", decision_facts(act, _person(), "command line"))
        click.echo(f"action {action}: {act.rule} on {act.domain} is {done}")

    return run


def _control(values: dict[str, str | None]) -> tuple[Path, Any]:
    from exporter.control.audit import Trail
    from exporter.control.startup import control_folders

    folders = control_folders(settings_of(values))
    if not folders.state.is_dir():
        raise InvalidError(f"there is no control service's folder {folders.state}", next_step="set --state.directory")
    return folders.state, Trail(folders.trail)


def _person() -> str:
    return os.environ.get("SUDO_USER") or getpass.getuser()
