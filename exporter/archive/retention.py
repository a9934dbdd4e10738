"""Retention: partitions whose time is over are dropped whole, oldest first, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta

from exporter.archive.connection import Database
from exporter.archive.documents import RESOLUTIONS, partition_span
from exporter.config import ArchiveRetentionSettings


def expired(names: Iterable[str], retention: ArchiveRetentionSettings, now: datetime) -> list[str]:
    """The partitions that are wholly past their retention, oldest first.

    Time is counted from the end of the newest partition where that is earlier than ``now``: a clock that jumped
    ahead, or a host that was off for a year, must not empty the archive.
    """
    spans = {name: span for name in names if (span := partition_span(name)) is not None}
    found = []
    for resolution in RESOLUTIONS:
        own = {name: span for name, span in spans.items() if name.rpartition("_")[0] == resolution.name}
        if not own:
            continue
        latest = min(now, max(end for _, end in own.values()))
        limit = latest - timedelta(seconds=getattr(retention, resolution.name))
        found += [(end, name) for name, (_, end) in own.items() if end <= limit]
    return [name for _, name in sorted(found)]


def drop_expired(database: Database, retention: ArchiveRetentionSettings,
                 before: Callable[[str], object] = lambda _: None) -> Iterator[str]:
    """Drops what is past its retention and yields each name once it is gone.  Raises PyMongoError.

    ``before`` is called with each name: a drop may take long.

    The server's clock decides as well as ours: one host whose clock is ahead must not drop what others wrote.
    """
    server: datetime = database.client.admin.command("hello")["localTime"]
    now = min(datetime.now(UTC), server if server.tzinfo else server.replace(tzinfo=UTC))
    for name in expired(database.list_collection_names(), retention, now):
        before(name)
        database.drop_collection(name)
        yield name
