"""Tests of the counters that only a switch has: one guest at a time, and nobody once it was slow."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from collectors.bulk import ChunkAnswer, DomainStats
from collectors.domain_xml import Definition, parse
from collectors.inventory import Inventory
from collectors.periodic import RunningDomain, Scope, UnreadError
from collectors.snapshot import Record, Value
from collectors.switch_counters import PAUSE_S, SLOW_S, SwitchCounterSource

TAP = "<interface type='bridge'><target dev='tap0'/></interface>"
PORT = "<interface type='vhostuser'><target dev='port0'/></interface>"
ANSWER: dict[str, Value] = {"net.count": 2, "net.0.name": "tap0", "net.0.rx.bytes": 1, "net.1.name": "port0",
                            "net.1.rx.bytes": 2}
SWITCHED, PLAIN = RunningDomain("u1", 1, "switched"), RunningDomain("u2", 2, "plain")


class Known(Inventory):
    def details(self, uuid: str, id: int) -> Definition | None:
        return parse(f"<domain type='kvm'><devices>{TAP}{PORT if uuid == 'u1' else ''}</devices></domain>")


class Host:
    """A source, what its libvirt does while it is asked, and a clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        self.asked: list[tuple[str, int]] = []
        self.during: Callable[[], object] = lambda: None
        self.source = SwitchCounterSource(Known(), lambda: self.now_s)
        monkeypatch.setattr("collectors.switch_counters.read_whole", self._answer)

    def _answer(self, _session: object, uuid: str, mask: int) -> ChunkAnswer:
        self.asked.append((uuid, mask))
        self.during()
        return ChunkAnswer(self.now_s, (DomainStats(uuid, 1, "switched", ANSWER, True),))

    def read(self) -> list[Record]:
        return list(self.source.read(None, SWITCHED))  # type: ignore[arg-type]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(monkeypatch)


def test_only_guests_that_have_such_an_interface_are_asked_and_only_these_are_kept(host: Host) -> None:
    assert host.source.parts(None, Scope((SWITCHED, PLAIN))) == [SWITCHED]  # type: ignore[arg-type]
    record, = host.read()
    assert record.stats == {"net.1.name": "port0", "net.1.rx.bytes": 2}
    assert host.asked == [("u1", 16)]  # the group alone, which takes no job


def test_nobody_is_asked_for_a_while_once_the_switch_was_slow(host: Host) -> None:
    def slow() -> None:
        host.now_s += SLOW_S

    host.during = slow
    assert host.read()
    with pytest.raises(UnreadError):
        host.read()
    host.now_s += PAUSE_S
    assert host.read()
    assert len(host.asked) == 2


def test_nobody_is_asked_while_a_call_is_out(host: Host) -> None:
    begun, answered = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        answered.wait(60)

    host.during = wait
    first = threading.Thread(target=host.read)
    first.start()
    assert begun.wait(60)
    with pytest.raises(UnreadError):
        host.read()
    answered.set()
    first.join(60)
    host.during = lambda: None
    assert host.read()
