"""The command `virtgauge`: finds the subcommand, and turns every error into one line and an exit status.

A subcommand lives in a module of its own that is imported when it is called, so that `virtgauge exporter` loads
only what it serves with.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import click

from exporter import standard_streams
from exporter.errors import UsageError, VirtgaugeError
from exporter.nearest import nearest
from exporter.version import VERSION


class _Entry(NamedTuple):
    """Where a subcommand is built (`module:function`, called without arguments), and its line in the help."""

    built_by: str
    help: str


COMMANDS = {
    "exporter": _Entry("exporter.command_exporter:build", "Serve the metrics of this host's guests to Prometheus."),
    "domain": _Entry("exporter.command_operations:build_domain", "Look at guests and act on them."),
    "saved": _Entry("exporter.command_operations:build_saved", "Look at saved guests and restore them."),
    "snapshot": _Entry("exporter.command_operations:build_snapshot", "Take, revert to and delete snapshots of guests."),
    "checkpoint": _Entry("exporter.command_operations:build_checkpoint", "Checkpoints of guests' disks."),
    "network": _Entry("exporter.command_operations:build_network", "Look at and change libvirt's virtual networks."),
    "pool": _Entry("exporter.command_operations:build_pool", "Look at and change storage pools."),
    "volume": _Entry("exporter.command_operations:build_volume", "Create, resize and delete volumes."),
    "nodedev": _Entry("exporter.command_operations:build_nodedev", "Look at the host's devices, detach and reattach."),
    "interface": _Entry("exporter.command_operations:build_interface", "Look at and change the host's interfaces."),
    "history": _Entry("exporter.command_history:build", "Show what a guest did: table, CSV, JSON, plot or picture."),
    "report": _Entry("exporter.command_report:build", "Right-sizing, noisy neighbours and disk growth of guests."),
    "control": _Entry("exporter.command_control:build", "Serve the control API; look at the audit trail."),
    "archive": _Entry("exporter.command_archive:build", "Look after the archive's database: export, import."),
    "dashboards": _Entry("exporter.command_dashboards:build", "Write the Grafana dashboards, alerts and runbooks."),
    "token": _Entry("exporter.command_token:build", "Make, list and revoke the APIs' bearer tokens."),
}


class _LazyGroup(click.Group):
    """A group that imports a subcommand only to run it; its help comes from the table."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, function = COMMANDS[cmd_name].built_by.partition(":")
        command = getattr(importlib.import_module(module), function)()
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            near = nearest(args[0], COMMANDS)
            raise UsageError(f"unknown command {args[0]!r}; the nearest is {near}; run 'virtgauge --help' for all")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


def version_option() -> click.Option:
    """`--version`, for the program and for each subcommand that wants it."""

    def show(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
        if wanted and not ctx.resilient_parsing:
            click.echo(f"virtgauge {VERSION}")
            ctx.exit()

    return click.Option(
        ["--version"], is_flag=True, expose_value=False, is_eager=True, callback=show, help="Show the version."
    )


def build() -> click.Group:
    """The whole command line, without any subcommand imported."""
    return _LazyGroup(
        "virtgauge",
        params=[version_option()],
        help="Watches the virtual machines of a libvirt host and lets operators act on what it sees.",
        context_settings={"help_option_names": ["-h", "--help"]},
        invoke_without_command=True,
        callback=_help_without_command,
    )


@click.pass_context
def _help_without_command(ctx: click.Context) -> None:
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs `virtgauge` and exits: 0 success, 2 usage or settings, 1 any other error, 130 interrupted."""
    standard_streams.guard()
    status = run(sys.argv[1:] if arguments is None else arguments)
    standard_streams.flush()
    sys.exit(status)


def run(arguments: Sequence[str]) -> int:
    """Runs `virtgauge` with `arguments` and returns the exit status; errors are told on stderr."""
    try:
        result = build().main(list(arguments), prog_name="virtgauge", standalone_mode=False)
        sys.stdout.flush()  # what cannot be shown is an error while one can still be told
        return result if isinstance(result, int) else 0
    except standard_streams.ReaderGoneError as error:  # virtgauge --help | head
        return error.exit_status
    except VirtgaugeError as error:
        _tell(str(error) or type(error).__name__)
        return error.exit_status
    except click.ClickException as error:
        _tell(_usage_message(error))
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return 130


def _tell(message: str) -> None:
    from exporter.setting_types import mask_passwords  # what it needs is loaded by every command that can fail so

    for line in mask_passwords(message).splitlines():
        click.echo(f"virtgauge: error: {line}", err=True)


def _usage_message(error: click.ClickException) -> str:
    """click's own cause with our nearest neighbour and next step, in one line."""
    ctx = error.ctx if isinstance(error, click.UsageError) else None
    command = ctx.command_path if ctx else "virtgauge"
    next_step = f"run '{command} --help' for what there is"
    if isinstance(error, click.NoSuchOption) and ctx:
        flags = [flag for option in ctx.command.get_params(ctx) for flag in (*option.opts, *option.secondary_opts)]
        return f"unknown flag {error.option_name}; the nearest is {nearest(error.option_name, flags)}; {next_step}"
    return f"{error.format_message().rstrip('.')}; {next_step}"
