"""`virtgauge report`: right-sizing, noisy neighbours and disk growth of many guests, out of the archive."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from exporter.errors import UsageError

if TYPE_CHECKING:
    from exporter.archive.domain_lookup import ArchivedDomain
    from exporter.archive.usage_report import GuestReport, Quantiles

_HELP = """What guests used of what they have: CPU and memory (p50, p95, highest) against what is allotted, steal, the
busiest disk and NIC, and how long until a disk is full.

\b
virtgauge report --since 7d
virtgauge report --domain web1 --domain db1 --since 30d --format json
"""


def build() -> click.Command:
    """The command; the archive's modules are loaded when it runs."""
    from exporter.command_archive_options import archive_options

    return click.Command(
        "report",
        callback=_run,
        help=_HELP,
        params=[
            click.Option(["--domain"], multiple=True, metavar="NAME", help="Only this guest; repeatable. [all]"),
            click.Option(["--host"], default="", metavar="NAME", help="Only this host's guests. [all]"),
            click.Option(["--since"], default="7d", metavar="TIME", help="24h, 7d, 2026-11-22. [7d]"),
            click.Option(["--until"], default="now", metavar="TIME", help="End of the span. [now]"),
            click.Option(["--format", "format_"], type=click.Choice(("table", "json")), default="table",
                         help="[table]"),
            *archive_options(),
        ],
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )


def _run(
    domain: tuple[str, ...], host: str, since: str, until: str, format_: str, **settings: str | None
) -> None:
    from collectors import COLLECTORS
    from exporter.archive.domain_lookup import all_domains, find_domain
    from exporter.archive.history_fields import HistoryFields
    from exporter.archive.timespan import parse_span
    from exporter.archive.usage_report import guest_reports
    from exporter.command_archive_options import read_settings
    from exporter.nearest import nearest

    span = parse_span(since, until, time.time())
    with read_settings(settings).database() as database:
        if domain:
            chosen = [find_domain(database, name, span, host or None) for name in domain]
        else:
            known = all_domains(database)
            hosts = {one.host_name for one in known}
            if host and host not in hosts:
                raise UsageError(
                    f"the archive knows no host {host[:80]!r}; the nearest is {nearest(host, hosts) or 'none'}"
                )
            chosen = [one for one in known if one.seen_in(span) and host in ("", one.host_name)]
        chosen = _once(chosen)
        reports = list(_with_progress(guest_reports(database, HistoryFields(COLLECTORS), chosen, span), len(chosen)))
    click.echo(as_json(reports) if format_ == "json" else as_table(reports), nl=False)


def _once(domains: Sequence[ArchivedDomain]) -> list[ArchivedDomain]:
    """A guest that moved between hosts once, where it was seen last."""
    latest: dict[Any, ArchivedDomain] = {}
    for domain in sorted(domains, key=lambda one: one.last_seen_s):
        latest[domain.uuid] = domain
    return sorted(latest.values(), key=lambda one: (one.host_name, one.name))


def _with_progress(reports: Iterator[GuestReport], total: int) -> Iterator[GuestReport]:
    """Shows how far it is, on a terminal's stderr."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(reports, "reading", total, console=console, transient=True, disable=not sys.stderr.isatty())


def as_json(reports: Sequence[GuestReport]) -> str:
    """One array; what is unknown is null."""
    rows = []
    for report in reports:
        row = dataclasses.asdict(report)
        domain = row.pop("domain")
        rows.append({"domain": domain["name"], "uuid": str(domain["uuid"]), "host": domain["host_name"], **row,
                     "advice": report.advice})
    return json.dumps(rows, indent=1) + "\n"


def as_table(reports: Sequence[GuestReport]) -> str:
    """One line a guest, as wide as it needs to be."""
    from rich.console import Console
    from rich.table import Table

    from exporter.history_output import with_unit

    if not reports:
        return "no guest was seen in this span\n"
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("domain")
    table.add_column("host")
    for name in ("CPU p50", "p95", "max", "of vCPUs", "memory p50", "p95", "max", "of", "steal p95", "max",
                 "busiest disk", "busiest NIC", "disk growth"):
        table.add_column(name, justify="right")
    table.add_column("advice")
    for report in reports:
        disk, nic = (
            f"{busy[0].device} {with_unit(busy[0].mean, 'B/s')}" if busy else "-"
            for busy in (report.disks, report.interfaces)
        )
        table.add_row(
            report.domain.name, report.domain.host_name, *_three(report.cpu_cores, ""), with_unit(report.vcpus, ""),
            *_three(report.memory_bytes, "B"), with_unit(report.allotted_bytes, "B"),
            *_three(report.steal, "ratio")[1:], disk, nic, _growth(report), ", ".join(report.advice),
        )
    console = Console(file=io.StringIO(), width=400, color_system=None)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines()) + "\n"


def _three(found: Quantiles | None, unit: str) -> list[str]:
    from exporter.history_output import with_unit

    if found is None:
        return ["-"] * 3
    rounded = [value if unit else round(value, 2) for value in (found.p50, found.p95, found.max)]
    return [with_unit(value, unit) for value in rounded]


def _growth(report: GuestReport) -> str:
    """The disk that is full first, or grows most."""
    from exporter.history_output import with_unit

    growing = [disk for disk in report.growth if disk.days_to_full is not None]
    if not growing:
        return "-"
    first = min(growing, key=lambda disk: disk.days_to_full or 0.0)
    return f"{first.device} {with_unit(first.bytes_per_day, 'B')}/d, full in {first.days_to_full:.0f} d"
