"""`virtgauge control serve|audit|rules|pending`: the control service, what was done, rules from alerts to acts."""

from __future__ import annotations

import os

import click

from exporter import command_audit, command_rules
from exporter.config import Settings
from exporter.logs import configure_logging
from exporter.setting_catalogue import Setting, catalogue, collector_defaults
from exporter.setting_loading import effective_settings, load_settings, warn_of_secrets_in_the_open

_HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
# The settings that the service uses; the listening address of the exporter is not its own.
_SECTIONS = ("libvirt", "control", "web", "state", "log", "config", "host")
_FOR_THE_TRAIL = ("archive.uri", "archive.database", "archive.username", "archive.password_file")
# Which guests' agents are asked; the same keys choose what the exporter watches.
_FOR_THE_AGENTS = (
    *(f"filter.{what}_{way}" for what in ("domain", "uuid", "metadata") for way in ("include", "exclude")),
    "metadata.labels", "metadata.namespaces",
)  # fmt: skip
_NOT_HERE = ("web.listen_address", "web.telemetry_path", "web.disable_exporter_metrics")


def build() -> click.Group:
    """The group with its commands."""
    text = "The control service, its audit trail, its rules."
    group = click.Group("control", help=text, context_settings=dict(_HELP))
    group.add_command(_serve())
    group.add_command(command_audit.build())
    group.add_command(command_rules.build_rules())
    group.add_command(command_rules.build_pending())
    return group


def _serve() -> click.Command:
    settings = [setting for setting in catalogue(Settings, {}).values() if _is_ours(setting)]

    def run(**values: object) -> None:
        loaded = _loaded({name.replace("__", "."): value for name, value in values.items()})
        if loaded.config.check:
            click.echo(effective_settings(loaded), nl=False)
            return
        configure_logging(loaded.log.level, loaded.log.format)
        warn_of_secrets_in_the_open(loaded, collector_defaults())
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
    ours = section in _SECTIONS and setting.key not in _NOT_HERE
    return setting.flag is not None and (ours or setting.key in (*_FOR_THE_TRAIL, *_FOR_THE_AGENTS))


def _option(setting: Setting) -> click.Option:
    name, help_text = setting.key.replace(".", "__"), f"{setting.help} [default: {setting.default_text}]"
    assert setting.flag is not None
    if setting.is_switch:
        both = f"{setting.flag}/--no-{setting.flag.removeprefix('--')}"
        return click.Option([both, name], default=None, help=help_text)
    metavar = "NUMBER" if setting.type is int else setting.key.rpartition(".")[2].upper()
    return click.Option([setting.flag, name], multiple=setting.is_list, metavar=metavar, help=help_text)


def _loaded(flags: dict[str, object]) -> Settings:
    return load_settings(
        Settings, flags=flags, environ=os.environ, collectors=collector_defaults(), is_root=os.geteuid() == 0
    )
