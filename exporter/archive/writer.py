"""The writer: one thread that sends spooled windows in order and acknowledges them once the database has them.

A batch is an unordered insert with a journaled acknowledgement.  Ids are deterministic, so a document that is there
already counts as done, and whatever broke is simply sent again.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from bson.errors import InvalidDocument
from pymongo import MongoClient
from pymongo import timeout as pymongo_timeout
from pymongo.errors import BulkWriteError, PyMongoError

from exporter.archive.connection import Address, Database, check_schema
from exporter.archive.documents import (
    RAW,
    Document,
    Resolution,
)
from exporter.archive.errors import ArchiveError
from exporter.archive.faults import Fault, fault_of, is_poison, unstored
from exporter.archive.lease import HostLease
from exporter.archive.partitions import prepare_partition
from exporter.archive.quarantine import FILE_NAME, Quarantine, QuarantineFullError, limit_of
from exporter.archive.seen_objects import SeenObjects
from exporter.archive.spool import Spool
from exporter.archive.windows import Group, Grouper
from exporter.errors import SettingsError
from exporter.repeated_log import RepeatedLog
from exporter.setting_types import mask_passwords
from exporter.version import VERSION

log = logging.getLogger(__name__)

MOST_DOCUMENTS = 100
"""Of one insert: small enough that a batch sent again costs little."""
_HOUR_MS = 3_600_000
_ANNOUNCE_AGAIN_S = 15.0
_RELEASE_S = 2.0


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds between attempts: ``first_s`` doubles up to ``most_s``; ``refused_s`` where asking more often is no use.

    ``pause_s`` lies between two inserts, so that sampling and scrapes get their turn.
    """

    first_s: float = 0.5
    most_s: float = 30.0
    refused_s: float = 60.0
    pause_s: float = 0.01


@dataclass(slots=True)
class WriterCounts:
    """What happened so far; plain numbers, read without a lock."""

    batches: int = 0
    documents: int = 0
    duplicates: int = 0
    samples: int = 0
    quarantined: int = 0
    discarded: int = 0
    retries: dict[Fault, int] = field(default_factory=lambda: dict.fromkeys(Fault, 0))
    fault: Fault | None = None
    last_error: str = ""
    last_error_s: float = 0.0
    acknowledged_ms: int = 0  # wall clock of the newest sample that the database has
    oldest_waiting_ms: int = 0  # of the oldest sample that it does not have; 0 if none is known


