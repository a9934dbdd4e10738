"""Runs one operation the one way: find, lock, check, plan, write down, act, verify, write down."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import JsonValue

from exporter.control.act import Act, Run
from exporter.control.audit import Trail
from exporter.control.connection import Lease, Session, SessionPool
from exporter.control.errors import ControlError, UnconfirmedError
from exporter.control.folders import Folders
from exporter.control.foreign_images import ForeignImages
from exporter.control.in_words import doing, mapped, named, result_of
from exporter.control.locks import Locks
from exporter.control.operation import Call, Deadline, Operation, Parameters, Plan, Progress, Result, Subject

AnyOperation = Operation[Any]


@dataclass(frozen=True)
class Actor:
    """Who asks, by which way (`command line`, `api`, `webhook`), and why: what the trail holds of it."""

    name: str
    way: str
    reason: str = ""
    request_id: str = ""
    reaches: Callable[[str], bool] | None = None
    """Which domains, by name, its scope holds; None for all."""

    def as_json(self) -> dict[str, JsonValue]:
        shown: dict[str, JsonValue] = {
            "actor": self.name, "way": self.way, "reason": self.reason, "request_id": self.request_id
        }  # fmt: skip
        return {name: value for name, value in shown.items() if value}


@dataclass(frozen=True)
class Request:
    """How an operation is to be run."""

    actor: Actor
    dry_run: bool = False
    confirmed: str | None = None
    """The subject's name, repeated by the caller; asked for where the operation is destructive."""
    can_be_asked: bool = False
    """Whether the caller asks a person where `confirmed` is missing: the act is then not refused, but put off."""
    lock_wait_s: float = 0.0
    deadline_s: float | None = None
    """Instead of the operation's own."""
    cancelled: threading.Event | None = None
    progress: Callable[[Progress], None] = lambda _step: None


