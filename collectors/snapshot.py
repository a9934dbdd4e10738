"""Record and Snapshot: what one sampling gave, frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .fields import Constant, Labels

Value = int | float | bool | str


@dataclass(frozen=True, slots=True)
class Subject:
    """What a Record is about: a domain, the host, the exporter itself.

    ``key`` is its identity while it runs: for a domain (uuid, id), so that a restart is another subject;
    ``labels`` stand first on each of its series.
    """

    kind: str
    key: tuple[str | int, ...]
    labels: Labels

    @property
    def name(self) -> str:
        return self.labels[0][1] if self.labels else ""


@dataclass(frozen=True, slots=True)
class Record:
    """Values of one subject, from one source, of one moment.

    ``stats`` maps libvirt's dotted keys to its values, in libvirt's units.  ``sampled_at_s`` is the monotonic
    time taken before the call: a call that was stuck for minutes must not look fresh.  ``constants`` are
    series compiled once while the tuple is the same object.
    """

    subject: Subject
    source: str
    stats: Mapping[str, Value]
    sampled_at_s: float
    constants: tuple[Constant, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One sampling of a target: frozen, handed from thread to thread without a lock.

    ``started_s`` and ``ended_s`` are monotonic, ``wall_time_s`` is the epoch's.  ``up`` says that libvirt
    answered.  ``success`` and ``duration_s`` are per collector.
    """

    sequence: int
    started_s: float
    ended_s: float
    wall_time_s: float
    up: bool
    records: tuple[Record, ...] = ()
    success: Mapping[str, bool] = field(default_factory=dict)
    duration_s: Mapping[str, float] = field(default_factory=dict)
