"""What stands in front of the history and control APIs: request ids, limits, tokens. Starlette middleware.

    Starlette(routes, middleware=api_middleware(tokens, refusals, exempt=("/-/healthy",)))

An endpoint then asks `principal_of(request)`, `require_role(request, Role.OPERATOR)` and
`require_domain(request, name)`; the latter two raise Forbidden, which becomes a 403. Answers to refused requests
are JSON: {"error": text, "request_id": id}.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable, Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from exporter.refusals import Refusals
from exporter.tokens import Principal, Role, TokenFile

# Where a request's scope holds its Principal.
PRINCIPAL = "virtgauge.principal"
REQUEST_ID_HEADER = "X-Request-ID"
MOST_BODY_BYTES = 1024 * 1024
LONGEST_ANSWER_S = 60.0
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

# (principal or None, scope of the request, reason of exporter.refusals, what is said to the client)
Refused = Callable[[Principal | None, Scope, str, str], None]


class Forbidden(Exception):  # noqa: N818  # the name of the answer, as in HTTP
    """The token is good, but not for this."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def api_middleware(
    tokens: TokenFile,
    refusals: Refusals,
    *,
    refused: Refused | None = None,
    protected: Iterable[str] = ("/",),
    exempt: Iterable[str] = (),
    most_body_bytes: int = MOST_BODY_BYTES,
    longest_answer_s: float = LONGEST_ANSWER_S,
) -> list[Middleware]:
    """The whole stack, outermost first.

    Paths that begin with one of `protected` have the limits, and need a token if they are not one of `exempt`.
    `refused` is called for each refusal of a caller, before the answer goes out: the control API's audit trail.
    It runs in the event loop and must not wait.
    """
    return [
        Middleware(RequestId),
        Middleware(TokenAccess, tokens=tokens, refusals=refusals, refused=refused, protected=protected, exempt=exempt),
        Middleware(BodyLimit, refusals=refusals, most_bytes=most_body_bytes, protected=protected),
        Middleware(AnswerLimit, refusals=refusals, longest_s=longest_answer_s, protected=protected),
    ]


def principal_of(request: HTTPConnection) -> Principal:
    """Who the request comes from. Raises Forbidden where no token was needed and none given."""
    principal = request.scope.get(PRINCIPAL)
    if not isinstance(principal, Principal):
        raise Forbidden("token", "this needs a bearer token")
    return principal


def require_role(request: HTTPConnection, role: Role) -> Principal:
    """The request's principal, if it may do what `role` may; raises Forbidden else."""
    principal = principal_of(request)
    if not principal.allows(role):
        raise Forbidden("role", f"this needs the role {role}; token {principal.name} has the role {principal.role}")
    return principal


def require_domain(request: HTTPConnection, name: str) -> Principal:
    """The request's principal, if it may read and the domain is in its scope; raises Forbidden else."""
    principal = require_role(request, Role.READER)
    if not principal.allows_domain(name):
        raise Forbidden("domain", f"token {principal.name} reaches no domain {name[:100]!r}")
    return principal


def request_id_of(request: HTTPConnection) -> str:
    """The request's id: the caller's X-Request-ID where it is short and plain, else a new one."""
    return str(request.scope.get("virtgauge.request_id", ""))


