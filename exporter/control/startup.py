"""What every process that controls begins with: its folders, and a look at what dead processes left open."""

from __future__ import annotations

import contextlib
import fcntl
import os

from pydantic import JsonValue

from exporter.config import Settings
from exporter.control import interface_change
from exporter.control.destinations import destinations
from exporter.control.errors import BusyError, UnreachableError
from exporter.control.executor import Executor
from exporter.control.folders import Folders
from exporter.control.operations import by_name


def control_folders(settings: Settings) -> Folders:
    """Where control keeps its state, whence guests may be given files, and whither they may be moved."""
    images, places = settings.control.image_directory, settings.control.migration_destination
    return Folders(settings.state.directory / "control", tuple(images), destinations(places))


def claim_service(folders: Folders, address: str) -> int:
    """Makes this process the state folder's one service for as long as the returned file descriptor is open.

    The command line needs no such claim. Raises BusyError that names the other service, UnreachableError.
    """
    path = folders.private(folders.state) / "service.lock"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise UnreachableError(
            f"the service's lock {path} cannot be opened ({error.strerror})",
            next_step="run as the account that owns the state folder",
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 200, 0).decode(errors="replace").strip() or "another process"
        os.close(fd)
        raise BusyError(
            f"the state folder {folders.state.parent} is already served by {holder}",
            next_step="stop that service first, or give this one a --state.directory of its own",
        ) from None
    with contextlib.suppress(OSError):  # a full disk: the claim holds, only its holder is not named
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"process {os.getpid()} on {address}\n".encode(), 0)
    return fd


def recover(executor: Executor) -> list[str]:
    """Tells the trail of what dead processes left open, and has an open interface change watched again.

    A sentence for each such act: what it was, and what is there now.
    """
    explained = executor.explain_left_open(by_name())
    interface_change.resume(executor.folders, executor.trail.append)
    return [f"{act.get('operation')} of {_name(act)}: {act.get('outcome')}" for act in explained]


def _name(act: dict[str, JsonValue]) -> str:
    subject = act.get("subject")
    return f"{subject.get('kind')} {subject.get('name')}" if isinstance(subject, dict) else "something"
