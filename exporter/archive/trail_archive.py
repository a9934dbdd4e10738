"""The audit trail's own archive: a spool and a writer of the control service, beside the exporter's.

The control service may run in another process, under another account, without an exporter.  So it shares neither the
exporter's spool nor its writer: it has its own of the same kind, in its own folder with its own lock, and writes to the
same database.  The embedded server stays the exporter's child; while it does not run, the spool waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from exporter.archive.connection import EMBEDDED, Address, FolderLock, address_of
from exporter.archive.documents import Host
from exporter.archive.embedded import running_uri
from exporter.archive.errors import ArchiveError
from exporter.archive.spool import Spool
from exporter.archive.trail_documents import AUDIT, TrailGrouper
from exporter.archive.trail_follower import TrailFollower
from exporter.archive.writer import Patience, Writer
from exporter.config import ArchiveSettings

SPOOL_LIMIT_BYTES = 64 << 20
"""When it is reached the newest wait in the trail, so nothing is lost."""
_DRAIN_S = 5.0


@dataclass(frozen=True, slots=True)
class TrailState:
    """How far the archive of the trail is: records spooled and stored since the start, those waiting, the fault."""

    spooled: int
    stored: int
    waiting: int
    fault: str | None


class TrailArchive:
    """``start`` and ``stop`` from the main thread, ``state`` from any.

    ``folder`` is control's part of the state folder, ``trail`` the trail's file, ``archive`` the folder of the
    exporter's archive, where the embedded server tells its address.  Raises ArchiveBusyError where another process
    archives this trail, SettingsError for a wrong URI, SpoolError where the folder cannot be used.
    """

    def __init__(self, settings: ArchiveSettings, folder: Path, trail: Path, archive: Path,
                 host: Callable[[], Host | None], *, patience: Patience | None = None) -> None:
        self._settings = settings
        self._archive = archive
        if settings.uri != EMBEDDED:
            address_of(settings).check()
        own = folder / "archive"
        self._lock = FolderLock(own)
        self.spool = Spool(own / "spool", SPOOL_LIMIT_BYTES, "newest")
        self.writer = Writer(self.spool, self._address, resolution=AUDIT, grouper=TrailGrouper, patience=patience)
        self.follower = TrailFollower(trail, self.spool, own / "position.json", host, self.writer.wake)

    def start(self) -> None:
        """Start the threads; waits for nothing."""
        self.follower.start()
        self.writer.start()

    def stop(self) -> None:
        """Spools the rest of the trail and gives the database a few seconds to take it."""
        self.follower.stop(_DRAIN_S)
        self.writer.wake()
        limit_s = time.monotonic() + _DRAIN_S
        while not self.writer.drained() and self.writer.counts.fault is None and time.monotonic() < limit_s:
            time.sleep(0.05)
        self.writer.stop(_DRAIN_S)
        self.spool.close()
        self._lock.release()

    def state(self) -> TrailState:
        """Plain numbers for the metrics."""
        fault = self.writer.counts.fault
        return TrailState(self.follower.records, self.writer.counts.samples, self.spool.pending_samples,
                          fault.value if fault is not None else None)

    def _address(self) -> Address:
        if self._settings.uri != EMBEDDED:
            return address_of(self._settings)  # each time anew: the password in the file may have changed
        uri = running_uri(self._archive / EMBEDDED)
        if uri is None:
            raise ArchiveError("archive.uri is embedded, but the exporter that runs the embedded server is not there "
                               "or uses another state.directory; start it, or name a MongoDB")
        return Address(uri, self._settings.database, embedded=True)
