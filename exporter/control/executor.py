"""Runs one operation the one way: find, lock, check, plan, write down, act, verify, write down."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from pydantic import JsonValue

from exporter.control.audit import Trail
from exporter.control.connection import Lease, Session, SessionPool
from exporter.control.errors import ControlError, TimedOutError, UnconfirmedError
from exporter.control.folders import Folders
from exporter.control.foreign_images import ForeignImages
from exporter.control.in_words import doing, error_json, mapped, named, result_of
from exporter.control.locks import Locks, SubjectLock
from exporter.control.operation import Call, Deadline, Operation, Parameters, Plan, Progress, Result, State, Subject
from exporter.control.threads import start_thread
from exporter.control.watching import watch_events

_log = logging.getLogger(__name__)

_GRACE_S = 2.0
"""How long an act that minds its deadline may need to come back after it."""

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
        act = _Act(self, operation, subject, parameters, request)
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
            return _Run(act, lock, session, call, plan).result(seconds)
        finally:
            if not handed_over:
                lock.release()

    def _permitted(
        self, operation: AnyOperation, call: Call, parameters: Parameters, request: Request, act: _Act
    ) -> Plan:
        try:
            with mapped(doing(operation, call.subject)):
                operation.check(call, parameters)
                plan = operation.plan(call, parameters)
            if (operation.is_destructive(parameters) or plan.lost) and not plan.nothing_to_do:
                _confirm(operation, call.subject, request)
            return plan
        except ControlError as error:
            act.refused(error)
            raise

    def _unchanged(self, operation: AnyOperation, call: Call, parameters: Parameters, plan: Plan, act: _Act) -> Result:
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


class _Act:
    """What the trail says of one run."""

    def __init__(
        self, executor: Executor, operation: AnyOperation, subject: Subject, parameters: Parameters, request: Request
    ) -> None:
        self.executor = executor
        self.operation = operation
        self.parameters = parameters
        self.facts: dict[str, JsonValue] = {
            "act": uuid.uuid4().hex,
            "operation": operation.name,
            "subject": subject.as_json(),
            "parameters": operation.audited(parameters),
            **request.actor.as_json(),
            "pid": os.getpid(),
        }

    def refused(self, error: ControlError) -> None:
        self.executor._append("refused", {**self.facts, "error": error_json(error)})


class _Run:
    """The act itself, in a thread of its own, since no libvirt call can be given a deadline.

    Where the deadline passes with libvirt still silent, the caller gets TimedOutError with the outcome unknown;
    the thread keeps the lock until libvirt answers, and then writes a `late` record.
    """

    def __init__(self, act: _Act, lock: SubjectLock, session: Lease, call: Call, plan: Plan) -> None:
        self._act = act
        self._lock = lock
        self._session = session
        self._plan = plan
        self._call = Call(
            session=call.session, subject=call.subject, folders=call.folders, deadline=call.deadline,
            reaches=call.reaches, progress=call.progress, warnings=list(plan.warnings), details=dict(call.details),
            intent=self._intend,
        )  # fmt: skip
        self._open: dict[str, JsonValue] = dict(act.facts)
        self._before: State = {}
        self._audit: list[int] = []
        self._outcome: Result | ControlError | None = None
        self._done = threading.Event()
        self._given_up = False
        self._settling = threading.Lock()

    def result(self, seconds: float) -> Result:
        operation = self._act.operation
        try:
            with mapped(doing(operation, self._call.subject)):
                self._before = operation.state(self._call, self._act.parameters)
            self._lock.open_act(self._open)
            self._audit.append(self._append("begin", {"before": self._before}))
            self._start()
        except BaseException:  # a defect, too, must not leave the subject busy for as long as the service runs
            self._lock.close_act()
            self._lock.release()
            raise
        self._done.wait(seconds + _GRACE_S)
        with self._settling:
            self._given_up = self._outcome is None
        if self._outcome is None:
            error = TimedOutError(
                f"{doing(operation, self._call.subject)}: libvirt has not answered within {seconds:g} s",
                next_step="the domain stays busy until it does; the audit trail will tell",
                outcome_unknown=True,
            )
            with contextlib.suppress(ControlError):  # no room for the record; the caller is told all the same
                self._append("unanswered", {"error": error_json(error)})
            raise error
        if isinstance(self._outcome, ControlError):
            raise self._outcome
        return self._outcome

    def _start(self) -> None:
        self._session.keep()
        try:
            start_thread(self._work, f"control-{self._act.operation.name}")
        except ControlError as error:
            self._session.keep(False)
            self._append("end", {"error": error_json(error)})
            raise

    def _work(self) -> None:
        try:
            outcome: Result | ControlError = self._acted()
        except ControlError as error:
            outcome = error
        except Exception as error:  # noqa: BLE001 - a defect must be told to the caller and the trail, not a thread
            outcome = ControlError(
                f"{doing(self._act.operation, self._call.subject)}: a defect in virtgauge"
                f" ({type(error).__name__}: {error})",
                next_step="report it, and look at the domain's state",
                outcome_unknown=True,
            )
        try:
            with self._settling:
                self._settle(outcome)
                self._outcome = outcome
        finally:
            self._lock.release()
            self._session.give_back()
            self._done.set()

    def _settle(self, outcome: Result | ControlError) -> None:
        """Writes the end down and closes the act; what fails of that is told in the log, and with what was done."""
        lost = "its end is not in the audit trail"
        try:
            self._write_end(outcome)
            lost = "it is still open in its lock, though its end is in the audit trail"
            self._lock.close_act()
        except (ControlError, OSError) as error:
            cause = str(error.__cause__ or error)
            _log.error(f"an act has ended, but {lost}: the trail will call it interrupted",
                       extra={"act": self._open["act"], "operation": self._act.operation.name,
                              "subject": self._call.subject.name, "cause": cause})  # fmt: skip
            if isinstance(outcome, Result):  # an error's caller looks at the state anyway
                outcome.warnings.append(
                    f"it is done, but {lost} ({cause}); make room: the trail will call it interrupted"
                )

    def _acted(self) -> Result:
        operation, call, parameters = self._act.operation, self._call, self._act.parameters
        with mapped(doing(operation, call.subject)), self._watched():
            operation.act(call, parameters)
            operation.verify(call, parameters)
            after = operation.after(call, parameters)
        if call.heard.names:
            call.details["events"] = list[JsonValue](call.heard.names)
        return result_of(operation, call, changed=True, before=self._before, after=after)

    def _watched(self) -> AbstractContextManager[None]:
        subject = self._call.subject
        is_domain = subject.kind == "domain" and subject.exists and subject.handle is not None
        return watch_events(subject.handle, self._call.heard) if is_domain else nullcontext()

    def _write_end(self, outcome: Result | ControlError) -> None:
        facts: dict[str, JsonValue]
        if isinstance(outcome, Result):
            outcome.audit = self._audit
            facts = {"changed": outcome.changed, "after": outcome.after, "warnings": list(outcome.warnings)}
        else:
            facts = {"error": error_json(outcome)}
        if self._call.heard.names:
            facts["events"] = list[JsonValue](self._call.heard.names)
        self._audit.append(self._append("late" if self._given_up else "end", facts))

    def _append(self, event: str, facts: Mapping[str, JsonValue]) -> int:
        return self._act.executor._append(event, {**self._open, **facts})

    def _intend(self, facts: Mapping[str, JsonValue]) -> None:
        self._open.update(facts)
        self._lock.open_act(self._open)


def _found(operation: AnyOperation, session: Lease, reference: str | None, parameters: Parameters) -> Subject:
    with mapped(f"{operation.name}: looking for {reference!r}" if reference else operation.name):
        return operation.find(session.session, reference, parameters)


def _confirm(operation: AnyOperation, subject: Subject, request: Request) -> None:
    if request.confirmed != subject.name:
        raise UnconfirmedError(
            f"{doing(operation, subject)} cannot be undone and was not confirmed",
            next_step=f"repeat the name {subject.name!r} as the confirmation; a dry run tells what would be lost",
        )
