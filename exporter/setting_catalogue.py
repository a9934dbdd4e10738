"""Every setting with its three spellings, listed from the models that declare them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from collectors import COLLECTORS
from exporter.setting_types import Duration, SecretMark, format_duration

ENVIRONMENT_PREFIX = "VIRTGAUGE_"


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting: `key` is its dotted YAML key (`sampling.max_age`), from which flag and variable follow."""

    key: str
    default: object
    default_text: str
    help: str
    type: Any
    is_list: bool = False
    secret: bool = False
    # config.file names the file, so the file cannot name it.
    in_file: bool = True
    # A URI may carry a password: such a value is not taken from a flag, and masked when printed.
    may_hold_password: bool = False

    @property
    def is_switch(self) -> bool:
        """True for on/off settings: `--key` and `--no-key`, without a value."""
        return self.type is bool

    @property
    def flag(self) -> str | None:
        """`--a.b-c`; None for a secret."""
        return None if self.secret else "--" + self.key.replace("_", "-")

    @property
    def environment(self) -> str:
        """`VIRTGAUGE_A_B_C`."""
        return ENVIRONMENT_PREFIX + self.key.upper().replace(".", "_")


def collector_defaults() -> dict[str, bool]:
    """Every known collector's name and whether it is on where nothing is said."""
    return {collector.name: collector.default for collector in COLLECTORS}


def catalogue(model: type[BaseModel], collectors: Mapping[str, bool]) -> dict[str, Setting]:
    """All settings of `model` by key, in declared order; `collectors` maps a collector's name to its default."""
    found = {setting.key: setting for setting in _settings_of(model, "")}
    for name, default in collectors.items():
        key = f"collector.{name}"
        words = "on" if default else "off"
        found[key] = Setting(key, default, words, f"Turn the {name} collector on or off.", bool)
    return found


def plain(value: object) -> object:
    """A setting's value as YAML can hold it, readable by the same setting again."""
    if isinstance(value, (list, tuple, frozenset)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def _settings_of(model: type[BaseModel], prefix: str) -> list[Setting]:
    found: list[Setting] = []
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found.extend(_settings_of(field.annotation, key + "."))
        elif not field.exclude:
            found.append(_setting(key, field))
    return found


def _setting(key: str, field: FieldInfo) -> Setting:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    annotation = field.annotation
    # Optional[X] is declared as X here: "not given" is not a value one can write.
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    kind = kinds[0] if type(None) in get_args(annotation) else annotation
    default = None if field.default is PydanticUndefined else field.default
    return Setting(
        key=key,
        default=default,
        default_text=str(extra.get("default_text", _default_text(default, field))),
        help=field.description or "",
        type=kind,
        is_list=getattr(kind, "__origin__", None) is tuple,
        secret=any(isinstance(mark, SecretMark) for mark in field.metadata),
        in_file=bool(extra.get("in_file", True)),
        may_hold_password=bool(extra.get("may_hold_password", False)),
    )


def is_duration(metadata: list[Any]) -> bool:
    """Whether a field's metadata marks it as a duration in seconds."""
    return any(mark in metadata for mark in Duration.__metadata__)  # type: ignore[attr-defined]


def _default_text(default: object, field: FieldInfo) -> str:
    if default is None:
        return "none"
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, float) and is_duration(field.metadata):
        return format_duration(default)
    if isinstance(default, tuple):
        return ",".join(str(item) for item in default) or "none"
    return str(Path(default)) if isinstance(default, Path) else str(default)
