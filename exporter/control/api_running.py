"""Runs the API's operations in threads of their own, and keeps each change's job up to date.

No libvirt call can be given a deadline, so no thread pool is joined at the end: a call that libvirt never answers
must not keep the service from stopping. The number of running operations is bounded instead.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from exporter.control.control_metrics import ControlMetrics
from exporter.control.errors import ControlError, UnreachableError
from exporter.control.executor import Executor, Request
from exporter.control.jobs import Job, JobStore
from exporter.control.operation import Operation, Parameters, Progress, Result, Subject
from exporter.control.problems import control_problem
from exporter.control.threads import start_thread

# One host's operators and alerts ask for less; libvirtd itself has 20 workers by default.
MOST_CHANGES = 32
MOST_READS = 32

T = TypeVar("T")


class Runner:
    """Runs operations on one Executor for the API. Any thread may call; `executor` does the work."""

    def __init__(self, executor: Executor, jobs: JobStore, metrics: ControlMetrics) -> None:
        self.executor = executor
        self.jobs = jobs
        self.metrics = metrics
        self._reads = threading.BoundedSemaphore(MOST_READS)
        self._changes = threading.BoundedSemaphore(MOST_CHANGES)
        self._lock = threading.Lock()
        self._cancelling: dict[str, threading.Event] = {}

    def look(self, work: Callable[[], T]) -> Future[T]:
        """Runs what changes nothing. Raises UnreachableError where too much waits for libvirt already."""
        return _start(self._reads, work, "look")

    def find(self, operation: Operation[Any], reference: str | None, parameters: Parameters) -> Subject:
        """What the operation would act on; in the calling thread. Raises ControlError."""
        return self.executor.find(operation, reference, parameters)

    def read(
        self, operation: Operation[Any], reference: str | None, parameters: Parameters, request: Request
    ) -> Result:
        """A reading operation or a dry run, counted; in the calling thread."""
        return self._counted(operation, reference, parameters, request)

    def change(
        self, job: Job, operation: Operation[Any], reference: str | None, parameters: Parameters, request: Request
    ) -> Future[Job]:
        """Runs what may change something; the job on disk follows. Raises UnreachableError where too much runs."""
        cancelled = request.cancelled or threading.Event()
        asked = dataclasses.replace(request, cancelled=cancelled)

        def work() -> Job:
            self.metrics.began()
            try:
                return self._done(job, operation, reference, parameters, asked)
            finally:
                self.metrics.ended()
                with self._lock:
                    self._cancelling.pop(job.id, None)

        with self._lock:
            self._cancelling[job.id] = cancelled
        try:
            return _start(self._changes, work, f"job-{job.id}")
        except ControlError:
            with self._lock:
                self._cancelling.pop(job.id, None)
            raise

    def cancel(self, job_id: str) -> bool:
        """Asks a running job to stop; false where it does not run."""
        with self._lock:
            event = self._cancelling.get(job_id)
        if event is not None:
            event.set()
        return event is not None

    def wait_until_idle(self, seconds: float) -> bool:
        """Waits for running changes to end; false where some go on. For the end of the service."""
        end_s = time.monotonic() + seconds
        while self._cancelling and time.monotonic() < end_s:
            time.sleep(0.05)
        return not self._cancelling

    def _done(
        self, job: Job, operation: Operation[Any], reference: str | None, parameters: Parameters, request: Request
    ) -> Job:
        def told(step: Progress) -> None:
            job.phase, job.fraction = step.phase, step.fraction
            # A full disk must break no act off, nor blind who keeps its deadline.
            with contextlib.suppress(OSError):
                self.jobs.save(job)

        try:
            asked = dataclasses.replace(request, progress=told)
            result = self._counted(operation, reference, parameters, asked)
        except ControlError as error:
            return self.jobs.finish(job, "failed", error.http_status, control_problem(error, request.actor.request_id))
        return self.jobs.finish(job, "succeeded", 200, result.model_dump(mode="json", exclude_none=True))

    def _counted(
        self, operation: Operation[Any], reference: str | None, parameters: Parameters, request: Request
    ) -> Result:
        started_s = time.monotonic()
        outcome = "failed"
        try:
            result = self.executor.run(operation, reference, parameters, request)
            outcome = _outcome(operation, result)
            return result
        except ControlError as error:
            outcome = error.kind
            raise
        finally:
            self.metrics.count(operation.name, outcome, time.monotonic() - started_s)


def _outcome(operation: Operation[Any], result: Result) -> str:
    if operation.reads:
        return "read"
    if result.dry_run:
        return "dry-run"
    return "changed" if result.changed else "unchanged"


def _start(slots: threading.BoundedSemaphore, work: Callable[[], T], name: str) -> Future[T]:
    if not slots.acquire(blocking=False):
        raise UnreachableError("too many operations wait for libvirt", next_step="ask again later")
    future: Future[T] = Future()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            future.set_result(context.run(work))
        except BaseException as error:  # noqa: BLE001 - the waiting request answers it
            future.set_exception(error)
        finally:
            slots.release()

    try:
        start_thread(run, name)
    except ControlError:
        slots.release()
        raise
    return future
