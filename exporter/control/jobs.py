"""Jobs: what the API was asked to do, kept on disk, so that a repeated request does nothing twice.

A job is a JSON file in the state folder, written whole. An idempotency key is a file of its own that names its job.
What was refused as busy or unreachable is done when it is asked again. Files older than a week are removed.
An outcome that finds no room on the disk is kept in memory; each later write that finds some writes it, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from exporter.control.errors import InvalidError, UnreachableError
from exporter.control.folders import Folders

_log = logging.getLogger(__name__)

KEEP_S = 7 * 86400.0
_PRUNE_EVERY = 200

JobState = Literal["running", "succeeded", "failed", "interrupted"]


class Job(BaseModel):
    """One request to change something, and what became of it."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(description="Names the job in /api/v1/jobs/ID.")
    operation: str = Field(description="Like domain.shutdown.")
    reference: str | None = Field(default=None, description="What it was asked for: a name, UUID or id.")
    domain: str | None = Field(default=None, description="Name of the domain, for who may see the job.")
    token: str = Field(description="Name of the token that asked.")
    state: JobState = "running"
    created: str = Field(description="RFC 3339.")
    finished: str | None = Field(default=None, description="RFC 3339; absent while it runs.")
    phase: str | None = Field(default=None, description="What it is doing now.")
    fraction: float | None = Field(default=None, description="Progress, 0 to 1; absent where it is not known.")
    status: int | None = Field(default=None, description="HTTP status of the outcome.")
    outcome: dict[str, JsonValue] | None = Field(default=None, description="The result, or the problem.")

    @property
    def done(self) -> bool:
        return self.state != "running"

    @property
    def may_be_asked_again(self) -> bool:
        """Whether nothing was done and nothing can have been: it was busy or not reachable."""
        return self.done and self.status in (423, 503) and not (self.outcome or {}).get("outcome_unknown")


class JobStore:
    """The jobs on disk. Any thread; one service a state folder."""

    def __init__(self, folders: Folders) -> None:
        """Makes the folders. Raises UnreachableError where they cannot be used."""
        self._jobs = folders.private(folders.state / "jobs")
        self._keys = folders.private(folders.state / "idempotency-keys")
        self._made = 0
        self._claiming = threading.Lock()
        self._unwritten: dict[str, Job] = {}
        self._writing_late = threading.Lock()

    def new(self, operation: str, reference: str | None, domain: str | None, token: str) -> Job:
        """A running job, on disk. Raises UnreachableError where it cannot be."""
        self._made += 1
        if self._made % _PRUNE_EVERY == 1:
            self.prune(time.time())
        job = Job(
            id=secrets.token_hex(12), operation=operation, reference=reference, domain=domain, token=token,
            created=_now(),
        )  # fmt: skip
        with _room_needed():
            self.save(job)
        self.write_late()
        return job

    def claim(self, key: str, token_id: str, request: bytes, job: Job) -> Job | None:
        """Binds an idempotency key to `job`; the earlier job where the same request was made before.

        Raises InvalidError where the key was used for a different request, UnreachableError where it cannot be
        written. Keys of different tokens never meet.
        """
        path, fingerprint = self._key_path(key, token_id), hashlib.sha256(request).hexdigest()
        content = json.dumps({"job": job.id, "request": fingerprint}).encode()
        with self._claiming:
            try:
                earlier = self._earlier(path, fingerprint) if path.exists() else None
            except InvalidError:
                self._drop(job)
                raise
            if earlier is not None and not earlier.may_be_asked_again:
                self._drop(job)
                return earlier
            try:
                with _room_needed():
                    _write(path, content)
            except UnreachableError:
                self._drop(job)
                raise
        return None

    def _drop(self, job: Job) -> None:
        (self._jobs / f"{job.id}.json").unlink(missing_ok=True)

    def known(self, key: str, token_id: str, request: bytes) -> Job | None:
        """The job of an idempotency key that was used before. Raises InvalidError as `claim` does."""
        path = self._key_path(key, token_id)
        if not path.exists():
            return None
        earlier = self._earlier(path, hashlib.sha256(request).hexdigest())
        return None if earlier.may_be_asked_again else earlier

    def _key_path(self, key: str, token_id: str) -> Path:
        return self._keys / f"{hashlib.sha256(f'{token_id}:{key}'.encode()).hexdigest()}.json"

    def _earlier(self, path: Path, fingerprint: str) -> Job:
        known = json.loads(path.read_bytes())
        if known["request"] != fingerprint:
            raise InvalidError(
                "this idempotency key was used for another request", next_step="use a new key for a new request"
            )
        job = self.get(str(known["job"]))
        if job is None:
            raise InvalidError("this idempotency key's job is no longer kept", next_step="use a new key")
        return job

    def get(self, job_id: str) -> Job | None:
        """The job; None for an unknown id."""
        if not (job_id.isascii() and job_id.isalnum() and len(job_id) < 64):
            return None
        unwritten = self._unwritten.get(job_id)
        if unwritten is not None:
            self.write_late()
            return unwritten
        try:
            return Job.model_validate_json((self._jobs / f"{job_id}.json").read_bytes())
        except (OSError, ValidationError):
            return None

    def newest(self, most: int) -> list[Job]:
        """The newest jobs, newest first."""
        paths = sorted(self._jobs.glob("*.json"), key=_modified, reverse=True)
        return [job for path in paths[:most] if (job := self.get(path.stem)) is not None]

    def save(self, job: Job) -> None:
        """Writes it whole; the disk has it before this returns. Raises OSError."""
        _write(self._jobs / f"{job.id}.json", job.model_dump_json(exclude_none=True).encode())

    def finish(self, job: Job, state: JobState, status: int, outcome: dict[str, Any]) -> Job:
        """The job with its outcome, on disk; where it finds no room, kept in memory until it does."""
        done = job.model_copy(
            update={"state": state, "finished": _now(), "status": status, "outcome": outcome, "phase": None}
        )
        try:
            self.save(done)
        except OSError as error:
            self._unwritten[done.id] = done
            _log.error("the outcome of a job is kept in memory only, since it cannot be written",
                       extra={"job": done.id, "operation": done.operation, "state": state, "cause": str(error)})
        else:
            self.write_late()
        return done

    def write_late(self) -> list[str]:
        """Tries again to write the outcomes that found no room; the ids of those that still find none."""
        with self._writing_late:  # two at one file would spoil it
            for job_id, job in list(self._unwritten.items()):
                with contextlib.suppress(OSError):
                    self.save(job)
                    del self._unwritten[job_id]
            return list(self._unwritten)

    def interrupt_running(self, outcome: dict[str, Any]) -> int:
        """At the service's start: jobs that a dead service left running; their number. Nothing is repeated."""
        left = [job for path in self._jobs.glob("*.json") if (job := self.get(path.stem)) and not job.done]
        for job in left:
            self.finish(job, "interrupted", 500, outcome)
        return len(left)

    def prune(self, now_s: float) -> None:
        """Removes what is older than a week; running jobs stay."""
        for path in (*self._jobs.glob("*.json"), *self._keys.glob("*.json")):
            if now_s - _modified(path) > KEEP_S:
                path.unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    part = path.with_suffix(".part")
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fdatasync(fd)
        os.replace(part, path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _room_needed() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UnreachableError(
            f"the job cannot be written down ({error.strerror}), so nothing is done",
            next_step="make room for the state folder",
        ) from error


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
