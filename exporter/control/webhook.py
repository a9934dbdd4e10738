"""Alerts as Alertmanager's and Grafana's webhooks bring them. Pure; what is wrong raises InvalidError.

Of the payload (version 4) only `alerts` is read, each alert by its own status, since a group mixes firing and resolved
ones. Unknown fields are ignored.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from exporter.control.errors import InvalidError

MOST_ALERTS = 2000
_MOST_LABELS = 100
_LONGEST_TEXT = 4096
_MOST_LABEL_BYTES = 64 * 1024
"""Of all labels of an alert as it is kept, with its act for months; real ones have a few hundred."""
_DEEPEST = 12


@dataclass(frozen=True)
class Alert:
    """One alert. `starts_at` is as it was written by its source, for which it is the firing's identity."""

    status: str
    labels: Mapping[str, str]
    starts_at: str
    fingerprint: str

    @property
    def name(self) -> str:
        return self.labels.get("alertname", "")

    @property
    def is_firing(self) -> bool:
        return self.status == "firing"

    def as_json(self) -> dict[str, Any]:
        return {"status": self.status, "labels": dict(self.labels), "startsAt": self.starts_at,
                "fingerprint": self.fingerprint}  # fmt: skip


def read_webhook(body: bytes) -> list[Alert]:
    """The alerts of a webhook's body. Raises InvalidError: nothing of a body that is wrong in part is taken."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidError("the body is no JSON", next_step="send Alertmanager's webhook payload") from None
    _check_depth(document)
    found = document.get("alerts") if isinstance(document, dict) else None
    if not isinstance(found, list):
        raise InvalidError("there is no list of alerts", next_step="send Alertmanager's webhook payload")
    if len(found) > MOST_ALERTS:
        raise InvalidError(f"there are more than {MOST_ALERTS} alerts", next_step="set the receiver's max_alerts")
    return [_alert(number, alert) for number, alert in enumerate(found)]


def _alert(number: int, alert: object) -> Alert:
    def wrong(what: str) -> InvalidError:
        return InvalidError(f"alerts[{number}]: {what}", next_step="send Alertmanager's webhook payload")

    if not isinstance(alert, dict):
        raise wrong("is no object")
    labels = alert.get("labels")
    if not isinstance(labels, dict) or len(labels) > _MOST_LABELS:
        raise wrong("has no labels, or too many")
    if not all(isinstance(value, str) and max(len(key), len(value)) <= _LONGEST_TEXT for key, value in labels.items()):
        raise wrong("has a label that is no text, or too long")
    if len(json.dumps(labels)) > _MOST_LABEL_BYTES:
        raise wrong(f"has labels of more than {_MOST_LABEL_BYTES >> 10} KiB in all")
    status = alert.get("status")
    if status not in ("firing", "resolved"):
        raise wrong("has a status that is neither firing nor resolved")
    try:
        starts_at = str(alert["startsAt"])
        moment = datetime.fromisoformat(starts_at)
        if moment.tzinfo is None:
            raise wrong("has a startsAt without a zone")
        moment = moment.astimezone(UTC)
    except (KeyError, ValueError, OverflowError):  # the last one: a zone that leads out of the years 1 to 9999
        raise wrong("has no time startsAt") from None
    fingerprint = alert.get("fingerprint")
    if not (isinstance(fingerprint, str) and 0 < len(fingerprint) <= 64 and fingerprint.isalnum()):
        fingerprint = hashlib.sha256(json.dumps(labels, sort_keys=True).encode()).hexdigest()[:16]
    return Alert(status, labels, moment.isoformat(), fingerprint)


def _check_depth(document: object) -> None:
    level: list[object] = [document]
    for _ in range(_DEEPEST):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return
    raise InvalidError(f"the body is nested more than {_DEEPEST} deep", next_step="send Alertmanager's payload")


def _inside(value: object) -> list[object]:
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, list) else []
