"""Counters of vhost-user interfaces, which only their switch has: libvirt runs ovs-vsctl for each, up to five seconds.

Off by default, since libvirt holds the guest locked meanwhile: while a switch does not answer, its list of all guests
waits, too, and with it every page.  So one guest is asked at a time, beside the sampling, and once one was slow nobody
is for a while.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence

from .bulk import GROUP_BITS
from .connection import Session
from .domain_groups import domain_subject, read_whole
from .fields import Collector
from .inventory import Inventory
from .kernel import VHOST_USER, counts_interfaces
from .periodic import RunningDomain, Scope, UnreadError
from .snapshot import Record, Value

SLOW_S = 3.0
"""A call that took this long: libvirt gives the switch five seconds for each interface, and it answers in some 0.02."""
PAUSE_S = 300.0
"""So long nobody is asked then."""

SWITCH_COUNTERS = Collector(
    name="interface.vhostuser",
    help="The interface series of vhost-user interfaces, which libvirt has from Open vSwitch, every 15 seconds. While "
         "the switch does not answer, libvirt may answer nobody for five seconds an interface, every five minutes.",
    declarations=(),
    default=False)


class SwitchCounterSource:
    """Asks libvirt for the interfaces of guests that have vhost-user ones, and keeps these."""

    collector = SWITCH_COUNTERS.name
    period_s = 15.0
    deadline_s = 10.0

    def __init__(self, inventory: Inventory, clock: Callable[[], float] = time.monotonic) -> None:
        self._inventory = inventory
        self._clock = clock
        self._asking = threading.Lock()
        self._paused_until_s = float("-inf")

    def parts(self, session: Session, scope: Scope) -> Sequence[RunningDomain]:
        return [d for d in scope.healthy if not counts_interfaces(self._inventory.details(d.uuid, d.id))]

    def read(self, session: Session, part: object) -> Iterable[Record]:
        assert isinstance(part, RunningDomain)
        # A call that is late is left to itself and still holds this: no second guest is locked besides.
        if not self._asking.acquire(blocking=False):
            raise UnreadError("the switch has not answered an earlier call")
        try:
            begun_s = self._clock()
            if begun_s < self._paused_until_s:
                raise UnreadError("the switch was slow, and is left alone for a while")
            answer = read_whole(session, part.uuid, GROUP_BITS["interface"])
            if self._clock() - begun_s >= SLOW_S:
                self._paused_until_s = self._clock() + PAUSE_S
        finally:
            self._asking.release()
        wanted = self._devices(part)
        for domain in answer.domains:
            stats = _of_devices(domain.stats, wanted) if domain.id == part.id else {}
            if stats:
                yield Record(domain_subject(part), self.collector, stats, answer.sampled_at_s)

    def _devices(self, part: RunningDomain) -> frozenset[str]:
        definition = self._inventory.details(part.uuid, part.id)
        interfaces = definition.interfaces if definition is not None else ()
        return frozenset(i.target_device for i in interfaces if i.type == VHOST_USER and i.target_device)


def _of_devices(stats: dict[str, Value], wanted: frozenset[str]) -> dict[str, Value]:
    """Only these devices': the kernel counts the others."""
    kept = {key.removesuffix("name") for key, name in stats.items()
            if key.startswith("net.") and key.endswith(".name") and name in wanted}
    return {key: value for key, value in stats.items() if key[:key.find(".", 4) + 1] in kept}
