"""The recorder: takes recorded Batches off the sampling thread's hands and makes them safe in the spool.

Sampling never waits: a Batch is put into a short queue, and a thread of the archive encodes, appends and syncs it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from collectors.batch import Batch
from exporter.archive.documents import Host
from exporter.archive.spool import Spool, SpoolFullError
from exporter.archive.spool_frames import SAMPLES, SEAL
from exporter.archive.ticks import TickEncoder, samples_of
from exporter.repeated_log import RepeatedLog

log = logging.getLogger(__name__)

_MOST_QUEUED = 8
"""Batches that may wait while a disk is slow, or until libvirt tells the host."""
_MOST_HELD_BYTES = 16 << 20
"""Of encoded ticks that may wait in memory while a disk is full."""
_SEAL_AFTER_WINDOWS = 2
_HOST_AGAIN_S = 1.0


class Recorder:
    """``record`` from the sampling thread, ``start`` and ``stop`` from another; ``spooled`` is called after a sync."""

    def __init__(self, spool: Spool, host: Callable[[], Host | None], window_s: int,
                 spooled: Callable[[], None]) -> None:
        self._spool = spool
        self._host = host
        self._window_s = window_s
        self._spooled = spooled
        self._encoder = TickEncoder(window_s)
        self._repeated = RepeatedLog(log)
        self._queue: deque[Batch] = deque()
        self._held: deque[tuple[bytes, int]] = deque()
        self._held_bytes = 0
        self._open = False
        self._hostless = False
        self._last_s = time.monotonic()
        self._condition = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="archive-spool", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def record(self, batch: Batch) -> None:
        """Takes a recorded Batch over.  Returns at once; where the disk is far behind, the oldest one is dropped."""
        with self._condition:
            self._queue.append(batch)
            dropped = self._queue.popleft() if len(self._queue) > _MOST_QUEUED else None
            self._condition.notify_all()
        if dropped is not None:
            if self._hostless:
                self._lost_for_want_of_host(dropped)
            else:
                self._lost("late", samples_of(dropped.plan), "the spool's disk is too slow")

    def stop(self, timeout_s: float) -> None:
        """Spools what was recorded and ends the open window; waits at most ``timeout_s`` for a slow disk."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._condition:
                if not self._queue and not self._stopping:
                    self._condition.wait(self._window_s)
                batch = self._queue.popleft() if self._queue else None
                ending = self._stopping and batch is None
            try:
                if batch is not None:
                    self._take(batch)
                elif ending or time.monotonic() - self._last_s > _SEAL_AFTER_WINDOWS * self._window_s:
                    self._seal()
            except Exception:  # a bug in one tick must not end the archive
                log.exception("a recorded sample was not spooled")
            if ending:
                return

    def _take(self, batch: Batch) -> None:
        host = self._host()
        self._hostless = host is None
        if host is None:
            if samples_of(batch.plan):  # while libvirt is down there is nothing to keep
                self._put_back(batch)
            return
        payload, samples = self._encoder.encode(batch, host)
        if not samples:
            return
        self._last_s = time.monotonic()
        self._held.append((payload, samples))
        self._held_bytes += len(payload)
        self._flush()
        while self._held_bytes > _MOST_HELD_BYTES and len(self._held) > 1:
            self._drop_oldest()

    def _put_back(self, batch: Batch) -> None:
        """Lets a Batch wait until libvirt tells the host, for as long as there is room in the queue."""
        with self._condition:
            if not self._stopping and len(self._queue) < _MOST_QUEUED:
                self._queue.appendleft(batch)
                self._condition.wait(_HOST_AGAIN_S)
                return
        self._lost_for_want_of_host(batch)

    def _lost_for_want_of_host(self, batch: Batch) -> None:
        self._lost("no_host", samples_of(batch.plan), "libvirt has not told the host's UUID")

    def _flush(self) -> None:
        """Appends what is held and syncs once.  What is not safe on the disk after that stays held."""
        numbers: list[int] = []
        problem: OSError | None = None
        try:
            while len(numbers) < len(self._held):
                payload, samples = self._held[len(numbers)]
                try:
                    numbers.append(self._spool.append(SAMPLES, payload, samples))
                except SpoolFullError:
                    self._release(len(numbers))
                    self._lost("spool_full", samples, "the spool has reached archive.spool.limit")
        except OSError as error:
            problem = error
        try:
            self._spool.sync()
        except OSError as error:
            problem = error
        written = sum(self._release() for number in numbers if number <= self._spool.durable_number)
        if written:
            self._open = True
            self._spool.counts.spooled_samples += written
            self._spooled()
        if problem is None:
            self._repeated.recovered("disk")
        else:
            self._repeated.failed("disk", "the archive's spool cannot be written; samples are held in memory",
                                  folder=str(self._spool.folder), error=problem.strerror or str(problem))

    def _release(self, place: int = 0) -> int:
        """Holds a tick no longer; how many samples it has."""
        payload, samples = self._held[place]
        del self._held[place]
        self._held_bytes -= len(payload)
        return samples

    def _drop_oldest(self) -> None:
        self._lost("disk_full", self._release(), "the spool's disk is full")

    def _seal(self) -> None:
        """Ends the open window in the spool, so that it is sent although no further sample comes."""
        self._last_s = time.monotonic()
        if self._held:
            self._flush()
        if not self._open:
            return
        try:
            self._spool.append(SEAL, b"", 0)
            self._spool.sync()
        except OSError as error:
            self._repeated.failed("seal", "the open window is not sealed", error=error.strerror or str(error))
            return
        self._open = False
        self._spooled()

    def _lost(self, reason: str, samples: int, cause: str) -> None:
        counts = self._spool.counts.dropped_samples
        with self._condition:  # samples are lost in the sampling thread, too
            counts[reason] = counts.get(reason, 0) + samples
        self._repeated.failed(("lost", reason), "archive samples are lost", level=logging.ERROR, reason=reason,
                              cause=cause, samples=samples)
