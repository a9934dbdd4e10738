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
from typing import Any

import libvirt

from collectors.agent_reading import ANSWER_LIMIT_S, SILENT, channel_connected, refused
from exporter.control.connection import Session
from exporter.control.operation import Deadline


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


def agent_answers(handle: Any) -> bool:
    """Whether the agent is connected and answers a question within 5 s; a command it does not know is an answer."""
    if not agent_connected(handle):
        return False
    started_s = time.monotonic()
    try:
        with answer_limit(handle, ANSWER_LIMIT_S):
            handle.guestInfo(libvirt.VIR_DOMAIN_GUEST_INFO_HOSTNAME, 0)
    except libvirt.libvirtError as error:
        if not falls_back(error):
            raise
        return refused(error)
    # libvirt 9.0 gives an empty answer, not an error, where the limit passed.
    return time.monotonic() - started_s < ANSWER_LIMIT_S


@contextlib.contextmanager
def answer_limit(handle: Any, seconds: int) -> Iterator[None]:
    """libvirt waits no longer than this for each answer of the agent while it is open; it would for ever otherwise."""
    with contextlib.suppress(libvirt.libvirtError, AttributeError):
        handle.agentSetResponseTimeout(seconds, 0)
    try:
        yield
    finally:
        with contextlib.suppress(libvirt.libvirtError, AttributeError):
            handle.agentSetResponseTimeout(libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK, 0)


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
