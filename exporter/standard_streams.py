"""Standard output and standard error of a command: what cannot be written there is told, never dropped in silence.

click and rich end a program whose reader is gone (`virtgauge domain list | head -1`) with status 1 and no word, also
where an error was on its way to be told. So what goes wrong in writing is an error of ours, which they let pass.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any

from exporter.errors import VirtgaugeError


class OutputError(VirtgaugeError):
    """Standard output does not take the result."""


class ReaderGoneError(OutputError):
    """Who read standard output has seen enough: no failure of the command."""

    exit_status = 0


def guard() -> None:
    """Before anything is written: standard output raises OutputError, standard error goes on without a reader.

    One that was closed before (`>&-`) is /dev/null, so that no file opened later gets its number and what was meant
    for it.
    """
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115 - until the end
    sys.stdout = _text(_Output, sys.stdout)
    sys.stderr = _text(_Errors, sys.stderr)


def flush() -> None:
    """Writes out what is left, at the end of a command whose outcome is told already."""
    with contextlib.suppress(OutputError):
        sys.stdout.flush()


class _Stream(io.FileIO):
    """A standard stream whose failures `_failed` decides on; what could not be written is dropped."""

    def __init__(self, number: int) -> None:
        super().__init__(number, "w", closefd=False)

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError as error:
            self._failed(error)
            return len(content)

    def _failed(self, error: OSError) -> None:
        raise NotImplementedError

    def _write_no_more(self) -> None:
        """From now on it is /dev/null, lest the interpreter's end fails on it too."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)


class _Output(_Stream):
    def _failed(self, error: OSError) -> None:
        self._write_no_more()
        if isinstance(error, BrokenPipeError):
            raise ReaderGoneError("the reader of standard output is gone") from error
        raise OutputError(
            f"standard output cannot be written ({error.strerror}), so what came of it is not shown in full; make room,"
            " and look at what is there now before you ask again"
        ) from error


class _Errors(_Stream):
    def _failed(self, error: OSError) -> None:
        """Nobody can be told now; the exit status tells. A service's log goes on once its disk has room again."""
        if isinstance(error, BrokenPipeError):
            self._write_no_more()


def _text(kind: type[_Stream], before: Any) -> io.TextIOWrapper:
    """`before` is None where the stream was closed when the program began."""
    if before is None:
        return io.TextIOWrapper(io.BufferedWriter(kind(os.open(os.devnull, os.O_WRONLY))), encoding="utf-8")
    return io.TextIOWrapper(
        io.BufferedWriter(kind(before.fileno())), encoding=before.encoding, errors=before.errors,
        line_buffering=before.line_buffering or before.write_through,
    )  # fmt: skip
