"""What changes of a guest's devices and limits share: the running guest, its configuration, or both.

libvirt keeps two of each setting: the running guest's (`live`) and its next boot's (`persistent`). An operation says
what is on a side now and what is wanted there; it is done on the sides that differ, the running one first.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping
from difflib import unified_diff
from typing import Any, Literal, TypeVar
from xml.etree.ElementTree import Element

import libvirt
from pydantic import Field, JsonValue

from collectors.domain_xml import element_tree
from exporter.control.connection import Session
from exporter.control.domain import DomainOperation, domain_state, live_state
from exporter.control.errors import ControlError, RefusedError, from_libvirt
from exporter.control.folders import Folders
from exporter.control.operation import Call, Parameters, Plan, State

Side = Literal["live", "persistent"]
Values = dict[str, JsonValue]
Step = tuple[str, dict[str, Any]]
"""An operation's name and its parameters."""

FLAGS: dict[Side, int] = {
    "live": libvirt.VIR_DOMAIN_AFFECT_LIVE, "persistent": libvirt.VIR_DOMAIN_AFFECT_CONFIG
}  # fmt: skip
_SIDES: dict[str, tuple[Side, ...]] = {
    "all": ("live", "persistent"), "both": ("live", "persistent"), "live": ("live",), "persistent": ("persistent",)
}  # fmt: skip


class DeviceParameters(Parameters):
    apply_to: Literal["all", "live", "persistent", "both"] = Field(
        default="all",
        description="live: the running guest; persistent: from its next boot on; both; all: whichever there are.",
    )


A = TypeVar("A", bound=DeviceParameters)


class DeviceChange(DomainOperation[A]):
    """A change on one or both sides. After it, `details.reverse` is the list of operations that undo it, each with
    `operation` and `parameters`; it is also in the open act, so that a crash does not lose it.
    """

    @abstractmethod
    def now(self, handle: Any, side: Side, parameters: A) -> Values:
        """What is on that side of a virDomain."""

    @abstractmethod
    def wanted(self, call: Call, side: Side, parameters: A) -> Values:
        """What is to be there, of the same names as `now`. Raises RefusedError or InvalidError."""

    @abstractmethod
    def apply(self, call: Call, side: Side, wanted: Values, parameters: A) -> None:
        """Makes it so."""

    def reverse(self, call: Call, side: Side, parameters: A) -> list[Step]:
        """What leads back to what is there now, told before anything is changed; [] where nothing does."""
        return []

    def settled(self, call: Call, side: Side, wanted: Values, parameters: A) -> bool:
        """Whether it is as wanted."""
        return self.now(call.subject.handle, side, parameters) == wanted

    def sides(self, call: Call, parameters: A) -> tuple[Side, ...]:
        """The sides this use of it changes. Raises RefusedError where the domain does not have one asked for."""
        return sides_of(call, parameters.apply_to)

    def state(self, call: Call, parameters: A) -> State:
        shown = domain_state(call.subject.handle)
        for side in _there(call.subject.handle):
            if side in _SIDES[parameters.apply_to]:
                shown[side] = self.now(call.subject.handle, side, parameters)
        return shown

    def check(self, call: Call, parameters: A) -> None:
        for side in self.sides(call, parameters):
            self.wanted(call, side, parameters)

    def plan(self, call: Call, parameters: A) -> Plan:
        diffs, steps = [], []
        for side in self.sides(call, parameters):
            wanted = self.wanted(call, side, parameters)
            if not self.settled(call, side, wanted, parameters):
                steps.append(f"{' '.join(self.words[1:])}: {_SPOKEN[side]}")
                diffs.append(_diff(side, self.now(call.subject.handle, side, parameters), wanted))
        return Plan(
            state=self.state(call, parameters), steps=steps, diff="\n".join(diffs), nothing_to_do=not steps,
            warnings=self.cautions(call, parameters),
        )  # fmt: skip

    def cautions(self, call: Call, parameters: A) -> list[str]:
        """Warnings of the plan."""
        return []

    def act(self, call: Call, parameters: A) -> None:
        todo = {side: self.wanted(call, side, parameters) for side in self.sides(call, parameters)}
        todo = {side: want for side, want in todo.items() if not self.settled(call, side, want, parameters)}
        reverse = _merged({side: self.reverse(call, side, parameters) for side in todo}, parameters)
        call.details["wanted"] = {side: want for side, want in todo.items()}
        call.details["reverse"] = reverse
        call.intent({"reverse": reverse})
        done: list[Side] = []
        for side, want in todo.items():
            try:
                self.apply(call, side, want, parameters)
            except libvirt.libvirtError as error:
                before = f" ({_SPOKEN[done[0]]} was changed before)" if done else ""
                raise from_libvirt(error, f"changing {_SPOKEN[side]}{before}") from error
            done.append(side)

    def verify(self, call: Call, parameters: A) -> None:
        for side, want in dict(call.details.pop("wanted")).items():  # type: ignore[arg-type]
            self.await_settled(call, side, want, parameters)  # type: ignore[arg-type]

    def await_settled(self, call: Call, side: Side, wanted: Values, parameters: A) -> None:
        """Raises ControlError where the side is not as wanted, after any time that it may need."""
        if not self.settled(call, side, wanted, parameters):
            now = _shown(self.now(call.subject.handle, side, parameters))
            raise ControlError(
                f"libvirt reported success, but {_SPOKEN[side]} has {now} and not {_shown(wanted)}",
                next_step="look at it with 'domain show' and see libvirtd's log",
            )

    def aftermath(self, session: Session, folders: Folders, begun: Mapping[str, JsonValue]) -> str:
        """What each side has now, and what would undo it."""
        subject = begun.get("subject")
        uuid = str(subject.get("uuid")) if isinstance(subject, dict) else ""
        parameters = self.parameters.model_validate_json(json.dumps(begun.get("parameters") or {}))
        try:
            handle = session.connection.lookupByUUIDString(uuid)
            told = "; ".join(
                f"{_SPOKEN[side]} has {_shown(self.now(handle, side, parameters))}"  # type: ignore[arg-type]
                for side in _there(handle)
            )
        except libvirt.libvirtError:
            return "interrupted; the domain is not there any more"
        back = begun.get("reverse")
        undo = f"; what it began is undone by {_shown(back)}" if back else "; nothing had been changed"
        return f"interrupted; {told}{undo}"


