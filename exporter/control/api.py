"""The control API, /api/v1/: every operation behind tokens with roles. An ASGI application; starts nothing.

    GET  /api/v1/domains                     an operation `list`
    GET  /api/v1/domains/NAME                an operation `show`
    GET  /api/v1/domains/NAME/xml            other reading ones
    POST /api/v1/domains/NAME/shutdown       those that may change something
    GET, POST /api/v1/interfaces:begin       those without a subject
    GET  /api/v1/jobs, /api/v1/jobs/ID, POST /api/v1/jobs/ID/cancel

Nothing is changed by GET. Errors are problem details (RFC 9457).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from exporter.access import Forbidden, request_id_of, require_role
from exporter.control import own_connectivity
from exporter.control.api_requests import idempotency_key, query_document, read_asked
from exporter.control.api_running import Runner
from exporter.control.audit_api import audit_routes
from exporter.control.errors import ControlError, NotFoundError, RefusedError, TimedOutError
from exporter.control.executor import Actor, Request
from exporter.control.jobs import Job
from exporter.control.openapi import openapi_document, operation_path
from exporter.control.operation import Operation, Parameters, Result, Subject
from exporter.control.problems import ProblemAnswers, ProblemResponse, control_error, defect, http_error
from exporter.control.request_parameters import parse_parameters
from exporter.openapi import OPENAPI_PATH
from exporter.tokens import Principal, Role

# A read that libvirt has not answered by then is given up (its thread ends when libvirt answers).
READ_S = 25.0
# A short operation that takes longer is answered with 202 and its job, within the answer limit of the access layer.
SHORT_S = 20.0
# A long one that is refused at once is answered as refused, not with a job that says so.
REFUSED_S = 1.0
_MOST_JOBS_LISTED = 200
EXEMPT = ("/-/healthy", "/-/ready", OPENAPI_PATH)

AnyOperation = Operation[Any]
T = TypeVar("T")


def control_application(
    runner: Runner,
    operations: Sequence[AnyOperation],
    registry: CollectorRegistry,
    access: Sequence[Middleware],
    more_metrics: Callable[[bool], bytes] = lambda _openmetrics: b"",
    more_routes: Sequence[Route] = (),
) -> Starlette:
    """The application behind `access` (from exporter.access). Every route asks for a role of its own.

    `more_metrics` gives the families that stand before the registry's on the metrics page, as text, in the OpenMetrics
    form where it is told True; it must not wait for libvirt. `more_routes` are those of the rules.
    """
    endpoints = _Endpoints(runner, registry, more_metrics)
    routes = [endpoints.route(operation) for operation in operations]
    routes += [*audit_routes(runner.executor.trail), *more_routes]
    routes += [
        Route(OPENAPI_PATH, endpoints.openapi(operations), methods=["GET"]),
        Route("/api/v1/jobs", endpoints.jobs, methods=["GET"]),
        Route("/api/v1/jobs/{job}", endpoints.job, methods=["GET"]),
        Route("/api/v1/jobs/{job}/cancel", endpoints.cancel, methods=["POST"]),
        Route("/metrics", endpoints.metrics, methods=["GET"]),
        Route("/-/healthy", endpoints.healthy, methods=["GET"]),
        Route("/-/ready", endpoints.ready, methods=["GET"]),
    ]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(ProblemAnswers), *access],
        exception_handlers={ControlError: control_error, HTTPException: http_error, Exception: defect},
    )
    app.router.redirect_slashes = False
    return app


class _Endpoints:
    def __init__(self, runner: Runner, registry: CollectorRegistry, more_metrics: Callable[[bool], bytes]) -> None:
        self._runner = runner
        self._registry = registry
        self._more_metrics = more_metrics

    def route(self, operation: AnyOperation) -> Route:
        """The operation's only route: GET for reading, POST for the rest."""
        answer = self._reading if operation.reads else self._changing

        async def endpoint(request: HttpRequest) -> Response:
            principal = require_role(request, Role(int(operation.role)))
            server = request.scope.get("server")
            own_connectivity.caller_address.set(server[0] if server else None)
            return await answer(operation, principal, request)

        return Route(operation_path(operation), endpoint, methods=["GET" if operation.reads else "POST"])

    async def _reading(self, operation: AnyOperation, principal: Principal, request: HttpRequest) -> Response:
        parameters = parse_parameters(operation, query_document(operation, request.query_params))
        reference = request.path_params.get("reference")
        asked = Request(_actor(principal, "", request))

        def work() -> Result:
            scoped = self._scoped(operation, reference, parameters, principal)
            return self._runner.read(operation, scoped, parameters, asked)

        result = await self._looked(work, operation.name)
        return JSONResponse(_visible(operation, result, principal))

    async def _changing(self, operation: AnyOperation, principal: Principal, request: HttpRequest) -> Response:
        body = await request.body()
        asked = read_asked(request.headers.get("content-type", ""), body)
        key = idempotency_key(request.headers.getlist("idempotency-key"))
        parameters = parse_parameters(operation, asked.parameters)
        reference = request.path_params.get("reference")
        order = Request(
            actor=_actor(principal, asked.reason, request), dry_run=asked.dry_run, confirmed=asked.confirm,
            # A dry run waits for nothing here: it has one of the few threads that look.
            lock_wait_s=0.0 if asked.dry_run else asked.wait_s, deadline_s=asked.deadline_s,
        )  # fmt: skip
        if asked.dry_run:
            return await self._tried(operation, reference, parameters, order, principal)
        if key is not None:
            # A repeated request is answered from its job, even where the domain is gone by now.
            earlier = self._runner.jobs.known(key, principal.token_id, _fingerprint(operation, request, body))
            if earlier is not None:
                return self._answered(earlier)
        subject = await self._looked(lambda: self._found(operation, reference, parameters, principal), operation.name)
        job = self._runner.jobs.new(operation.name, reference or subject.name, _domain(subject), principal.name)
        if key is not None:
            earlier = self._runner.jobs.claim(key, principal.token_id, _fingerprint(operation, request, body), job)
            if earlier is not None:
                return self._answered(earlier)
        future = self._begun(job, operation, subject.uuid or reference, parameters, order)
        if "respond-async" in request.headers.get("prefer", ""):
            return self._answered(job)
        timeout_s = REFUSED_S if operation.long_running else SHORT_S
        done, _ = await asyncio.wait([asyncio.wrap_future(future)], timeout=timeout_s)
        return self._answered(done.pop().result() if done else job)

    def _begun(
        self, job: Job, operation: AnyOperation, reference: str | None, parameters: Parameters, order: Request
    ) -> Future[Job]:
        try:
            return self._runner.change(job, operation, reference, parameters, order)
        except ControlError as error:
            self._runner.jobs.finish(job, "failed", error.http_status, {"detail": str(error)})
            raise

    async def _tried(
        self, operation: AnyOperation, reference: str | None, parameters: Parameters, order: Request,
        principal: Principal,
    ) -> Response:  # fmt: skip
        def work() -> Result:
            scoped = self._scoped(operation, reference, parameters, principal)
            return self._runner.read(operation, scoped, parameters, order)

        result = await self._looked(work, operation.name)
        return JSONResponse(result.model_dump(mode="json", exclude_none=True))

    async def _looked(self, work: Callable[[], T], doing: str) -> T:
        try:
            return await asyncio.wait_for(asyncio.wrap_future(self._runner.look(work)), READ_S)
        except TimeoutError:
            message = f"{doing}: libvirt has not answered within {READ_S:g} s"
            raise TimedOutError(message, next_step="ask again") from None

    def _scoped(
        self, operation: AnyOperation, reference: str | None, parameters: Parameters, principal: Principal
    ) -> str | None:
        """The reference, by UUID where there is one, if the token's scope holds what it names."""
        if not operation.takes_subject and operation.reads:
            # A listing of domains is cut to the scope; all else concerns the host.
            _require_scope(None if operation.name == "domain.list" else "", principal, listing=True)
            return reference
        return self._found(operation, reference, parameters, principal).uuid or reference

    def _found(
        self, operation: AnyOperation, reference: str | None, parameters: Parameters, principal: Principal
    ) -> Subject:
        try:
            subject = self._runner.find(operation, reference, parameters)
        except NotFoundError as error:
            if principal.allows_every_domain:
                raise
            # What is out of scope and what is not there look the same, else ids and UUIDs could be tried out.
            if reference is not None and not principal.allows_domain(reference):
                raise _out_of_scope(reference, principal) from None
            # The nearest names are of domains that a narrow token may not know.
            raise NotFoundError(error.cause, next_step="list the domains with GET /api/v1/domains") from None
        _require_scope(_domain(subject), principal, asked=reference or _asked_for(parameters))
        return subject

    def _answered(self, job: Job) -> Response:
        headers = {"Location": f"/api/v1/jobs/{job.id}"}
        if not job.done:
            return JSONResponse(_shown(job), status_code=202, headers=headers)
        outcome = dict(job.outcome or {})
        if job.status == 200:
            return JSONResponse(outcome, headers=headers)
        if job.may_be_asked_again:
            headers["Retry-After"] = "5"
        return ProblemResponse({**outcome, "status": job.status or 500}, headers)

    async def jobs(self, request: HttpRequest) -> Response:
        principal = require_role(request, Role.READER)
        listed = [_shown(job) for job in self._runner.jobs.newest(_MOST_JOBS_LISTED) if _may_see(job, principal)]
        return JSONResponse({"jobs": listed})

    async def job(self, request: HttpRequest) -> Response:
        return JSONResponse(_shown(self._job(request, require_role(request, Role.READER))))

    async def cancel(self, request: HttpRequest) -> Response:
        job = self._job(request, require_role(request, Role.OPERATOR))
        if not self._runner.cancel(job.id):
            raise RefusedError(f"job {job.id} does not run", next_step="look at its outcome")
        return JSONResponse(_shown(job), status_code=202)

    def _job(self, request: HttpRequest, principal: Principal) -> Job:
        job = self._runner.jobs.get(request.path_params["job"])
        if job is None or not _may_see(job, principal):
            raise NotFoundError("there is no such job", next_step="list the jobs with GET /api/v1/jobs")
        return job

    def openapi(self, operations: Sequence[AnyOperation]) -> Callable[[HttpRequest], Awaitable[Response]]:
        """Serves the document, made once."""
        content = json.dumps(openapi_document(operations)).encode()

        async def endpoint(_request: HttpRequest) -> Response:
            return Response(content, media_type="application/json")

        return endpoint

    async def metrics(self, request: HttpRequest) -> Response:
        # It tells of all domains: what their agents say, and whom rules have acted upon.
        _require_scope(None, require_role(request, Role.READER))
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        more = await asyncio.to_thread(self._more_metrics, "openmetrics" in content_type)
        page = await asyncio.to_thread(encode, self._registry)
        return Response(more + page, headers={"Content-Type": content_type})

    async def healthy(self, _request: HttpRequest) -> Response:
        return PlainTextResponse("virtgauge control is healthy.\n")

    async def ready(self, _request: HttpRequest) -> Response:
        try:
            await self._looked(self._runner.executor.libvirt_version, "ready")
        except Exception:  # noqa: BLE001 - whatever it is, the answer is the same; the log of libvirt holds it
            return PlainTextResponse("virtgauge control is not ready: libvirt does not answer.\n", status_code=503)
        return PlainTextResponse("virtgauge control is ready.\n")