class RequestId:
    """Gives each request an id, and sends it back."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        scope["virtgauge.request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)


class TokenAccess:
    """Lets in who has a token; turns Forbidden from within into a 403. Counts and tells every refusal."""

    def __init__(
        self,
        app: ASGIApp,
        tokens: TokenFile,
        refusals: Refusals,
        refused: Refused | None = None,
        protected: Iterable[str] = ("/",),
        exempt: Iterable[str] = (),
    ) -> None:
        self._app = app
        self._tokens = tokens
        self._refusals = refusals
        self._refused = refused
        self._protected = tuple(protected)
        self._exempt = frozenset(exempt)
        self._reading = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        principal = await self._authenticate(scope)
        scope[PRINCIPAL] = principal
        if principal is None and self._needs_token(scope["path"]):
            message = "this needs a bearer token that is known and has not expired; see virtgauge token"
            await self._refuse(scope, receive, send, None, 401, "token", message)
            return
        try:
            await self._app(scope, receive, send)
        except Forbidden as error:
            status = 401 if error.reason == "token" else 403
            await self._refuse(scope, receive, send, principal, status, error.reason, str(error))

    def _needs_token(self, path: str) -> bool:
        return path not in self._exempt and path.startswith(self._protected)

    async def _authenticate(self, scope: Scope) -> Principal | None:
        given = Headers(scope=scope).getlist("authorization")
        if len(given) != 1:
            # Two of them mean different things to different programs on the way: neither counts.
            return None
        if not self._tokens.is_current():
            # In a thread, and by one of all that wait: a long file must not hold up the others.
            async with self._reading:
                await asyncio.to_thread(self._tokens.keep_up)
        return self._tokens.authenticate(given[0])

    async def _refuse(
        self, scope: Scope, receive: Receive, send: Send,
        principal: Principal | None, status: int, reason: str, message: str,
    ) -> None:  # fmt: skip
        self._refusals.count(reason)
        if self._refused:
            self._refused(principal, scope, reason, message)
        headers = {"WWW-Authenticate": 'Bearer realm="virtgauge"'} if status == 401 else {}
        await _answer(scope, status, message, headers)(scope, receive, send)


class _TooLargeError(Exception):
    pass


class BodyLimit:
    """Refuses a body above `most_bytes` with 413, by its Content-Length or while it comes."""

    def __init__(
        self,
        app: ASGIApp,
        refusals: Refusals,
        most_bytes: int = MOST_BODY_BYTES,
        protected: Iterable[str] = ("/",),
    ) -> None:
        self._app = app
        self._protected = tuple(protected)
        self._refusals = refusals
        self._most_bytes = most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(self._protected):
            await self._app(scope, receive, send)
            return
        # HTTP's own parser has checked that it is a number.
        if int(Headers(scope=scope).get("content-length", "0")) > self._most_bytes:
            await self._refuse(scope, receive, send)
            return
        came, started = 0, False

        async def counted_receive() -> Message:
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            if came > self._most_bytes:
                raise _TooLargeError
            return message

        async def watched_send(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, counted_receive, watched_send)
        except _TooLargeError:
            if started:
                raise
            await self._refuse(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._refusals.count("body")
        # What is left of the body is not read: the connection ends with the answer.
        answer = _answer(scope, 413, f"the body is larger than {self._most_bytes} bytes", {"Connection": "close"})
        await answer(scope, receive, send)


class AnswerLimit:
    """Ends a request whose answer has not begun after `longest_s` seconds with 503."""

    def __init__(
        self,
        app: ASGIApp,
        refusals: Refusals,
        longest_s: float = LONGEST_ANSWER_S,
        protected: Iterable[str] = ("/",),
    ) -> None:
        self._app = app
        self._protected = tuple(protected)
        self._refusals = refusals
        self._longest_s = longest_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(self._protected):
            await self._app(scope, receive, send)
            return
        started = False
        try:
            async with asyncio.timeout(self._longest_s) as limit:

                async def watched_send(message: Message) -> None:
                    nonlocal started
                    if not started:
                        started = True
                        # From here on the server's own limit on slow readers holds.
                        limit.reschedule(None)
                    await send(message)

                await self._app(scope, receive, watched_send)
        except TimeoutError:
            if started or not limit.expired():
                raise
            self._refusals.count("timeout")
            message = f"no answer within {self._longest_s:g} s; ask for less, or again later"
            await _answer(scope, 503, message, {"Retry-After": "5"})(scope, receive, send)


def _answer(scope: Scope, status: int, message: str, headers: dict[str, str]) -> JSONResponse:
    content = {"error": message, "request_id": scope.get("virtgauge.request_id", "")}
    return JSONResponse(content, status_code=status, headers=headers)