class Writer:
    """Owns the sending thread and its client.  ``start`` and ``stop`` from one thread; the rest from any.

    ``address`` is asked at each connection (the embedded server may have moved); it may raise ArchiveError.
    ``grouper`` makes documents of frames and ``resolution`` says where they go: samples, if nothing is said.
    With a ``lease``, a host that another spool writes waits; ``stop`` releases it.
    """

    def __init__(self, spool: Spool, address: Callable[[], Address], *, partition: str = "",
                 patience: Patience | None = None, wall_clock: Callable[[], float] = time.time,
                 resolution: Resolution = RAW, grouper: Callable[[], Grouper] = Grouper,
                 lease: HostLease | None = None) -> None:
        self.counts = WriterCounts()
        self.patience = patience or Patience()
        # Hour to how often samples of it were acknowledged: one that comes during its roll-up is not forgotten.
        self._hours = {int(hour): 1 for hour in _list(spool.notes.get("hours"))}
        self._days: set[int] = {int(day) for day in _list(spool.notes.get("days"))}
        newest_ms = spool.notes.get("newest_ms")  # so that the lag is known although the database is away at the start
        self.counts.acknowledged_ms = newest_ms if isinstance(newest_ms, int) else 0
        self._aside = Quarantine(spool.folder / FILE_NAME, limit_of(spool.limit_bytes))
        self._spool = spool
        self._address = address
        self._collection = lambda start: resolution.collection(start, partition)
        self._new_grouper = grouper
        self._lease = lease
        self._wall_clock = wall_clock
        self._repeated = RepeatedLog(log)
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._grouper = grouper()
        self._read = spool.acknowledged
        self._waiting: Group | None = None
        self._client: MongoClient[Document] | None = None
        self._database: Database | None = None
        self._compress = False
        self._ready: set[str] = set()  # partitions that are known to exist with their index
        self._objects = SeenObjects()
        self._announced: object = None
        self._announce_from_s = 0.0
        self._refused: dict[bytes, int] = {}  # samples in documents of this group that the server never takes, by id
        self._thread = threading.Thread(target=self._run, name="archive-writer", daemon=True)

    def start(self) -> None:
        """Begin to send; the database need not be there yet."""
        self._thread.start()

    def wake(self) -> None:
        """There may be something to send."""
        self._wake.set()

    def stop(self, timeout_s: float) -> None:
        """End the thread, after the insert in progress or after ``timeout_s``: what was not sent stays spooled."""
        self._stopping.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        self._release_lease()
        self._disconnect()

    def _release_lease(self) -> None:
        """Tried, no more: it runs out by itself."""
        if self._lease is None or self._database is None or self._thread.is_alive() or self.counts.fault is not None:
            return
        with contextlib.suppress(PyMongoError), pymongo_timeout(_RELEASE_S):
            self._lease.release(self._database)

    def drained(self) -> bool:
        """Whether everything spooled so far, but for the window that is still open, is in the database."""
        with self._lock:
            last = self._grouper.open.first - 1 if self._grouper.open else self._read
            return self._waiting is None and self._read >= self._spool.durable_number \
                and self._spool.acknowledged >= last

    def unacknowledged(self) -> list[Group]:
        """The windows that were read from the spool and not acknowledged: being sent, and still open."""
        with self._lock:
            return [group for group in (self._waiting, self._grouper.open) if group is not None]

    def pending(self) -> tuple[dict[int, int], list[int]]:
        """What has samples and is not rolled up yet: hours (beginning in ms, state for ``hour_done``), days."""
        with self._lock:
            return dict(sorted(self._hours.items())), sorted(self._days)

    def hour_done(self, hour_ms: int, state: int, day_ms: int) -> None:
        """The hour is rolled up as it was in ``state``, its day is to be; saved with the next acknowledgement."""
        with self._lock:
            if self._hours.get(hour_ms) == state:
                del self._hours[hour_ms]
            self._days.add(day_ms)

    def day_done(self, day_ms: int) -> None:
        """As ``hour_done``, for a day."""
        with self._lock:
            self._days.discard(day_ms)

    # ---- the thread

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                sent = False
                for group in self._groups():
                    self._send(group)
                    sent = True
                self._announce()
            except _StoppedError:
                return
            except Exception:  # a bug must not end the archive; the spool keeps everything
                log.exception("the archive's writer failed; it starts over")
                self._start_over()
                self._stopping.wait(self.patience.most_s)
                continue
            if not sent:
                self._wake.wait(1.0)
                self._wake.clear()

    def _announce(self) -> None:
        """Notes a new guest while its first window is open, so that its history can be asked for.  Tried, no more."""
        group, now_s = self._grouper.open, time.monotonic()
        if (group is None or not group.ticks or group.ticks[-1].entries is self._announced
                or self.counts.fault is not None or now_s < self._announce_from_s):
            return
        self._announce_from_s = now_s + _ANNOUNCE_AGAIN_S
        try:
            self._hold_lease(group)
            self._objects.note(self._connected, group)
        except (PyMongoError, ArchiveError, SettingsError):  # if it lasts, the window will tell
            self._disconnect()
        else:
            self._announced, self._announce_from_s = group.ticks[-1].entries, now_s

    def _start_over(self) -> None:
        with self._lock:
            self._grouper, self._waiting, self._read = self._new_grouper(), None, self._spool.acknowledged
        self._disconnect()

    def _groups(self) -> Iterator[Group]:
        for frame in self._spool.frames(self._read):
            with self._lock:
                ended = self._grouper.add(frame)
                self._read = frame.number
                self._waiting = ended
            self._note_oldest()
            if ended is not None:
                yield ended

    def _note_oldest(self) -> None:
        groups = [group for group in (self._waiting, self._grouper.open) if group and group.ticks]
        self.counts.oldest_waiting_ms = groups[0].ticks[0].wall_ms if groups else 0

    def _send(self, group: Group) -> None:
        self._insist(lambda: self._hold_lease(group))
        documents = group.documents(self._spool.name)
        while batch := _batch(documents):
            for name, part in _by_partition(batch, self._collection).items():
                self._insist(lambda name=name, part=part: self._insert(name, part))  # type: ignore[misc]
            self._stopping.wait(self.patience.pause_s)
        self._insist(lambda: self._objects.note(self._connected, group))
        self._acknowledge(group)

    def _acknowledge(self, group: Group) -> None:
        hours = {tick.wall_ms // _HOUR_MS * _HOUR_MS for tick in group.ticks}
        with self._lock:
            self._hours |= {hour: self._hours.get(hour, 0) + 1 for hour in hours}
            newest_ms = group.ticks[-1].wall_ms if group.ticks else self.counts.acknowledged_ms
            notes: dict[str, object] = {"hours": sorted(self._hours), "days": sorted(self._days),
                                        "newest_ms": newest_ms}
        try:
            self._spool.acknowledge(group.last, notes)
        except OSError as error:
            # What is sent again after a restart is there already, so a full disk only costs that.
            self._repeated.failed("position", "the archive's position is not saved", error=str(error))
        else:
            self._repeated.recovered("position")
        self.counts.samples += group.samples - sum(self._refused.values())
        self._refused.clear()
        self.counts.acknowledged_ms = newest_ms
        with self._lock:
            self._waiting = None
        self._note_oldest()

    def _insist(self, act: Callable[[], None]) -> None:
        """Does ``act`` until it succeeds; raises _StoppedError when asked to end."""
        pause_s = self.patience.first_s
        while True:
            if self._stopping.is_set():
                raise _StoppedError
            try:
                act()
            except (PyMongoError, ArchiveError, SettingsError) as error:
                fault = fault_of(error)
                self._failed(fault, error)
                wait_s = self.patience.refused_s if fault.is_refusal else pause_s
                pause_s = min(pause_s * 2, self.patience.most_s)
                self._stopping.wait(wait_s * random.uniform(0.5, 1.0))
            else:
                if self.counts.fault is not None:
                    self.counts.fault = None
                    self._repeated.recovered("send", "the archive takes samples again")
                return

    def _failed(self, fault: Fault, error: Exception) -> None:
        self.counts.retries[fault] += 1
        self.counts.last_error = mask_passwords(str(error))[:500]
        self.counts.last_error_s = self._wall_clock()
        if fault is not self.counts.fault:
            self._repeated.forget("send")
        self.counts.fault = fault
        self._repeated.failed("send", "the archive does not take samples; they wait in the spool",
                              fault=fault.value, error=self.counts.last_error)
        if fault is not Fault.WRITE_CONCERN:
            self._disconnect()

    def _connected(self) -> Database:
        if self._database is None:
            address = self._address()
            self._client = address.connect(f"virtgauge/{VERSION}")
            database: Database = self._client[address.database]
            check_schema(database, create=True)
            self._ready.clear()
            self._compress = not address.embedded
            self._database = database
        return self._database

    def _disconnect(self) -> None:
        client, self._client, self._database = self._client, None, None
        if client is not None:
            with contextlib.suppress(PyMongoError):
                client.close()

    # ---- what is written

    def _hold_lease(self, group: Group) -> None:
        if self._lease is None:
            return
        for host in {tick.entries[0].subject.host: None for tick in group.ticks}:
            self._lease.hold(self._connected(), host, group.ticks[0].window_s)

    def _insert(self, name: str, documents: list[Document]) -> None:
        """Inserts what is not there yet; raises PyMongoError where something is neither stored nor hopeless."""
        database = self._connected()
        if name not in self._ready:
            prepare_partition(database, name, self._compress)
            self._ready.add(name)
        try:
            database[name].insert_many(documents, ordered=False)
        except BulkWriteError as error:
            left = unstored(error)
            self.counts.duplicates += len(error.details.get("writeErrors", ())) - len(left)
            self._settle(error, name, [documents[index] for index in left])
        except (PyMongoError, InvalidDocument) as error:
            if not is_poison(error):
                raise
            self._settle(error, name, documents)
        self.counts.batches += 1
        self.counts.documents += len(documents)

    def _settle(self, error: PyMongoError | InvalidDocument, name: str, left: list[Document]) -> None:
        """Of what a batch left over, sends each by itself and puts aside what the server will never take."""
        if not left:
            return
        if not is_poison(error):
            raise error
        database = self._connected()
        for document in left:
            try:
                database[name].insert_one(document)
            except (PyMongoError, InvalidDocument) as own:
                if getattr(own, "code", None) == 11000:
                    continue
                if not is_poison(own):
                    raise
                self._put_aside(document, own)

    def _put_aside(self, document: Document, error: Exception) -> None:
        samples = document.get("count", 1)
        again = document["_id"] in self._refused
        self._refused[document["_id"]] = samples
        told = {"file": str(self._aside.path), "object": document["name"], "error": mask_passwords(str(error))[:300]}
        try:
            if not self._aside.add(document):
                return
        except QuarantineFullError:
            if again:
                return
            self.counts.discarded += 1
            self._repeated.failed("full", "the database refuses a document for good; it is lost, since what was put "
                                  "aside before fills its file", level=logging.ERROR, **told)
        else:
            self.counts.quarantined += 1
            log.error("the database refuses a document for good; it was put aside", extra=told)
        dropped = self._spool.counts.dropped_samples
        dropped["refused"] = dropped.get("refused", 0) + samples


def _batch(documents: Iterator[Document]) -> list[Document]:
    """The next documents, at most MOST_DOCUMENTS; the driver splits what exceeds the server's message size."""
    return list(islice(documents, MOST_DOCUMENTS))


def _by_partition(documents: list[Document], collection: Callable[[Any], str]) -> dict[str, list[Document]]:
    found: dict[str, list[Document]] = {}
    for document in documents:
        found.setdefault(collection(document["start"]), []).append(document)
    return found


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


class _StoppedError(Exception):
    """The writer was asked to end while it insisted."""

