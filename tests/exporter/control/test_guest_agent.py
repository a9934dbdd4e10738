"""Whose turn it is with a guest agent: libvirt's limit for its answers is one a domain, and cannot be read."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any

import libvirt
import pytest

from collectors.agent_reading import AgentSource
from exporter.control.errors import BusyError
from exporter.control.folders import Folders
from exporter.control.guest_agent import answer_limit, reading_turn
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
