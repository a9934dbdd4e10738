"""An operation's parameters from a JSON document, with every problem named at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from exporter.control.errors import InvalidError
from exporter.control.operation import Operation, Parameters

_SHOWN_CHARACTERS = 60


def parse_parameters(operation: Operation[Any], document: Mapping[str, Any]) -> Parameters:
    """The checked parameters. Raises InvalidError that names each wrong field, what it held, and the cause."""
    try:
        # Through JSON text: only there do strict models read an array as a tuple and a text as an enumeration.
        return operation.parameters.model_validate_json(json.dumps(document))
    except ValidationError as error:
        problems = [parameter_problem(detail) for detail in error.errors(include_url=False)]
        raise InvalidError(
            "; ".join(problems[:10]), next_step=f"correct it; see what {operation.name} takes in its help"
        ) from None
    except RecursionError as error:
        raise InvalidError("the parameters are nested too deeply", next_step="see the operation's help") from error


def parameter_problem(detail: ErrorDetails) -> str:
    """One of pydantic's errors in plain words: the field, what it held, the cause."""
    where = ".".join(str(part) for part in detail["loc"])
    cause = detail["msg"].removeprefix("Value error, ").replace("Input should", "should")
    if detail["type"] == "missing":
        return f"{where} is missing"
    if detail["type"] == "extra_forbidden":
        return f"{where[:_SHOWN_CHARACTERS]} is unknown"
    if not where:
        return cause
    shown = repr(detail["input"])
    if len(shown) > _SHOWN_CHARACTERS:
        shown = shown[: _SHOWN_CHARACTERS - 3] + "..."
    return f"{where} {shown} {cause}"
