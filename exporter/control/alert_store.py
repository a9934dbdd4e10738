"""What rules must remember over a kill -9: alerts that wait, and every act with its state. SQLite in control's folder.

A row of `acts` is unique by (rule, fingerprint, starts_at, phase), so an alert that is delivered twice acts once. It is
set to `acting` and on the disk before libvirt is asked; what is found `acting` at a start is `unknown` from then on.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.control.errors import NotFoundError, RefusedError, UnreachableError
from exporter.control.webhook import Alert

_KEPT_S = 90 * 86400.0
MOST_WAITING = 10_000
MOST_WAITING_BYTES = 32 << 20
"""Alerts in the queue; what comes above it is told to come again, and Alertmanager does."""
MOST_ACT_BYTES = 64 << 20
"""Alerts of acts that ended; the oldest above it are forgotten, as firings that are over above MOST_ENDED."""
MOST_ENDED = 200_000
_SCHEMA = """
CREATE TABLE IF NOT EXISTS alerts (id INTEGER PRIMARY KEY, received_s REAL NOT NULL, alert TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS acts (
  id INTEGER PRIMARY KEY, rule TEXT NOT NULL, fingerprint TEXT NOT NULL, starts_at TEXT NOT NULL, phase TEXT NOT NULL,
  alert TEXT NOT NULL, domain TEXT NOT NULL, uuid TEXT NOT NULL, state TEXT NOT NULL, made_s REAL NOT NULL,
  changed_s REAL NOT NULL, due_s REAL NOT NULL DEFAULT 0, attempts INTEGER NOT NULL DEFAULT 0,
  by TEXT NOT NULL DEFAULT '', told TEXT NOT NULL DEFAULT '',
  UNIQUE (rule, fingerprint, starts_at, phase));
CREATE INDEX IF NOT EXISTS acts_by_state ON acts (state);
CREATE INDEX IF NOT EXISTS acts_by_change ON acts (changed_s);
CREATE TABLE IF NOT EXISTS ways_back (act INTEGER PRIMARY KEY, steps TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS ended (
  fingerprint TEXT NOT NULL, starts_at TEXT NOT NULL, at_s REAL NOT NULL, PRIMARY KEY (fingerprint, starts_at));
CREATE TABLE IF NOT EXISTS breakers (rule TEXT PRIMARY KEY, failures INTEGER NOT NULL, is_open INTEGER NOT NULL);
"""
_COLUMNS = ("id, rule, fingerprint, starts_at, phase, alert, domain, uuid, state, made_s, changed_s, due_s, attempts,"
            " by, told")  # fmt: skip


@dataclass(frozen=True)
class RuleAct:
    """One act of a rule. `phase` is do or undo; times are seconds since the epoch.

    `due_s` is when it is taken up again, and of a pending one when it expires. `told` is the outcome in words; of a
    pending one what would be done.
    """

    id: int
    rule: str
    fingerprint: str
    starts_at: str
    phase: str
    alert: Alert
    domain: str
    uuid: str
    state: str
    made_s: float
    changed_s: float
    due_s: float
    attempts: int
    by: str
    told: str


class AlertStore:
    """Any thread, any process. Raises UnreachableError where the file cannot be used.

    `make` False is for who only looks: where there is no file, none is made, and nothing is remembered.
    """

    def __init__(self, folder: Path, *, make: bool = True) -> None:
        self.path = folder / "alerts.db"
        self._lock = threading.Lock()
        try:
            if make:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            place = self.path if make or self.path.exists() else ":memory:"
            self._database = sqlite3.connect(place, timeout=20, check_same_thread=False, isolation_level=None)
            if place == self.path:
                self.path.chmod(0o600)
            self._database.row_factory = sqlite3.Row
            for statement in ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL"):
                self._database.execute(statement)
            self._database.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise UnreachableError(f"the store of alerts {self.path} cannot be used ({error})",
                                   next_step="make room, or run as the account that owns it") from error  # fmt: skip

    def close(self) -> None:
        with self._lock:
            self._database.close()

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._database.execute("BEGIN IMMEDIATE")
                try:
                    yield self._database
                except BaseException:
                    self._database.execute("ROLLBACK")
                    raise
                self._database.execute("COMMIT")
            except sqlite3.Error as error:
                raise UnreachableError(f"the store of alerts {self.path} failed ({error})",
                                       next_step="make room on its disk") from error  # fmt: skip

    # ---- alerts that wait

    def put(self, alerts: list[Alert], now_s: float) -> None:
        """All of them, safe on the disk when this returns. Raises UnreachableError where too many wait already."""
        rows = [(now_s, json.dumps(alert.as_json())) for alert in alerts]
        with self._using() as database:
            waiting, size = database.execute("SELECT count(*), total(length(alert)) FROM alerts").fetchone()
            if waiting + len(rows) > MOST_WAITING or size + sum(len(row[1]) for row in rows) > MOST_WAITING_BYTES:
                raise UnreachableError(f"{waiting} alerts wait already, and no more than {MOST_WAITING} or "
                                       f"{MOST_WAITING_BYTES >> 20} MiB are kept",
                                       next_step="send them again later; see what holds the rules in the log")
            database.executemany("INSERT INTO alerts (received_s, alert) VALUES (?, ?)", rows)

    def oldest(self) -> tuple[int, float, Alert] | None:
        """Its id, when it was received, the alert."""
        with self._using() as database:
            row = database.execute("SELECT id, received_s, alert FROM alerts ORDER BY id LIMIT 1").fetchone()
        return (row[0], row[1], _alert(row[2])) if row else None

    def taken(self, number: int) -> None:
        """It is dealt with."""
        with self._using() as database:
            database.execute("DELETE FROM alerts WHERE id = ?", (number,))

    def waiting(self) -> int:
        with self._using() as database:
            return int(database.execute("SELECT count(*) FROM alerts").fetchone()[0])

    def end(self, alert: Alert, now_s: float) -> None:
        """This firing of the alert is over: what still says that it fires came late, or is played again."""
        with self._using() as database:
            database.execute("INSERT OR IGNORE INTO ended VALUES (?, ?, ?)",
                             (alert.fingerprint, alert.starts_at, now_s))  # fmt: skip

    def has_ended(self, alert: Alert) -> bool:
        with self._using() as database:
            found = database.execute("SELECT 1 FROM ended WHERE fingerprint = ? AND starts_at = ?",
                                     (alert.fingerprint, alert.starts_at)).fetchone()  # fmt: skip
        return found is not None

    # ---- acts

    def add(self, rule: str, alert: Alert, phase: str, domain: str, uuid: str, state: str, now_s: float,
            told: str = "", due_s: float = 0.0) -> int | None:  # fmt: skip
        """The new act's id; None where there is one already for this firing of the alert."""
        with self._using() as database:
            done = database.execute(
                "INSERT OR IGNORE INTO acts (rule, fingerprint, starts_at, phase, alert, domain, uuid, state, made_s,"
                " changed_s, told, due_s) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (rule, alert.fingerprint, alert.starts_at, phase, json.dumps(alert.as_json()), domain, uuid, state,
                 now_s, now_s, told[:2000], due_s))  # fmt: skip
            return done.lastrowid if done.rowcount else None

    def find(self, rule: str, alert: Alert, phase: str = "do") -> RuleAct | None:
        """The act of this rule on this firing of the alert."""
        found = self._acts("rule = ? AND fingerprint = ? AND starts_at = ? AND phase = ?",
                           (rule, alert.fingerprint, alert.starts_at, phase))  # fmt: skip
        return found[0] if found else None

    def get(self, number: int) -> RuleAct:
        """Raises NotFoundError."""
        found = self._acts("id = ?", (number,))
        if not found:
            raise NotFoundError(f"there is no action {number}", next_step="list them with 'control pending list'")
        return found[0]

    def in_state(self, *states: str) -> list[RuleAct]:
        """Oldest first."""
        return self._acts(f"state IN ({', '.join('?' * len(states))}) ORDER BY id", states)

    def since(self, since_s: float) -> list[RuleAct]:
        """Those begun since then, or asked for, or told of: what budgets and cool-downs look at."""
        states = ("acting", "done", "failed", "unknown", "retry", "pending", "approved", "dry-run")
        return self._acts(f"changed_s >= ? AND state IN {states}", (since_s,))

    def in_vain(self, rule: str, since_s: float) -> int:
        """How many acts of the rule came to nothing since then: withdrawn, refused, or too old."""
        with self._using() as database:
            (found,) = database.execute(
                "SELECT count(*) FROM acts WHERE changed_s >= ? AND rule = ? AND phase = 'do' AND"
                " state IN ('cancelled', 'refused', 'expired')", (since_s, rule)).fetchone()  # fmt: skip
        return int(found)

    def last_changes(self) -> dict[str, float]:
        """Rule to the time of the last change of an act that was begun or told of."""
        with self._using() as database:
            rows = database.execute("SELECT rule, max(changed_s) FROM acts WHERE state IN ('done', 'failed', 'unknown',"
                                    " 'dry-run') GROUP BY rule").fetchall()  # fmt: skip
        return {rule: changed_s for rule, changed_s in rows}

    def _acts(self, condition: str, values: tuple[object, ...]) -> list[RuleAct]:
        with self._using() as database:
            rows = database.execute(f"SELECT {_COLUMNS} FROM acts WHERE {condition}", values).fetchall()
        return [RuleAct(**{**dict(row), "alert": _alert(row["alert"])}) for row in rows]

    def set_state(self, number: int, state: str, now_s: float, told: str = "", due_s: float = 0.0,
                  more_attempts: int = 0) -> None:  # fmt: skip
        with self._using() as database:
            database.execute(
                "UPDATE acts SET state = ?, changed_s = ?, told = ?, due_s = ?, attempts = attempts + ? WHERE id = ?",
                (state, now_s, told[:2000], due_s, more_attempts, number))  # fmt: skip

    def decide(self, number: int, state: str, by: str, now_s: float) -> RuleAct:
        """A person's word on a pending act: approved or refused. Raises NotFoundError, RefusedError if too late."""
        act = self.get(number)
        if act.state == "pending" and act.due_s < now_s:
            raise RefusedError(f"action {number} has expired", next_step="it comes again when the alert fires anew")
        with self._using() as database:
            done = database.execute(
                "UPDATE acts SET state = ?, by = ?, changed_s = ?, due_s = 0 WHERE id = ? AND state = 'pending'",
                (state, by, now_s, number))  # fmt: skip
            decided = done.rowcount
        act = self.get(number)
        if not decided:
            raise RefusedError(f"action {number} is {act.state}, and no longer pending", next_step="look at it")
        return act

    def refusals(self) -> list[RuleAct]:
        """What a person refused since this was asked last."""
        found = self._acts("state = 'refused' AND told != 'refused'", ())
        for act in found:
            self.set_state(act.id, "refused", act.changed_s, "refused")
        return found

    def interrupt(self, now_s: float) -> list[RuleAct]:
        """At a start: what a dead process was doing is unknown from now on; it is not repeated."""
        left = self.in_state("acting")
        for act in left:
            self.set_state(act.id, "unknown", now_s, "the service ended in the middle; it is not repeated")
        return left

    def forget_old(self, now_s: float) -> None:
        """What ended three months ago, or is too much; an alert that fires for so long may be acted upon once more."""
        before_s = now_s - _KEPT_S
        over = "state NOT IN ('pending', 'approved', 'retry', 'acting')"
        with self._using() as database:
            database.execute(f"DELETE FROM acts WHERE changed_s < ? AND {over}", (before_s,))
            database.execute("DELETE FROM acts WHERE id IN (SELECT id FROM (SELECT id, sum(length(alert)) OVER"
                             f" (ORDER BY changed_s DESC, id DESC) AS size FROM acts WHERE {over}) WHERE size > ?)",
                             (MOST_ACT_BYTES,))  # fmt: skip
            database.execute("DELETE FROM ended WHERE at_s < ?", (before_s,))
            database.execute("DELETE FROM ended WHERE rowid IN (SELECT rowid FROM ended ORDER BY at_s DESC, rowid DESC"
                             " LIMIT -1 OFFSET ?)", (MOST_ENDED,))  # fmt: skip
            database.execute("DELETE FROM ways_back WHERE act NOT IN (SELECT id FROM acts)")

    def keep_way_back(self, number: int, steps: list[Any]) -> None:
        """The operations that undo an act, each with `operation` and `parameters`."""
        with self._using() as database:
            database.execute("INSERT OR REPLACE INTO ways_back VALUES (?, ?)", (number, json.dumps(steps)))

    def way_back(self, number: int) -> list[Any]:
        with self._using() as database:
            row = database.execute("SELECT steps FROM ways_back WHERE act = ?", (number,)).fetchone()
        return list(json.loads(row[0])) if row else []

    # ---- circuit breakers

    def failures(self) -> dict[str, tuple[int, bool]]:
        """Rule to its failures in a row, and whether its circuit breaker is open."""
        with self._using() as database:
            rows = database.execute("SELECT rule, failures, is_open FROM breakers").fetchall()
        return {rule: (count, bool(is_open)) for rule, count, is_open in rows}

    def count_outcome(self, rule: str, failed: bool, limit: int) -> bool:
        """Counts a run; whether its breaker opened by it."""
        with self._using() as database:
            row = database.execute("SELECT failures, is_open FROM breakers WHERE rule = ?", (rule,)).fetchone()
            count, was_open = (row[0], bool(row[1])) if row else (0, False)
            count = count + 1 if failed else 0
            opened = failed and count >= limit and not was_open
            database.execute("INSERT OR REPLACE INTO breakers VALUES (?, ?, ?)", (rule, count, was_open or opened))
        return opened

    def close_breaker(self, rule: str) -> None:
        """A person lets the rule act again."""
        with self._using() as database:
            database.execute("DELETE FROM breakers WHERE rule = ?", (rule,))


def _alert(text: str) -> Alert:
    found = json.loads(text)
    return Alert(found["status"], found["labels"], found["startsAt"], found["fingerprint"])
