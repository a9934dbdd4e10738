"""Where a guest is: asked of both hosts, so that it is never said to run where it does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import libvirt

from exporter.control.connection import Session
from exporter.control.destinations import Destination
from exporter.control.domain import domain_state
from exporter.control.errors import ControlError
from exporter.control.operation import State

_HALVES = ("migration", "postcopy", "starting_up")


@dataclass(frozen=True)
class Sides:
    """The guest's state on both hosts; None where a host did not answer."""

    here: State | None
    there: State | None
    place: str

    @property
    def runs_here(self) -> bool:
        return _lives(self.here)

    @property
    def runs_there(self) -> bool:
        return _lives(self.there)

    @property
    def exactly_one(self) -> bool:
        return self.here is not None and self.there is not None and self.runs_here != self.runs_there

    def told(self) -> str:
        """One sentence: where it runs."""
        if self.runs_here and self.runs_there:
            return f"it is active on both hosts: {_word(self.here)} here, {_word(self.there)} on {self.place}"
        if self.runs_here:
            return f"it is {_word(self.here)} here{_silent(self.there, self.place)}"
        if self.runs_there:
            return f"it is {_word(self.there)} on {self.place}{_silent(self.here, 'this host')}"
        if self.here is None or self.there is None:
            return f"it was not found running{_silent(self.here, 'this host')}{_silent(self.there, self.place)}"
        return f"it runs on neither host: {_word(self.here)} here, {_word(self.there)} on {self.place}"


def look_at_both(session: Session, destination: Destination, uuid: str) -> Sides:
    """The guest on both hosts, by its UUID. Raises nothing: a host that does not answer is unknown."""
    return Sides(_state_here(session, uuid), _state_there(destination, uuid), destination.name)


def _state_here(session: Session, uuid: str) -> State | None:
    try:
        return _state(session.connection, uuid)
    except ControlError:
        return None


def _state_there(destination: Destination, uuid: str) -> State | None:
    try:
        with destination.connection() as there:
            return _state(there, uuid)
    except ControlError:
        return None


def _state(connection: Any, uuid: str) -> State | None:
    """`{"state": "absent"}` where the host does not know it."""
    try:
        return domain_state(connection.lookupByUUIDString(uuid))
    except libvirt.libvirtError as error:
        return {"state": "absent"} if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN else None


def _lives(state: State | None) -> bool:
    """Whether the guest is there, and no half of it that waits for the other: a shell that memory flows into, or what
    is left behind once it runs elsewhere (post-copy)."""
    return bool(state and state.get("active") and (state["state"] != "paused" or state.get("reason") not in _HALVES))


def _word(state: State | None) -> str:
    if state is None:
        return "unknown"
    reason = state.get("reason")
    return f"{state['state']}" + (f" ({reason})" if reason not in (None, "unknown") and state.get("active") else "")


def _silent(state: State | None, place: str) -> str:
    return f"; {place} did not answer" if state is None else ""
