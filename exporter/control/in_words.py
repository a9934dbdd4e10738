"""One run of an operation in words: what is being done, to what, what came of it, what libvirt said."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import libvirt
from pydantic import JsonValue

from exporter.control.errors import ControlError, from_libvirt
from exporter.control.operation import Call, Operation, Result, Subject

AnyOperation = Operation[Any]


def result_of(operation: AnyOperation, call: Call, **fields: Any) -> Result:
    """The Result of a run, with what the call gathered on its way."""
    fields.setdefault("details", dict(call.details))
    fields["warnings"] = [*fields.get("warnings", ()), *call.warnings]
    return Result(operation=operation.name, subject=call.subject.as_json(), **fields)


def named(subject: Subject) -> str:
    """`domain web1`."""
    return f"{subject.kind} {subject.name}"


def doing(operation: AnyOperation, subject: Subject) -> str:
    """`shutdown of domain web1`."""
    return f"{operation.verb} of {named(subject)}" if subject.name else operation.name


def error_json(error: ControlError) -> dict[str, JsonValue]:
    """An error as a record of the trail holds it."""
    return {**error.as_json()}  # type: ignore[dict-item]


@contextmanager
def mapped(doing: str) -> Iterator[None]:
    """libvirt's errors within it become ControlErrors that begin with `doing`."""
    try:
        yield
    except libvirt.libvirtError as error:
        raise from_libvirt(error, doing) from error
