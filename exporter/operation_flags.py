"""The command line's flags of an operation, made from its typed parameters.

A field `confirm_within_s` is the flag `--confirm-within 60s`, `memory_bytes` is `--memory 2GiB`, a switch `--dhcp`
has `--no-dhcp`, a list is a repeatable flag, an XML text is read from the file the flag names ("-": standard input).
What is typed becomes JSON, which the parameters check: one check for every way in.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
from pydantic import BaseModel

from exporter.errors import UsageError
from exporter.setting_types import parse_duration

_SIZE = re.compile(r"(-?\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|TiB|KB|MB|GB|TB)?", re.IGNORECASE)
_UNITS = {
    "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
    "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
}  # fmt: skip
_SIZE_ENDINGS = {"_bytes": 1, "_bytes_sec": 1, "_bytes_sec_max": 1, "_kib": 1 << 10, "_mib": 1 << 20, "_gib": 1 << 30}
# No libvirt document is larger; a bigger file is a mistake.
_MOST_FILE_BYTES = 16 << 20


def parameter_options(model: type[BaseModel], taken: frozenset[str]) -> list[click.Option]:
    """One option a field, in declared order; `taken` are flags that mean something else already."""
    schema = model.model_json_schema()
    return [
        _option(name, _resolved(field, schema), name in schema.get("required", ()), taken)
        for name, field in schema.get("properties", {}).items()
    ]


def parameter_document(model: type[BaseModel], values: Mapping[str, object]) -> dict[str, Any]:
    """The JSON document of what was typed; `values` is by field name, None and () mean "not given".

    Raises UsageError for a number, size, duration or file that cannot be read.
    """
    schema = model.model_json_schema()
    document: dict[str, Any] = {}
    for name, field in schema.get("properties", {}).items():
        value = values.get(name)
        if value is None or value == ():
            continue
        kind = _resolved(field, schema)
        document[name] = _all_typed(name, kind, value) if isinstance(value, tuple) else _typed(name, kind, value)
    return document


def _all_typed(name: str, kind: Mapping[str, Any], values: Iterable[object]) -> list[object]:
    """Each use of a flag that may be repeated; a JSON array of objects stands for as many uses."""
    typed = [_typed(name, kind, value) for value in values]
    return [one for given in typed for one in (given if isinstance(given, list) else [given])]


def flag_of(name: str, taken: frozenset[str] = frozenset()) -> str:
    """The flag of a field: without the unit, unless that flag means something else."""
    short = re.sub(r"_s$|_bytes$", "", name)
    flag = "--" + short.replace("_", "-")
    return "--" + name.replace("_", "-") if flag in taken else flag


def _option(name: str, kind: Mapping[str, Any], required: bool, taken: frozenset[str]) -> click.Option:
    flag = flag_of(name, taken)
    text = kind.get("description", "")
    default = kind.get("default")
    if default not in (None, "", [], {}) and not isinstance(default, bool):
        shown = f"{default:g}" if isinstance(default, float) else str(default)
        text = f"{text} [default: {shown}{'s' if name.endswith('_s') else ''}]"
    if required:
        text = f"{text} [required]"
    if kind.get("type") == "boolean":
        text += f" [default: {'on' if default else 'off'}]"
        return click.Option([f"{flag}/--no-{flag.removeprefix('--')}", name], default=None, help=text)
    item = kind.get("items", kind) if kind.get("type") == "array" else kind
    choices = item.get("enum")
    return click.Option(
        [flag, name],
        type=click.Choice([str(choice) for choice in choices]) if choices else click.STRING,
        multiple=kind.get("type") == "array",
        metavar=None if choices else _metavar(name, item),
        help=text,
    )


def _metavar(name: str, kind: Mapping[str, Any]) -> str:
    if _is_document(name):
        return "FILE"
    if name.endswith("_s"):
        return "DURATION"
    if any(name.endswith(ending) for ending in _SIZE_ENDINGS):
        return "SIZE"
    types = {"integer": "NUMBER", "number": "NUMBER", "object": "JSON"}
    return types.get(str(kind.get("type")), name.rpartition("_")[2].upper())


def _is_document(name: str) -> bool:
    return name == "xml" or name.endswith("_xml")


def _resolved(field: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """A field's schema with its reference followed and "or null" left out; its description and default kept."""
    kind = dict(field)
    for alternatives in ("anyOf", "allOf"):
        real = [one for one in kind.pop(alternatives, []) if one.get("type") != "null"]
        if len(real) == 1:
            kind = {**real[0], **kind}
    if "$ref" in kind:
        target = schema["$defs"][str(kind.pop("$ref")).rpartition("/")[2]]
        kind = {**target, **kind}
    if isinstance(kind.get("items"), dict) and "$ref" in kind["items"]:
        kind["items"] = schema["$defs"][str(kind["items"]["$ref"]).rpartition("/")[2]]
    return kind


def _typed(name: str, kind: Mapping[str, Any], value: object) -> object:
    item = kind.get("items", kind) if kind.get("type") == "array" else kind
    if not isinstance(value, str):
        return value
    if _is_document(name):
        return _file(value, flag_of(name))
    if item.get("type") in ("object", "array"):
        return _json(name, value)
    if item.get("type") in ("integer", "number"):
        return _number(name, str(item["type"]), value)
    return value


def _number(name: str, kind: str, text: str) -> int | float:
    if name.endswith("_s"):
        try:
            seconds = parse_duration(text)
        except ValueError as error:
            raise UsageError(f"{flag_of(name)} {text!r}: {error}") from error
        return int(seconds) if kind == "integer" and seconds == int(seconds) else seconds
    ending = next((ending for ending in _SIZE_ENDINGS if name.endswith(ending)), None)
    if ending is not None:
        return _size(name, text, _SIZE_ENDINGS[ending])
    try:
        return int(text) if kind == "integer" else float(text)
    except ValueError as error:
        wanted = "a whole number" if kind == "integer" else "a number"
        raise UsageError(f"{flag_of(name)} {text!r}: is not {wanted}; correct it") from error


def _size(name: str, text: str, unit_bytes: int) -> int:
    found = _SIZE.fullmatch(text.strip())
    # Only a change can be less than nothing.
    if found is None or (text.strip().startswith("-") and not name.startswith("change_")):
        raise UsageError(f"{flag_of(name)} {text!r}: is not a size; write it like 512MiB or 2GiB")
    number, unit = found.groups()
    size = float(number) * (_UNITS[unit.lower()] if unit else unit_bytes)
    if size % unit_bytes:
        raise UsageError(f"{flag_of(name)} {text!r}: is not a multiple of {unit_bytes} bytes; choose a rounder size")
    return int(size) // unit_bytes


def _json(name: str, text: str) -> object:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UsageError(f"{flag_of(name)}: is not JSON ({error}); correct it") from error


def _file(path: str, flag: str) -> str:
    try:
        if path == "-":
            content = sys.stdin.buffer.read(_MOST_FILE_BYTES + 1)
        else:
            with Path(path).open("rb") as file:
                content = file.read(_MOST_FILE_BYTES + 1)
        if len(content) > _MOST_FILE_BYTES:
            raise UsageError(f"{flag} {path}: is larger than {_MOST_FILE_BYTES >> 20} MiB; name the right file")
        return content.decode()
    except OSError as error:
        raise UsageError(f"{flag} {path}: cannot be read ({error.strerror}); check the path and its rights") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{flag} {path}: is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
