"""Which of the rules' skips are told one by one, and which are only counted: whoever may send alerts sends many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from exporter.control.webhook import Alert

TOLD_EVERY_S = 600.0
MOST_UNKNOWN = 100
"""Guests of a rule that are told of by the names which alerts give them. More share one count: names cost nothing."""


class Skip(NamedTuple):
    """A rule left an alert alone. `uuid` is empty where no guest was looked up, and `domain` is the alert's word."""

    rule: str
    alert: Alert
    domain: str
    uuid: str
    word: str
    why: str


class Key(NamedTuple):
    """What makes skips equal; without a guest it is shared by those of which too many are told already."""

    rule: str
    guest: str
    word: str
    looked_up: bool


@dataclass
class Counted:
    """Equal skips since the last one that was told: how often, when, and what the last one was."""

    key: Key
    skip: Skip
    told_s: float
    times: int = 0
    since_s: float = 0.0
    until_s: float = 0.0


class SkipCounts:
    """The first skip of a rule, guest and reason is told; what comes within TOLD_EVERY_S is counted.

    Nothing is told because another reason came in between: who alternates two would get one record each. The caller
    locks, and calls `told` or `retold` when a record is on the disk.
    """

    def __init__(self) -> None:
        self._counted: dict[Key, Counted] = {}
        """In the order in which they were told."""
        self._unknown: Counter[str] = Counter()

    def count(self, skip: Skip, now_s: float) -> bool:
        """Whether it was counted; False where it is to be told."""
        found = self._counted.get(self._key(skip))
        if found is None:
            return False
        found.skip, found.times = skip, found.times + 1
        found.since_s, found.until_s = found.since_s or now_s, now_s
        return True

    def told(self, skip: Skip, now_s: float) -> None:
        """It is written down, and equal ones are counted from here on."""
        self._add(Counted(self._key(skip), skip, now_s))

    def retold(self, counted: Counted, now_s: float) -> None:
        """The number is written down, and begins at 0 again."""
        self._drop(counted.key)
        self._add(Counted(counted.key, counted.skip, now_s))

    def due(self, now_s: float) -> Iterator[Counted]:
        """What is to be told now. What did not come again for as long is forgotten, and told at once the next time."""
        for counted in list(self._counted.values()):
            if abs(now_s - counted.told_s) < TOLD_EVERY_S:  # abs: a clock that was set back must not silence it
                return
            if counted.times:
                yield counted
            else:
                self._drop(counted.key)

    def of_guest(self, rule: str, *guests: str) -> Iterator[Counted]:
        """What was counted of it, to be told before what the rule does there; the next skip is a first one again."""
        for counted in list(self._counted.values()):
            if counted.key.rule == rule and counted.key.guest and counted.key.guest in guests:
                if counted.times:
                    yield counted
                self._drop(counted.key)

    def not_told(self) -> list[Counted]:
        """All that was counted."""
        return [counted for counted in self._counted.values() if counted.times]

    def _key(self, skip: Skip) -> Key:
        key = Key(skip.rule, (skip.uuid or skip.domain)[:300], skip.word, bool(skip.uuid))
        if skip.uuid or key in self._counted or self._unknown[skip.rule] < MOST_UNKNOWN:
            return key
        return key._replace(guest="")

    def _add(self, counted: Counted) -> None:
        self._counted[counted.key] = counted
        self._unknown[counted.key.rule] += not counted.key.looked_up

    def _drop(self, key: Key) -> None:
        if self._counted.pop(key, None) is not None:
            self._unknown[key.rule] -= not key.looked_up
