"""One act: what the trail says of it, and the thread that carries it out under the lock of its subject."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from pydantic import JsonValue

from exporter.control.connection import Lease
from exporter.control.errors import ControlError, TimedOutError
from exporter.control.in_words import doing, error_json, mapped, result_of
from exporter.control.locks import SubjectLock
from exporter.control.operation import Call, Operation, Parameters, Plan, Result, State, Subject
from exporter.control.threads import start_thread
from exporter.control.watching import watch_events

_log = logging.getLogger(__name__)

_GRACE_S = 2.0
"""How long an act that minds its deadline may need to come back after it."""

AnyOperation = Operation[Any]


class Act:
    """What the trail says of one run. `append` writes a record into it."""

    def __init__(
        self,
        append: Callable[[str, Mapping[str, JsonValue]], int],
        operation: AnyOperation,
        subject: Subject,
        parameters: Parameters,
        asked_by: Mapping[str, JsonValue],
    ) -> None:
        self.append = append
        self.operation = operation
        self.parameters = parameters
        self.facts: dict[str, JsonValue] = {
            "act": uuid.uuid4().hex,
            "operation": operation.name,
            "subject": subject.as_json(),
            "parameters": operation.audited(parameters),
            **asked_by,
            "pid": os.getpid(),
        }

    def refused(self, error: ControlError) -> None:
        self.append("refused", {**self.facts, "error": error_json(error)})


class Run:
    """The act itself, in a thread of its own, since no libvirt call can be given a deadline.

    Where the deadline passes with libvirt still silent, the caller gets TimedOutError with the outcome unknown;
    the thread keeps the lock until libvirt answers, and then writes a `late` record.
    """

    def __init__(self, act: Act, lock: SubjectLock, session: Lease, call: Call, plan: Plan) -> None:
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
            self._abandon()
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

    def _abandon(self) -> None:
        """Frees the subject of an act that has not begun; what fails of that is logged, and hides no error."""
        try:
            self._lock.close_act()
        except OSError as error:
            self._log_lost("an act has not begun, but it is open in its lock", str(error))
        finally:
            self._lock.release()

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
            self._log_lost(f"an act has ended, but {lost}", cause)
            if isinstance(outcome, Result):  # an error's caller looks at the state anyway
                outcome.warnings.append(
                    f"it is done, but {lost} ({cause}); make room: the trail will call it interrupted"
                )

    def _log_lost(self, what: str, cause: str) -> None:
        _log.error(f"{what}: the trail will call it interrupted",
                   extra={"act": self._open["act"], "operation": self._act.operation.name,
                          "subject": self._call.subject.name, "cause": cause})  # fmt: skip

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
        return self._act.append(event, {**self._open, **facts})

    def _intend(self, facts: Mapping[str, JsonValue]) -> None:
        self._open.update(facts)
        self._lock.open_act(self._open)
