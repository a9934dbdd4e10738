"""`virtgauge dashboards`: the shipped dashboards, rules, runbooks and examples as files."""

from __future__ import annotations

from pathlib import Path

import click

from exporter import monitoring_mixin
from exporter.errors import UsageError


def build() -> click.Command:
    """The group with its two commands."""
    group = click.Group("dashboards", help="Write the Grafana dashboards, alerts, runbooks and examples to a folder.",
                        context_settings={"help_option_names": ["-h", "--help"]})
    group.add_command(_export())
    group.add_command(_show_knobs())
    return group


def _export() -> click.Command:
    def run(folder: Path, job: str, runbooks: str | None, grafana: str | None, knob: tuple[str, ...]) -> None:
        changes = dict(_pair(text) for text in knob)
        changes |= {name: value for name, value in (("runbooks", runbooks), ("grafana", grafana)) if value is not None}
        files = monitoring_mixin.export(folder, job, {name: value.rstrip("/") for name, value in changes.items()})
        click.echo(f"wrote {len(files)} files to {folder}: dashboards, alerts with runbooks, provisioning, examples")
        missing = [flag for flag, name in (("--runbooks", "runbooks"), ("--grafana", "grafana")) if name not in changes]
        if missing:
            click.echo(f"links in the alerts lead nowhere yet: give it {' and '.join(missing)}; the runbooks are in "
                       f"{folder / 'alerts/runbooks'}", err=True)

    return click.Command("export", callback=run, help="Write all of it to FOLDER, with the knobs turned.", params=[
        click.Argument(["folder"], type=click.Path(file_okay=False, path_type=Path)),
        click.Option(["--job"], default="", metavar="REGEX", help="Prometheus' job of the exporters. [libvirt]"),
        click.Option(["--runbooks"], metavar="URL", help="Address of the folder with the runbooks."),
        click.Option(["--grafana"], metavar="URL", help="Address of Grafana, for the links of alerts."),
        click.Option(["--set", "knob"], multiple=True, metavar="NAME=VALUE",
                     help="Turn a knob, a threshold for example; repeatable."),
    ])


def _show_knobs() -> click.Command:
    def run() -> None:
        values, meanings = monitoring_mixin.knobs(), monitoring_mixin.meanings()
        for name, value in values.items():
            click.echo(f"{name}={value}  ({meanings[name]})")

    return click.Command("knobs", callback=run, help="Show the knobs, their values by default and their meanings.")


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign:
        raise UsageError(f"{text!r} is no NAME=VALUE; see 'virtgauge dashboards knobs'")
    return name, value
