"""Rules from alerts to operations: what a rule file may say, read strictly, each mistake with its line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from exporter.control.errors import ControlError, InvalidError
from exporter.control.operation import Operation, Parameters
from exporter.control.operations import by_name
from exporter.control.request_parameters import parse_parameters
from exporter.setting_types import parse_duration
from exporter.strict_yaml import StrictLoader

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
Seconds = Annotated[float, BeforeValidator(parse_duration), Field(ge=0)]
_MATCHER = re.compile(r'\s*([A-Za-z_][A-Za-z0-9_]*)\s*(=~|!~|!=|=)\s*(?:"((?:[^"\\]|\\.)*)"|([^"\s]\S*))?\s*')
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


@dataclass(frozen=True)
class Matcher:
    """One of Alertmanager's matchers. A label that is absent is the empty text; expressions match the whole value."""

    label: str
    sign: str
    value: str

    def matches(self, labels: Mapping[str, str]) -> bool:
        found = labels.get(self.label, "")
        if self.sign in ("=", "!="):
            return (found == self.value) is (self.sign == "=")
        return (re.fullmatch(self.value, found) is not None) is (self.sign == "=~")

    def __str__(self) -> str:
        return f"{self.label} {self.sign} {json.dumps(self.value)}"


def _matcher(text: object) -> object:
    if not isinstance(text, str):
        return text
    found = _MATCHER.fullmatch(text)
    if found is None:
        raise ValueError('is no matcher; write it like alertname = "X", reason =~ "a|b"')
    label, sign, quoted, plain = found.groups()
    value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None and "~" not in sign else quoted
    value = (value if value is not None else plain) or ""
    if "~" in sign:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{value!r} is no regular expression ({error})") from None
    return Matcher(label, sign, value)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


Matchers = Annotated[tuple[Annotated[Matcher, BeforeValidator(_matcher)], ...], Field(min_length=1)]


class FromLabel(_Part):
    """A parameter whose value is a label's text."""

    from_label: str


class Action(_Part):
    """An operation with its parameters; each is a value or `{from_label: NAME}`."""

    operation: str
    parameters: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Action:
        if self.operation not in ALLOWED or self.operation not in by_name():
            raise ValueError(f"operation {self.operation[:60]!r} is none that a rule may use: "
                             f"{', '.join(sorted(ALLOWED & by_name().keys()))}")  # fmt: skip
        try:
            self.resolved({label: "x" for label in self._labels()}, check=not self._labels())
        except ControlError as error:
            raise ValueError(error.cause) from None
        unknown = self.parameters.keys() - self.declared.parameters.model_fields.keys()
        if unknown:
            raise ValueError(f"{self.operation} takes no parameter {', '.join(sorted(unknown))}")
        return self

    @property
    def declared(self) -> Operation[Any]:
        return by_name()[self.operation]

    @property
    def is_idempotent(self) -> bool:
        if self.operation == "domain.set-memory":
            return "change_mib" not in self.parameters
        return self.operation in IDEMPOTENT

    def _labels(self) -> list[str]:
        return [value["from_label"] for value in self.parameters.values() if _is_from_label(value)]

    def resolved(self, labels: Mapping[str, str], *, check: bool = True) -> Parameters | None:
        """The operation's checked parameters. Raises InvalidError: a label's text is data of the declared type."""
        document: dict[str, Any] = {}
        for name, value in self.parameters.items():
            if _is_from_label(value):
                if value["from_label"] not in labels:
                    raise InvalidError(f"the alert has no label {value['from_label']}",
                                       next_step="correct the rule")  # fmt: skip
                value = labels[value["from_label"]]
            document[name] = value
        return parse_parameters(self.declared, document) if check else None


def _is_from_label(value: object) -> bool:
    return isinstance(value, dict) and set(value) == {"from_label"} and isinstance(value["from_label"], str)


class Expected(_Part):
    """The state in which alone the rule acts; what is not said does not matter."""

    state: tuple[str, ...] = ()
    reason: tuple[str, ...] = ()
    host_available_mib: int | None = Field(default=None, ge=1)
    """Memory that the host must have to give: free, buffers and cache together."""


