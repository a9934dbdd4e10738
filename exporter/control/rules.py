"""Rules from alerts to operations: what a rule file may say. `rule_reading` reads it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from collectors.domain import REASONS, STATES
from exporter.control.errors import InvalidError
from exporter.control.matchers import Matcher, read_matcher
from exporter.control.operation import Operation, Parameters
from exporter.control.operations import by_name
from exporter.control.request_parameters import parameter_problem, parse_parameters
from exporter.setting_types import parse_duration

MODES = ("off", "dry-run", "approve", "enforce")
ALLOWED = frozenset(
    f"domain.{verb}" for verb in (
        "resume", "suspend", "start", "shutdown", "reboot", "reset", "destroy", "core-dump", "save", "managed-save",
        "autostart", "set-memory", "set-block-limit", "lift-block-limit", "set-interface-limit",
        "lift-interface-limit",
    )
)  # fmt: skip
"""What a rule may do: it acts on one guest that is there, and never defines, removes or moves one."""
IDEMPOTENT = ALLOWED - {"domain.reboot", "domain.reset", "domain.core-dump", "domain.save", "domain.set-memory"}
"""What may be tried again after it failed. Setting the memory is, too, unless it is said relative to now."""
_NUMBER = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,18})?")
REVERSIBLE = frozenset(name for name in ALLOWED if name.startswith(("domain.set-", "domain.lift-")))
"""What tells, before it changes anything, the operations that lead back."""
Seconds = Annotated[float, BeforeValidator(parse_duration), Field(ge=0)]
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


Matchers = Annotated[tuple[Annotated[Matcher, BeforeValidator(read_matcher)], ...], Field(min_length=1)]


class Action(_Part):
    """An operation with its parameters; each is a value or `{from_label: NAME}`."""

    operation: str
    parameters: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Action:
        if self.operation not in ALLOWED or self.operation not in by_name():
            raise _mistakes((("operation",), f"{self.operation[:60]!r} is none that a rule may use: "
                                             f"{', '.join(sorted(ALLOWED & by_name().keys()))}"))  # fmt: skip
        if found := list(self._wrong_parameters()):
            raise _mistakes(*found)
        return self

    def _wrong_parameters(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Place and cause. What comes from a label is not there yet, and neither is what hangs on it."""
        known = self.declared.parameters.model_fields
        from_labels = {name for name, value in self.parameters.items() if _is_from_label(value)}
        for name in sorted(from_labels - known.keys()):
            yield ("parameters", name), f"{self.operation} takes no such parameter"
        given = {name: value for name, value in self.parameters.items() if name not in from_labels}
        try:
            self.declared.parameters.model_validate_json(json.dumps(given, default=str))
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                if not from_labels or (detail["loc"] and detail["loc"][0] not in from_labels):
                    yield ("parameters", *detail["loc"]), parameter_problem(detail)

    @property
    def declared(self) -> Operation[Any]:
        return by_name()[self.operation]

    @property
    def is_idempotent(self) -> bool:
        if self.operation == "domain.set-memory":
            return "change_mib" not in self.parameters
        return self.operation in IDEMPOTENT

    def resolved(self, labels: Mapping[str, str]) -> Parameters:
        """The operation's checked parameters. Raises InvalidError: a label's text is data of the declared type."""
        document: dict[str, Any] = {}
        for name, value in self.parameters.items():
            if _is_from_label(value):
                label = value["from_label"]
                if label not in labels:
                    raise InvalidError(f"the alert has no label {label}", next_step="correct the rule")
                value = _typed(labels[label], self.declared, name)
            document[name] = value
        return parse_parameters(self.declared, document)


def _is_from_label(value: object) -> bool:
    return isinstance(value, dict) and set(value) == {"from_label"} and isinstance(value["from_label"], str)


def _typed(text: str, operation: Operation[Any], name: str) -> str | int | float:
    """A label's text as the parameter's type has it: a plain number where it takes no text."""
    field = operation.parameters.model_json_schema()["properties"].get(name, {})
    kinds = {part.get("type", "string") for part in field.get("anyOf", [field])}
    if kinds & {"integer", "number"} and "string" not in kinds and _NUMBER.fullmatch(text):
        return float(text) if "." in text else int(text)
    return text


def _mistakes(*found: tuple[tuple[str | int, ...], str]) -> ValidationError:
    """An error with the place of each mistake, which pydantic puts below that of the part."""
    return ValidationError.from_exception_data("rule", [
        InitErrorDetails(type=PydanticCustomError("rule", "{cause}", {"cause": cause}), loc=place, input=None)
        for place, cause in found])  # fmt: skip


def _undo(given: object) -> Action | Literal["reverse"] | None:
    # No union: pydantic would tell a mistake in the operation twice, and with a place that the file does not have.
    if given is None or isinstance(given, Action):
        return given
    return "reverse" if given == "reverse" else Action.model_validate(given)


def _one_of(names: Iterable[str], what: str) -> BeforeValidator:
    known = tuple(dict.fromkeys(names))

    def check(word: object) -> object:
        if isinstance(word, str) and word not in known:
            raise ValueError(f"{word[:40]!r} is no {what}; there are {', '.join(known)}")
        return word

    return BeforeValidator(check)


_State = Annotated[str, _one_of(STATES, "state")]
_Reason = Annotated[str, _one_of((name for names in REASONS.values() for name in names), "reason of a state")]


class Expected(_Part):
    """The state in which alone the rule acts; what is not said does not matter."""

    state: tuple[_State, ...] = ()
    reason: tuple[_Reason, ...] = ()
    host_available_mib: int | None = Field(strict=True, default=None, ge=1)
    """Memory that the host must have to give: free, buffers and cache together."""


