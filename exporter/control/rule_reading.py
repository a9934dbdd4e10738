"""A rule file read strictly: every mistake is named with its line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from exporter.control.errors import InvalidError
from exporter.control.rules import Action, Expected, Protected, Retry, Rule, RuleFile, Server, Share, Window
from exporter.nearest import nearest
from exporter.strict_yaml import StrictLoader

_SMALL_PARTS: tuple[type[BaseModel], ...] = (Action, Expected, Window, Retry, Share, Protected, Server)
_QUOTED = "within [ ] a matcher with quotes stands in quotes itself: ['a =~ \"x\"']"
_CAUSES = {
    "missing": "is missing",
    "too_short": "is empty; name at least one",
    "tuple_type": "should be a list",
    **dict.fromkeys(("model_type", "dict_type"), "should be keys with values"),
    "string_pattern_mismatch": "has a character that it cannot have",
}


class RuleFileError(InvalidError):
    """The file's mistakes, one a line, each with its place."""


def load_rules(path: Path) -> RuleFile:
    """Reads a rule file. Raises RuleFileError with the line of each mistake."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise RuleFileError(f"{path}: cannot be read ({cause})", next_step="check its name and its rights") from error
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
        next_step = f"correct it; {_QUOTED}" if "',' or ']'" in cause else "correct it"
        raise RuleFileError(f"{name}{line}: no YAML: {cause}", next_step=next_step) from None
    problems = [f"{name}:{line}: {key!r} is there twice" for line, key in twice]
    try:
        if not problems:
            return RuleFile.model_validate(document)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        told = sorted((_line(node, detail["loc"]), _told(detail)) for detail in found if not _follows(detail, found))
        problems = [f"{name}:{line}: {problem}" for line, problem in told]
    raise RuleFileError("\n".join(problems), next_step="correct the lines named")


def _told(detail: ErrorDetails) -> str:
    """The place and the cause in plain words."""
    where = ".".join(str(part) for part in detail["loc"] if isinstance(part, str | int))
    cause = _CAUSES.get(detail["type"]) or detail["msg"].removeprefix("Value error, ").replace("Input should", "should")
    if detail["type"] == "string_pattern_mismatch" and detail["loc"][-1] == "name":
        cause = "is no name of up to 63 small letters, digits and -"
    if detail["type"] == "extra_forbidden":
        cause = f"there is no such key; the nearest is {nearest(str(detail['loc'][-1]), _keys(detail['loc']))}"
    return f"{where or 'the file'}: {cause}"


def _keys(place: Sequence[str | int]) -> list[str]:
    """Those that may stand at the place of an unknown one."""
    of_rule = len(place) == 3 and place[0] == "rules"
    parts = (RuleFile,) if len(place) == 1 else (Rule,) if of_rule else _SMALL_PARTS
    return sorted({field.alias or name for part in parts for name, field in part.model_fields.items()})


def _follows(detail: ErrorDetails, details: Sequence[ErrorDetails]) -> bool:
    """A list is told to be empty where none of its entries is good, too: then those are the mistake."""
    place = detail["loc"]
    return detail["type"] == "too_short" and any(
        other is not detail and other["loc"][:len(place)] == place for other in details)


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
