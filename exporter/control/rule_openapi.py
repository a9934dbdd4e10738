"""The rules' part of the control API's OpenAPI document. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exporter.control.webhook import MOST_ALERTS
from exporter.openapi import reference

_TEXT = {"type": "string"}
_LABELS = {"type": "object", "additionalProperties": {"type": "string", "maxLength": 4096}, "maxProperties": 100}
_ALERT = {
    "type": "object",
    "required": ["status", "labels", "startsAt"],
    "properties": {
        "status": {"enum": ["firing", "resolved"]},
        "labels": _LABELS,
        "startsAt": {"type": "string", "format": "date-time", "description": "With the fingerprint, the firing."},
        "fingerprint": {"type": "string", "description": "Made of the labels where absent."},
    },
}
_ACT = {
    "type": "object",
    "required": ["id", "rule", "state", "domain", "uuid", "alert"],
    "properties": {
        "id": {"type": "integer"}, "rule": _TEXT, "state": _TEXT, "phase": _TEXT, "domain": _TEXT, "uuid": _TEXT,
        "alert": {"type": "object"}, "made_s": {"type": "number", "description": "Seconds since the epoch."},
        "by": {"type": "string", "description": "Who decided."},
        "told": {"type": "string", "description": "What would be done; later, the outcome."},
        "expires_s": {"type": "number", "description": "Of a pending one. Seconds since the epoch."},
    },
}  # fmt: skip
_RULE = {
    "type": "object",
    "required": ["name", "mode", "operation", "breaker_open"],
    "properties": {
        "name": _TEXT, "mode": {"enum": ["off", "dry-run", "approve", "enforce"]}, "description": _TEXT,
        "match": {"type": "array", "items": _TEXT}, "operation": _TEXT, "breaker_open": {"type": "boolean"},
    },
}  # fmt: skip
SCHEMAS: dict[str, Any] = {"Alert": _ALERT, "RuleAct": _ACT, "Rule": _RULE}
EXAMPLE_ALERTS = {
    "version": "4",
    "alerts": [{
        "status": "firing", "labels": {"alertname": "LibvirtDomainPausedIOError", "domain": "web1"},
        "startsAt": "2026-11-24T03:00:00Z", "fingerprint": "8f3c61aa0e5b2d47",
    }],
}  # fmt: skip


def rule_paths(errors: Mapping[str, Any]) -> dict[str, Any]:
    """The paths; `errors` holds answers 401, 403, 404, 409, 413, 422 and 503. Without a rules file all are 404."""
    number = {"name": "id", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 1}, "example": 7,
              "description": "The action's number."}  # fmt: skip
    alerts = _object({"alerts": {"type": "array", "maxItems": MOST_ALERTS, "items": reference("Alert")}})
    body = {"required": True, "content": {"application/json": {"schema": alerts, "example": EXAMPLE_ALERTS}}}
    rules = _object({"stopped": {"type": "boolean"}, "rules": {"type": "array", "items": reference("Rule")}})
    stopped = _object({"stopped": {"type": "boolean"}})

    def operation(name: str, summary: str, answer: dict[str, Any], *more: str, **parts: Any) -> dict[str, Any]:
        seen = {status: errors[status] for status in ("401", "403", "404", "503", *more)}
        return {"operationId": name, "summary": summary, "tags": ["rules"], "responses": answer | seen, **parts}

    decided = {"200": _answer("Decided.", reference("RuleAct"))}
    return {
        "/api/v1/alerts": {"post": operation(
            "alerts.receive", "Take the alerts of Alertmanager's or Grafana's webhook; the role alerts is enough.",
            {"202": _answer("Kept on disk; judged in a moment.", _object({"accepted": {"type": "integer"}}))},
            "413", "422", requestBody=body,
        )},
        "/api/v1/rules": {"get": operation(
            "rules.list", "List the rules, and whether the kill switch is on.", {"200": _answer("All rules.", rules)})},
        "/api/v1/rules:stop": {"post": operation(
            "rules.stop", "Kill switch: no rule acts.", {"200": _answer("Stopped.", stopped)}, "413")},
        "/api/v1/rules:go": {"post": operation(
            "rules.go", "Let the rules act again.", {"200": _answer("They go.", stopped)}, "413")},
        "/api/v1/pending": {"get": operation(
            "pending.list", "List the actions that wait for a person.",
            {"200": _answer("Oldest first.", _object({"pending": {"type": "array", "items": reference("RuleAct")}}))})},
        "/api/v1/pending/{id}": {"get": operation(
            "pending.show", "Show an action: its alert, what would be done, what became of it.",
            {"200": _answer("The action.", reference("RuleAct"))}, parameters=[number])},
        "/api/v1/pending/{id}/approve": {"post": operation(
            "pending.approve", "Approve an action; it is checked anew and done.", decided, "409", "413",
            parameters=[number])},
        "/api/v1/pending/{id}/refuse": {"post": operation(
            "pending.refuse", "Refuse an action.", decided, "409", "413", parameters=[number])},
    }  # fmt: skip


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


def _answer(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}