def _clock(given: object) -> object:
    """YAML 1.1 reads 22:00 without quotes as the number 1320, which is no time of the day."""
    if isinstance(given, time) or (isinstance(given, str) and _CLOCK.fullmatch(given)):
        return given
    raise ValueError("is no time of the day; write it in quotes, like '22:00'")


_CLOCK = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9])?")
_Clock = Annotated[time, BeforeValidator(_clock)]


class Window(_Part):
    """Times of the day, in the host's zone, on some days of the week; over midnight where it ends before it begins."""

    days: tuple[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"], ...] = _DAYS  # type: ignore[assignment]
    begin: _Clock = Field(alias="from")
    end: _Clock = Field(alias="to")

    def holds(self, at: datetime) -> bool:
        now, today = at.time(), _DAYS[at.weekday()]
        if self.begin <= self.end:
            return today in self.days and self.begin <= now < self.end
        return (today in self.days and now >= self.begin) or (_DAYS[at.weekday() - 1] in self.days and now < self.end)


class Retry(_Part):
    """How often, and how far apart, an action that failed is tried again while the alert fires."""

    times: int = Field(strict=True, ge=1, le=1000)
    every: Seconds = 60.0


class Share(_Part):
    """Of the guests whose name matches, at most this share may be acted upon within an hour (at least one)."""

    domains: str
    ratio: float = Field(strict=True, gt=0, le=1)


class Rule(_Part):
    """One rule. Durations are seconds."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    description: str = ""
    mode: Literal["off", "dry-run", "approve", "enforce"] = "dry-run"
    match: Matchers
    on: Literal["firing", "resolved"] = "firing"
    action: Action
    undo: Annotated[Action | Literal["reverse"] | None, PlainValidator(_undo)] = None
    """Done when the alert resolves; `reverse` leads back to what was there before the action."""
    expect: Expected = Expected()
    cooldown: Seconds = 900.0
    budget_per_hour: int = Field(strict=True, default=5, ge=1, le=1000)
    concurrency: int = Field(strict=True, default=1, ge=1, le=16)
    """Acts of this rule at once; what comes above it waits for its turn."""
    most_of: Share | None = None
    quiet: tuple[Window, ...] = ()
    expires: Seconds = 600.0
    approval_expires: Seconds = 3600.0
    retry: Retry | None = None
    failures_to_open: int = Field(strict=True, default=3, ge=1, le=100)

    @model_validator(mode="before")
    @classmethod
    def _on_is_a_word(cls, given: Any) -> Any:
        # YAML 1.1 reads the key `on` as true.
        if isinstance(given, dict) and True in given:
            given = {("on" if key is True else key): value for key, value in given.items()}
        return {**given, "mode": "off"} if isinstance(given, dict) and given.get("mode") is False else given

    @model_validator(mode="after")
    def _check(self) -> Rule:
        if self.undo is not None and self.on == "resolved":
            raise _mistakes((("undo",), "belongs to a rule that acts on: firing"))
        if self.undo == "reverse" and self.action.operation not in REVERSIBLE:
            raise _mistakes((("undo",), f"{self.action.operation} cannot tell what leads back; name an operation"))
        if self.retry is not None and not self.action.is_idempotent:
            raise _mistakes((("retry",), f"{self.action.operation} as given here is not safe to do twice"))
        return self

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(matcher.matches(labels) for matcher in self.match)


class Protected(_Part):
    """Guests that no rule touches, by name pattern. A guest's owner marks it in its metadata instead."""

    domains: tuple[str, ...] = ()

    def holds(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.domains)


def _http_address(text: str) -> str:
    if re.fullmatch(r"https?://[^\s@/]+(/[^\s@]*)?", text) is None:
        raise ValueError("is no address like http://localhost:9090; names and passwords stand beside it")
    return text


class Server(_Part):
    """A Prometheus or an Alertmanager that is asked back: its address, and how it lets virtgauge in."""

    url: Annotated[str, AfterValidator(_http_address)]
    credentials_file: Path | None = None
    """Holds a bearer token."""
    username: str = Field(default="", pattern=r"^[^:\r\n]*$")
    password_file: Path | None = None
    ca_file: Path | None = None
    """The authority that signed its certificate, where the system does not know it."""

    @model_validator(mode="before")
    @classmethod
    def _may_be_a_url(cls, given: object) -> object:
        return {"url": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _check(self) -> Server:
        if bool(self.username) != (self.password_file is not None):
            raise ValueError("username and password_file belong together")
        if self.username and self.credentials_file is not None:
            raise ValueError("give either credentials_file or username and password_file")
        return self


class RuleFile(_Part):
    """The whole file. `here` tells this host's alerts from those of others, where guests may have the same names."""

    here: Matchers
    prometheus: Server | None = None
    alertmanager: Server | None = None
    """Asked, where given, before each act whether the alert still fires; the latter also whether it is silenced."""
    budget_per_hour: int = Field(strict=True, default=20, ge=1, le=10000)
    concurrency: int = Field(strict=True, default=1, ge=1, le=16)
    """Acts of all rules at once on this host. Above one, up to so many may pass a breaker that is just opening."""
    protected: Protected = Protected()
    rules: tuple[Rule, ...]

    @model_validator(mode="after")
    def _check(self) -> RuleFile:
        names = [rule.name for rule in self.rules]
        twice = [number for number, name in enumerate(names) if name in names[:number]]
        if twice:
            raise _mistakes(*((("rules", number, "name"), f"two rules are named {names[number]}") for number in twice))
        return self
