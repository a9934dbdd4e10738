"""Target: one libvirt connection with its sampler and Batch; samples are fresh, shared and recorded.

A request gets a sample no older than ``max_age_s``; requests that arrive while one is being taken share it, and
the nearest of their deadlines is the sampling's.  A sample is recorded (it feeds rates and the archive) when at
least 0.8 of the interval has passed since the last recorded one; a timer samples only when nobody asked, so that a
scraper of the same interval costs no sampling but its own, whatever its phase.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from .batch import Batch, Builder, Floats, Plan
from .derived import derived
from .rates import carry, rates
from .sampler import Sampler

log = logging.getLogger(__name__)

RECORD_AFTER = 0.8
"""Share of the interval after which a sample is recorded: a scrape a little early must still count."""
AFTER_REQUEST = 1.1
"""Intervals after a sample that somebody asked for until the timer takes one: the next scrape may be a little late.

Counted from the last recorded one alone, timer and scraper would both sample for good, since a scrape soon after the
timer is not recorded and leaves the timer's next turn where it is.
"""
_TIMER_BUDGET_S = 10.0


def timer_due_s(recorded_s: float, asked_s: float, interval_s: float) -> float:
    """When the timer samples: by the monotonic times of the last recorded and the last requested sample."""
    return max(recorded_s + interval_s, asked_s + AFTER_REQUEST * interval_s)


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What a page is made of: a Batch and its computed rows (NaN where absent).  Frozen."""

    batch: Batch
    computed: Floats


class Target:
    """Owns the thread that samples.  ``request`` from any thread; ``stop`` ends the thread."""

    def __init__(self, sampler: Sampler, builder: Builder, max_age_s: float, interval_s: float,
                 on_record: Sequence[Callable[[Batch], None]] = ()) -> None:
        self._sampler = sampler
        self._builder = builder
        self._max_age_s = max_age_s
        self._interval_s = interval_s
        self._on_record = on_record
        self._condition = threading.Condition()
        self._waiting: list[tuple[float, Future[View]]] = []
        self._deadline_s = float("inf")
        self._view: View | None = None
        self._recorded: Batch | None = None
        self._rates: Floats = np.empty(0)  # of the last recorded pair,
        self._rates_plan: Plan = builder.plan  # and whose rows they are
        self._carried: tuple[Plan, Floats] = (self._rates_plan, self._rates)  # the same for the last sample's rows
        self._asked_s = float("-inf")  # when the last sample that somebody asked for was whole
        self._stopping = False
        self._answered = False
        self._thread = threading.Thread(target=self._run, name="sampling", daemon=True)

    def start(self) -> None:
        """Begin to sample: at once, then by request and by timer."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the sampling in progress; does not wait for libvirt."""
        with self._condition:
            self._stopping = True
            self._condition.notify_all()

    @property
    def answered(self) -> bool:
        """Whether libvirt has answered at least once."""
        return self._answered

    def page_series(self, count: int) -> None:
        """Tell how many series the page had; the next sample carries the number."""
        self._sampler.page_series = count

    def request(self, timeout_s: float) -> Future[View]:
        """A View no older than ``max_age_s``, done within about ``timeout_s`` (sampling ends with what it has)."""
        future: Future[View] = Future()
        now_s = time.monotonic()
        with self._condition:
            view = self._view
            if view is not None and now_s - view.batch.ended_s <= self._max_age_s:
                future.set_result(view)
                return future
            self._waiting.append((now_s + timeout_s, future))
            self._deadline_s = min(self._deadline_s, now_s + timeout_s)
            self._condition.notify_all()
        return future

    def _run(self) -> None:
        next_timer_s = time.monotonic()
        while True:
            with self._condition:
                while not self._stopping and not self._waiting and time.monotonic() < next_timer_s:
                    self._condition.wait(next_timer_s - time.monotonic())
                if self._stopping:
                    return
            try:
                view = self._sample()
            except Exception as error:  # a bug in one sample must not end sampling
                log.exception("sampling failed")
                self._fail(error)
                next_timer_s = time.monotonic() + self._interval_s
                continue
            recorded_s = self._recorded.ended_s if self._recorded else view.batch.ended_s
            next_timer_s = timer_due_s(recorded_s, self._asked_s, self._interval_s)
            if next_timer_s <= time.monotonic():
                next_timer_s = time.monotonic() + self._interval_s

    def _sample(self) -> View:
        with self._condition:
            self._deadline_s = min([time.monotonic() + _TIMER_BUDGET_S, *(limit for limit, _ in self._waiting)])
        batch = self._builder.batch(self._sampler.sample(lambda: 0.0 if self._stopping else self._deadline_s))
        self._answered = self._answered or batch.up
        view = View(batch, self._computed(batch))
        with self._condition:
            self._view = view
            waiting, self._waiting = self._waiting, []
            self._deadline_s = float("inf")
        if waiting:
            self._asked_s = batch.ended_s
        for _, future in waiting:
            if future.set_running_or_notify_cancel():
                future.set_result(view)
        return view

    def _fail(self, error: Exception) -> None:
        with self._condition:
            waiting, self._waiting = self._waiting, []
        for _, future in waiting:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)

    def _computed(self, batch: Batch) -> Floats:
        """Rates of the last recorded pair, and what this one sample gives by itself."""
        previous = self._recorded
        if not batch.up:  # counters may begin anew before libvirt answers again
            self._set_rates(np.full(batch.plan.formulas, np.nan), batch.plan)
        elif previous is None:
            self._set_rates(np.full(batch.plan.formulas, np.nan), batch.plan)
            self._record(batch)
        elif batch.ended_s - previous.ended_s >= RECORD_AFTER * self._interval_s:
            self._set_rates(rates(previous, batch), batch.plan)
            self._record(batch)
        return self._shown(batch)

    def _set_rates(self, values: Floats, plan: Plan) -> None:
        self._rates, self._rates_plan = values, plan
        self._carried = (plan, values)

    def _shown(self, batch: Batch) -> Floats:
        """Always from the recorded pair: what one odd sample has no row for is there again on the next."""
        if self._carried[0] is not batch.plan:
            self._carried = (batch.plan, carry(self._rates, self._rates_plan, batch.plan))
        own = derived(batch)
        return np.where(np.isnan(own), self._carried[1], own)

    def _record(self, batch: Batch) -> None:
        self._recorded = batch
        for listener in self._on_record:
            try:
                listener(batch)
            except Exception:  # the archive must not cost a scrape
                log.exception("a recorded sample was not taken over")
