"""The contract of a control operation: what it declares, what it is handed, what it gives back.

An operation is a stateless object; one instance of each stands in `exporter.control.operations.OPERATIONS`. The
command line, the API and the webhook only ever hand it to `exporter.control.executor.Executor`.
"""

from __future__ import annotations

import enum
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from exporter.control.connection import Session
from exporter.control.errors import BusyError, TimedOutError
from exporter.control.folders import Folders
from exporter.control.watching import EventsHeard

State = dict[str, JsonValue]
"""What is known of a thing's state, by name, with units in the names; what is unknown is absent."""


def moment(seconds: float | None) -> str | None:
    """Seconds since the epoch as RFC 3339 in UTC; None where libvirt tells none (or 0)."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds") if seconds else None


_GROUPED = ("attach", "detach", "set", "lift")


class Role(enum.IntEnum):
    """Who may: each holds the rights of those before it."""

    READER = 1
    OPERATOR = 2
    ADMIN = 3


class Parameters(BaseModel):
    """An operation's parameters: strict, frozen, no unknown key. Validate from JSON text (`parse`)."""

    # Built at its first use: a command uses one of dozens.
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", hide_input_in_errors=True, defer_build=True)


class NoParameters(Parameters):
    """For an operation that takes none."""


def build_parameters(model: type[Parameters] = Parameters) -> None:
    """Builds all models of parameters, for a process with threads: no two of them may build one at the same time."""
    model.model_rebuild()
    for derived in model.__subclasses__():
        build_parameters(derived)


@dataclass(frozen=True)
class Subject:
    """The one thing acted on, as looked up. `key` names its lock: a domain's is `domain-UUID`.

    `exists` is false for what the operation is to make. `handle` is libvirt's object, on the Session it came from.
    """

    kind: str
    key: str
    name: str
    uuid: str | None = None
    id: int | None = None
    exists: bool = True
    uptime_s: float | None = None
    handle: Any = field(default=None, compare=False, repr=False)

    def as_json(self) -> dict[str, JsonValue]:
        shown: dict[str, JsonValue] = {"kind": self.kind, "name": self.name, "uuid": self.uuid, "id": self.id}
        return {name: value for name, value in shown.items() if value is not None}


class Plan(BaseModel):
    """What a dry run tells, and a confirmation shows."""

    model_config = ConfigDict(extra="forbid")

    state: State = Field(default_factory=dict, description="The state now.")
    steps: list[str] = Field(default_factory=list, description="What would be done, in order, with deadlines.")
    diff: str = Field(default="", description="Unified diff of a configuration that would change.")
    lost: list[str] = Field(
        default_factory=list, description="What would be lost and cannot be had back; asks for confirmation."
    )
    warnings: list[str] = Field(default_factory=list)
    nothing_to_do: bool = Field(default=False, description="The wanted state is there already.")


class Result(BaseModel):
    """What an operation gives back. Reading operations fill `details` only; lists stand under `rows` there."""

    model_config = ConfigDict(extra="forbid")

    operation: str
    subject: dict[str, JsonValue] | None = Field(default=None, description="kind, name, uuid, id.")
    changed: bool = Field(default=False, description="False also where the wanted state was there already.")
    dry_run: bool = False
    before: State | None = None
    after: State | None = None
    plan: Plan | None = Field(default=None, description="Of a dry run.")
    details: dict[str, JsonValue] = Field(default_factory=dict)
    warnings: list[str] = Field(default_factory=list)
    elapsed_s: float = 0.0
    audit: list[int] = Field(default_factory=list, description="Sequence numbers of the audit trail's records.")


@dataclass(frozen=True)
class Progress:
    """One step of a long operation; `fraction` 0 to 1, None where it cannot be known."""

    phase: str
    fraction: float | None = None


