"""Where settings come from: the file, the environment, the flags. Each gives values by key, with their origin.

Nothing here knows what a setting means; problems are collected, so that one run names all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.errors import SettingsError
from exporter.nearest import nearest
from exporter.setting_catalogue import ENVIRONMENT_PREFIX, Setting

_SWITCH_WORDS = dict.fromkeys(("true", "on", "yes", "1"), True) | dict.fromkeys(("false", "off", "no", "0"), False)


@dataclass(frozen=True, slots=True)
class Given:
    """A value as it was given, and where: a flag, a variable or a file."""

    value: object
    origin: str


def read_file(path: Path, known: Mapping[str, Setting], problems: list[str]) -> dict[str, Given]:
    """The file's values by key. Unknown keys go to `problems`.

    Raises SettingsError where the file cannot be read or is not YAML with a mapping at its top.
    """
    document = _load_yaml(path)
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise SettingsError(
            f"config file {path}: its top is a {type(document).__name__}, not keys with values; "
            "begin with a section, like 'web:'"
        )
    found: dict[str, Given] = {}
    for key, value in _leaves(document, "", known):
        if key not in known:
            problems.append(_unknown_key(key, path, known))
        elif not known[key].in_file:
            problems.append(f"{key} in {path}: a file cannot set it; use {known[key].flag}")
        elif value is not None:
            found[key] = Given(value, str(path))
    return found


def _load_yaml(path: Path) -> object:
    # Only where there is a file: the reader is a MiB that an exporter without one does not need.
    import yaml

    from exporter.strict_yaml import StrictLoader

    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        cause = error.strerror or str(error)
        message = f"config file {path}: cannot be read ({cause}); check --config.file and the file's rights"
        raise SettingsError(message) from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"config file {path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    try:
        return yaml.load(text, Loader=StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "somewhere"
        cause = " ".join(part for part in (error.context, error.problem) if part)
        raise SettingsError(f"config file {path}, {where}: broken YAML ({cause}); correct that line") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        cause = " ".join(str(error).split())
        raise SettingsError(f"config file {path}: broken YAML ({cause}); correct the file") from error


def _leaves(node: Mapping[Any, object], prefix: str, known: Mapping[str, Setting]) -> Iterator[tuple[str, object]]:
    """Dotted keys with values; a key that is no section and no setting is given as it stands."""
    for name, value in node.items():
        key = f"{prefix}{name}"
        is_section = any(setting.startswith(key + ".") for setting in known)
        if is_section and isinstance(value, dict):
            yield from _leaves(value, key + ".", known)
        elif not (is_section and value is None):
            yield key, value


def _unknown_key(key: str, path: Path, known: Mapping[str, Setting]) -> str:
    sections = {name.rpartition(".")[0] for name in known}
    if key in sections:
        example = next(name for name in known if name.startswith(key + "."))
        return f"{key} in {path}: is a section, so it takes keys with values; its first key is {example}"
    candidates = known if "." in key else [*known, *sections]
    return f"{key} in {path}: unknown key; the nearest is {nearest(key, candidates)}"


def read_environment(environ: Mapping[str, str], known: Mapping[str, Setting], problems: list[str]) -> dict[str, Given]:
    """The values of VIRTGAUGE_ variables by key; an empty one counts as not set, an unknown one is a problem."""
    by_name = {setting.environment: setting for setting in known.values()}
    found: dict[str, Given] = {}
    for name, text in environ.items():
        if not name.startswith(ENVIRONMENT_PREFIX):
            continue
        if name not in by_name:
            problems.append(f"environment variable {name}: unknown; the nearest is {nearest(name, by_name)}")
        elif text:
            found[by_name[name].key] = Given(_from_text(text, by_name[name]), name)
    return found


def read_flags(flags: Mapping[str, object], known: Mapping[str, Setting], problems: list[str]) -> dict[str, Given]:
    """Flag values by key; None and an empty list mean "not given". Several values of one flag are a tuple."""
    found: dict[str, Given] = {}
    for key, value in flags.items():
        setting = known.get(key)
        if value is None or value == ():
            continue
        if setting is None:
            problems.append(f"--{key.replace('_', '-')}: unknown flag; the nearest is {nearest(key, known)}")
        elif setting.flag is None:
            problems.append(f"{key}: a secret cannot be a flag, which ps shows; use {setting.environment} or the file")
        else:
            text = ",".join(value) if isinstance(value, tuple) else value
            found[key] = Given(_from_text(text, setting) if isinstance(text, str) else text, setting.flag)
    return found


def _from_text(text: str, setting: Setting) -> object:
    """Text as the type that strict checking wants; what does not convert is left for that check to refuse."""
    if setting.is_switch:
        return _SWITCH_WORDS.get(text.strip().lower(), text)
    if setting.type is int and re.fullmatch(r"[+-]?\d{1,18}", text.strip()):
        return int(text)
    return text
