"""Refused callers of the control API in the audit trail, within bounds: nobody fills the disk by being refused."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.types import Scope

from exporter.control.audit import Trail
from exporter.control.errors import ControlError
from exporter.token_form import mask_tokens
from exporter.tokens import Principal

Facts = dict[str, str | int]
_log = logging.getLogger(__name__)

WINDOW_S = 60.0
TOLD_OF_TOKEN = 30
"""So many refusals of one token are told in a window; what comes above is told as a number, with the last of them, when
the window is over or the service stops."""
TOLD_OF_UNKNOWN = 1
"""The same of all callers together that nobody knows."""


@dataclass
class _Window:
    """What was told of one caller since `begun_s`, and how many were only counted since the last one told.

    `last` is what the newest of the counted ones was about.
    """

    begun_s: float
    told: int = 0
    counted: int = 0
    last: Facts = field(default_factory=dict)


class AuditedRefusals:
    """Writes in a thread of its own, since the event loop must not wait."""

    def __init__(self, trail: Trail, clock: Callable[[], float] = time.monotonic) -> None:
        self._trail = trail
        self._clock = clock
        self._waiting: deque[Facts] = deque(maxlen=1000)
        self._wake = threading.Event()
        self._stopped = False
        self._lock = threading.Lock()  # of the windows; never held while something is written
        self._windows: dict[str, _Window] = {}
        self._thread = threading.Thread(target=self._write, name="audited-refusals", daemon=True)
        self._thread.start()

    def told(self, principal: Principal | None, scope: Scope, reason: str, message: str) -> None:
        """One refusal; called in the event loop."""
        facts: Facts = {
            "way": "api", "reason": reason, "path": mask_tokens(str(scope["path"]))[:200],
            "method": str(scope["method"])[:20], "client": str((scope.get("client") or ("",))[0]),
            "message": mask_tokens(message),
        }  # fmt: skip
        if principal is not None:
            facts["actor"] = str(principal)
        with self._lock:
            self._count(str(principal or ""), facts, TOLD_OF_UNKNOWN if principal is None else TOLD_OF_TOKEN)
        self._wake.set()

    def stop(self) -> None:
        """Writes what waits and what was only counted, and ends the thread."""
        self._stopped = True
        self._wake.set()
        self._thread.join(5)

    def _count(self, caller: str, facts: Facts, most: int) -> None:
        """Has it told by itself, or counts it for the end of the window."""
        now_s = self._clock()
        window = self._windows.get(caller)
        if window is None or now_s - window.begun_s >= WINDOW_S:
            self._end(caller)
            window = self._windows[caller] = _Window(now_s)
        window.counted, window.last = window.counted + 1, facts
        if window.told < most:
            window.told += 1
            self._tell(window)

    def _tell(self, window: _Window) -> None:
        refused, window.counted = window.counted, 0
        self._waiting.append(window.last if refused == 1 else window.last | {"refused_since_last": refused})

    def _end(self, caller: str) -> None:
        window = self._windows.pop(caller, None)
        if window is not None and window.counted:
            self._tell(window)

    def _end_windows(self) -> float | None:
        """Tells what was counted in windows that are over, or in all at the end; seconds until the next one is over."""
        with self._lock:
            now_s = self._clock()
            for caller, window in list(self._windows.items()):
                if self._stopped or now_s - window.begun_s >= WINDOW_S:
                    self._end(caller)
            return min((window.begun_s + WINDOW_S - now_s for window in self._windows.values()), default=None)

    def _write(self) -> None:
        last = False
        while not last:
            last = self._stopped
            over_s = self._end_windows()
            while self._waiting:
                try:
                    self._trail.append("access-refused", dict(self._waiting.popleft()))
                except ControlError as error:
                    _log.error("a refusal could not be written to the audit trail", extra={"cause": str(error)})
            if not last:
                self._wake.wait(over_s)
                self._wake.clear()
