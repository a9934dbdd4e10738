"""What the rules write to the audit trail: `rule-` records, beside the operations' own `begin` and `end`.

Of an act, and of what a person is asked for, each has a record of its own. Skips that are like one that was told are
counted (`rule_skips`), and their number told later.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from pydantic import JsonValue

from exporter.control.alert_store import RuleAct
from exporter.control.audit import Trail
from exporter.control.rule_skips import Counted, Skip, SkipCounts
from exporter.control.webhook import Alert


class RuleTrail:
    """Any thread. Raises UnreachableError, as the trail does; what was counted stays so until it is written."""

    def __init__(self, trail: Trail, clock: Callable[[], float] = time.time) -> None:
        self._trail = trail
        self._clock = clock
        self._lock = threading.Lock()
        self._skips = SkipCounts()

    def tell(self, what: str, rule: str, alert: Alert, domain: str, uuid: str, **facts: Any) -> None:
        """`what` happened to this rule's answer to this alert, for this guest; before it what was counted there."""
        with self._lock:
            self._write_counted(self._skips.of_guest(rule, uuid, domain))
            self._write(what, rule, alert, domain, uuid, **facts)

    def tell_of(self, act: RuleAct, what: str, **facts: Any) -> None:
        """The same, of an act."""
        self.tell(what, act.rule, act.alert, act.domain, act.uuid, **facts)

    def skipped(self, skip: Skip) -> None:
        """Told, or counted where an equal one was told a short while ago."""
        name = {"alertname": skip.alert.name[:300]}  # the other labels may be long, and are kept for a while
        skip = skip._replace(alert=replace(skip.alert, labels=name))
        with self._lock:
            self._write_counted(self._skips.due(self._clock()))
            if not self._skips.count(skip, self._clock()):
                self._write_skip(skip)
                self._skips.told(skip, self._clock())

    def tell_counted(self, *, all_of_it: bool = False) -> bool:
        """Tells what was counted for long enough, or all of it. Always False: there is nothing more to do."""
        with self._lock:
            self._write_counted(self._skips.not_told() if all_of_it else self._skips.due(self._clock()))
        return False

    def _write_counted(self, several: Iterable[Counted]) -> None:
        for counted in several:
            self._write_skip(counted.skip, times=counted.times, since=_iso(counted.since_s),
                             until=_iso(counted.until_s))  # fmt: skip
            self._skips.retold(counted, self._clock())

    def _write_skip(self, skip: Skip, **facts: Any) -> None:
        times = facts.get("times", 1)
        outcome = skip.why if times == 1 else f"{times} times like this: {skip.why}"
        self._write("skipped", skip.rule, skip.alert, skip.domain, skip.uuid, outcome=outcome, skipped=skip.word,
                    **facts)  # fmt: skip

    def _write(self, what: str, rule: str, alert: Alert, domain: str, uuid: str, **facts: Any) -> None:
        subject: dict[str, JsonValue] = {"kind": "domain", "name": domain[:300]}
        if uuid:
            subject["uuid"] = uuid
        self._trail.append(f"rule-{what}", {
            "rule": rule, "alert": alert.name[:300], "fingerprint": alert.fingerprint, "starts_at": alert.starts_at,
            "subject": subject, "way": "webhook", **facts,
        })  # fmt: skip


def _iso(moment_s: float) -> str:
    return datetime.fromtimestamp(moment_s, UTC).isoformat(timespec="milliseconds")
