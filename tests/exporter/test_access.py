"""The middleware in front of the APIs, with a real token file, through Starlette's own client."""

from __future__ import annotations

import asyncio
import json
import threading
from datetime import UTC, datetime, timedelta

import pytest
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from exporter import tokens
from exporter.access import Forbidden, api_middleware, principal_of, request_id_of, require_domain, require_role
from exporter.refusals import REASONS, Refusals
from exporter.token_changes import create_token, revoke_token
from exporter.tokens import Role, TokenFile

NOW = datetime.now(UTC)


async def who(request):
    return JSONResponse({"who": str(principal_of(request)), "request_id": request_id_of(request)})


async def start_domain(request):
    require_role(request, Role.OPERATOR)
    require_domain(request, request.path_params["name"])
    return PlainTextResponse("started")


async def size(request):
    return PlainTextResponse(str(len(await request.body())))


async def slow(request):
    await asyncio.sleep(float(request.query_params["s"]))
    return PlainTextResponse("done")


async def healthy(request):
    return PlainTextResponse("ok")


class Answer:
    def __init__(self, messages):
        self.status_code = messages[0]["status"]
        self.headers = Headers(raw=messages[0]["headers"])
        self.text = b"".join(message.get("body", b"") for message in messages[1:]).decode()

    def json(self):
        return json.loads(self.text)


class Client:
    """Calls an ASGI application as a server does; Starlette's own client needs one more library."""

    def __init__(self, app):
        self.app = app

    def get(self, target, headers=()):
        return self.ask("GET", target, headers, [b""])

    def post(self, target, headers=(), content=b""):
        if not isinstance(content, bytes):
            return self.ask("POST", target, headers, list(content))
        return self.ask("POST", target, [*dict(headers).items(), ("Content-Length", str(len(content)))], [content])

    def ask(self, method, target, headers, parts):
        return asyncio.run(self.asked(method, target, headers, parts))

    async def asked(self, method, target, headers, parts=(b"",)):
        path, _, query = target.partition("?")
        pairs = headers.items() if isinstance(headers, dict) else headers
        raw = [(name.lower().encode(), value.encode()) for name, value in pairs]
        scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "headers": raw,
                 "query_string": query.encode(), "http_version": "1.1", "scheme": "http", "root_path": ""}  # fmt: skip
        coming = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
        coming[-1]["more_body"] = False
        sent = []

        async def receive():
            return coming.pop(0)

        async def send(message):
            sent.append(message)

        await self.app(scope, receive, send)
        return Answer(sent)


class Served:
    def __init__(self, folder):
        self.path = folder / "tokens.yml"
        self.refusals, self.told = Refusals(), []
        routes = [Route("/api/who", who), Route("/api/start/{name}", start_domain, methods=["POST"]),
                  Route("/api/size", size, methods=["POST"]), Route("/api/slow", slow),
                  Route("/-/healthy", healthy), Route("/open", who)]  # fmt: skip
        stack = api_middleware(TokenFile(self.path), self.refusals, refused=self.refused, protected=("/api/", "/-/"),
                               exempt=("/-/healthy",), most_body_bytes=1000, longest_answer_s=0.2)  # fmt: skip
        self.client = Client(Starlette(routes=routes, middleware=stack))

    def refused(self, principal, scope, reason, message):
        self.told.append((principal and principal.name, scope["path"], reason))

    def token(self, name="ops", role=Role.OPERATOR, domains=("*",), expires=None):
        return {"Authorization": f"Bearer {create_token(self.path, name, role, domains, NOW, expires)[1]}"}


@pytest.fixture
def served(tmp_path):
    return Served(tmp_path)


def test_a_token_lets_in_and_its_absence_does_not(served):
    refused = served.client.get("/api/who")
    assert refused.status_code == 401
    assert refused.headers["WWW-Authenticate"] == 'Bearer realm="virtgauge"'
    assert refused.json()["request_id"] == refused.headers["X-Request-ID"]
    assert served.client.get("/api/who", headers=served.token()).json()["who"].startswith("ops (")
    assert served.told == [(None, "/api/who", "token")]
    assert served.refusals["token"] == 1


def test_revoked_expired_and_doubled_tokens_are_refused(served):
    revoked, expired = served.token("a"), served.token("b", expires=NOW - timedelta(seconds=1))
    revoke_token(served.path, "a")
    good = served.token("c")
    doubled = [("Authorization", good["Authorization"])] * 2
    for headers in (revoked, expired, doubled, {"Authorization": "Basic YTpi"}):
        assert served.client.get("/api/who", headers=headers).status_code == 401
    assert served.refusals["token"] == 4


