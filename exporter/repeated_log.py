"""Logs a lasting fault once, with how often it came again, instead of at every sample."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass


@dataclass(slots=True)
class _Fault:
    message: str
    level: int
    since_s: float
    reported_s: float
    repeats: int = 0


class RepeatedLog:
    """Faults by key: the first time is logged, repeats are counted and reported every `every_s`, and at recovery.

    Every thread may call. At most `most_faults` are remembered; past that the oldest is forgotten, so that names
    which never recover cost no memory.
    """

    def __init__(
        self,
        logger: logging.Logger,
        *,
        every_s: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
        most_faults: int = 10_000,
    ) -> None:
        self._logger = logger
        self._every_s = every_s
        self._clock = clock
        self._most_faults = most_faults
        self._faults: dict[Hashable, _Fault] = {}
        self._lock = threading.Lock()

    def failed(self, key: Hashable, message: str, *, level: int = logging.WARNING, **fields: object) -> None:
        """Reports the fault `key` happened (again). `fields` become the line's fields, as with `extra`."""
        now_s = self._clock()
        with self._lock:
            fault = self._faults.get(key)
            if fault is None:
                self._remember(key, _Fault(message, level, now_s, now_s))
                told: dict[str, object] = {}
            else:
                fault.repeats += 1
                if now_s - fault.reported_s < self._every_s:
                    return
                told = {"repeats": fault.repeats, "lasting_seconds": round(now_s - fault.since_s, 3)}
                fault.reported_s, fault.repeats = now_s, 0
        # Outside the lock: a slow stderr must not hold up other threads.
        self._logger.log(level, message, extra=fields | told)

    def recovered(self, key: Hashable, message: str = "recovered", **fields: object) -> None:
        """Reports that `key` works again; silent and cheap where it never failed, so it may be called each time."""
        if key not in self._faults:
            return
        with self._lock:
            fault = self._faults.pop(key, None)
        if fault is not None:
            told = {"after": fault.message, "repeats": fault.repeats}
            lasting = {"lasting_seconds": round(self._clock() - fault.since_s, 3)}
            self._logger.info(message, extra=fields | told | lasting)

    def forget(self, key: Hashable) -> None:
        """Drops `key` without a word: the thing itself is gone."""
        with self._lock:
            self._faults.pop(key, None)

    def _remember(self, key: Hashable, fault: _Fault) -> None:
        if len(self._faults) >= self._most_faults:
            self._faults.pop(next(iter(self._faults)))
        self._faults[key] = fault
