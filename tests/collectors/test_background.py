"""Periodic sources on real connections (libvirt's test driver); a call that hangs is a part that waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import pytest

from collectors.background import Background
from collectors.connection import Opener, Session
from collectors.lanes import LanePool, Slots
from collectors.periodic import Part, RunningDomain, Scope, in_words
from collectors.snapshot import Record, Subject

SCOPE = Scope((RunningDomain("u1", 1, "one"), RunningDomain("u2", 2, "two")), frozenset({"u2"}))


class Pools:
    """A source whose parts can be made to hang or to fail."""

    collector = "pools"
    period_s = 0.2
    deadline_s = 0.3

    def __init__(self) -> None:
        self.names = ["a", "b", "c"]
        self.held: dict[str, threading.Event] = {}
        self.broken: set[str] = set()
        self.reads: list[str] = []
        self.scopes: list[Scope] = []

    def parts(self, session: Session, scope: Scope) -> Sequence[str]:
        assert session.connection.isAlive()
        self.scopes.append(scope)
        return list(self.names)

    def read(self, session: Session, part: Part) -> Iterable[Record]:
        name = str(part)
        self.reads.append(name)
        if name in self.held:
            self.held[name].wait(30)
        if name in self.broken:
            raise ValueError(f"{name} is broken")
        yield Record(Subject("pool", (name,), (("pool", name),)), "pools", {"pool.capacity": 1}, time.monotonic())


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, f"not within {timeout_s} s: {what}"
        time.sleep(0.01)


class Running:
    def __init__(self, *sources: Pools, slots: Slots | None = None) -> None:
        self.slots = slots or Slots()
        self.pool = LanePool(Opener("test:///default"), 2, self.slots, "background")
        self.background = Background(self.pool, sources)
        self.background.start()

    def names(self) -> list[str]:
        return sorted(r.subject.name for r in self.background.records({}))


@pytest.fixture
def pools() -> Pools:
    return Pools()


@pytest.fixture
def running(pools: Pools) -> Iterator[Running]:
    made = Running(pools)
    yield made
    for event in pools.held.values():
        event.set()
    made.background.stop()


def test_reads_nothing_before_libvirt_answered_and_then_carries_what_was_read(running: Running, pools: Pools) -> None:
    time.sleep(0.1)
    assert pools.scopes == []
    running.background.saw(SCOPE)
    wait_for(lambda: running.names() == ["a", "b", "c"], "three pools")
    wait_for(lambda: running.background.status().get("pools", (False, 0.0))[0], "success")
    assert [d.uuid for d in pools.scopes[0].healthy] == ["u1"]
    count = len(pools.scopes)
    wait_for(lambda: len(pools.scopes) > count + 1, "further periods")
    assert running.names() == ["a", "b", "c"]


def test_a_part_that_hangs_costs_itself_only_and_is_asked_once(running: Running, pools: Pools) -> None:
    running.background.saw(SCOPE)
    wait_for(lambda: running.names() == ["a", "b", "c"], "three pools")
    pools.held["b"] = threading.Event()
    wait_for(lambda: running.names() == ["a", "c"], "b gone, the others kept")
    asked = pools.reads.count("b")
    cycles = len(pools.scopes)
    wait_for(lambda: len(pools.scopes) > cycles + 3, "further periods")
    wait_for(lambda: running.names() == ["a", "c"], "the others still read")
    assert pools.reads.count("b") == asked
    assert running.pool.stuck == 1
    assert not running.background.status()["pools"][0]
    pools.held.pop("b").set()
    wait_for(lambda: running.names() == ["a", "b", "c"], "b back")
    wait_for(lambda: running.pool.stuck == 0 and running.slots.left == 6, "lane and slot back")
    wait_for(lambda: running.background.status()["pools"][0], "success again")


def test_a_part_that_fails_or_is_no_longer_listed_goes(running: Running, pools: Pools) -> None:
    running.background.saw(SCOPE)
    wait_for(lambda: running.names() == ["a", "b", "c"], "three pools")
    pools.broken = {"c"}
    wait_for(lambda: running.names() == ["a", "b"], "c gone")
    pools.names = ["b", "c"]
    wait_for(lambda: running.names() == ["b"], "a gone")


def test_the_log_names_the_part_that_failed(running: Running, pools: Pools, caplog: pytest.LogCaptureFixture) -> None:
    pools.broken = {"c"}
    running.background.saw(SCOPE)
    wait_for(lambda: "pools: c: " in caplog.text, "c named")


@pytest.mark.parametrize(("part", "words"), [
    (RunningDomain("4999cf16", 5, "web"), "domain web"), (("network", "default"), "network default"),
    (("networks", ""), "networks"), ("a pool", "a pool")])
def test_parts_in_words(part: Part, words: str) -> None:
    assert in_words(part) == words


def test_nothing_stands_while_libvirt_does_not_answer(running: Running, pools: Pools) -> None:
    running.background.saw(SCOPE)
    wait_for(lambda: running.names() == ["a", "b", "c"], "three pools")
    running.background.saw(None)
    assert running.names() == []
    assert running.background.status() == {}
    running.background.saw(SCOPE)
    wait_for(lambda: running.names() == ["a", "b", "c"], "read again")


def test_the_sampler_keeps_the_last_slot(pools: Pools) -> None:
    slots = Slots(2)
    assert slots.take()
    running = Running(pools, slots=slots)
    try:
        running.background.saw(SCOPE)
        time.sleep(0.3)
        assert pools.scopes == []
        slots.give()
        wait_for(lambda: running.names() == ["a", "b", "c"], "read once there is room")
    finally:
        running.background.stop()


def test_records_of_domains_that_ended_are_left_out(pools: Pools) -> None:
    class Jobs(Pools):
        def read(self, session: Session, part: Part) -> Iterable[Record]:
            for uuid, id_ in (("u1", 1), ("u2", 2)):
                yield Record(Subject("domain", (uuid, id_), (("domain", uuid),)), "jobs", {}, time.monotonic())

    jobs = Jobs()
    jobs.names = ["all"]
    running = Running(jobs)
    try:
        running.background.saw(SCOPE)
        wait_for(lambda: len(list(running.background.records({("u1", 1): None, ("u2", 2): None}))) == 2, "both")
        assert [r.subject.name for r in running.background.records({("u1", 1): None, ("u2", 3): None})] == ["u1"]
    finally:
        running.background.stop()