class Deadline:
    """A point in monotonic time, and whether the caller has cancelled. Any thread."""

    def __init__(
        self, seconds: float, cancelled: threading.Event | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.seconds = seconds
        self._clock = clock
        self._end_s = clock() + seconds
        self.cancelled = cancelled or threading.Event()

    def remaining_s(self) -> float:
        return max(0.0, self._end_s - self._clock())

    def passed(self) -> bool:
        return self.cancelled.is_set() or self.remaining_s() <= 0

    def within(self, seconds: float) -> Deadline:
        """A deadline of `seconds`, or this one if that comes first."""
        return Deadline(min(seconds, self.remaining_s()), self.cancelled, self._clock)

    def wait_for(self, seen: Callable[[], bool], poll_s: float = 0.1) -> bool:
        """Polls until `seen` is true; false where the deadline passed or the caller cancelled."""
        while not seen():
            if self.passed():
                return False
            self.cancelled.wait(min(poll_s, self.remaining_s()))
        return True

    def check(self, doing: str) -> None:
        """Raises TimedOutError where it has passed."""
        if self.cancelled.is_set():
            raise TimedOutError(f"{doing}: cancelled by the caller", next_step="look at the state with 'domain show'")
        if self.passed():
            raise TimedOutError(f"{doing}: not done within {self.seconds:g} s", next_step="give it more time")


@dataclass(frozen=True)
class Call:
    """One run of an operation: what its methods are handed. Used by one thread."""

    session: Session
    subject: Subject
    folders: Folders
    deadline: Deadline
    reaches: Callable[[str], bool] = lambda _domain: True
    """Whether the caller may know of a domain, by name."""
    progress: Callable[[Progress], None] = lambda _step: None
    warnings: list[str] = field(default_factory=list)
    details: dict[str, JsonValue] = field(default_factory=dict)
    """What the Result's `details` will hold; `act` and `verify` add to it."""
    heard: EventsHeard = field(default_factory=EventsHeard)
    """The domain's events from before the act on."""
    intent: Callable[[Mapping[str, JsonValue]], None] = lambda _facts: None
    """Adds facts to the open act on disk, so that after a crash `aftermath` knows them (a file's name)."""


P = TypeVar("P", bound=Parameters)


class Operation(ABC, Generic[P]):
    """One thing an operator can ask for. Every method may raise ControlError or libvirtError (then mapped).

    Only `act` changes anything. `check` and `plan` also serve the dry run; all run under the subject's lock
    except in a dry run.
    """

    noun: ClassVar[str]
    """The command line's group and the API's collection: `domain`, `interface`, `saved`."""
    verb: ClassVar[str]
    """`shutdown`, `cdrom-insert`: unique within the noun."""
    area: ClassVar[str]
    """The file it comes from: `lifecycle`; documentation groups by it."""
    summary: ClassVar[str]
    """One line, ends with a full stop."""
    parameters: ClassVar[type[Parameters]] = NoParameters
    role: ClassVar[Role] = Role.OPERATOR
    takes_subject: ClassVar[bool] = True
    """Whether it names an existing thing (`virtgauge domain shutdown NAME`); a list or a definition does not."""
    destructive: ClassVar[bool] = False
    """Cannot be undone: the caller must repeat the subject's name (`confirmed`)."""
    reads: ClassVar[bool] = False
    """Changes nothing: no lock, no audit, served by GET."""
    long_running: ClassVar[bool] = False
    """Reports progress, may take minutes: the API answers 202 with a job."""
    deadline_s: ClassVar[float] = 30.0
    """Time for the act where the caller gives none; parameters may ask for more (`time_needed_s`)."""

    @property
    def name(self) -> str:
        return f"{self.noun}.{self.verb}"

    @property
    def words(self) -> tuple[str, ...]:
        """The command line's words: `domain shutdown`, and `domain set memory` for the verb `set-memory`."""
        first, _, rest = self.verb.partition("-")
        return (self.noun, first, rest) if first in _GROUPED and rest else (self.noun, self.verb)

    @abstractmethod
    def find(self, session: Session, reference: str | None, parameters: P) -> Subject:
        """The subject, by id, name or UUID; raises NotFoundError. Without a reference, what is to be made."""

    def time_needed_s(self, parameters: P) -> float:
        """Seconds after which the executor gives up waiting for the act."""
        return self.deadline_s

    def is_destructive(self, parameters: P) -> bool:
        """Whether this use of it must be confirmed; a parameter (`force`) may make it so."""
        return self.destructive

    def audited(self, parameters: P) -> dict[str, JsonValue]:
        """The parameters as the trail holds them; one with a secret or long text overrides this."""
        return parameters.model_dump(mode="json", exclude_defaults=True)

    @abstractmethod
    def state(self, call: Call, parameters: P) -> State:
        """The subject's state now: `before` and `after` of the Result. Of a reading operation: its `details`."""

    def held_by(self, session: Session, subject: Subject) -> str:
        """What libvirt itself does with the subject that this would have to wait for; empty where nothing does."""
        return ""

    def require_free(self, session: Session, subject: Subject, deadline: Deadline) -> None:
        """Raises BusyError where a job of libvirt's own, which no lock of ours tells of, is not over in time."""
        held = ""

        def is_free() -> bool:
            nonlocal held
            held = self.held_by(session, subject)
            return not held

        # What was seen is told: asked once more, there may be something else to see, or nothing.
        if not deadline.wait_for(is_free):
            raise BusyError(
                f"{subject.kind} {subject.name} is busy: libvirt is {held}",
                next_step="ask again when it is done, or give --wait 30s",
            )

    def check(self, call: Call, parameters: P) -> None:
        """Raises RefusedError, UnsupportedError or InvalidError where it must not be tried."""

    def plan(self, call: Call, parameters: P) -> Plan:
        """What it would do. `nothing_to_do` ends the run with `changed: false`."""
        return Plan(steps=[self.summary])

    def act(self, call: Call, parameters: P) -> None:
        """Does it."""
        raise NotImplementedError(self.name)

    def verify(self, call: Call, parameters: P) -> None:
        """Looks whether the wanted state is there; raises TimedOutError or ControlError where it is not."""

    def after(self, call: Call, parameters: P) -> State:
        """The state once done; another subject's where the act made one."""
        return self.state(call, parameters)

    def aftermath(self, session: Session, folders: Folders, begun: Mapping[str, JsonValue]) -> str:
        """After a crash in the middle: what is there now, and what to do. `begun` is the open act as written."""
        return ""
