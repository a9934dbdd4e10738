"""Watchdogs of interface changes outlive whoever began the change, by design: not a test run, which ends its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import uuid
from collections.abc import Iterator

_NAME = "TEST_RUN_ID"
# Waits for the end of its input, which comes with the end of the run whatever ends it, then looks for the run's mark.
_ENDING = """
cat > /dev/null
for process in /proc/[0-9]*; do
  grep -qsa exporter.control.interface_watchdog "$process/cmdline" || continue
  grep -qsaz "^$1$" "$process/environ" && kill -KILL "${process#/proc/}"
done
"""


@contextlib.contextmanager
def ended_with_this_process() -> Iterator[None]:
    """Watchdogs that processes begun inside leave behind end with this process at the latest, if it is killed too."""
    mark = uuid.uuid4().hex
    ending = subprocess.Popen(
        ["sh", "-c", _ENDING, "sh", f"{_NAME}={mark}"], stdin=subprocess.PIPE, start_new_session=True
    )
    os.environ[_NAME] = mark
    try:
        yield
    finally:
        del os.environ[_NAME]
        assert ending.stdin is not None
        ending.stdin.close()
        ending.wait()
