"""Reads the settings from flags, environment and file, checks them, and prints what is in effect."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from exporter.config import Settings
from exporter.errors import SettingsError
from exporter.secret_files import warn_if_others_read
from exporter.setting_catalogue import Setting, catalogue, is_duration, plain
from exporter.setting_sources import Given, read_environment, read_file, read_flags
from exporter.setting_types import format_duration, holds_password, mask_passwords

MASK = "<secret>"

_PLAIN_URI = re.compile(r"[a-z0-9+]+:/*[A-Za-z0-9./-]*")

SettingsModel = TypeVar("SettingsModel", bound=Settings)


def load_settings(
    model: type[SettingsModel],
    *,
    flags: Mapping[str, object],
    environ: Mapping[str, str],
    collectors: Mapping[str, bool],
    is_root: bool,
) -> SettingsModel:
    """The settings from flags (by dotted key), environment and the file that config.file names.

    `collectors` maps every known collector to its default. Raises SettingsError with one line a problem:
    key, origin, cause, next step. Reads the file, touches nothing else.
    """
    known = catalogue(model, collectors)
    problems: list[str] = []
    from_flags = read_flags(flags, known, problems)
    _refuse_passwords(from_flags, known, problems)
    from_environment = read_environment(environ, known, problems)
    file = from_flags.get("config.file") or from_environment.get("config.file")
    from_file = read_file(Path(str(file.value)).expanduser(), known, problems) if file else {}
    given = from_file | from_environment | from_flags
    given.setdefault("state.directory", Given(str(default_state_directory(environ, is_root)), "default"))
    switches = _collector_switches(given, collectors, problems)
    settings = _validate(model, given, known, switches, problems)
    if problems or settings is None:
        raise SettingsError("\n".join(problems))
    return settings


def warn_of_secrets_in_the_open(settings: Settings, collectors: Mapping[str, bool]) -> None:
    """A word in the log where the file of the settings holds a secret and all users of the machine can read it."""
    file, known = settings.config.file, catalogue(type(settings), collectors)
    found = read_file(file, known, []) if file is not None else {}
    held = [key for key, given in found.items()
            if known[key].secret or (known[key].may_hold_password and holds_password(given.value))]
    if file is not None and held:
        warn_if_others_read(file, ", ".join(held))


def _refuse_passwords(flags: dict[str, Given], known: Mapping[str, Setting], problems: list[str]) -> None:
    """A password in a flag is refused, since everyone on the machine can read it."""
    for key, found in list(flags.items()):
        if known[key].may_hold_password and holds_password(found.value):
            del flags[key]
            also = ", the file or archive.password_file" if key == "archive.uri" else " or the file"
            problems.append(f"{key} ({found.origin}): a flag must not hold a password, since everyone on the machine "
                            f"can read it; use {known[key].environment}{also}")


def default_state_directory(environ: Mapping[str, str], is_root: bool) -> Path:
    """Where state lives if nothing else is said; the XDG base directory rules for everyone but root."""
    if is_root:
        return Path("/var/lib/virtgauge")
    state_home = environ.get("XDG_STATE_HOME", "")
    # The XDG rules say that a relative path there is to be ignored.
    folder = Path(state_home) if state_home.startswith("/") else Path(environ.get("HOME", "/")) / ".local/state"
    return folder / "virtgauge"


def effective_settings(settings: Settings) -> str:
    """The settings as YAML that `--config.file` reads again, secrets masked."""
    import yaml  # only for this; see setting_sources

    tree: dict[str, Any] = _plain_section(settings)
    tree.pop("config", None)
    tree["collector"] |= settings.collector.known
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def _plain_section(section: BaseModel) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    secrets = {setting.key for setting in catalogue(type(section), {}).values() if setting.secret}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            tree[name] = _plain_section(value)
        elif name in secrets:
            tree[name] = MASK if value is not None else None
        elif isinstance(value, float) and is_duration(field.metadata):
            tree[name] = format_duration(value)
        elif not field.exclude:
            tree[name] = _masked(plain(value))
    return tree


def _masked(value: object) -> object:
    """A setting's plain value without the passwords of URIs in it."""
    if isinstance(value, list):
        return [_masked(item) for item in value]
    return mask_passwords(value) if isinstance(value, str) else value


def _collector_switches(
    given: dict[str, Given], collectors: Mapping[str, bool], problems: list[str]
) -> dict[str, bool]:
    """What each collector ends up as; takes its switches out of `given`, since no model field holds them."""
    no_defaults = given.get("collector.disable_defaults", Given(False, "")).value is True
    switches: dict[str, bool] = {}
    for name, default in collectors.items():
        found = given.pop(f"collector.{name}", Given(default and not no_defaults, "default"))
        if not isinstance(found.value, bool):
            problem = f"collector.{name} ({found.origin}): {_shown(found.value)} should be true or false; correct it"
            problems.append(problem)
        switches[name] = found.value is True
    return switches


def _validate(
    model: type[SettingsModel],
    given: Mapping[str, Given],
    known: Mapping[str, Setting],
    switches: dict[str, bool],
    problems: list[str],
) -> SettingsModel | None:
    tree: dict[str, Any] = {"collector": {"known": switches}}
    for key, found in given.items():
        *sections, name = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = found.value
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        problems.extend(_problem(detail, given, known) for detail in error.errors(include_url=False))
        return None


def _problem(detail: ErrorDetails, given: Mapping[str, Given], known: Mapping[str, Setting]) -> str:
    parts = [str(part) for part in detail["loc"]]
    # A list's error points at the item; the setting is the longest known beginning.
    keys = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    key = next((key for key in keys if key in known), ".".join(parts))
    cause = detail["msg"].removeprefix("Value error, ").replace("Input should", "should")
    if key not in known:
        return f"{key}: {cause}; correct it"
    setting, origin = known[key], given[key].origin if key in given else "default"
    hidden = setting.secret or (setting.may_hold_password and not _is_plain(detail["input"], origin))
    got = "a value that is not shown" if hidden else _shown(detail["input"])
    return f"{key} ({origin}): {got} {cause}; correct it or leave it out for the default ({setting.default_text})"


def _is_plain(value: object, origin: str) -> bool:
    """Whether a malformed URI may be shown: nobody knows where in one a password is, so few may.

    One word is a password as likely as not, unless it stands in a flag, where everyone has seen it.
    """
    text = str(value)
    return _PLAIN_URI.fullmatch(text) is not None or (origin.startswith("--") and text.isalnum())


def _shown(value: object) -> str:
    text = mask_passwords(repr(value))
    return text if len(text) <= 80 else text[:77] + "..."
