"""The archive as the exporter holds it: recorder, spool, writer, upkeep and, where chosen, the embedded server."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from uuid import UUID

from collectors.batch import Batch
from collectors.connection import ConnectionDownError
from collectors.snapshot import Record
from exporter.archive.connection import EMBEDDED, Address, FolderLock, address_of
from exporter.archive.document_reader import Unsent
from exporter.archive.documents import RAW_PARTITIONS, Column, Host
from exporter.archive.embedded import EmbeddedServer
from exporter.archive.errors import ArchiveError
from exporter.archive.lease import HostLease
from exporter.archive.metrics import own_record
from exporter.archive.reading import Reading
from exporter.archive.recorder import Recorder
from exporter.archive.spool import Spool
from exporter.archive.ticks import wall_ms_of
from exporter.archive.timespan import Span
from exporter.archive.unsent import unsent
from exporter.archive.upkeep import Upkeep
from exporter.archive.writer import Patience, Writer
from exporter.config import ArchiveSettings

log = logging.getLogger(__name__)

_SERVER_ANSWER_S = 5.0
_DRAIN_S = 5.0


class HostOnce:
    """The host's identity, read once ``read`` gives it; None until then.  Any thread; blocks as ``read`` does."""

    def __init__(self, read: Callable[[], tuple[str, str]], name: str | None = None) -> None:
        """``read`` gives UUID and name; ``name`` is shown instead of libvirt's where given."""
        self._read = read
        self._name = name
        self._host: Host | None = None

    def __call__(self) -> Host | None:
        if self._host is None:
            try:
                uuid, name = self._read()
                self._host = Host(UUID(uuid), self._name or name)
            except (ConnectionDownError, ValueError) as error:
                log.debug("the host's UUID is not known yet: %s", error)
        return self._host


class Archive:
    """``start`` and ``stop`` from the main thread, ``record`` from the sampling thread, the rest from any.

    ``host`` gives the host's identity once libvirt told it.  Raises ArchiveBusyError where another process has the
    state folder, EmbeddedServerError where the embedded server is not installed, SettingsError for a wrong URI.
    """

    def __init__(self, settings: ArchiveSettings, state: Path, host: Callable[[], Host | None], *,
                 patience: Patience | None = None, wall_clock: Callable[[], float] = time.time) -> None:
        folder = state / "archive"
        self._settings = settings
        self._wall_clock = wall_clock
        self._server: EmbeddedServer | None = None
        if settings.uri == EMBEDDED:
            self._server = EmbeddedServer(folder / EMBEDDED)
        else:
            address_of(settings).check()
        self._locks = [FolderLock(folder)]
        if self._server is not None:
            try:
                self._locks.append(FolderLock(folder / EMBEDDED))  # a command may have it, as an export does
            except ArchiveError:
                self._locks[0].release()
                raise
        self.spool = Spool(folder / "spool", settings.spool.limit, settings.spool.full, wall_ms_of=wall_ms_of)
        self.writer = Writer(self.spool, self._address, partition=RAW_PARTITIONS[settings.partition],
                             patience=patience, wall_clock=wall_clock,
                             lease=HostLease(self.spool.name, state, wall_clock))
        self._recorder = Recorder(self.spool, host, int(settings.window), self.writer.wake)
        self.reading = Reading(self._address)
        self._upkeep = Upkeep(self.writer, self._address, settings.retention, host, wall_clock)

    def start(self) -> None:
        """Start the threads and the embedded server; waits for nothing."""
        if self._server is not None:
            self._server.start()
        self._recorder.start()
        self.writer.start()
        self._upkeep.start()

    def record(self, batch: Batch) -> None:
        """Takes a recorded Batch over; returns at once."""
        self._recorder.record(batch)

    def own_record(self, sampled_at_s: float) -> Record:
        """The archive's own series."""
        return own_record(self.spool, self.writer, sampled_at_s, self._wall_clock)

    def unsealed(self, uuid: UUID, span: Span, columns: Sequence[Column]) -> Unsent:
        """One object's samples of a span in what the database has not acknowledged; blocks, for seconds in an outage.

        Some of them may be stored already: tell them apart by time.
        """
        return unsent(self.spool, uuid, span, columns)

    def waiting_since_s(self) -> float:
        """The time of the oldest sample that the database does not have, as far as is known; infinite without one."""
        return self.writer.counts.oldest_waiting_ms / 1000 or float("inf")

    def stop(self) -> None:
        """Ends the open window and the threads; gives the database a few seconds to take what is spooled."""
        self._recorder.stop(_DRAIN_S)
        self.writer.wake()
        limit_s = time.monotonic() + _DRAIN_S
        while not self.writer.drained() and self.writer.counts.fault is None and time.monotonic() < limit_s:
            time.sleep(0.05)
        self.reading.close()
        self._upkeep.stop()
        self.writer.stop(_DRAIN_S)
        if self._server is not None:
            self._server.stop()
        self.spool.close()
        for lock in self._locks:
            lock.release()

    def _address(self) -> Address:
        if self._server is None:
            return address_of(self._settings)  # each time anew: the password in the file may have changed
        return Address(self._server.uri(_SERVER_ANSWER_S), self._settings.database, embedded=True)
