"""The control API's OpenAPI 3.1 document, made from the operations. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from exporter.control.api_requests import Asked
from exporter.control.audit_api import audit_paths
from exporter.control.examples import EXAMPLES
from exporter.control.jobs import Job
from exporter.control.operation import Operation, Result
from exporter.control.rule_openapi import SCHEMAS, rule_paths
from exporter.openapi import ERRORS, REFERENCE, answer, api_document

AnyOperation = Operation[Any]
_ERRORS = {
    "401": ERRORS["401"],
    "403": "The token's role or scope does not reach this, or libvirt does not allow it.",
    "404": "There is no such thing; `nearest` holds the names most like it.",
    "422": "The request's own words are wrong; nothing was changed.",
    "500": "The operation failed; libvirt's code and message are in the problem.",
    "501": "This host's libvirt, driver or backend cannot do it.",
    "503": "libvirt cannot be reached, or too much waits for it; ask again.",
    "504": "Not done, or not seen, in time.",
}
_CHANGING_ERRORS = {
    "409": "The state does not allow it; nothing was changed.",
    "413": ERRORS["413"],
    "423": "Another operation holds it; ask again.",
    "428": "It cannot be undone, and `confirm` does not repeat the name.",
}


def operation_path(operation: AnyOperation) -> str:
    """The operation's path: `/api/v1/domains/{reference}/shutdown`; `list` and `show` are the bare ones."""
    collection = f"/api/v1/{_plural(operation.noun)}"
    if operation.takes_subject:
        bare = operation.reads and operation.verb == "show"
        return f"{collection}/{{reference}}" + ("" if bare else f"/{operation.verb}")
    return collection if operation.reads and operation.verb == "list" else f"{collection}:{operation.verb}"


def openapi_document(operations: Sequence[AnyOperation]) -> dict[str, Any]:
    """The whole document."""
    schemas: dict[str, Any] = {"Problem": _problem_schema(), **SCHEMAS}
    for model in (Result, Job):
        _add_schema(schemas, model)
    paths: dict[str, Any] = {}
    for operation in operations:
        method = "get" if operation.reads else "post"
        paths[operation_path(operation)] = {method: _operation(operation, schemas)}
    paths.update(_job_paths())
    paths.update(audit_paths({status: _error(_ERRORS[status]) for status in ("401", "403", "422", "503")}))
    paths.update(rule_paths({status: _error(text) for status, text in (_ERRORS | _CHANGING_ERRORS).items()}))
    description = "Acts on the guests and host interfaces of one libvirt host. Nothing is changed by GET."
    return api_document("virtgauge control API", description, paths, schemas)


def _plural(noun: str) -> str:
    return noun if noun.endswith("ed") else f"{noun}s"


