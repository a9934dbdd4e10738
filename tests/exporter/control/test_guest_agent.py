"""Whose turn it is with a guest agent: libvirt's limit for its answers is one a domain, and cannot be read."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any

import libvirt
import pytest

from collectors.agent_reading import AgentSource
from collectors.periodic import Reading, Scope
from exporter.control.errors import BusyError
from exporter.control.folders import Folders
from exporter.control.guest_agent import answer_limit, reading_turn
from exporter.control.locks import Locks
from tests.collectors.test_agent import PART, Clock, Domain, Session

BLOCK = libvirt.VIR_DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK


class NamedDomain(Domain):
    def UUIDString(self) -> str:  # noqa: N802 - the binding's name
        return PART.uuid

    def name(self) -> str:
        return PART.name


class SlowDomain(NamedDomain):
    """Answers when it is told to."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.is_asked, self.may_answer = threading.Event(), threading.Event()

    def guestInfo(self, kinds: int, flags: int) -> dict[str, Any]:  # noqa: N802 - the binding's name
        self.is_asked.set()
        assert self.may_answer.wait(60)
        return super().guestInfo(kinds, flags)


class OpenedSession(Session):
    def open(self) -> None:
        """It is."""


def test_the_reading_passes_over_an_agent_that_an_operation_uses(tmp_path: Path) -> None:
    folders, clock = Folders(tmp_path), Clock()
    domain = NamedDomain(clock)
    source = AgentSource(60.0, clock, lambda: 5000.0, partial(reading_turn, folders))
    session: Any = Session(domain)
    with answer_limit(domain, folders, 60):
        assert list(source.read(session, PART)) == []
    assert (domain.limits, domain.asked) == ([60, BLOCK], [])
    assert list(source.read(session, PART)) != []  # due still
    assert domain.limits == [60, BLOCK, 5, BLOCK]


def test_an_operation_waits_for_the_reading_and_then_is_busy(tmp_path: Path) -> None:
    folders, clock = Folders(tmp_path), Clock()
    domain = SlowDomain(clock)
    source = AgentSource(60.0, clock, lambda: 5000.0, partial(reading_turn, folders))
    reading = threading.Thread(target=lambda: list(source.read(Session(domain), PART)))  # type: ignore[arg-type]
    reading.start()
    assert domain.is_asked.wait(60)
    with pytest.raises(BusyError, match="guest agent of domain web"), answer_limit(domain, folders, 60, wait_s=0):
        pass
    domain.may_answer.set()
    with answer_limit(domain, folders, 60):
        assert domain.limits == [5, BLOCK, 60]
    reading.join(60)
    assert list(folders.locks.iterdir()) == []


def test_who_waits_for_a_turn_gets_the_one_that_others_see(tmp_path: Path) -> None:
    """The holder removes the file at the end: its lock would keep nobody out."""
    locks = Locks(Folders(tmp_path))
    first = locks.acquire("agent-u", "the agent", passing=True)
    got: list[Any] = []
    waiting = threading.Thread(target=lambda: got.append(locks.acquire("agent-u", "the agent", 60, passing=True)))
    files = Path("/proc/self/fd")
    waiting.start()
    while len([file for file in files.iterdir() if str(file.resolve()).endswith("/agent-u.lock")]) < 2:
        assert waiting.is_alive()
    first.release()
    waiting.join(60)
    with pytest.raises(BusyError):
        locks.acquire("agent-u", "the agent", passing=True)
    got[0].release()
    assert list((tmp_path / "locks").iterdir()) == []


def test_no_turn_is_taken_where_no_agent_is_there_to_be_asked(tmp_path: Path) -> None:
    folders, domain = Folders(tmp_path / "none"), NamedDomain(Clock())
    domain.connected = False
    source = AgentSource(60.0, domain.clock, lambda: 5000.0, partial(reading_turn, folders))
    session: Any = Session(domain)
    assert len(list(source.read(session, PART))) == 1
    assert not folders.state.exists()


def test_an_agent_that_is_not_asked_for_want_of_a_lock_is_told_of(tmp_path: Path, caplog: Any) -> None:
    """A file stands where the folder of the locks belongs; neither silence nor a traceback."""
    folders, domain = Folders(tmp_path / "none"), NamedDomain(Clock())
    folders.state.touch()
    source, session = AgentSource(60.0, domain.clock, turn=partial(reading_turn, folders)), OpenedSession(domain)
    reading = Reading(source, Scope(), [PART], frozenset())
    reading.work(session)  # type: ignore[arg-type]
    assert (domain.asked, reading.results, list(reading.failed)) == ([], {}, [PART])
    assert reading.failed[PART].startswith("the guest agent is not asked: ")
    assert not caplog.records
    folders.state.unlink()
    again = Reading(source, Scope(), [PART], frozenset())  # at once, though the period is not over
    again.work(session)  # type: ignore[arg-type]
    assert (again.failed, list(again.results)) == ({}, [PART])


def test_a_turn_that_ends_while_left_open_acts_are_looked_for(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    (folders.private(folders.locks) / "agent-u.lock").symlink_to(tmp_path / "gone")
    assert list(Locks(folders).left_open()) == []
