"""Lanes: worker threads with a connection of their own, so that no libvirt call can hold up the sampler.

A call that libvirt does not answer cannot be cancelled; it can only be left to itself.  Its lane counts as
stuck until it comes back; then the answer is thrown away and the lane serves again.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import libvirt

from .connection import ConnectionDownError, Opener, Session

log = logging.getLogger(__name__)

Work = Callable[[Session], Any]

_ROUNDS_KEPT = 4
MOST_RISKY_CALLS = 6
"""Calls that may hang and are out at the same time: libvirtd has 20 workers for everybody."""


class Slots:
    """The right to have a call out that may hang; one for each call, from its start until it comes back.

    Shared by all pools of a target.  Any thread.
    """

    def __init__(self, most: int = MOST_RISKY_CALLS) -> None:
        self._lock = threading.Lock()
        self._left = most

    @property
    def left(self) -> int:
        """Slots that nobody holds; may change at once."""
        return self._left

    def take(self, reserve: int = 0) -> bool:
        """Take a slot if more than ``reserve`` are left; whether it was taken."""
        with self._lock:
            if self._left <= reserve:
                return False
            self._left -= 1
            return True

    def give(self) -> None:
        """Return a slot."""
        with self._lock:
            self._left += 1


class Call:
    """One piece of work given to a lane.  ``result`` or ``error`` is set before it is put on ``done``."""

    __slots__ = ("done", "error", "finished_s", "lane", "left", "result", "slots", "started_s", "tag", "work")

    def __init__(self, work: Work, done: queue.SimpleQueue[Call], tag: Any, slots: Slots | None) -> None:
        self.work = work
        self.done = done
        self.tag = tag
        self.slots = slots  # where its slot is to be returned
        self.started_s = 0.0
        self.finished_s: float | None = None
        self.result: Any = None
        self.error: Exception | None = None
        self.lane: Lane | None = None
        self.left = False  # given up by the one who asked


class Lane:
    """A daemon thread with a Session; does one Call at a time.  ``submit`` only when it is idle."""

    def __init__(self, opener: Opener, name: str) -> None:
        self._session = Session(opener)
        self._inbox: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, call: Call) -> None:
        call.lane = self
        call.started_s = time.monotonic()
        self._inbox.put(call)

    def stop(self) -> None:
        """End the thread and its connection once the present call is done; does not wait."""
        self._inbox.put(None)

    def _run(self) -> None:
        while self._do_next():
            pass
        self._session.close()

    def _do_next(self) -> bool:
        """One call; its answer is not kept here while the lane waits for the next."""
        call = self._inbox.get()
        if call is None:
            return False
        try:
            call.result = call.work(self._session)
        except Exception as error:  # a bug in one call must not end the lane
            if isinstance(error, libvirt.libvirtError):
                if self._session.lost(error):
                    self._session.close()
            elif not isinstance(error, ConnectionDownError):
                log.exception("call in a lane failed")
            # The frames would keep the connection's objects, and with them its socket, alive.
            call.error = error.with_traceback(None)
            call.error.__context__ = call.error.__cause__ = None
        call.finished_s = time.monotonic()
        if call.slots is not None:
            call.slots.give()
        call.done.put(call)
        return True


class LanePool:
    """Lanes for one asker: at most ``lanes`` calls that are waited for, besides those that were left.

    Used by one thread.  ``slots`` is shared with the target's other pools.
    """

    def __init__(self, opener: Opener, lanes: int, slots: Slots | None = None, name: str = "lane") -> None:
        self._opener = opener
        self.lanes = lanes
        self.slots = slots or Slots()
        self._name = name
        self._idle: list[Lane] = []
        self._busy: set[Call] = set()
        self._stuck: set[Call] = set()
        self._made = 0
        self._most_busy: deque[int] = deque([0], maxlen=_ROUNDS_KEPT + 1)
        self.late = 0
        """Calls that came back after they had been left."""
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

    def start(self, work: Work, tag: Any = None, with_slot: bool = False) -> Call:
        """Give the work to an idle lane or a new one; its Call appears on ``done``.  Only if ``free()``.

        ``with_slot``: a slot was taken for it, which goes back when the call does.
        """
        if not self._idle:
            self._made += 1
            self._idle.append(Lane(self._opener, f"{self._name}-{self._made}"))
        call = Call(work, self.done, tag, self.slots if with_slot else None)
        self._busy.add(call)
        self._most_busy[-1] = max(self._most_busy[-1], len(self._busy))
        self._idle.pop().submit(call)
        return call

    def leave(self, call: Call) -> None:
        """Give a late call up: its lane is stuck until the call comes back."""
        call.left = True
        self._busy.discard(call)
        self._stuck.add(call)

    def next_done(self, timeout_s: float) -> Call | None:
        """The next call that came back, left ones too (see ``Call.left``); None after ``timeout_s``."""
        try:
            call = self.done.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            return None
        self._return(call)
        return call

    def collect_late(self) -> None:
        """Take back the lanes of calls that have come back meanwhile and throw their answers away."""
        while True:
            try:
                call = self.done.get_nowait()
            except queue.Empty:
                return
            self._return(call)

    def _return(self, call: Call) -> None:
        self._busy.discard(call)
        self._stuck.discard(call)
        self.late += call.left
        assert call.lane is not None
        if len(self._idle) + len(self._busy) < self.lanes:
            self._idle.append(call.lane)
        else:
            call.lane.stop()

    def end_round(self) -> None:
        """End idle lanes that the last rounds had no use for: a hang leaves no connection behind."""
        needed = max(self._most_busy)
        while len(self._idle) > needed:
            self._idle.pop(0).stop()
        self._most_busy.append(0)

    def stop(self) -> None:
        """End all idle lanes; stuck ones end when their call comes back, or with the process."""
        for lane in self._idle:
            lane.stop()
        self._idle = []
        for call in (*self._busy, *self._stuck):
            if call.lane is not None:
                call.lane.stop()