def _operation(operation: AnyOperation, schemas: dict[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "description": _description(operation),
        "tags": [operation.area],
        "parameters": _parameters(operation, schemas),
        "responses": _responses(operation),
    }
    if not operation.reads:
        described["requestBody"] = _body(operation, schemas)
    return described


def _description(operation: AnyOperation) -> str:
    notes = [f"Needs the role {operation.role.name.lower()}."]
    if operation.destructive:
        notes.append("Cannot be undone: `confirm` must repeat the name.")
    if operation.long_running:
        notes.append("Answers 202 with a job.")
    return " ".join(notes)


def _parameters(operation: AnyOperation, schemas: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if operation.takes_subject:
        reference, _ = EXAMPLES.get(operation.name, ("web1", {}))
        found.append({
            "name": "reference", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1},
            "description": f"The {operation.noun}'s name, UUID or id, or MAC address.", "example": reference or "web1",
        })  # fmt: skip
    if operation.reads:
        model = _model_schema(operation.parameters, schemas)
        for name, field in model.get("properties", {}).items():
            required = name in model.get("required", ())
            found.append({"name": name, "in": "query", "required": required, "schema": field,
                          "description": field.get("description", "")})  # fmt: skip
    else:
        found.append({
            "name": "Idempotency-Key", "in": "header", "required": False,
            "schema": {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[ -~]+$"},
            "description": "The same key with the same request is done once, and answered the same for a week.",
        })  # fmt: skip
    return found


def _body(operation: AnyOperation, schemas: dict[str, Any]) -> dict[str, Any]:
    _add_schema(schemas, operation.parameters)
    schema = Asked.model_json_schema(ref_template=REFERENCE)
    schema["properties"]["parameters"] = {"$ref": REFERENCE.format(model=operation.parameters.__name__)}
    needed = schemas[operation.parameters.__name__].get("required")
    if needed:
        schema["required"] = ["parameters"]
    _, parameters = EXAMPLES.get(operation.name, (None, {}))
    example = {"parameters": parameters, "dry_run": True, "reason": "planned work"}
    return {"required": bool(needed), "content": {"application/json": {"schema": schema, "example": example}}}


def _responses(operation: AnyOperation) -> dict[str, Any]:
    responses: dict[str, Any] = {"200": answer("The result.", "Result")}
    errors = dict(_ERRORS)
    if operation.reads:
        errors["409"] = _CHANGING_ERRORS["409"]
    else:
        errors |= _CHANGING_ERRORS
        location = {"Location": {"schema": {"type": "string"}, "description": "The job."}}
        responses["202"] = {**answer("Begun; ask the job.", "Job"), "headers": location}
    return responses | {status: _error(text) for status, text in sorted(errors.items())}


def _job_paths() -> dict[str, Any]:
    job = {"name": "job", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1},
           "example": "5f1c0a91e3b2d4c6a7f80912"}  # fmt: skip
    errors = {status: _error(_ERRORS[status]) for status in ("401", "403", "404", "503")}
    listing = {"type": "object", "required": ["jobs"],
               "properties": {"jobs": {"type": "array", "items": {"$ref": "#/components/schemas/Job"}}}}  # fmt: skip
    return {
        "/api/v1/jobs": {"get": {
            "operationId": "jobs.list", "summary": "List the newest jobs.", "tags": ["jobs"],
            "responses": {"200": {"description": "Newest first.", "content": {"application/json": {"schema": listing}}},
                          **errors},
        }},
        "/api/v1/jobs/{job}": {"get": {
            "operationId": "jobs.show", "summary": "Show a job: its progress and outcome.", "tags": ["jobs"],
            "parameters": [job],
            "responses": {"200": answer("The job.", "Job"), **errors},
        }},
        "/api/v1/jobs/{job}/cancel": {"post": {
            "operationId": "jobs.cancel", "summary": "Ask a running job to stop.", "tags": ["jobs"],
            "parameters": [job],
            "responses": {"202": answer("Asked.", "Job"), **errors,
                          "409": _error("It does not run."), "413": _error(_CHANGING_ERRORS["413"])},
        }},
    }  # fmt: skip


def _error(text: str) -> dict[str, Any]:
    return answer(text, "Problem", "application/problem+json")


def _problem_schema() -> dict[str, Any]:
    return {
        "type": "object",
        "description": "Problem details, RFC 9457.",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": {"type": "string", "format": "uri", "description": "Its tail is a stable word for machines."},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "instance": {"type": "string", "description": "Holds the request's id."},
            "next_step": {"type": "string"},
            "libvirt_code": {"type": "integer", "description": "virErrorNumber of libvirt."},
            "libvirt_message": {"type": "string"},
            "outcome_unknown": {"type": "boolean", "description": "It may still have been, or be, carried out."},
            "nearest": {"type": "array", "items": {"type": "string"}},
        },
    }


def _model_schema(model: type[BaseModel], schemas: dict[str, Any]) -> dict[str, Any]:
    schema = model.model_json_schema(ref_template=REFERENCE)
    schemas.update(schema.pop("$defs", {}))
    return schema


def _add_schema(schemas: dict[str, Any], model: type[BaseModel]) -> None:
    if model.__name__ not in schemas:
        schemas[model.__name__] = _model_schema(model, schemas)
