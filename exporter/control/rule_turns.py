"""How many of the rules' acts run at once: in threads of their own, where more than one may."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from exporter.control.errors import UnreachableError
from exporter.control.threads import start_thread


class Turns:
    """Acts in progress, by their number in the store. One thread takes turns; acts end in any."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._rules: dict[int, str] = {}

    def wait(self, most: int) -> None:
        """Until fewer than `most` acts run."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._rules) < most)

    def wait_for_end(self, number: int) -> None:
        """Until this act is not running; at once where it never was."""
        with self._changed:
            self._changed.wait_for(lambda: number not in self._rules)

    def of_rule(self, name: str) -> int:
        """How many acts of this rule run."""
        with self._changed:
            return list(self._rules.values()).count(name)

    def run(self, number: int, rule: str, act: Callable[[], None], most: int) -> None:
        """Runs `act`, which raises nothing: here where one act may run at a time, else in a thread of its own.

        Where the machine gives no more threads it runs here, too: late rather than never, and never counted for ever.
        """
        if most == 1:
            act()
            return
        with self._changed:
            self._rules[number] = rule
        try:
            start_thread(lambda: self._act(number, act), f"rule-act-{number}")
        except UnreachableError:
            self._act(number, act)

    def _act(self, number: int, act: Callable[[], None]) -> None:
        try:
            act()
        finally:
            with self._changed:
                del self._rules[number]
                self._changed.notify_all()

    def end(self, timeout_s: float) -> None:
        """Waits until nothing runs, at most `timeout_s`."""
        end_s = time.monotonic() + timeout_s
        with self._changed:
            self._changed.wait_for(lambda: not self._rules, max(0.0, end_s - time.monotonic()))
