"""`virtgauge control serve|audit`: the control service, and a look at what was done."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from collectors import COLLECTORS
from exporter.config import Settings
from exporter.control.audit import Trail
from exporter.logs import configure_logging
from exporter.operation_output import render, result_console
from exporter.setting_catalogue import Setting, catalogue
from exporter.setting_loading import effective_settings, load_settings

_HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
# The settings that the service uses; the listening address of the exporter is not its own.
_SECTIONS = ("libvirt", "control", "web", "state", "log", "config", "host")
_NOT_HERE = ("web.listen_address", "web.telemetry_path", "web.disable_exporter_metrics")


def build() -> click.Group:
    """The group with its commands."""
    group = click.Group("control", help="The control service, and its audit trail.", context_settings=dict(_HELP))
    group.add_command(_serve())
    group.add_command(_audit())
    return group


def _serve() -> click.Command:
    settings = [setting for setting in catalogue(Settings, {}).values() if _is_ours(setting)]

    def run(**values: object) -> None:
        loaded = _loaded({name.replace("__", "."): value for name, value in values.items()})
        if loaded.config.check:
            click.echo(effective_settings(loaded), nl=False)
            return
        configure_logging(loaded.log.level, loaded.log.format)
        from exporter.control_service import run_control

        run_control(loaded)

    return click.Command(
        "serve", callback=run, params=[_option(setting) for setting in settings],
        help="Serve the control API until SIGINT or SIGTERM.",
        epilog="Each flag --a.b-c is also the key b_c in section a of the file, and the variable VIRTGAUGE_A_B_C.",
        context_settings=dict(_HELP),
    )  # fmt: skip


def _is_ours(setting: Setting) -> bool:
    section = setting.key.partition(".")[0]
    return setting.flag is not None and section in _SECTIONS and setting.key not in _NOT_HERE


def _option(setting: Setting) -> click.Option:
    name, help_text = setting.key.replace(".", "__"), f"{setting.help} [default: {setting.default_text}]"
    assert setting.flag is not None
    if setting.is_switch:
        both = f"{setting.flag}/--no-{setting.flag.removeprefix('--')}"
        return click.Option([both, name], default=None, help=help_text)
    metavar = "NUMBER" if setting.type is int else setting.key.rpartition(".")[2].upper()
    return click.Option([setting.flag, name], multiple=setting.is_list, metavar=metavar, help=help_text)


def _audit() -> click.Command:
    def run(newest: int, verify: bool, output: str, state__directory: str | None, config__file: str | None) -> None:
        settings = _loaded({"state.directory": state__directory, "config.file": config__file})
        trail = Trail(settings.state.directory / "control" / "audit.jsonl")
        details: dict[str, Any] = {"verified_records": trail.verify()} if verify else {}
        names = ("sequence", "time", "event", "operation", "subject", "actor", "way", "reason", "outcome", "error")
        rows = [{n: record[n] for n in names if n in record} for record in trail.records(newest)]
        shown = rows if output == "table" else trail.records(newest)
        render({"details": {"rows": shown, **details}}, output, result_console(sys.stdout, sys.stdout.isatty()))

    return click.Command(
        "audit", callback=run, help="Show the newest records of the audit trail, and check that none was changed.",
        params=[
            click.Option(["--newest", "-n"], type=click.IntRange(min=1), default=20, help="How many. [default: 20]"),
            click.Option(["--verify"], is_flag=True, help="Check the whole chain of hashes."),
            click.Option(["--output", "-o"], type=click.Choice(["table", "json", "yaml"]), default="table",
                         help="How it is shown. [default: table]"),
            click.Option(["--state.directory", "state__directory"], metavar="DIRECTORY", help="Where the trail is."),
            click.Option(["--config.file", "config__file"], metavar="FILE", help="YAML file with settings."),
        ],
        context_settings=dict(_HELP),
    )  # fmt: skip


def _loaded(flags: dict[str, object]) -> Settings:
    collectors = {collector.name: collector.default for collector in COLLECTORS}
    return load_settings(
        Settings, flags=flags, environ=os.environ, collectors=collectors, is_root=os.geteuid() == 0
    )