class Window(_Part):
    """Times of the day, in the host's zone, on some days of the week; over midnight where it ends before it begins."""

    days: tuple[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"], ...] = _DAYS  # type: ignore[assignment]
    begin: time = Field(alias="from")
    end: time = Field(alias="to")

    def holds(self, at: datetime) -> bool:
        now, today = at.time(), _DAYS[at.weekday()]
        if self.begin <= self.end:
            return today in self.days and self.begin <= now < self.end
        return (today in self.days and now >= self.begin) or (_DAYS[at.weekday() - 1] in self.days and now < self.end)


class Retry(_Part):
    """How often, and how far apart, an action that failed is tried again while the alert fires."""

    times: int = Field(ge=1, le=1000)
    every: Seconds = 60.0


class Share(_Part):
    """Of the guests whose name matches, at most this share may be acted upon within an hour (at least one)."""

    domains: str
    ratio: float = Field(gt=0, le=1)


class Rule(_Part):
    """One rule. Durations are seconds."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    description: str = ""
    mode: Literal["off", "dry-run", "approve", "enforce"] = "dry-run"
    match: Matchers
    on: Literal["firing", "resolved"] = "firing"
    action: Action
    undo: Action | None = None
    expect: Expected = Expected()
    cooldown: Seconds = 900.0
    budget_per_hour: int = Field(default=5, ge=1, le=1000)
    concurrency: int = Field(default=1, ge=1, le=16)
    """Acts of this rule at once; what comes above it waits for its turn."""
    most_of: Share | None = None
    quiet: tuple[Window, ...] = ()
    expires: Seconds = 600.0
    approval_expires: Seconds = 3600.0
    retry: Retry | None = None
    failures_to_open: int = Field(default=3, ge=1, le=100)

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
            raise ValueError("undo belongs to a rule that acts on: firing")
        if self.retry is not None and not self.action.is_idempotent:
            raise ValueError(f"retry: {self.action.operation} as given here is not safe to do twice")
        return self

    def matches(self, labels: Mapping[str, str]) -> bool:
        return all(matcher.matches(labels) for matcher in self.match)


class Protected(_Part):
    """Guests that no rule touches, by name pattern. A guest's owner marks it in its metadata instead."""

    domains: tuple[str, ...] = ()

    def holds(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self.domains)


class RuleFile(_Part):
    """The whole file. `here` tells this host's alerts from those of others, where guests may have the same names."""

    here: Matchers
    prometheus: str | None = Field(default=None, pattern=r"^https?://[^\s@]+$")
    budget_per_hour: int = Field(default=20, ge=1, le=10000)
    concurrency: int = Field(default=1, ge=1, le=16)
    """Acts of all rules at once on this host. Above one, up to so many may pass a breaker that is just opening."""
    protected: Protected = Protected()
    rules: tuple[Rule, ...]

    @model_validator(mode="after")
    def _check(self) -> RuleFile:
        names = [rule.name for rule in self.rules]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two rules are named {twice[0]}")
        return self


class RuleFileError(InvalidError):
    """The file's mistakes, one a line, each with its place."""


def load_rules(path: Path) -> RuleFile:
    """Reads a rule file. Raises RuleFileError with the line of each mistake."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise RuleFileError(f"{path}: cannot be read ({cause})", next_step="check control.rules_file") from error
    return parse_rules(text, str(path))


def parse_rules(text: str, name: str = "rules") -> RuleFile:
    """As `load_rules`, from text."""
    try:
        node = yaml.compose(text, Loader=StrictLoader)
        twice = list(_twice(node))
        document = None if twice else yaml.load(text, Loader=StrictLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        cause = getattr(error, "problem", None) or str(error)
        raise RuleFileError(f"{name}{line}: no YAML: {cause}", next_step="correct it") from None
    problems = [f"{name}:{line}: {key!r} is there twice" for line, key in twice]
    try:
        if not problems:
            return RuleFile.model_validate(document)
    except ValidationError as error:
        for detail in error.errors(include_url=False, include_input=False):
            where = ".".join(str(part) for part in detail["loc"] if isinstance(part, str | int))
            cause = detail["msg"].removeprefix("Value error, ")
            problems.append(f"{name}:{_line(node, detail['loc'])}: {where or 'the file'}: {cause}")
    raise RuleFileError("\n".join(problems), next_step="correct the lines named")


def _line(node: yaml.Node | None, path: Sequence[str | int]) -> int:
    line = node.start_mark.line + 1 if node is not None else 1
    for part in path:
        found: yaml.Node | None = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == part:
                    line, found = key.start_mark.line + 1, value
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            found = node.value[part]
            line = found.start_mark.line + 1
        if found is None:
            return line
        node = found
    return line


def _twice(node: yaml.Node | None) -> Iterator[tuple[int, str]]:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                yield key.start_mark.line + 1, str(key.value)
            seen.add(key.value)
            yield from _twice(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _twice(item)
