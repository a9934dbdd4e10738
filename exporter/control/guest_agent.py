"""The guest agent as operations meet it: whether it is there, whether it answers, and asking it without waiting on it.

Measured on libvirt 9.0: an agent that falls mute after it has answered once holds a shutdown call for 60 s, and any
other call of libvirt's for ever, where no limit is set. So what may be held is called in a thread of its own, on a
connection of its own (a call on a connection with a waiting one may stall).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal

import libvirt

from collectors.agent_reading import ANSWER_LIMIT_S, SILENT, NoTurnError, channel_connected, fell_mute, holds, refused
from exporter.control.connection import Session
from exporter.control.errors import BusyError, UnreachableError
from exporter.control.folders import Folders
from exporter.control.locks import Locks
from exporter.control.operation import Deadline

AgentState = Literal["silent", "answers", "holding"]
"""Holding: it has frozen the guest's file systems, and knows no other command than to thaw them."""
_TURN_S = 20.0
"""How long the metrics' reading of one agent may take that falls mute in the middle, with room."""


def falls_back(error: libvirt.libvirtError) -> bool:
    """Whether another way than the agent is to be taken.

    It cannot do it, or does not answer, or another's use of it (a freeze for a backup) holds it.
    """
    return refused(error) or error.get_error_code() in (*SILENT, libvirt.VIR_ERR_OPERATION_TIMEOUT)


def hung_up(error: libvirt.libvirtError) -> bool:
    """Whether the agent went while it was asked: one that shuts its guest down may go before it has answered."""
    return error.get_error_code() == libvirt.VIR_ERR_INTERNAL_ERROR and "agent socket" in str(error)


def agent_connected(handle: Any) -> bool:
    """Whether libvirt sees the guest agent's end of the channel open (it may still be mute)."""
    return bool(channel_connected(handle.XMLDesc(0)))


def agent_state(handle: Any, folders: Folders) -> AgentState:
    """How the agent stands to a question, within 5 s. Raises BusyError where another use of it goes on."""
    if not agent_connected(handle):
        return "silent"
    with answer_limit(handle, folders, ANSWER_LIMIT_S):
        return agent_state_now(handle)


def agent_state_now(handle: Any) -> AgentState:
    """The same within a limit that the caller has set."""
    started_s = time.monotonic()
    try:
        answer = handle.guestInfo(libvirt.VIR_DOMAIN_GUEST_INFO_HOSTNAME, 0)
    except libvirt.libvirtError as error:
        if not falls_back(error):
            raise
        # A command that it does not know is an answer.
        return "holding" if holds(error) else "answers" if refused(error) else "silent"
    return "silent" if fell_mute(answer, time.monotonic() - started_s) else "answers"


@contextlib.contextmanager
def answer_limit(handle: Any, folders: Folders, seconds: int, wait_s: float = _TURN_S) -> Iterator[None]:
    """libvirt waits no longer than this for each answer of the agent while it is open; it would for ever otherwise.

    The limit is one a domain, and cannot be read: the agent's turn is held meanwhile, so that no other use of ours
    (the metrics', another process's) changes it. Raises BusyError where the turn has not come within `wait_s`.
    """
    what = f"the guest agent of domain {handle.name()}"
    lock = Locks(folders).acquire(_turn_key(handle.UUIDString()), what, wait_s, passing=True)
    try:
        with contextlib.suppress(libvirt.libvirtError, AttributeError):
            handle.agentSetResponseTimeout(seconds, 0)
        try:
            yield
        finally:
            with contextlib.suppress(libvirt.libvirtError, AttributeError):
                handle.agentSetResponseTimeout(libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK, 0)
    finally:
        lock.release()


@contextlib.contextmanager
def reading_turn(folders: Folders, uuid: str) -> Iterator[bool]:
    """A `Turn` for the metrics' reading of agents, which passes over one that an operation uses.

    Raises NoTurnError where no lock can be had (no inodes, no file descriptors): nobody knows whose turn it is.
    """
    try:
        lock = Locks(folders).acquire(_turn_key(uuid), "the guest agent", passing=True)
    except BusyError:
        yield False
        return
    except UnreachableError as error:
        raise NoTurnError(f"the guest agent is not asked: {error.cause}") from error
    try:
        yield True
    finally:
        lock.release()


def _turn_key(uuid: str) -> str:
    return f"agent-{uuid}"


def asked_within(session: Session, uuid: str, ask: Callable[[Any], object], deadline: Deadline) -> bool:
    """Calls `ask` with the domain; false where it has not come back by the deadline, and is left to itself.

    Raises what `ask` raised. `ask` is handed a domain on a connection of its own.
    """
    other = session.another()
    done = threading.Event()
    failed: list[BaseException] = []

    def call() -> None:
        try:
            ask(other.connection.lookupByUUIDString(uuid))
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
            failed.append(error)
        finally:
            done.set()
            if other is not session:
                other.close()

    threading.Thread(target=call, name="guest-agent", daemon=True).start()
    if not deadline.wait_for(done.is_set, poll_s=0.05):
        return False
    if failed:
        raise failed[0]
    return True
