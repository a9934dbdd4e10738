"""Threads of control: where the machine gives no more of them, that is an answer like any other."""

from __future__ import annotations

import threading
from collections.abc import Callable

from exporter.control.errors import UnreachableError


def start_thread(work: Callable[[], object], name: str) -> threading.Thread:
    """A running thread, which the end of the process does not wait for. Raises UnreachableError."""
    thread = threading.Thread(target=work, name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        raise UnreachableError(
            "the machine gives this process no more threads, so nothing is done",
            next_step="ask again later; look at the limits of its account (TasksMax, ulimit -u) and at free memory",
        ) from error
    return thread
