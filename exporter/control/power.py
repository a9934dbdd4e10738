"""Turning off and on again: shutdown with its stages, reboot, reset, destroy.

Measured on libvirt 9.0: a shutdown or reboot that returns 0 was only asked for. A guest that ignores the button, or
has not yet loaded its driver, stays up and no event comes; so it is asked again, and what happens is watched. A mute
agent holds a call for 5 s, or for 60 s where it answered before, and then fails with code 86: the way on is ACPI,
never an error. What a mute agent was asked cannot be taken back: it is done when the agent wakes.
"""

from __future__ import annotations

import time
from typing import Any, Literal

import libvirt
from pydantic import Field

from exporter.control.domain import DomainOperation, domain_state, is_state, live_state
from exporter.control.errors import ControlError, RefusedError, TimedOutError
from exporter.control.guest_agent import agent_connected, asked_within, falls_back, hung_up
from exporter.control.operation import Call, Deadline, NoParameters, Parameters, Plan, Progress

STOPPED = ("shutoff", "gone", "crashed")
MEMORY_LOST = "all that the guest holds in memory and has not written to its disks"
DEFINITION_LOST = "the domain's definition: it is transient and exists only while it runs"
Mode = Literal["agent-then-acpi", "agent", "acpi"]
_FORCE_TIME_S = 30.0


class ShutdownParameters(Parameters):
    mode: Mode = Field(default="agent-then-acpi", description="Whom to ask: the guest agent, the power button, both.")
    agent_timeout_s: float = Field(default=15.0, gt=0, le=3600, description="Seconds the agent has before ACPI.")
    acpi_timeout_s: float = Field(default=60.0, gt=0, le=3600, description="Seconds for ACPI, all pushes together.")
    resend_s: float = Field(default=10.0, ge=0.5, le=600, description="Seconds after which the button is pushed again.")
    force: bool = Field(default=False, description="Destroy the domain if it is still up after that.")


class Shutdown(DomainOperation[ShutdownParameters]):
    """`details.stages`: what was asked when, in order; `details.stopped_by`: agent, acpi or force."""

    verb = "shutdown"
    area = "lifecycle"
    summary = "Asks the guest to power off: agent, then ACPI, sent again; force where wanted."
    parameters = ShutdownParameters
    long_running = True

    def time_needed_s(self, parameters: ShutdownParameters) -> float:
        agent_s = parameters.agent_timeout_s if parameters.mode != "acpi" else 0
        acpi_s = parameters.acpi_timeout_s if parameters.mode != "agent" else 0
        return agent_s + acpi_s + (_FORCE_TIME_S if parameters.force else 0) + 10

    def is_destructive(self, parameters: ShutdownParameters) -> bool:
        return parameters.force

    def check(self, call: Call, parameters: ShutdownParameters) -> None:
        state = live_state(call.subject.handle)
        if state in ("paused", "pmsuspended") and not parameters.force:
            raise RefusedError(
                f"domain {call.subject.name} is {state} and cannot hear a shutdown",
                next_step=f"{'wake' if state == 'pmsuspended' else 'resume'} it first, or destroy it",
            )
        if parameters.mode == "agent" and state == "running" and not agent_connected(call.subject.handle):
            raise RefusedError(
                f"the guest agent of {call.subject.name} is not connected", next_step="use the mode agent-then-acpi"
            )

    def plan(self, call: Call, parameters: ShutdownParameters) -> Plan:
        handle = call.subject.handle
        steps = []
        if parameters.mode != "acpi":
            steps.append(f"ask the guest agent, and wait {parameters.agent_timeout_s:g} s")
        if parameters.mode != "agent":
            steps.append(f"push the ACPI button every {parameters.resend_s:g} s for {parameters.acpi_timeout_s:g} s")
        if parameters.force:
            steps.append("destroy it if it is still up")
        return Plan(
            state=domain_state(handle),
            steps=steps,
            lost=_lost(handle, memory=parameters.force),
            nothing_to_do=is_state(handle, *STOPPED),
        )

    def act(self, call: Call, parameters: ShutdownParameters) -> None:
        stages: list[str] = []
        started_s = time.monotonic()

        def told(stage: str) -> None:
            stages.append(f"{time.monotonic() - started_s:.1f} s: {stage}")
            call.details["stages"] = list(stages)
            call.progress(Progress(stage))

        by = None
        if parameters.mode != "acpi":
            by = _by_agent(call, parameters, told)
        if by is None and parameters.mode != "agent":
            by = _by_acpi(call, parameters, told)
        if by is None and parameters.force and not call.deadline.cancelled.is_set():
            told("destroyed by force")
            _destroy(call.subject.handle, 0)
            by = "force"
        if by is None and not stages:
            raise TimedOutError(
                f"domain {call.subject.name} was asked nothing: it was cancelled before, or no time was left",
                next_step="ask again when it is to stop",
            )
        if by is None:
            raise TimedOutError(
                f"domain {call.subject.name} is still {live_state(call.subject.handle)} after: {'; '.join(stages)}",
                next_step="the guest may have no agent and no listener for the button, or still be booting or shutting"
                " down; give it more time, or use --force or destroy",
            )
        call.details["stopped_by"] = by


