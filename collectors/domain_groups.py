"""The specialist groups of the bulk call, read beside the sampling, domain by domain.

Beside it, because their calls reach every guest's monitor, and because the vcpu and cpu-total groups, which bring
KVM's counters along, must not meet the kernel source's.  A domain that hangs or fails costs its own series.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from .bulk import group_bits, read_chunk
from .connection import Session
from .fields import Collector, Field, StateSet
from .periodic import RunningDomain, Scope
from .snapshot import Record, Subject, Value

PERIOD_S = 15.0
DEADLINE_S = 10.0
_INDEX = re.compile(r"(?<=\.)[0-9]+(?=\.|$)")

Rewrite = Callable[[Mapping[str, Value]], dict[str, Value]]


def domain_subject(domain: RunningDomain) -> Subject:
    """The Subject of a running domain's Records, the same as the sampler's."""
    return Subject("domain", (domain.uuid, domain.id), (("domain", domain.name),))


@dataclass(frozen=True)
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
        answer = read_chunk(session, (part.uuid,), self.mask)
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
