"""`virtgauge archive ...`: looks after the database. A subcommand is a line of the table, imported when called."""

from __future__ import annotations

import importlib

import click

SUBCOMMANDS = {
    "status": ("exporter.command_archive_upkeep:build_status", "What is in the archive, and what waits in the spool."),
    "verify": ("exporter.command_archive_upkeep:build_verify", "Check every document of samples."),
    "rollup": ("exporter.command_archive_upkeep:build_rollup", "Make 5-minute and 1-hour points again from samples."),
    "prune": ("exporter.command_archive_upkeep:build_prune", "Drop what is past its retention now."),
    "export": ("exporter.command_archive_transfer:build_export", "Write the archive to a file: NDJSON or CSV."),
    "import": ("exporter.command_archive_transfer:build_import", "Bring an exported NDJSON file into a database."),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in SUBCOMMANDS:
            return None
        module, _, function = SUBCOMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), function)()
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in SUBCOMMANDS.items()])


def build() -> click.Group:
    """The group, without any subcommand imported."""
    return _LazyGroup(
        "archive",
        help="Look after the archive's database.",
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
