"""Waiting for an operation on the command line: its progress, Ctrl-C, a terminal that is closed meanwhile."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from exporter.control.operation import Operation
from exporter.control.operation import Progress as Step
from exporter.operation_output import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

AnyOperation = Operation[Any]


def wait_for(done: threading.Event, cancelled: threading.Event | None) -> None:
    """Returns once `done` is set. Ctrl-C sets `cancelled`; a second one raises KeyboardInterrupt."""
    # Not Thread.join: interrupted in it, Python 3.11 takes the thread for ended.
    while not done.is_set():
        try:
            done.wait(0.2)
        except KeyboardInterrupt:
            if cancelled is None or cancelled.is_set():
                raise  # asked twice: what libvirt does now goes on without us, and the trail will say so
            cancelled.set()
            click.echo("virtgauge: stopping; once more leaves it to libvirt", err=True)


@contextlib.contextmanager
def not_cut_off() -> Iterator[None]:
    """A terminal that is closed (SSH that breaks) ends nothing in the middle; SIGTERM asks to stop, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {
        signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_IGN),
        signal.SIGTERM: signal.signal(signal.SIGTERM, signal.default_int_handler),
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class shown_progress:  # noqa: N801 - a context manager, read as a function
    """Shows an operation's steps on a terminal's standard error; nothing elsewhere."""

    def __init__(self, operation: AnyOperation) -> None:
        self._shown: tuple[Progress, TaskID] | None = None
        if operation.long_running and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

            progress = Progress(
                SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(),
                console=Console(stderr=True), transient=True,
            )  # fmt: skip
            self._shown = progress, progress.add_task(operation.verb, total=None)

    def __enter__(self) -> Callable[[Step], None]:
        if self._shown:
            self._shown[0].start()
        return self._told

    def __exit__(self, *_error: object) -> None:
        if self._shown:
            self._shown[0].stop()

    def _told(self, step: Step) -> None:
        if self._shown:
            progress, task = self._shown
            total = None if step.fraction is None else 1.0
            progress.update(task, description=printable(step.phase), completed=step.fraction, total=total)
