"""Orders to a demonstration guest over its serial line, and its answers."""

from __future__ import annotations

import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from exporter.demonstration.errors import DemonstrationError
from exporter.demonstration.guest_definition import ConsoleFiles

READY = re.compile(r"GUEST READY up=([0-9.]+)")
_POLL_S = 0.1


@dataclass(frozen=True)
class Answer:
    """How an order ended: 0 or the failing program's status, and what the guest said of it."""

    order: str
    status: int
    detail: str


class GuestConsole:
    """One guest's serial line. One order at a time; not to be shared between threads."""

    def __init__(self, name: str, files: ConsoleFiles) -> None:
        self.name = name
        self.files = files

    def wait_ready(self, timeout_s: float = 60.0) -> float:
        """Wait until the guest takes orders; returns the seconds since its kernel started.

        Raises DemonstrationError after `timeout_s` seconds, with the last line that the guest printed.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            found = READY.search(self.log())
            if found:
                return float(found[1])
            if time.monotonic() > deadline:
                raise DemonstrationError(
                    f"guest {self.name} was not ready after {timeout_s:g} s; its last line: {self._last_line()!r}"
                )
            time.sleep(_POLL_S)

    def order(self, words: str, timeout_s: float = 60.0) -> Answer:
        """Send an order (see guest-init.sh) and wait for its end.

        Raises DemonstrationError if no answer comes within `timeout_s` seconds or the guest is gone.
        A failed order is no error: look at the answer's status.
        """
        name = words.split()[0]
        wanted = re.compile(rf"DONE {re.escape(name)} rc=(\d+) ?([^\r\n]*)\r?\n")
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(timeout_s)
            try:
                line.connect(str(self.files.socket))
                line.sendall(words.encode() + b"\n")
                return self._read_answer(line, words, wanted, time.monotonic() + timeout_s)
            except OSError as error:
                reason = "no answer in time" if isinstance(error, TimeoutError) else str(error)
                raise DemonstrationError(
                    f"guest {self.name} did not carry out {words!r}: {reason}; is it still running?"
                ) from error

    def log(self) -> str:
        """All that the guest has printed so far; empty before it started."""
        return _read(self.files.log)

    def _read_answer(self, line: socket.socket, words: str, wanted: re.Pattern[str], deadline: float) -> Answer:
        heard = ""
        while True:
            found = wanted.search(heard)
            if found:
                return Answer(words, int(found[1]), found[2].strip())
            line.settimeout(max(0.001, deadline - time.monotonic()))
            piece = line.recv(4096)
            if not piece:
                raise ConnectionError("the serial line was closed")
            heard += piece.decode(errors="replace")

    def _last_line(self) -> str:
        lines = self.log().split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""