def test_a_changed_token_file_is_read_once_beside_the_loop_and_holds_up_no_other_request(served, monkeypatch):
    """The real reading, which here does not end before a request without a token is answered."""
    answered, reads, real = threading.Event(), [], tokens.read_tokens

    def reading(path):
        reads.append(threading.current_thread())
        assert answered.wait(60)
        return real(path)

    headers = served.token()
    monkeypatch.setattr(tokens, "read_tokens", reading)

    async def asked():
        asking = [asyncio.create_task(served.client.asked("GET", "/api/who", headers)) for _ in range(20)]
        assert (await served.client.asked("GET", "/-/healthy", {})).status_code == 200
        while not reads:
            await asyncio.sleep(0)
        assert (await served.client.asked("GET", "/-/healthy", {})).status_code == 200
        answered.set()
        return [(await one).status_code for one in asking]

    assert asyncio.run(asked()) == [200] * 20
    assert len(reads) == 1
    assert reads[0] is not threading.current_thread()


def test_health_is_open_and_nothing_beside_it(served):
    assert served.client.get("/-/healthy").status_code == 200
    assert served.client.get("/-/healthy/").status_code == 401
    assert served.client.get("/-/reload").status_code == 401
    assert served.client.get("/api/nothing").status_code == 401
    assert served.client.get("/nothing").status_code == 404


def test_an_unprotected_page_that_asks_who_it_is_gets_401_without_a_token(served):
    assert served.client.get("/open").status_code == 401
    assert served.client.get("/open", headers=served.token()).status_code == 200


@pytest.mark.parametrize(
    ("role", "domains", "name", "status", "reason"),
    [
        (Role.READER, ("*",), "web-1", 403, "role"),
        (Role.OPERATOR, ("web-*",), "web-1", 200, None),
        (Role.OPERATOR, ("web-*",), "db-1", 403, "domain"),
        (Role.ADMIN, ("*",), "db-1", 200, None),
        (Role.ADMIN, ("db-[12]",), "db-3", 403, "domain"),
    ],
)
def test_roles_and_scopes(served, role, domains, name, status, reason):
    headers = served.token(role=role, domains=domains)
    answer = served.client.post(f"/api/start/{name}", headers=headers)
    assert answer.status_code == status
    assert served.told == ([] if reason is None else [("ops", f"/api/start/{name}", reason)])
    assert sum(count for _, count in served.refusals) == (reason is not None)
    assert "Bearer" not in answer.text
    assert headers["Authorization"].split()[1] not in answer.text


def test_a_request_id_is_kept_where_it_is_harmless(served):
    headers = served.token()
    ask = lambda given: served.client.get("/api/who", headers=headers | {"X-Request-ID": given})  # noqa: E731
    assert ask("abc-1.2_3").json()["request_id"] == "abc-1.2_3"
    for bad in ("", "a b", "x" * 65, "<script>", "a\tb"):
        answer = ask(bad)
        assert answer.headers["X-Request-ID"] == answer.json()["request_id"] != bad


def test_bodies_above_the_limit_are_413(served):
    headers = served.token()
    assert served.client.post("/api/size", headers=headers, content=b"x" * 1000).text == "1000"
    assert served.client.post("/api/size", headers=headers, content=b"x" * 1001).status_code == 413
    parts = (b"x" * 600 for _ in range(3))
    answer = served.client.post("/api/size", headers=headers, content=parts)
    assert (answer.status_code, answer.headers["Connection"]) == (413, "close")
    assert served.refusals["body"] == 2


def test_an_answer_that_is_late_is_503(served):
    headers = served.token()
    assert served.client.get("/api/slow?s=0", headers=headers).text == "done"
    answer = served.client.get("/api/slow?s=30", headers=headers)
    assert (answer.status_code, served.refusals["timeout"]) == (503, 1)


def test_forbidden_knows_its_reason_and_every_reason_is_counted_from_zero():
    assert Forbidden("role", "x").reason in REASONS
    seen = []
    refusals = Refusals(seen.append)
    refusals.count("rate")
    assert dict(refusals) == dict.fromkeys(REASONS, 0) | {"rate": 1}
    assert seen == ["rate"]
    with pytest.raises(KeyError):
        refusals.count("unheard-of")
