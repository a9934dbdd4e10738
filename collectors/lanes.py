"""Lanes: worker threads with a connection of their own, so that no libvirt call can hold up the sampler.

A call that libvirt does not answer cannot be cancelled; it can only be left to itself.  Its lane counts as
stuck until it comes back; then the answer is thrown away and the lane serves again.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

import libvirt

from .connection import ConnectionDownError, Opener, Session, is_dead

log = logging.getLogger(__name__)

Work = Callable[[Session], Any]


class Call:
    """One piece of work given to a lane.  ``result`` or ``error`` is set before it is put on ``done``."""

    __slots__ = ("done", "error", "finished_s", "lane", "left", "result", "started_s", "tag", "work")

    def __init__(self, work: Work, done: queue.SimpleQueue[Call], tag: Any = None) -> None:
        self.work = work
        self.done = done
        self.tag = tag
        self.started_s = 0.0
        self.finished_s: float | None = None
        self.result: Any = None
        self.error: Exception | None = None
        self.lane: Lane | None = None
        self.left = False  # given up by the one who asked


class Lane:
    """A daemon thread with a Session; does one Call at a time.  ``submit`` only when it is idle."""

    def __init__(self, opener: Opener, number: int) -> None:
        self._session = Session(opener)
        self._inbox: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"lane-{number}", daemon=True)
        self._thread.start()

    def submit(self, call: Call) -> None:
        call.lane = self
        call.started_s = time.monotonic()
        self._inbox.put(call)

    def stop(self) -> None:
        """End the thread and its connection once the present call is done; does not wait."""
        self._inbox.put(None)

    def _run(self) -> None:
        while (call := self._inbox.get()) is not None:
            try:
                call.result = call.work(self._session)
            except ConnectionDownError as error:
                call.error = error
            except libvirt.libvirtError as error:
                call.error = error
                self._after_error(error)
            except Exception as error:  # a bug in one call must not end the lane
                log.exception("call in a lane failed")
                call.error = error
            call.finished_s = time.monotonic()
            call.done.put(call)
        self._session.close()

    def _after_error(self, error: libvirt.libvirtError) -> None:
        try:
            connection = self._session.connection
        except ConnectionDownError:
            return
        if is_dead(error, connection):
            self._session.close()


class LanePool:
    """The lanes of one target: at most ``lanes`` at work and ``most_stuck`` stuck.  One thread at a time."""

    def __init__(self, opener: Opener, lanes: int, most_stuck: int = 6) -> None:
        self._opener = opener
        self.lanes = lanes
        self.most_stuck = most_stuck
        self._idle: list[Lane] = []
        self._busy: set[Call] = set()
        self._stuck: set[Call] = set()
        self._made = 0
        self.done: queue.SimpleQueue[Call] = queue.SimpleQueue()

    @property
    def in_flight(self) -> int:
        """Calls being waited for."""
        return len(self._busy)

    @property
    def stuck(self) -> int:
        """Calls left to themselves that have not come back."""
        return len(self._stuck)

    @property
    def stuck_calls(self) -> frozenset[Call]:
        return frozenset(self._stuck)

    def free(self) -> bool:
        """Whether another call may start now."""
        return len(self._busy) < self.lanes

    def start(self, work: Work, tag: Any = None) -> Call:
        """Give the work to an idle lane or a new one; its Call appears on ``done``.  Only if ``free()``."""
        if not self._idle:
            self._made += 1
            self._idle.append(Lane(self._opener, self._made))
        call = Call(work, self.done, tag)
        self._busy.add(call)
        self._idle.pop().submit(call)
        return call

    def leave(self, call: Call) -> None:
        """Give a late call up: its lane is stuck until the call comes back."""
        call.left = True
        self._busy.discard(call)
        self._stuck.add(call)

    def may_leave(self) -> bool:
        """Whether one more stuck call stays within the limit."""
        return len(self._stuck) < self.most_stuck

    def next_done(self, timeout_s: float) -> Call | None:
        """The next call that came back and was not given up; None after ``timeout_s``."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            try:
                call = self.done.get(timeout=max(0.0, deadline_s - time.monotonic()))
            except queue.Empty:
                return None
            self._return(call)
            if not call.left:
                return call

    def collect_late(self) -> int:
        """Take back the lanes of stuck calls that have come back meanwhile; how many."""
        count = 0
        while True:
            try:
                call = self.done.get_nowait()
            except queue.Empty:
                return count
            self._return(call)
            count += 1

    def _return(self, call: Call) -> None:
        self._busy.discard(call)
        self._stuck.discard(call)
        assert call.lane is not None
        if len(self._idle) + len(self._busy) < self.lanes:
            self._idle.append(call.lane)
        else:
            call.lane.stop()

    def stop(self) -> None:
        """End all idle lanes; stuck ones end when their call comes back, or with the process."""
        for lane in self._idle:
            lane.stop()
        self._idle = []
        for call in (*self._busy, *self._stuck):
            if call.lane is not None:
                call.lane.stop()
