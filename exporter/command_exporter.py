"""`virtgauge exporter`: its flags, made from the settings, and what it does with them."""

from __future__ import annotations

import os
from collections.abc import Mapping

import click

from exporter.cli import version_option
from exporter.config import Settings
from exporter.logs import configure_logging
from exporter.setting_catalogue import Setting, catalogue
from exporter.setting_loading import effective_settings, load_settings, warn_of_secrets_in_the_open


def build() -> click.Command:
    """The command with a flag for every setting that may have one."""
    # Imported here: the service brings numpy and libvirt with it.
    from exporter.setting_catalogue import collector_defaults

    return command(collector_defaults())


def command(collectors: Mapping[str, bool]) -> click.Command:
    """As `build`, for these collectors (name to default)."""
    settings = catalogue(Settings, collectors).values()

    def run(**values: object) -> None:
        run_with({_key(name): value for name, value in values.items()}, collectors)

    return click.Command(
        "exporter",
        callback=run,
        params=[version_option(), *(_option(setting) for setting in settings if setting.flag)],
        help="Serve the metrics of this host's guests to Prometheus, until SIGINT or SIGTERM.",
        epilog="Each flag --a.b-c is also the key b_c in section a of the file, and the variable VIRTGAUGE_A_B_C.",
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )


def run_with(flags: Mapping[str, object], collectors: Mapping[str, bool]) -> None:
    """Checks the settings, then prints or runs them. Raises VirtgaugeError."""
    settings = load_settings(
        Settings, flags=flags, environ=os.environ, collectors=collectors, is_root=os.geteuid() == 0
    )
    if settings.config.check:
        if settings.web.config.file:
            from exporter.webconfig_file import WebConfigFile

            WebConfigFile(settings.web.config.file)
        click.echo(effective_settings(settings), nl=False)
        return
    configure_logging(settings.log.level, settings.log.format)
    warn_of_secrets_in_the_open(settings, collectors)
    from exporter.service import run_exporter

    run_exporter(settings)


def _option(setting: Setting) -> click.Option:
    assert setting.flag is not None
    name = setting.key.replace(".", "__")
    help_text = f"{setting.help} [default: {setting.default_text}]"
    if setting.is_switch:
        both = f"{setting.flag}/--no-{setting.flag.removeprefix('--')}"
        return click.Option([both, name], default=None, help=help_text)
    return click.Option(
        [setting.flag, name],
        # The settings check the text, so that a flag, a variable and the file get the same message.
        type=click.STRING,
        multiple=setting.is_list,
        metavar=_metavar(setting),
        help=help_text,
    )


def _key(name: str) -> str:
    return name.replace("__", ".")


def _metavar(setting: Setting) -> str:
    return "NUMBER" if setting.type is int else setting.key.rpartition(".")[2].upper()
