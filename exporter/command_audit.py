"""`virtgauge control audit`: what was done, by whom and why; and whether anybody changed the telling of it."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click
from pydantic import JsonValue

from exporter.archive.timespan import parse_moment
from exporter.command_archive_options import archive_options, settings_of
from exporter.control.audit import Trail, TrailDamagedError, is_intact, record_time, tells_of
from exporter.operation_output import render

if TYPE_CHECKING:
    from exporter.config import Settings

Record = dict[str, JsonValue]
_COLUMNS = ("sequence", "time", "event", "operation", "subject", "actor", "way", "rule", "reason", "outcome", "changed",
            "error")  # fmt: skip
# What an event says by itself of how an act went out. An `interrupted` record and those of rules tell it in words.
_OUTCOMES: dict[JsonValue, Record] = {
    "refused": {"outcome": "refused", "changed": False},
    "unchanged": {"outcome": "done", "changed": False},
    "unanswered": {"outcome": "unknown"},
}


def build() -> click.Command:
    """The command."""
    return click.Command(
        "audit", callback=_run, help="Show records of the audit trail, and check that none was changed.",
        params=[
            click.Option(["--newest", "-n"], type=click.IntRange(min=1), default=20, help="How many. [default: 20]"),
            click.Option(["--domain"], metavar="NAME", help="Only what concerns this guest, by name or UUID."),
            click.Option(["--since"], metavar="TIME", help="Only from here on: 24h, 7d, 2026-11-22T10:00."),
            click.Option(["--verify"], is_flag=True, help="Check the whole chain of hashes; with --archive, also that "
                         "nothing archived is missing from the trail."),
            click.Option(["--archive"], is_flag=True, help="Read the archive, where all hosts' records are."),
            click.Option(["--output", "-o"], type=click.Choice(["table", "json", "yaml"]), default="table",
                         help="How it is shown. [default: table]"),
            *archive_options(),
        ],
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )  # fmt: skip


def _run(newest: int, domain: str | None, since: str | None, verify: bool, archive: bool, output: str,
         **values: str | None) -> None:
    settings = settings_of(values)
    trail = Trail(settings.state.directory / "control" / "audit.jsonl")
    begin = datetime.fromtimestamp(parse_moment(since, time.time()), UTC) if since is not None else None
    details: dict[str, Any] = {"verified_records": trail.verify()} if verify else {}
    if archive:
        found, archived = _archived(settings, trail, newest, domain, begin, verify)
        details |= archived
    else:
        found = list(islice(_chosen(trail.backwards(), domain, begin), newest))[::-1]
    rows = [_row(record) for record in found] if output == "table" else found
    render({"details": {"rows": rows, **details}}, output)


def _archived(settings: Settings, trail: Trail, newest: int, domain: str | None, begin: datetime | None,
              verify: bool) -> tuple[list[Record], dict[str, Any]]:
    from exporter.archive.connection import opened
    from exporter.archive.trail_reading import archived_records

    with opened(settings.archive, settings.state.directory, "virtgauge control audit") as database:
        found = list(deque(archived_records(database, domain=domain, since=begin), newest))
        if not verify:
            return found, {}
        host = _own_host(settings.state.directory / "control" / "archive" / "position.json")
        records = archived_records(database, host=host) if host is not None else iter(())
        return found, {"compared_with_archive": _compared(records, trail)}


def _compared(archived: Iterator[Record], trail: Trail) -> int:
    """How many archived records of this host are in its trail as well. Raises TrailDamagedError for one that is not.

    Records from before the trail's first are of a trail that was moved away.
    """
    local = {record.get("hash"): record for record in trail.records()}
    first = min((record_time(record) for record in local.values()), default=datetime.max.replace(tzinfo=UTC))
    count = 0
    for record in archived:
        record.pop("host_name", None)
        if not is_intact(record):
            raise TrailDamagedError(f"record {record.get('sequence')} of the archive was changed there",
                                    next_step="compare it with the trail")
        if record.get("hash") in local:
            count += 1
        elif record_time(record) >= first:
            raise TrailDamagedError(
                f"the archive has record {record.get('sequence')} of {record.get('time')}, which the audit trail "
                f"{trail.path} does not have: the trail was cut or written anew",
                next_step="show it with 'virtgauge control audit --archive'; keep both for whoever looks into it",
            )
    return count


def _own_host(position: Path) -> UUID | None:
    try:
        return UUID(json.loads(position.read_text())["host"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _chosen(newest_first: Iterable[Record], domain: str | None, begin: datetime | None) -> Iterator[Record]:
    for record in newest_first:
        if begin is not None and record_time(record) < begin:
            return
        if domain is None or tells_of(record, domain):
            yield record


def _row(record: Record) -> Record:
    names = (*_COLUMNS[:2], "host_name", *_COLUMNS[2:]) if "host_name" in record else _COLUMNS
    shown = {**_went_out(record), **record}
    return {name: _told(shown[name]) for name in names if name in shown}


def _went_out(record: Record) -> Record:
    """Whether the act of a record was done, as far as the record tells it."""
    event, error = record.get("event"), record.get("error")
    if event not in ("end", "late"):
        return _OUTCOMES.get(event, {})
    if not isinstance(error, dict):
        return {"outcome": "done"}
    if error.get("outcome_unknown"):
        return {"outcome": "unknown"}
    return {"outcome": "refused" if error.get("kind") == "refused" else "failed"}


def _told(value: JsonValue) -> JsonValue:
    """A subject by its name, an error by its cause; the rest of both is in the other forms of output."""
    if isinstance(value, dict):
        return value.get("cause") or f"{value.get('kind', '')} {value.get('name', '')}".strip()
    return value
