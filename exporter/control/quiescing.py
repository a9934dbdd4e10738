"""A guest's file systems held by its agent while a snapshot is taken, and let go of whatever becomes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import libvirt

from collectors.agent_reading import SILENT, holds
from exporter.control.errors import ControlError, RefusedError
from exporter.control.guest_agent import agent_state, agent_state_now, answer_limit
from exporter.control.operation import Call, Progress, Subject

FREEZE_LIMIT_S = 60
"""How long the agent may need to write out its file systems."""


@contextmanager
def quiesced(call: Call, told: Callable[[libvirt.libvirtError, str], ControlError]) -> Iterator[None]:
    """While libvirt takes a snapshot that the agent takes part in. Raises ControlError for what libvirt raised.

    `told` makes it, handed also what is to be said of file systems that may still be held.
    """
    with answer_limit(call.subject.handle, call.folders, FREEZE_LIMIT_S):
        call.progress(Progress("holding the guest's file systems, and taking it"))
        try:
            yield
        except libvirt.libvirtError as error:
            raise _not_quiesced(call.subject, error, told) from error


def refuse_without_agent(call: Call) -> None:
    """Raises RefusedError where the agent does not answer, or holds the file systems already."""
    state = agent_state(call.subject.handle, call.folders)
    if state == "silent":
        raise RefusedError(
            f"the guest agent in domain {call.subject.name} does not answer, and cannot hold its file systems",
            next_step="start it in the guest (qemu-guest-agent), or leave --quiesce out",
        )
    if state == "holding":
        raise _held_already(call.subject.name)


def _held_already(name: str) -> RefusedError:
    return RefusedError(
        f"the file systems in domain {name} are held already, by somebody else (a backup, it may be)",
        next_step=f"ask again when that is over; if nobody is at it: 'virsh domfsthaw {name}'",
    )


def _not_quiesced(
    subject: Subject, error: libvirt.libvirtError, told: Callable[[libvirt.libvirtError, str], ControlError]
) -> ControlError:
    """The error to tell; lets go of what this act has held, and of nothing else.

    Measured on libvirt 9.0: where the image cannot be made, libvirt itself lets go; where the agent falls mute, it
    does not, and the agent holds the file systems when it wakes.
    """
    name = subject.name
    refused_to_hold = "guest-fsfreeze-freeze" in str(error)
    if refused_to_hold and holds(error):
        return _held_already(name)
    more = "" if refused_to_hold or _let_go(subject.handle, error) else (
        "; the agent may hold the guest's file systems, or do so when it wakes:"
        f" 'virsh domfsthaw {name}' then lets go of them"
    )  # fmt: skip
    return told(error, more)


def _let_go(handle: Any, error: libvirt.libvirtError) -> bool:
    """Whether the agent holds nothing any more; it held nothing before this act."""
    try:
        state = "holding" if error.get_error_code() in SILENT else agent_state_now(handle)
        if state == "holding":
            handle.fsThaw()
        return state != "silent"
    except libvirt.libvirtError:
        return False