def _by_agent(call: Call, parameters: ShutdownParameters, told: Any) -> str | None:
    handle = call.subject.handle
    if not agent_connected(handle):
        told("the agent is not connected")
        return None
    told("asking the agent")
    deadline = call.deadline.within(parameters.agent_timeout_s)
    flag = libvirt.VIR_DOMAIN_SHUTDOWN_GUEST_AGENT
    try:
        if not asked_within(call.session, handle.UUIDString(), lambda own: _ask(own.shutdownFlags, flag), deadline):
            if is_state(handle, *STOPPED):
                return "agent"
            told(f"the agent did not answer within {parameters.agent_timeout_s:g} s; it may still do it if it wakes")
            return None
    except libvirt.libvirtError as error:
        if not (falls_back(error) or hung_up(error)):
            raise
        told(f"the agent did not answer ({error.get_error_message()})")
        if not hung_up(error):
            return None
    return "agent" if deadline.wait_for(lambda: is_state(handle, *STOPPED)) else None


def _by_acpi(call: Call, parameters: ShutdownParameters, told: Any) -> str | None:
    handle = call.subject.handle
    whole = call.deadline.within(parameters.acpi_timeout_s)
    while not whole.passed():
        told("pushing the ACPI button")
        if not _ask(handle.shutdownFlags, libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN):
            return "acpi"
        if whole.within(parameters.resend_s).wait_for(lambda: is_state(handle, *STOPPED)):
            return "acpi"
    return None


def _ask(function: Any, *arguments: object) -> bool:
    """Calls it; false where libvirt says that the domain has stopped or gone meanwhile."""
    try:
        function(*arguments)
    except libvirt.libvirtError as error:
        handle = function.__self__
        if error.get_error_code() in (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN) and is_state(
            handle, *STOPPED
        ):
            return False
        raise
    return True


class DestroyParameters(Parameters):
    graceful: bool = Field(
        default=False, description="End QEMU by SIGTERM only, never SIGKILL; fails where it does not answer."
    )


class Destroy(DomainOperation[DestroyParameters]):
    verb = "destroy"
    area = "lifecycle"
    summary = "Ends the domain at once, as pulling the plug does."
    parameters = DestroyParameters
    destructive = True
    beside_jobs = True
    # libvirt itself waits 10 s after SIGTERM, then kills; more on a busy host.
    deadline_s = 60.0

    def plan(self, call: Call, parameters: DestroyParameters) -> Plan:
        handle = call.subject.handle
        # A crashed domain that is preserved still has its QEMU.
        return Plan(
            state=domain_state(handle),
            steps=["end QEMU by SIGTERM" + ("" if parameters.graceful else ", then SIGKILL")],
            lost=_lost(handle, memory=True),
            nothing_to_do=not _active(handle),
        )

    def act(self, call: Call, parameters: DestroyParameters) -> None:
        _destroy(call.subject.handle, libvirt.VIR_DOMAIN_DESTROY_GRACEFUL if parameters.graceful else 0)

    def verify(self, call: Call, parameters: DestroyParameters) -> None:
        if not call.deadline.wait_for(lambda: not _active(call.subject.handle)):
            raise TimedOutError(f"domain {call.subject.name} is still up", next_step="look at its QEMU process")


def _destroy(handle: Any, flags: int) -> None:
    try:
        handle.destroyFlags(flags)
    except libvirt.libvirtError as error:
        code = error.get_error_code()
        if code not in (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_NO_DOMAIN) or _active(handle):
            raise


def _active(handle: Any) -> bool:
    try:
        return bool(handle.isActive())
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return False
        raise


def _lost(handle: Any, *, memory: bool) -> list[str]:
    if not _active(handle):
        return []
    return [MEMORY_LOST] * memory + ([] if handle.isPersistent() else [DEFINITION_LOST])


class RebootParameters(Parameters):
    mode: Mode = Field(default="agent-then-acpi", description="Whom to ask: the guest agent, the power button, both.")
    timeout_s: float = Field(default=60.0, gt=0, le=3600, description="Seconds in which the reboot must be seen.")
    resend_s: float = Field(default=10.0, ge=0.5, le=600, description="Seconds after which the button is pushed again.")


