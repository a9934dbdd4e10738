"""Refused callers of the control API in the audit trail, within bounds: nobody fills the disk by being refused."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from starlette.types import Scope

from exporter.control.audit import Trail
from exporter.control.errors import ControlError
from exporter.token_form import mask_tokens
from exporter.tokens import Principal

_log = logging.getLogger(__name__)

WINDOW_S = 60.0
TOLD_OF_TOKEN = 30
"""So many refusals of one token are told in a window; what comes above is told as a number with the next one."""
TOLD_OF_UNKNOWN = 1
"""The same of all callers together that nobody knows."""


@dataclass
class _Window:
    """What was told of one caller since `begun_s`, and how many were only counted since the last one told."""

    begun_s: float
    told: int = 0
    counted: int = 0


class AuditedRefusals:
    """Writes in a thread of its own, since the event loop must not wait."""

    def __init__(self, trail: Trail, clock: Callable[[], float] = time.monotonic) -> None:
        self._trail = trail
        self._clock = clock
        self._waiting: deque[dict[str, str | int]] = deque(maxlen=1000)
        self._wake = threading.Event()
        self._stopped = False
        self._windows: dict[str, _Window] = {}
        self._thread = threading.Thread(target=self._write, name="audited-refusals", daemon=True)
        self._thread.start()

    def told(self, principal: Principal | None, scope: Scope, reason: str, message: str) -> None:
        """One refusal; called in the event loop."""
        facts: dict[str, str | int] = {
            "way": "api", "reason": reason, "path": mask_tokens(str(scope["path"]))[:200],
            "method": str(scope["method"])[:20], "client": str((scope.get("client") or ("",))[0]),
            "message": mask_tokens(message),
        }  # fmt: skip
        if principal is not None:
            facts["actor"] = str(principal)
        refused = self._since_last(str(principal or ""), TOLD_OF_UNKNOWN if principal is None else TOLD_OF_TOKEN)
        if refused:
            self._waiting.append(facts if refused == 1 else facts | {"refused_since_last": refused})
            self._wake.set()

    def stop(self) -> None:
        """Writes what waits, and ends the thread."""
        self._stopped = True
        self._wake.set()
        self._thread.join(5)

    def _since_last(self, caller: str, most: int) -> int:
        """How many refusals the record to be written stands for, this one included; 0 where it is only counted."""
        now_s = self._clock()
        window = self._windows.setdefault(caller, _Window(now_s))
        if now_s - window.begun_s >= WINDOW_S:
            window.begun_s, window.told = now_s, 0
        window.counted += 1
        if window.told >= most:
            return 0
        window.told, refused, window.counted = window.told + 1, window.counted, 0
        return refused

    def _write(self) -> None:
        while not self._stopped or self._waiting:
            self._wake.wait()
            self._wake.clear()
            while self._waiting:
                try:
                    self._trail.append("access-refused", dict(self._waiting.popleft()))
                except ControlError as error:
                    _log.error("a refusal could not be written to the audit trail", extra={"cause": str(error)})