class Executor:
    """Runs operations on one Session. Any thread; two runs exclude each other only on the same subject."""

    def __init__(self, session: Session, folders: Folders, trail: Trail | None = None) -> None:
        self.session = session
        self.folders = folders
        self.trail = trail or Trail(folders.trail)
        self._locks = Locks(folders)
        self._sessions = SessionPool(session)

    def close(self) -> None:
        """Closes the connections that are not in use."""
        self._sessions.close()
        self.session.close()

    def run(self, operation: AnyOperation, reference: str | None, parameters: Parameters, request: Request) -> Result:
        """The operation's Result. Raises ControlError; the trail then holds an `end` or `refused` record too."""
        started_s = time.monotonic()
        session = Lease(self._sessions)
        try:
            subject = _found(operation, session, reference, parameters)
            seconds = request.deadline_s or operation.time_needed_s(parameters)
            if operation.reads or request.dry_run:
                result = self._look(operation, self._call(session, subject, seconds, request), parameters, request)
            else:
                result = self._locked(operation, reference, subject, parameters, request, session)
        finally:
            session.end()
        result.elapsed_s = round(time.monotonic() - started_s, 3)
        return result

    def find(self, operation: AnyOperation, reference: str | None, parameters: Parameters) -> Subject:
        """What the operation would act on, on a connection that no running act has. Raises ControlError."""
        session = Lease(self._sessions)
        try:
            return _found(operation, session, reference, parameters)
        finally:
            session.end()

    def libvirt_version(self) -> int:
        """libvirt's version, asked of the daemon on a connection that no running act has. Raises ControlError."""
        session = Lease(self._sessions)
        try:
            with mapped("asking libvirt for its version"):
                return int(session.session.connection.getLibVersion())
        finally:
            session.end()

    def explain_left_open(self, operations: Mapping[str, AnyOperation]) -> list[dict[str, JsonValue]]:
        """Writes an `interrupted` record for every act a dead process left open, and returns them.

        For each start of the service and of the command line. Says what is there now; nothing is repeated.
        """
        explained = []
        for lock, act in self._locks.left_open():
            facts = self._explanation(operations, act)
            self._append("interrupted", facts)
            lock.close_act()
            explained.append(facts)
        return explained

    def _look(self, operation: AnyOperation, call: Call, parameters: Parameters, request: Request) -> Result:
        with mapped(doing(operation, call.subject)):
            if operation.reads:
                details = operation.state(call, parameters)
                return result_of(operation, call, details={**details, **call.details})
            operation.require_free(call.session, call.subject, Deadline(request.lock_wait_s, request.cancelled))
            operation.check(call, parameters)
            plan = operation.plan(call, parameters)
        return result_of(operation, call, dry_run=True, plan=plan, before=plan.state or None)

    def _locked(
        self,
        operation: AnyOperation,
        reference: str | None,
        subject: Subject,
        parameters: Parameters,
        request: Request,
        session: Lease,
    ) -> Result:
        act = Act(self._append, operation, subject, parameters, request.actor.as_json())
        try:
            lock = self._locks.acquire(subject.key, named(subject), request.lock_wait_s)
        except ControlError as error:
            act.refused(error)
            raise
        handed_over = False
        try:
            if lock.left_open is not None:
                self._append("interrupted", self._explanation({operation.name: operation}, lock.left_open))
                lock.close_act()
            # Found again: what was looked up before the lock may be gone or have another id by now.
            with mapped(doing(operation, subject)):
                found = operation.find(session.session, subject.uuid or reference, parameters)
            try:
                operation.require_free(session.session, found, Deadline(request.lock_wait_s, request.cancelled))
            except ControlError as error:
                act.refused(error)
                raise
            seconds = request.deadline_s or operation.time_needed_s(parameters)
            call = self._call(session, found, seconds, request)
            plan = self._permitted(operation, call, parameters, request, act)
            if plan.nothing_to_do:
                return self._unchanged(operation, call, parameters, plan, act)
            handed_over = True
            return Run(act, lock, session, call, plan).result(seconds)
        finally:
            if not handed_over:
                lock.release()

    def _permitted(
        self, operation: AnyOperation, call: Call, parameters: Parameters, request: Request, act: Act
    ) -> Plan:
        try:
            with mapped(doing(operation, call.subject)):
                operation.check(call, parameters)
                plan = operation.plan(call, parameters)
            if (operation.is_destructive(parameters) or plan.lost) and not plan.nothing_to_do:
                _confirm(operation, call.subject, request)
            return plan
        except ControlError as error:
            if not (request.can_be_asked and isinstance(error, UnconfirmedError)):
                act.refused(error)
            raise

    def _unchanged(self, operation: AnyOperation, call: Call, parameters: Parameters, plan: Plan, act: Act) -> Result:
        with mapped(doing(operation, call.subject)):
            state = operation.state(call, parameters)
        sequence = self._append("unchanged", {**act.facts, "before": state})
        return result_of(operation, call, before=state, after=state, audit=[sequence], warnings=plan.warnings)

    def _call(self, session: Lease, subject: Subject, seconds: float, request: Request) -> Call:
        return Call(
            session=session.session,
            subject=subject,
            folders=self._folders(session, request.actor),
            deadline=Deadline(seconds, request.cancelled),
            reaches=request.actor.reaches or (lambda _domain: True),
            progress=request.progress,
        )

    def _folders(self, session: Lease, actor: Actor) -> Folders:
        if actor.reaches is None:
            return self.folders
        return replace(self.folders, refuse=ForeignImages(session.session, actor.reaches).refuse)

    def _explanation(self, operations: Mapping[str, AnyOperation], act: dict[str, JsonValue]) -> dict[str, JsonValue]:
        operation = operations.get(str(act.get("operation")))
        told = "the process that did it ended in the middle; whether it was done is unknown; it is not repeated"
        if operation is not None:
            try:
                with mapped(f"looking after an interrupted {operation.name}"):
                    told = operation.aftermath(self.session, self.folders, act) or told
            except ControlError as error:
                told = f"{told} ({error.cause})"
        return {**act, "outcome": told}

    def _append(self, event: str, facts: Mapping[str, JsonValue]) -> int:
        self.folders.private(self.folders.state)
        return self.trail.append(event, facts)


def _found(operation: AnyOperation, session: Lease, reference: str | None, parameters: Parameters) -> Subject:
    with mapped(f"{operation.name}: looking for {reference!r}" if reference else operation.name):
        return operation.find(session.session, reference, parameters)


def _confirm(operation: AnyOperation, subject: Subject, request: Request) -> None:
    if request.confirmed != subject.name:
        raise UnconfirmedError(
            f"{doing(operation, subject)} cannot be undone and was not confirmed",
            next_step=f"repeat the name {subject.name!r} as the confirmation; a dry run tells what would be lost",
        )
