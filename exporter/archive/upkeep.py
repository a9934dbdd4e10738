"""Upkeep: a thread that rolls up complete hours and days and drops expired partitions, on a connection of its own.

It connects only when something is due, and keeps no connection in between.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from exporter.archive.connection import Address, Database, check_schema
from exporter.archive.documents import Document, Host
from exporter.archive.errors import ArchiveError
from exporter.archive.retention import drop_expired
from exporter.archive.rollups import DAY_MS, HOUR_MS, roll_up_day, roll_up_hour
from exporter.archive.writer import Writer
from exporter.config import ArchiveRetentionSettings
from exporter.errors import SettingsError
from exporter.repeated_log import RepeatedLog
from exporter.setting_types import mask_passwords

log = logging.getLogger(__name__)

_SETTLE_MS = 60_000
"""How long after its end an hour is left to collect what is on its way."""
_ROUND_S = 30.0
_RETENTION_S = 3600.0


class Upkeep:
    """``start`` and ``stop`` from one thread."""

    def __init__(self, writer: Writer, address: Callable[[], Address], retention: ArchiveRetentionSettings,
                 host: Callable[[], Host | None], wall_clock: Callable[[], float] = time.time) -> None:
        self._writer = writer
        self._address = address
        self._retention = retention
        self._host = host
        self._wall_clock = wall_clock
        self._repeated = RepeatedLog(log)
        self._stopping = threading.Event()
        self._compress = False
        self._client: MongoClient[Document] | None = None
        self._thread = threading.Thread(target=self._run, name="archive-upkeep", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End after the step in progress; does not wait long for it."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(2.0)
        if self._client is not None:
            with contextlib.suppress(PyMongoError):
                self._client.close()

    def _run(self) -> None:
        retention_s = -_RETENTION_S
        while not self._stopping.wait(_ROUND_S):
            expire = time.monotonic() - retention_s >= _RETENTION_S
            if not expire and not self._due():
                continue
            host = self._host()
            if host is None or self._writer.counts.fault is not None:
                continue
            try:
                database = self._database()
                self.roll_up(database, host)
                if expire:
                    for name in drop_expired(database, self._retention):
                        log.info("an expired partition was dropped", extra={"collection": name})
                    retention_s = time.monotonic()
                self._repeated.recovered("upkeep")
                if not self._due():
                    self._disconnect()  # an idle client's threads cost more than a connection an hour
            except (PyMongoError, ArchiveError, SettingsError) as error:
                self._repeated.failed("upkeep", "the archive's upkeep failed; it is tried again",
                                      error=mask_passwords(str(error))[:300])
                self._disconnect()
            except Exception:  # a bug here must not end the thread
                log.exception("the archive's upkeep failed")

    def _due(self) -> bool:
        """Whether an hour or a day is to be rolled up now."""
        hours, days = self._writer.pending()
        return any(self._complete(hour_ms + HOUR_MS) for hour_ms in hours) or any(
            self._complete(day_ms + DAY_MS) for day_ms in days)

    def roll_up(self, database: Database, host: Host) -> None:
        """Rolls up every hour and day that is over and whose samples have all arrived.  Raises PyMongoError."""
        hours, days = self._writer.pending()
        for hour_ms, state in hours.items():
            if self._complete(hour_ms + HOUR_MS):
                roll_up_hour(database, host.uuid, hour_ms, self._compress)
                self._writer.hour_done(hour_ms, state, hour_ms // DAY_MS * DAY_MS)
        hours, days = self._writer.pending()
        for day_ms in days:
            if self._complete(day_ms + DAY_MS) and not any(day_ms <= hour < day_ms + DAY_MS for hour in hours):
                roll_up_day(database, host.uuid, day_ms, self._compress)
                self._writer.day_done(day_ms)

    def _complete(self, end_ms: int) -> bool:
        waiting_ms = self._writer.counts.oldest_waiting_ms
        return self._wall_clock() * 1000 >= end_ms + _SETTLE_MS and (waiting_ms == 0 or waiting_ms >= end_ms)

    def _database(self) -> Database:
        address = self._address()
        self._compress = not address.embedded
        if self._client is None:
            self._client = address.connect("virtgauge/upkeep")
        database: Database = self._client[address.database]
        check_schema(database, create=False)
        return database

    def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(PyMongoError):
                client.close()
