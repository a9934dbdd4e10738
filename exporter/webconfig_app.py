"""Applies the web configuration to each request, in the toolkit's order: rate limit, headers, password, page."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from exporter.basic_auth import BasicAuth, BusyError
from exporter.refusals import Refusals
from exporter.webconfig import RateLimit, WebConfig, WebConfigError
from exporter.webconfig_file import WebConfigFile


class WebConfigured:
    """An application behind the web configuration. Health pages need the password too, as in the toolkit.

    Paths that begin with one of `token_paths` do not: they need a bearer token, and a request has room for only one
    Authorization header. Their own middleware asks for it.
    """

    def __init__(
        self, app: ASGIApp, file: WebConfigFile, refusals: Refusals, *, token_paths: Iterable[str] = ()
    ) -> None:
        self._app = app
        self._file = file
        self._refusals = refusals
        self._token_paths = tuple(token_paths)
        # Read once, as in the toolkit: a limit that could be reset by touching the file would be none.
        self._limiter = RateLimiter(file.config().rate_limit)
        self._passwords = BasicAuth()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            config = self._file.config()
        except WebConfigError:
            await self._refuse("configuration", 500, "Internal Server Error", scope, receive, send)
            return
        if not self._limiter.allow():
            await self._refuse("rate", 429, "Too Many Requests", scope, receive, send)
            return
        await self._guarded(config, scope, receive, _with_headers(config, send))

    async def _guarded(self, config: WebConfig, scope: Scope, receive: Receive, send: Send) -> None:
        users = config.basic_auth_users
        if not users or (self._token_paths and scope["path"].startswith(self._token_paths)):
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).getlist("authorization")
        try:
            allowed = len(given) == 1 and await self._passwords.allows(given[0], users)
        except BusyError:
            await self._refuse("rate", 429, "Too Many Requests", scope, receive, send)
            return
        if allowed:
            await self._app(scope, receive, send)
            return
        await self._refuse("basic_auth", 401, "Unauthorized", scope, receive, send, {"WWW-Authenticate": "Basic"})

    async def _refuse(
        self, reason: str, status: int, text: str, scope: Scope, receive: Receive, send: Send,
        headers: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        self._refusals.count(reason)
        await PlainTextResponse(text + "\n", status_code=status, headers=headers)(scope, receive, send)


class RateLimiter:
    """A bucket of `burst` tokens, refilled by one each `interval` seconds, for all clients together."""

    def __init__(self, limit: RateLimit, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` gives seconds that never go back."""
        self._limit = limit
        self._clock = clock
        self._tokens = float(limit.burst)
        self._filled_s = clock()

    def allow(self) -> bool:
        """Whether one more request may pass now; takes a token if so."""
        if self._limit.interval <= 0:
            return True
        now_s = self._clock()
        self._tokens = min(self._limit.burst, self._tokens + (now_s - self._filled_s) / self._limit.interval)
        self._filled_s = now_s
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def _with_headers(config: WebConfig, send: Send) -> Send:
    headers = config.http_server_config.headers
    if not headers:
        return send

    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer = MutableHeaders(scope=message)
            for name, value in headers.items():
                # What the page itself says is stricter, as the landing page's Content-Security-Policy.
                answer.setdefault(name, value)
        await send(message)

    return send_with_headers
