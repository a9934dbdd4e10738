"""`virtgauge archive status | verify | rollup | prune`: what the archive holds, and looking after it by hand."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import click

from exporter.archive.document_reader import Database
from exporter.command_archive_options import archive_options, settings_of
from exporter.config import Settings
from exporter.errors import VirtgaugeError

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
_MOST_SHOWN = 20


def build_status() -> click.Command:
    """The command `status`."""
    return _command("status", _status, "What is in the archive, and what waits in this host's spool.")


def build_verify() -> click.Command:
    """The command `verify`."""
    return _command("verify", _verify, "Check every document of samples: whole, in its place, of a known schema.")


def build_rollup() -> click.Command:
    """The command `rollup`."""
    return _command(
        "rollup", _rollup,
        "Make the 5-minute and 1-hour points again from the samples that are there. The exporter does this by itself; "
        "--repair does it for a span, as after an import. It may be run again and beside a running exporter.",
        click.Option(["--repair"], is_flag=True, required=True, help="Replace the points of the span."),
        click.Option(["--since"], default="7d", metavar="TIME", help="From here on. [7d]"),
        click.Option(["--until"], default="now", metavar="TIME", help="Up to here. [now]"),
    )


def build_prune() -> click.Command:
    """The command `prune`."""
    return _command(
        "prune", _prune, "Drop what is past archive.retention now. The exporter does this by itself every hour.",
        click.Option(["--dry-run"], is_flag=True, help="Only show what would be dropped."),
    )


def _command(name: str, callback: Callable[..., None], text: str, *options: click.Parameter) -> click.Command:
    return click.Command(name, callback=callback, help=text, params=[*options, *archive_options()],
                         context_settings=_CONTEXT)


@contextmanager
def _opened(values: dict[str, str | None]) -> Iterator[tuple[Settings, Database]]:
    from exporter.archive.connection import opened

    settings = settings_of(values)
    with opened(settings.archive, settings.state.directory, "virtgauge archive") as database:
        yield settings, database


def _status(**values: str | None) -> None:
    from exporter.archive.inspection import status
    from exporter.archive.quarantine import FILE_NAME, limit_of

    with _opened(values) as (settings, database):
        found = status(database, settings.state.directory)
    click.echo(f"schema     {found.schema if found.schema is not None else 'none yet'}")
    click.echo(f"objects    {found.objects}")
    for host in found.hosts:
        seen = f"seen {host['last_seen']:%Y-%m-%d %H:%M:%SZ} (noted hourly)"
        click.echo(f"host       {host.get('name')}  {host['_id']}  {seen}")
    for name, begin, end in found.partitions:
        click.echo(f"partition  {name}  {begin:%Y-%m-%d %H:%MZ} to {end:%Y-%m-%d %H:%MZ}")
    if found.spool_bytes is None:
        click.echo(f"spool      none in {settings.state.directory}")
    else:
        click.echo(f"spool      {found.spool_bytes} bytes, acknowledged up to frame {found.spool_acknowledged or 0}"
                   + (f", a sample of {found.newest:%Y-%m-%d %H:%M:%SZ}" if found.newest else ""))
    documents, size = found.refused
    if documents:
        click.echo(f"refused    {documents} documents by the database for good: {size} bytes of at most "
                   f"{limit_of(settings.archive.spool.limit)} in {FILE_NAME} of the spool; more are not kept")


def _verify(**values: str | None) -> None:
    from exporter.archive.inspection import raw_partitions, verify
    from exporter.command_archive_progress import collections_progress

    bad = count = 0
    with _opened(values) as (_, database):
        names = raw_partitions(database)
        with collections_progress("verifying", names) as tell:
            for name, problems in ((each, found) for each in names for found in verify(database, each)):
                tell(name, 1)
                count += 1
                bad += bool(problems)
                if problems and bad <= _MOST_SHOWN:
                    click.echo(f"{name}: {'; '.join(problems)}")
    if bad:
        raise VirtgaugeError(f"{bad} of {count} documents are not right; restore them from a back-up, or drop them")
    click.echo(f"{count} documents in {len(names)} partitions are right")


def _rollup(repair: bool, since: str, until: str, **values: str | None) -> None:
    from rich.console import Console
    from rich.progress import Progress

    from exporter.archive.connection import EMBEDDED
    from exporter.archive.inspection import repair_rollups
    from exporter.archive.timespan import parse_span

    span = parse_span(since, until, time.time())
    begin, end = datetime.fromtimestamp(span.start_s, UTC), datetime.fromtimestamp(span.end_s, UTC)
    steps = 0
    with _opened(values) as (settings, database), \
            Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("Rolling up", total=None)
        elsewhere = settings.archive.uri != EMBEDDED
        for done, steps in repair_rollups(database, begin, end, compress=elsewhere):
            progress.update(task, completed=done, total=steps)
    click.echo(f"{steps} hours and days rolled up")


def _prune(dry_run: bool, **values: str | None) -> None:
    from exporter.archive.retention import drop_expired, expired
    from exporter.command_archive_progress import collections_progress

    with _opened(values) as (settings, database):
        retention = settings.archive.retention
        names = expired(database.list_collection_names(), retention, datetime.now(UTC))
        if not names:
            click.echo("nothing is past archive.retention")
        if dry_run:
            for name in names:
                click.echo(f"would drop {name}")
            return
        with collections_progress("dropping", names) as tell:
            for name in drop_expired(database, retention, before=tell):
                click.echo(f"dropped {name}")
