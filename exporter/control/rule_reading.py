"""A rule file read strictly: every mistake is named with its line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from pydantic import ValidationError

from exporter.control.errors import InvalidError
from exporter.control.rules import RuleFile
from exporter.strict_yaml import StrictLoader


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
