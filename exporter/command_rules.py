"""`virtgauge control rules check|test|shipped|stop|go|reset` and `control pending list|show|approve|refuse`."""

from __future__ import annotations

import getpass
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from exporter.command_archive_options import settings_of
from exporter.control.errors import InvalidError, NotFoundError
from exporter.operation_output import render

if TYPE_CHECKING:
    from exporter.control.alert_store import AlertStore, RuleAct

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
                                   help="A webhook's JSON, one alert's, or a list; - is standard input."),
                _output(), *_places("libvirt.uri")]))
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
    group.add_command(click.Command("list", callback=_list, params=[_output(), *_places()], help="Show them."))
    group.add_command(click.Command(
        "show", callback=_show, params=[click.Argument(["action"], type=int), _output(), *_places()],
        help="Show one: its alert, what would be done, its expiry, its outcome."))
    for word, text in (("approve", "Let it be done."), ("refuse", "It is not to be done.")):
        group.add_command(click.Command(
            word, callback=_decide(word), params=[click.Argument(["action"], type=int), *_places()], help=text))
    return group


def _output() -> click.Option:
    return click.Option(["--output", "-o"], type=click.Choice(["table", "json", "yaml"]), default="table",
                        help="How it is shown. [default: table]")  # fmt: skip


def _places(*more: str) -> list[click.Parameter]:
    texts = {"state.directory": "State folder of the service.", "config.file": "YAML file with settings.",
             "libvirt.uri": "libvirt to look for the guests at."}  # fmt: skip
    return [click.Option([f"--{key}", key.replace(".", "__")], metavar=key.rpartition(".")[2].upper(),
                         help=texts[key]) for key in ("state.directory", "config.file", *more)]  # fmt: skip


def _check(file: Path) -> None:
    from exporter.control.rule_reading import load_rules

    rules = load_rules(file).rules
    by_mode = ", ".join(f"{sum(rule.mode == mode for rule in rules)} {mode}"
                        for mode in ("off", "dry-run", "approve", "enforce"))  # fmt: skip
    click.echo(f"{file}: {len(rules)} {'rule' if len(rules) == 1 else 'rules'} ({by_mode})")


def _shipped() -> None:
    click.echo(SHIPPED.read_text(), nl=False)


def _test(file: Path, alert: Any, output: str, **values: str | None) -> None:
    from exporter.control.rule_forecast import Forecast
    from exporter.control.rule_reading import load_rules
    from exporter.control.startup import control_folders
    from exporter.control.webhook import read_webhook

    settings = settings_of(values)
    alerts, rules = read_webhook(_as_webhook(alert.read())), load_rules(file)
    forecast = Forecast(settings.libvirt.uri, control_folders(settings), rules)
    try:
        rows = [asdict(found) for one in alerts for found in forecast.of(one)]
    finally:
        forecast.close()
    render({"details": {"rows": rows}}, output)


def _as_webhook(body: bytes) -> bytes:
    """One alert, or a list of them as Alertmanager's API has it, as a webhook has it; what they lack is filled in."""
    try:
        document = json.loads(body)
    except ValueError:
        return body
    if isinstance(document, dict) and "labels" in document:
        document = [document]
    if not isinstance(document, list):
        return body
    filled = {"status": "firing", "startsAt": datetime.now(UTC).isoformat()}
    alerts = [{**filled, **one, **({} if isinstance(one.get("status"), str) else {"status": "firing"})}
              if isinstance(one, dict) else one for one in document]  # fmt: skip
    return json.dumps({"alerts": alerts}).encode()


def _switch(word: str) -> Any:
    def run(**values: str | None) -> None:
        from exporter.control.kill_switch import KillSwitch

        folder, trail = _control(values)
        KillSwitch(folder).turn(word == "stop", _person())
        trail.append("rule-stopped" if word == "stop" else "rule-resumed", {"actor": _person(), "way": "command line"})
        click.echo("the rules are stopped" if word == "stop" else "the rules may act")

    return run


def _reset(rule: str, **values: str | None) -> None:
    with _store(values) as (store, trail):
        if rule not in store.failures():
            raise NotFoundError(f"rule {rule!r} has not failed", next_step="see 'control audit'")
        store.close_breaker(rule)
        trail.append("rule-reset", {"rule": rule, "actor": _person(), "way": "command line"})
    click.echo(f"rule {rule} may act again")


def _list(output: str, **values: str | None) -> None:
    with _store(values) as (store, _):
        rows = [{"action": act.id, "rule": act.rule, "domain": act.domain, "alert": act.alert.name, "would": act.told,
                 "waits_s": round(time.time() - act.made_s), "expires": _moment(act.due_s)}
                for act in store.in_state("pending")]  # fmt: skip
    render({"details": {"rows": rows}}, output)


def _show(action: int, output: str, **values: str | None) -> None:
    with _store(values) as (store, _):
        details = _shown(store.get(action))
    render({"details": details}, output)


def _shown(act: RuleAct) -> dict[str, Any]:
    pending = act.state == "pending"
    shown = {
        "action": act.id, "rule": act.rule, "state": act.state, "would" if pending else "outcome": act.told,
        "domain": act.domain, "uuid": act.uuid, "alert": act.alert.name, "labels": dict(act.alert.labels),
        "firing_since": act.starts_at, "asked": _moment(act.made_s),
        ("expires" if pending else "changed"): _moment(act.due_s if pending else act.changed_s), "decided_by": act.by,
    }  # fmt: skip
    return {name: value for name, value in shown.items() if value != ""}


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def _decide(word: str) -> Any:
    def run(action: int, **values: str | None) -> None:
        from exporter.control.rule_api import decision_facts

        done = {"approve": "approved", "refuse": "refused"}[word]
        with _store(values) as (store, trail):
            act = store.decide(action, done, _person(), time.time())
            trail.append(f"rule-{done}", decision_facts(act, _person(), "command line"))
        click.echo(f"action {action}: {act.rule} on {act.domain} is {done}")

    return run


@contextmanager
def _store(values: dict[str, str | None]) -> Iterator[tuple[AlertStore, Any]]:
    """The service's store of alerts, and its trail."""
    from exporter.control.alert_store import AlertStore

    folder, trail = _control(values)
    store = AlertStore(folder)
    try:
        yield store, trail
    finally:
        store.close()


def _control(values: dict[str, str | None]) -> tuple[Path, Any]:
    from exporter.control.audit import Trail
    from exporter.control.startup import control_folders

    folders = control_folders(settings_of(values))
    if not folders.state.is_dir():
        raise InvalidError(f"there is no control service's folder {folders.state}", next_step="set --state.directory")
    return folders.state, Trail(folders.trail)


def _person() -> str:
    return os.environ.get("SUDO_USER") or getpass.getuser()
