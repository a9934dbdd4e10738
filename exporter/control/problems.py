"""Errors as problem details, RFC 9457: one shape for every refusal of the control API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from exporter.access import request_id_of
from exporter.control.errors import ControlError

MEDIA_TYPE = "application/problem+json"


def problem(status: int, detail: str, kind: str, request_id: str = "", **more: Any) -> dict[str, Any]:
    """The document. `kind` is a stable word for machines, the tail of `type`; `more` are members of its own."""
    document = {
        "type": f"urn:virtgauge:problem:{kind}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        **more,
    }
    return document | ({"instance": f"urn:virtgauge:request:{request_id}"} if request_id else {})


def control_problem(error: ControlError, request_id: str = "") -> dict[str, Any]:
    """The document of an operation's error, with libvirt's code and message and the next step."""
    more = {name: value for name, value in error.as_json().items() if name not in ("kind", "cause")}
    return problem(error.http_status, error.cause, error.kind, request_id, **more)


class ProblemResponse(JSONResponse):
    """A problem document as an answer; its status is the document's."""

    media_type = MEDIA_TYPE

    def __init__(self, document: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> None:
        super().__init__(document, status_code=int(document["status"]), headers=headers)


async def control_error(request: Request, error: Exception) -> Response:
    """Starlette's handler of ControlError."""
    assert isinstance(error, ControlError)
    headers = {"Retry-After": "5"} if error.http_status in (423, 503) else None
    return ProblemResponse(control_problem(error, request_id_of(request)), headers)


async def http_error(request: Request, error: Exception) -> Response:
    """Starlette's handler of its own errors: no such path, no such method."""
    assert isinstance(error, HTTPException)
    kinds = {404: "no-such-path", 405: "no-such-method", 415: "not-json"}
    kind = kinds.get(error.status_code, "refused")
    return ProblemResponse(
        problem(error.status_code, str(error.detail), kind, request_id_of(request)), dict(error.headers or {})
    )


async def defect(request: Request, error: Exception) -> Response:
    """Starlette's handler of everything else; the traceback is in the log, the answer tells nothing of it."""
    detail = "a defect in virtgauge; its log holds the traceback"
    return ProblemResponse(problem(500, detail, "defect", request_id_of(request), outcome_unknown=True))


class ProblemAnswers:
    """Turns the refusals of `exporter.access`, plain JSON with an error, into problem documents. Outermost."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        held: list[Message] = []

        async def translated(message: Message) -> None:
            if message["type"] == "http.response.start" and _is_refusal(message):
                held.append(message)
            elif held and message["type"] == "http.response.body":
                start = held.pop()
                body = _translated(int(start["status"]), bytes(message.get("body", b"")))
                headers = [(n, v) for n, v in start["headers"] if n.lower() not in (b"content-length", b"content-type")]
                headers += [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", str(len(body)).encode())]
                await send({**start, "headers": headers})
                await send({**message, "body": body})
            else:
                await send(message)

        await self._app(scope, receive, translated)


def _is_refusal(message: Message) -> bool:
    content_type = dict(message["headers"]).get(b"content-type", b"")
    return int(message["status"]) >= 400 and content_type == b"application/json"


def _translated(status: int, body: bytes) -> bytes:
    said = json.loads(body)
    kinds = {401: "unauthenticated", 403: "forbidden", 413: "too-large", 503: "unreachable"}
    kind, request_id = kinds.get(status, "refused"), str(said.get("request_id", ""))
    return json.dumps(problem(status, str(said.get("error", "")), kind, request_id)).encode()
