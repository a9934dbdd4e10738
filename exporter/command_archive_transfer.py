"""`virtgauge archive export` and `import`: back-ups, and the way from the embedded server to a MongoDB of one's own."""

from __future__ import annotations

import csv
import gzip
import io
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import click

from exporter.errors import UsageError, VirtgaugeError

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def build_export() -> click.Command:
    """The command `export`."""
    from exporter.command_archive_options import archive_options

    return click.Command(
        "export",
        callback=_export,
        help="Write the archive to a file. NDJSON holds everything and can be imported; CSV holds the samples, one "
        "value a line. A name that ends in .gz or .zst is compressed.",
        params=[
            click.Option(["--format", "format_"], type=click.Choice(("ndjson", "csv")), default="ndjson",
                         help="[ndjson]"),
            click.Option(["--domain"], default="", metavar="NAME", help="Only this guest. [all]"),
            click.Option(["--since"], default="1970-01-01Z", metavar="TIME", help="Only from this time on. [all]"),
            click.Option(["--until"], default="now", metavar="TIME", help="Only up to this time. [now]"),
            click.Option(["--output"], type=click.Path(dir_okay=False, path_type=Path), help="File. [stdout]"),
            *archive_options(),
        ],
        context_settings=_CONTEXT,
    )


def build_import() -> click.Command:
    """The command `import`."""
    from exporter.command_archive_options import archive_options

    return click.Command(
        "import",
        callback=_import,
        help="Bring FILE, which 'archive export --format ndjson' wrote, into the database. All of it is checked "
        "before anything is written; what is there already stays as it is, so it may be run again.",
        params=[
            click.Argument(["file"], type=click.Path(dir_okay=False, path_type=Path)),
            *archive_options(),
        ],
        context_settings=_CONTEXT,
    )


def _export(format_: str, domain: str, since: str, until: str, output: Path | None, **settings: str | None) -> None:
    from exporter.archive.domain_lookup import find_domain
    from exporter.archive.timespan import parse_span
    from exporter.archive.transfer import (
        CSV_COLUMNS,
        csv_rows,
        exported_collections,
        exported_documents,
        ndjson_lines,
    )
    from exporter.command_archive_options import read_settings
    from exporter.command_archive_progress import collections_progress

    span = parse_span("1970-01-01T00:00Z" if since == "1970-01-01Z" else since, until, time.time())
    with read_settings(settings).database() as database:
        uuid = find_domain(database, domain, span).uuid if domain else None
        names = exported_collections(database, span, raw_only=format_ == "csv")
        with collections_progress("exporting", names) as progress, _written(output) as file:
            documents = exported_documents(database, names, span, uuid, progress)
            if format_ == "csv":
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(CSV_COLUMNS)
                writer.writerows(csv_rows(documents))
            else:
                file.writelines(ndjson_lines(documents, time.time()))


def _import(file: Path, **settings: str | None) -> None:
    from exporter.archive.transfer import Importer, parsed_lines
    from exporter.command_archive_options import read_settings
    from exporter.command_archive_progress import documents_progress

    place = read_settings(settings)
    total = 0
    with documents_progress("checking") as progress:
        for name, _ in parsed_lines(_lines(file)):
            progress(name, 1)
            total += 1
    with place.database() as database, documents_progress("importing", total) as progress:
        result = Importer(database, place.remote).run(parsed_lines(_lines(file)), progress)
    click.echo(
        f"imported {result.new} documents into {database.name}, {result.known} were there already; "
        f"{result.updated} objects and hosts brought up to date"
    )


def _lines(path: Path) -> Iterator[bytes]:
    """Lines of a file, unpacked by its name's ending; raises UsageError where it cannot be read."""
    import zstandard

    try:
        with ExitStack() as stack:
            file: Any = stack.enter_context(path.open("rb"))
            if path.suffix == ".gz":
                file = stack.enter_context(gzip.open(file))
            elif path.suffix == ".zst":
                file = stack.enter_context(
                    io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True))
                )
            yield from file
    except (OSError, EOFError, zstandard.ZstdError) as error:
        raise UsageError(f"file {path}: {getattr(error, 'strerror', None) or error}; give another") from None


@contextmanager
def _written(path: Path | None) -> Iterator[IO[str]]:
    """The file to write to, which appears under its name only when it is whole."""
    import zstandard

    if path is None:
        yield sys.stdout
        return
    part = path.with_name(f".{path.name}.part")
    try:
        with ExitStack() as stack:
            file: Any = stack.enter_context(part.open("wb"))
            if path.suffix == ".gz":
                file = stack.enter_context(gzip.GzipFile(fileobj=file, mode="wb"))
            elif path.suffix == ".zst":
                file = stack.enter_context(zstandard.ZstdCompressor(level=3).stream_writer(file, closefd=False))
            yield stack.enter_context(io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=False))
        part.replace(path)
    except OSError as error:
        raise VirtgaugeError(f"file {path}: {error.strerror or error}; choose another --output") from None
    finally:
        part.unlink(missing_ok=True)
