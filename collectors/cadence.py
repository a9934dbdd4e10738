"""Which statistics a domain is asked for at this sample, and what is carried from an earlier one.

The guests' monitors are what a sample costs (libvirtd and QEMU do the work, not we), so they are asked for block at
each sample and for balloon once a minute, and then only where the guest reports to it.  What the kernel source
serves is not asked of libvirt at all.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .bulk import group_bits
from .domain_xml import Definition
from .kernel import KERNEL_GROUPS, KernelSource, counts_interfaces
from .snapshot import Value

Key = tuple[str, int]
SLOW_S = 60.0
"""How often the balloon group is asked for; its values are carried for that long and no longer."""
_PHASES = 4
_BALLOON = "balloon."


@dataclass(frozen=True, slots=True)
class Carried:
    """Values of an earlier call, with the monotonic time taken before it."""

    sampled_at_s: float
    stats: dict[str, Value]


class Cadence:
    """Decides domain by domain.  ``kernel`` is None where the host's files are not ours to read.  One thread."""

    def __init__(self, groups: Iterable[str], kernel: KernelSource | None,
                 details: Callable[[str, int], Definition | None], slow_s: float = SLOW_S) -> None:
        self._groups = frozenset(groups)
        self._kernel = kernel
        self._details = details
        self._slow_s = slow_s
        self._due_s: dict[Key, float] = {}
        self._carried: dict[Key, Carried] = {}
        self._masks: dict[frozenset[str], int] = {}

    def mask(self, key: Key, now_s: float) -> int:
        """The bulk call's group bits for a domain (uuid, id) at this monotonic time."""
        groups = self._groups
        if self._kernel is not None and (self._kernel.serves(key) or not self._kernel.decided(key)):
            groups -= KERNEL_GROUPS  # while undecided neither gives them: the source of a counter never changes
        elif (definition := self._details(*key)) is None or not counts_interfaces(definition):
            groups -= {"interface"}  # libvirt would ask the switch, for up to five seconds: see ``switch_counters``
        if "balloon" in groups and not self._balloon_due(key, now_s):
            groups -= {"balloon"}
        mask = self._masks.get(groups)
        if mask is None:
            mask = self._masks[groups] = group_bits(groups)
        return mask

    def take(self, key: Key, stats: dict[str, Value], sampled_at_s: float, complete: bool) -> None:
        """Take the balloon values out of an answer to carry them; an answer in part ends what was carried."""
        found = {name: stats.pop(name) for name in [name for name in stats if name.startswith(_BALLOON)]}
        if not complete:
            self._carried.pop(key, None)
            self._due_s.pop(key, None)
        elif found:
            self._set_due(key, sampled_at_s)
            self._carried[key] = Carried(sampled_at_s, self._without_own(key, found))

    def carried(self, key: Key, now_s: float) -> Carried | None:
        """The balloon values of a domain, if they are young enough."""
        carried = self._carried.get(key)
        # A quarter more than the period: the next sample at which it is due may come that much later.
        if carried is None or now_s - carried.sampled_at_s > self._slow_s * (1 + 1 / _PHASES):
            return None
        return carried

    def forget(self, running: Iterable[Key]) -> None:
        """Drop what concerns domains that no longer run."""
        kept = set(running)
        self._due_s = {key: due_s for key, due_s in self._due_s.items() if key in kept}
        self._carried = {key: carried for key, carried in self._carried.items() if key in kept}

    def _balloon_due(self, key: Key, now_s: float) -> bool:
        if self._kernel is not None and self._kernel.serves(key):
            definition = self._details(*key)
            if definition is None or not definition.balloon_period_s:
                return False  # the kernel gives the rest, and the guest reports nothing
        return now_s >= self._due_s.get(key, 0.0)

    def _set_due(self, key: Key, now_s: float) -> None:
        """The second call comes at a domain's own phase of the period, so that not all are due at once."""
        phase = zlib.crc32(key[0].encode()) % _PHASES + 1
        share = 1.0 if key in self._due_s else phase / _PHASES
        self._due_s[key] = now_s + share * self._slow_s - 0.5

    def _without_own(self, key: Key, stats: dict[str, Value]) -> dict[str, Value]:
        """Without what each sample gives anew: the XML's sizes, and the kernel's RSS where it serves."""
        own = {"balloon.current", "balloon.maximum"}
        if self._kernel is not None and self._kernel.serves(key):
            own.add("balloon.rss")
        return {name: value for name, value in stats.items() if name not in own}
