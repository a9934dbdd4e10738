"""The rules over the control API: the webhook, what waits for approval, the kill switch."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from exporter.access import Forbidden, require_role
from exporter.control.alert_store import AlertStore, RuleAct
from exporter.control.errors import InvalidError, NotFoundError
from exporter.control.rule_engine import RuleEngine
from exporter.control.rules import RuleFile
from exporter.control.webhook import read_webhook
from exporter.tokens import Principal, Role


def rule_routes(engine: RuleEngine, store: AlertStore, file: Callable[[], RuleFile],
                told: Callable[[str, dict[str, Any]], None]) -> list[Route]:  # fmt: skip
    """The routes. `told` writes a person's word to the audit trail, and may wait."""

    async def webhook(request: Request) -> Response:
        _whole_host(_sender(request))
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise InvalidError("the body is not declared as JSON", next_step="send Content-Type: application/json")
        alerts = read_webhook(await request.body())
        await asyncio.to_thread(engine.receive, alerts)
        return JSONResponse({"accepted": len(alerts)}, status_code=202)

    async def rules(request: Request) -> Response:
        _whole_host(require_role(request, Role.READER))
        failures = await asyncio.to_thread(store.failures)
        shown = [{"name": rule.name, "mode": rule.mode, "description": rule.description,
                  "match": [str(matcher) for matcher in rule.match], "operation": rule.action.operation,
                  "breaker_open": failures.get(rule.name, (0, False))[1]} for rule in file().rules]  # fmt: skip
        return JSONResponse({"stopped": engine.switch.is_on(), "rules": shown})

    async def pending(request: Request) -> Response:
        principal = require_role(request, Role.READER)
        acts = await asyncio.to_thread(store.in_state, "pending")
        return JSONResponse({"pending": [act_as_json(act) for act in acts if principal.allows_domain(act.domain)]})

    async def shown(request: Request) -> Response:
        principal = require_role(request, Role.READER)
        return JSONResponse(act_as_json(await visible(request, principal)))

    async def visible(request: Request, principal: Principal) -> RuleAct:
        act = await asyncio.to_thread(store.get, _number(request))
        if not principal.allows_domain(act.domain):
            raise NotFoundError("there is no such action", next_step="list them with GET /api/v1/pending")
        return act

    async def decided(request: Request) -> Response:
        principal = require_role(request, Role.OPERATOR)
        word = "approved" if request.url.path.endswith("/approve") else "refused"
        act = await visible(request, principal)
        act = await asyncio.to_thread(store.decide, act.id, word, str(principal), time.time())
        await asyncio.to_thread(told, word, decision_facts(act, str(principal), "api"))
        engine.wake()
        return JSONResponse(act_as_json(act))

    async def switch(request: Request) -> Response:
        principal = require_role(request, Role.OPERATOR)
        _whole_host(principal)
        on = request.url.path.endswith(":stop")
        await asyncio.to_thread(engine.switch.turn, on, str(principal))
        await asyncio.to_thread(told, "stopped" if on else "resumed", {"actor": str(principal), "way": "api"})
        return JSONResponse({"stopped": on})

    return [
        Route("/api/v1/alerts", webhook, methods=["POST"]),
        Route("/api/v1/rules", rules, methods=["GET"]),
        Route("/api/v1/rules:stop", switch, methods=["POST"]),
        Route("/api/v1/rules:go", switch, methods=["POST"]),
        Route("/api/v1/pending", pending, methods=["GET"]),
        Route("/api/v1/pending/{id}", shown, methods=["GET"]),
        Route("/api/v1/pending/{id}/approve", decided, methods=["POST"]),
        Route("/api/v1/pending/{id}/refuse", decided, methods=["POST"]),
    ]


def _sender(request: Request) -> Principal:
    """Who may send alerts: a token for nothing else, or one that may act. A reader only looks."""
    principal = require_role(request, Role.ALERTS)
    return principal if principal.role is Role.ALERTS else require_role(request, Role.OPERATOR)


def act_as_json(act: RuleAct) -> dict[str, Any]:
    """What a person decides by. `told` is what would be done, later the outcome."""
    expiry = {"expires_s": act.due_s} if act.state == "pending" else {}
    return {"id": act.id, "rule": act.rule, "state": act.state, "phase": act.phase, "domain": act.domain,
            "uuid": act.uuid, "alert": act.alert.as_json(), "made_s": act.made_s, "by": act.by,
            "told": act.told, **expiry}  # fmt: skip


def decision_facts(act: RuleAct, actor: str, way: str) -> dict[str, Any]:
    """What the audit trail holds of a person's word."""
    return {"rule": act.rule, "alert": act.alert.name, "fingerprint": act.fingerprint, "actor": actor, "way": way,
            "subject": {"kind": "domain", "name": act.domain, "uuid": act.uuid}, "action": act.id}  # fmt: skip


def _number(request: Request) -> int:
    text = request.path_params["id"]
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise NotFoundError("there is no such action", next_step="list them with GET /api/v1/pending")
    return int(text)


def _whole_host(principal: Principal) -> None:
    if not principal.allows_every_domain:
        raise Forbidden("domain", f"token {principal.name} does not reach the whole host")
