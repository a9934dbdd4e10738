"""What the rules write to the audit trail: `rule-` records, beside the operations' own `begin` and `end`."""

from __future__ import annotations

from typing import Any

from pydantic import JsonValue

from exporter.control.alert_store import RuleAct
from exporter.control.audit import Trail
from exporter.control.webhook import Alert


class RuleTrail:
    """Any thread. Raises UnreachableError, as the trail does."""

    def __init__(self, trail: Trail) -> None:
        self._trail = trail

    def tell(self, what: str, rule: str, alert: Alert, domain: str, uuid: str, **facts: Any) -> None:
        """`what` happened to this rule's answer to this alert, for this guest."""
        subject: dict[str, JsonValue] = {"kind": "domain", "name": domain[:300]}
        if uuid:
            subject["uuid"] = uuid
        self._trail.append(f"rule-{what}", {
            "rule": rule, "alert": alert.name[:300], "fingerprint": alert.fingerprint, "starts_at": alert.starts_at,
            "subject": subject, "way": "webhook", **facts,
        })  # fmt: skip

    def tell_of(self, act: RuleAct, what: str, **facts: Any) -> None:
        """The same, of an act."""
        self.tell(what, act.rule, act.alert, act.domain, act.uuid, **facts)