_SPOKEN: dict[str, str] = {"live": "the running guest", "persistent": "its configuration"}


def sides_of(call: Call, apply_to: str) -> tuple[Side, ...]:
    """The sides of the domain that `apply_to` means. Raises RefusedError where it lacks one that was asked for."""
    handle, name = call.subject.handle, call.subject.name
    there = _there(handle)
    if not there:
        raise RefusedError(f"domain {name} is {live_state(handle)}", next_step="look at 'domain list'")
    missing = [side for side in _SIDES[apply_to] if side not in there]
    if missing and apply_to != "all":
        lacks = "is not running" if missing[0] == "live" else "is transient and has no configuration"
        step = "start it, or apply to persistent" if missing[0] == "live" else "apply to live, or make it persistent"
        raise RefusedError(f"domain {name} {lacks}", next_step=step)
    return tuple(side for side in _SIDES[apply_to] if side in there)


def device_root(handle: Any, side: Side) -> Element:
    """The domain's XML of one side, without secrets."""
    return element_tree(handle.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE if side == "persistent" else 0))


def _there(handle: Any) -> tuple[Side, ...]:
    try:
        sides: tuple[tuple[Side, bool], ...] = (
            ("live", bool(handle.isActive())), ("persistent", bool(handle.isPersistent()))
        )  # fmt: skip
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return ()
        raise
    return tuple(side for side, there in sides if there)


def _merged(by_side: Mapping[Side, list[Step]], parameters: DeviceParameters) -> list[JsonValue]:
    """The steps back, once where both sides need the same."""
    told = list(by_side.values())
    if len(told) == 2 and told[0] == told[1]:
        return [_step(step, "both") for step in told[0]]
    return [_step(step, side) for side, steps in by_side.items() for step in steps]


def _step(step: Step, apply_to: str) -> JsonValue:
    return {"operation": step[0], "parameters": {**step[1], "apply_to": apply_to}}


def _diff(side: str, now: Values, wanted: Values) -> str:
    before, after = (json.dumps(values, indent=1, sort_keys=True).splitlines() for values in (now, wanted))
    return "\n".join(unified_diff(before, after, f"{side} now", f"{side} then", lineterm=""))


def _shown(value: object) -> str:
    return json.dumps(value, sort_keys=True)
