"""What a request to the control API says: its body, its query, its headers. Pure; raises InvalidError."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import QueryParams

from exporter.control.errors import InvalidError
from exporter.control.operation import Operation

_LONGEST_KEY = 200
_SWITCH = {"true": True, "1": True, "false": False, "0": False}


class Asked(BaseModel):
    """The body of a request that may change something."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    parameters: dict[str, Any] = Field(default_factory=dict, description="The operation's parameters.")
    dry_run: bool = Field(default=False, description="Only tell what would be done, changed and lost.")
    confirm: str | None = Field(
        default=None, max_length=1024, description="The name of what is acted on, where it cannot be undone."
    )
    reason: str = Field(default="", max_length=500, description="Why, for the audit trail.")
    wait_s: float = Field(default=0.0, ge=0, le=30, description="Wait this long where another operation holds it.")
    deadline_s: float | None = Field(default=None, gt=0, le=86400, description="Give up after this, in seconds.")


def read_asked(content_type: str, body: bytes) -> Asked:
    """The body as Asked; an empty one asks for the defaults. Raises InvalidError."""
    if not body:
        return Asked()
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise InvalidError("the body is not declared as JSON", next_step="send Content-Type: application/json")
    try:
        return Asked.model_validate_json(body)
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(part) for part in detail['loc'])[:60]}: {detail['msg']}".removeprefix(": ")
            for detail in error.errors(include_url=False, include_input=False)[:10]
        ]
        raise InvalidError("; ".join(problems), next_step="see /api/v1/openapi.json") from None


def query_document(operation: Operation[Any], query: QueryParams) -> dict[str, Any]:
    """A reading operation's parameters from the URL. Raises InvalidError for an unknown or malformed one."""
    properties: Mapping[str, Any] = operation.parameters.model_json_schema().get("properties", {})
    document: dict[str, Any] = {}
    for name in query:
        if name not in properties:
            raise InvalidError(f"query parameter {name[:60]!r} is unknown", next_step="see /api/v1/openapi.json")
        values, kind = query.getlist(name), properties[name]
        if kind.get("type") == "array":
            document[name] = [_typed(name, kind.get("items", {}), value) for value in values]
        elif len(values) > 1:
            raise InvalidError(f"query parameter {name} is given {len(values)} times", next_step="give it once")
        else:
            document[name] = _typed(name, kind, values[0])
    return document


def _typed(name: str, kind: Mapping[str, Any], text: str) -> object:
    types = {one.get("type") for one in kind.get("anyOf", [kind])}
    try:
        if "boolean" in types:
            return _SWITCH[text.lower()]
        if types & {"integer", "number"}:
            return json.loads(text)
    except (KeyError, ValueError, RecursionError) as error:
        raise InvalidError(f"query parameter {name} {text[:60]!r} is malformed", next_step="correct it") from error
    return text


def idempotency_key(values: list[str]) -> str | None:
    """The Idempotency-Key header; None without one. Raises InvalidError for a malformed one."""
    if not values:
        return None
    key = values[0]
    if len(values) > 1 or not 0 < len(key) <= _LONGEST_KEY or not (key.isascii() and key.isprintable()):
        next_step = f"send one of 1 to {_LONGEST_KEY} plain characters"
        raise InvalidError("Idempotency-Key is malformed", next_step=next_step)
    return key