class Reboot(DomainOperation[RebootParameters]):
    """Judged by libvirt's REBOOT event; where the driver has none, a warning says that it was only asked for."""

    verb = "reboot"
    area = "lifecycle"
    summary = "Asks the guest to reboot and waits until it does."
    parameters = RebootParameters
    long_running = True

    def time_needed_s(self, parameters: RebootParameters) -> float:
        return parameters.timeout_s + 10

    def check(self, call: Call, parameters: RebootParameters) -> None:
        refuse_unless_running(call, "reboot")
        if parameters.mode == "agent" and not agent_connected(call.subject.handle):
            raise RefusedError(
                f"the guest agent of {call.subject.name} is not connected", next_step="use the mode agent-then-acpi"
            )

    def plan(self, call: Call, parameters: RebootParameters) -> Plan:
        step = f"ask for a reboot ({parameters.mode}) and wait up to {parameters.timeout_s:g} s for it"
        return Plan(state=domain_state(call.subject.handle), steps=[step])

    def act(self, call: Call, parameters: RebootParameters) -> None:
        by = self._asked(call, parameters)
        call.details["asked"] = by
        if call.session.driver != "QEMU":
            call.warnings.append("this driver tells no reboot; it was asked for, nothing more is known")
            return
        whole = call.deadline.within(parameters.timeout_s)
        if not _seen_or_asked_again(call, parameters, whole, by):
            raise TimedOutError(
                f"domain {call.subject.name} was asked to reboot ({by}) and has not in {parameters.timeout_s:g} s",
                next_step="the guest may ignore the button; use reset to force it",
            )

    @staticmethod
    def _asked(call: Call, parameters: RebootParameters) -> str:
        handle = call.subject.handle
        if parameters.mode != "acpi" and agent_connected(handle):
            flag = libvirt.VIR_DOMAIN_REBOOT_GUEST_AGENT
            # As long as the button has before it is pushed again.
            deadline = call.deadline.within(parameters.timeout_s if parameters.mode == "agent" else parameters.resend_s)
            try:
                if asked_within(call.session, handle.UUIDString(), lambda own: own.reboot(flag), deadline):
                    return "agent"
                if parameters.mode == "agent":
                    return "agent, which has not answered"
            except libvirt.libvirtError as error:
                if hung_up(error):
                    return "agent"  # whether the guest reboots is seen to next, by whom it was asked
                if not falls_back(error) or parameters.mode == "agent":
                    raise
        # The test driver knows no way by name.
        handle.reboot(libvirt.VIR_DOMAIN_REBOOT_ACPI_POWER_BTN if call.session.driver == "QEMU" else 0)
        return "acpi"


def _seen_or_asked_again(call: Call, parameters: RebootParameters, whole: Deadline, by: str) -> bool:
    while not whole.passed():
        if whole.within(parameters.resend_s).wait_for(lambda: call.heard.reboot):
            return True
        if by == "acpi" and not whole.passed():
            call.progress(Progress("pushing the ACPI button again"))
            call.subject.handle.reboot(libvirt.VIR_DOMAIN_REBOOT_ACPI_POWER_BTN)
    return False


class Reset(DomainOperation[NoParameters]):
    verb = "reset"
    area = "lifecycle"
    summary = "Resets the domain at once, as its reset button does."
    destructive = True

    def check(self, call: Call, parameters: NoParameters) -> None:
        if not _active(call.subject.handle):
            raise RefusedError(f"domain {call.subject.name} is not running", next_step="start it")

    def plan(self, call: Call, parameters: NoParameters) -> Plan:
        return Plan(state=domain_state(call.subject.handle), steps=["reset it"], lost=[MEMORY_LOST])

    def act(self, call: Call, parameters: NoParameters) -> None:
        call.subject.handle.reset(0)

    def verify(self, call: Call, parameters: NoParameters) -> None:
        if not _active(call.subject.handle):
            raise ControlError(f"domain {call.subject.name} ended by the reset", next_step="see the log of its QEMU")
        # Neither state nor id tell of it, only QEMU's own event.
        if call.session.driver == "QEMU" and not call.deadline.wait_for(lambda: call.heard.reboot, poll_s=0.02):
            raise TimedOutError(
                f"domain {call.subject.name} was told to reset, and its QEMU has not said that it did",
                next_step="look at its console",
            )


def refuse_unless_running(call: Call, doing: str) -> None:
    """Raises RefusedError for a domain that is not running, with what to do first."""
    state = live_state(call.subject.handle)
    first = {"paused": "resume it first", "pmsuspended": "wake it first", "crashed": "destroy it first"}
    if state not in ("running", "blocked"):
        raise RefusedError(
            f"domain {call.subject.name} is {state} and cannot {doing}", next_step=first.get(state, "start it first")
        )


OPERATIONS = (Shutdown(), Destroy(), Reboot(), Reset())