def _actor(principal: Principal, reason: str, request: HttpRequest) -> Actor:
    reaches = None if principal.allows_every_domain else principal.allows_domain
    return Actor(name=str(principal), way="api", reason=reason, request_id=request_id_of(request), reaches=reaches)


def _fingerprint(operation: AnyOperation, request: HttpRequest, body: bytes) -> bytes:
    return f"{operation.name} {request.path_params.get('reference', '')} ".encode() + body


def _domain(subject: Subject) -> str | None:
    return subject.name if subject.kind == "domain" else None


def _asked_for(parameters: Parameters) -> str | None:
    """The caller's own word for a domain that is to be made."""
    return getattr(parameters, "uuid", None) or getattr(parameters, "name", None)


def _require_scope(
    domain: str | None, principal: Principal, *, listing: bool = False, asked: str | None = None
) -> None:
    """Raises Forbidden where the token does not reach the domain, or, for None or "", the whole host.

    `asked` is the caller's word for it: by an id or UUID it shall not learn a name.
    """
    if domain:
        allowed = principal.allows_domain(domain)
    else:
        allowed = principal.allows_every_domain or (listing and domain is None)
    if not allowed:
        raise _out_of_scope(asked or domain, principal) if domain else _not_the_whole_host(principal)


def _out_of_scope(asked: str, principal: Principal) -> Forbidden:
    return Forbidden("domain", f"token {principal.name} reaches no domain {asked[:100]!r}")


def _not_the_whole_host(principal: Principal) -> Forbidden:
    return Forbidden("domain", f"token {principal.name} does not reach what concerns the whole host")


def _visible(operation: AnyOperation, result: Result, principal: Principal) -> dict[str, Any]:
    """The result, a listing cut to the domains in the token's scope; the counts then go, as they are of the host."""
    shown = result.model_dump(mode="json", exclude_none=True)
    details = shown.get("details", {})
    if operation.name == "domain.list" and not principal.allows_every_domain:
        details["rows"] = [row for row in details.get("rows", []) if principal.allows_domain(str(row.get("name")))]
        details.pop("counts", None)
    return shown


def _may_see(job: Job, principal: Principal) -> bool:
    return principal.allows_domain(job.domain) if job.domain else principal.allows_every_domain


def _shown(job: Job) -> dict[str, Any]:
    return job.model_dump(mode="json", exclude_none=True)
