"""What is told where libvirt failed to take a snapshot: it may have taken it all the same."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import libvirt

from exporter.control.errors import ControlError, from_libvirt
from exporter.control.operation import Call
from exporter.control.overlays import written_disks


@dataclass(frozen=True)
class Attempt:
    """A snapshot as it was asked of libvirt; of an internal one the mappings are empty."""

    snapshot: str
    quiesced: bool
    before: Mapping[str, str]
    """The file of each disk until then, by target."""
    overlays: Mapping[str, Path]
    """The file that each was to go on in."""


def not_taken(call: Call, attempt: Attempt, error: libvirt.libvirtError, held: str) -> ControlError:
    """The error to tell; `held` is what to say of file systems that may still be held.

    Measured on libvirt 9.0: where the agent does not let go of the file systems afterwards, it forgets the snapshot,
    and the disks go on in the new files.
    """
    handle, name = call.subject.handle, call.subject.name
    doing = f"the {'quiesced ' if attempt.quiesced else ''}snapshot of domain {name}"
    try:
        disks = written_disks(handle) if attempt.overlays else {}
        known = attempt.snapshot in [snapshot.getName() for snapshot in handle.listAllSnapshots(0)]
    except libvirt.libvirtError:
        failure = from_libvirt(error, doing, _where_to_look(name, attempt) + held)
        failure.outcome_unknown = failure.outcome_unknown or bool(attempt.overlays)
        return failure
    moved = [target for target, path in attempt.overlays.items() if disks.get(target, {}).get("file") == str(path)]
    if not moved:
        return from_libvirt(error, doing, held)
    back = ", ".join(
        f"'domain block-commit {name} --device {target} --base {shlex.quote(attempt.before[target])}'"
        for target in moved
    )
    return ControlError(
        f"libvirt failed after it had taken snapshot {attempt.snapshot} of domain {name}: its disks go on in the new"
        f" files ({_named(attempt, moved)}), and the snapshot is {'' if known else 'not '}in its list",
        next_step=f"keep these files and the images below them; to go on in the images as before: {back}{held}",
        libvirt_code=error.get_error_code(), libvirt_message=error.get_error_message(),
    )  # fmt: skip


def _where_to_look(name: str, attempt: Attempt) -> str:
    files = _named(attempt, list(attempt.overlays))
    return f"; its disks may go on in the new files ({files}): see 'domain block-jobs {name}'" if files else ""


def _named(attempt: Attempt, targets: list[str]) -> str:
    return ", ".join(f"{target} in {attempt.overlays[target]}" for target in targets)
