"""The specialist groups of the bulk call, read beside the sampling, domain by domain.

Beside it, because their calls reach every guest's monitor, and because the vcpu and cpu-total groups, which bring
KVM's counters along, must not meet the kernel source's.  A domain that hangs or fails costs its own series.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from .bulk import GROUP_BITS, ChunkAnswer, group_bits, read_chunk
from .connection import Session
from .fields import Collector, Field, StateSet
from .periodic import RunningDomain, Scope
from .snapshot import Record, Subject, Value

PERIOD_S = 15.0
DEADLINE_S = 10.0
AGAIN_AFTER_S = (0.03, 0.1, 0.3)
"""Pauses before a domain is asked again whose job somebody held: the sampling, say, or another of these sources."""
_HUNG_AFTER_S = 0.4
# Groups that come of the monitor and leave no trace in an answer where they are missing.
_TRACELESS = group_bits(("vcpu", "vm", "iothread", "dirtyrate"))
_INDEX = re.compile(r"(?<=\.)[0-9]+(?=\.|$)")

Rewrite = Callable[[Mapping[str, Value]], dict[str, Value]]


def domain_subject(domain: RunningDomain) -> Subject:
    """The Subject of a running domain's Records, the same as the sampler's."""
    return Subject("domain", (domain.uuid, domain.id), (("domain", domain.name),))


def read_whole(session: Session, uuid: str, mask: int, flags: int = 0) -> ChunkAnswer:
    """One domain's statistics, asked again a few times where its job was taken; the last answer may be in part.

    Without it a source would lose a domain's series for a whole period to a call that took milliseconds.
    """
    if mask & _TRACELESS:
        mask |= GROUP_BITS["balloon"]  # tells a whole answer from one in part
    for pause_s in (*AGAIN_AFTER_S, None):
        answer = read_chunk(session, (uuid,), mask, flags=flags)
        taken = [d.stats.get("monitor.busy", 0) for d in answer.domains if not d.complete]
        if pause_s is None or not taken or any(isinstance(s, int | float) and s >= _HUNG_AFTER_S for s in taken):
            break
        time.sleep(pause_s)
    return answer


@dataclass
class GroupsSource:
    """A periodic Source that asks the bulk call for some groups and keeps what the collector declares.

    ``rewrite`` makes the keys that are kept out of all that came, where the collector reads other keys than
    libvirt's own.
    """

    collector: str
    mask: int
    sources: frozenset[str]
    rewrite: Rewrite | None = None
    period_s: float = PERIOD_S
    deadline_s: float = DEADLINE_S

    def parts(self, session: Session, scope: Scope) -> Sequence[RunningDomain]:
        return scope.healthy

    def read(self, session: Session, part: object) -> Iterable[Record]:
        assert isinstance(part, RunningDomain)
        answer = read_whole(session, part.uuid, self.mask)
        for domain in answer.domains:
            if domain.id != part.id:
                continue  # it was started anew meanwhile
            stats = self.rewrite(domain.stats) if self.rewrite is not None else self._declared(domain.stats)
            if stats:
                yield Record(domain_subject(part), self.collector, stats, answer.sampled_at_s)

    def _declared(self, stats: Mapping[str, Value]) -> dict[str, Value]:
        return {key: value for key, value in stats.items() if _INDEX.sub("*", key) in self.sources}


def groups_source(collector: Collector, groups: Sequence[str], rewrite: Rewrite | None = None) -> GroupsSource:
    """The Source of a collector whose declarations read the keys of these groups."""
    patterns: set[str] = set()
    for declaration in collector.declarations:
        if isinstance(declaration, Field):
            patterns |= {declaration.source, declaration.label_key, declaration.inner_label_key}
        elif isinstance(declaration, StateSet):
            patterns.add(declaration.source)
    sources = frozenset(pattern.replace("<n>", "*").replace("<m>", "*") for pattern in patterns)
    return GroupsSource(collector.name, group_bits(groups), sources, rewrite)
