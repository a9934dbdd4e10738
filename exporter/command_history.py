"""`virtgauge history DOMAIN`: what a guest did, as a table, CSV, JSON, a plot or a picture."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from exporter.errors import UsageError

if TYPE_CHECKING:
    from exporter.archive.history_fields import HistoryFields
    from exporter.archive.history_question import Row

FORMATS = ("table", "csv", "json", "plot")
# What a table shows where nothing is said: what fits a screen.
_TABLE_POINTS = "30"
_HELP = """What a guest did: DOMAIN is its name or UUID.

\b
virtgauge history web1 --since 24h --format plot
virtgauge history web1 --field disk.write --field disk.read --since 7d --format csv
virtgauge history web1 --since 2026-11-20 --until 2026-11-21 --output web1.png
"""


def build() -> click.Command:
    """The command; the archive's modules are loaded when it runs."""
    from exporter.command_archive_options import archive_options, exporter_option

    return click.Command(
        "history",
        callback=_run,
        help=_HELP,
        params=[
            click.Argument(["domain"], required=False),
            click.Option(
                ["--field", "field"], multiple=True, metavar="FIELD", help="What to show; repeatable. [cpu.usage]"
            ),
            click.Option(["--fields", "list_fields"], is_flag=True, help="List all fields and exit."),
            click.Option(["--since"], default="1h", metavar="TIME", help="24h, 7d, 2026-11-22, 2026-11-22T10:00. [1h]"),
            click.Option(["--until"], default="now", metavar="TIME", help="End of the span, written likewise. [now]"),
            click.Option(["--step"], default="", metavar="DURATION", help="Time between points. [what fits]"),
            click.Option(["--host"], default="", metavar="NAME", help="The host, where several have such a guest."),
            click.Option(["--format", "format_"], type=click.Choice(FORMATS), default="table", help="[table]"),
            click.Option(
                ["--output"],
                type=click.Path(dir_okay=False, path_type=Path),
                help="Write to this file; .png and .svg are pictures.",
            ),
            exporter_option(),
            *archive_options(),
        ],
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )


def _run(
    domain: str | None,
    field: tuple[str, ...],
    list_fields: bool,
    since: str,
    until: str,
    step: str,
    host: str,
    format_: str,
    output: Path | None,
    exporter: str,
    **settings: str | None,
) -> None:
    from collectors import COLLECTORS
    from exporter.archive.history_fields import HistoryFields
    from exporter.archive.history_question import Question
    from exporter.command_archive_options import read_settings
    from exporter.history_source import history_rows

    fields = HistoryFields(COLLECTORS)
    if list_fields:
        _list(fields)
        return
    if not domain:
        raise UsageError("history needs a domain; write its name or UUID, like: virtgauge history web1")
    picture = output is not None and output.suffix.lower() in (".png", ".svg")
    points = _TABLE_POINTS if format_ == "table" and not step and not picture else ""
    question = Question(domain, field, since, until, step, points, host)
    place = read_settings(settings, exporter)
    found = history_rows(question, place.exporter, place.database, fields, place.token)
    title = f"{domain}, {since} to {until}"
    if picture:
        from exporter.history_plot import lines_of, save_picture

        assert output is not None
        save_picture(lines_of(found.rows, fields), title, output)
    else:
        _write(_text(found.rows, fields, format_, title, output), output)
    # Not on stdout: that may be read by a program.
    click.echo(f"virtgauge: {len(found.rows)} points from {found.origin}", err=True)


def _text(rows: Sequence[Row], fields: HistoryFields, format_: str, title: str, output: Path | None) -> str:
    from exporter.history_output import as_csv, as_json, as_table

    if format_ == "csv":
        return as_csv(rows)
    if format_ == "json":
        return as_json(rows)
    width, height = shutil.get_terminal_size()
    if format_ == "plot":
        from exporter.history_plot import lines_of, terminal_plot

        color = output is None and sys.stdout.isatty()
        return terminal_plot(lines_of(rows, fields), title, min(width, 160), max(16, height - 3), color) + "\n"
    return as_table(rows, fields, width)


def _write(text: str, output: Path | None) -> None:
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"output {output}: {error.strerror}; choose another --output") from None


def _list(fields: HistoryFields) -> None:
    from exporter.archive.history_fields import ALIASES

    short = {full: alias for alias, full in ALIASES.items()}
    for field in fields:
        alias = f" (or {short[field.name]})" if field.name in short else ""
        click.echo(f"{field.name}{alias}: {field.declaration.help}")
