"""Slow reads beside the sampling: jobs, pools, networks, snapshots.  Periodic, in lanes of their own, with deadlines.

How to add one: a ``Collector`` with the Fields as ever (no ``groups``), and a ``Source`` that reads it:

- ``collector`` is the Collector's name, ``period_s`` how often it is read, ``deadline_s`` what one part may take.
- ``parts(session, scope)`` lists what is read one by one: pool names, domain UUIDs.  Only calls that answer for the
  whole host (or none: ``scope`` has the running domains).  What there is only one of is one part, say ``("host",)``.
- ``read(session, part)`` makes the libvirt calls for one part and gives its Records.  A pool on dead storage or a
  mute agent then costs its own part: the call is left to itself, the part is not asked again until it comes back,
  and the other parts go on in another lane.  An error that libvirt reports costs its part only, too.

A part that nothing speaks for asking may give again what it gave last, within the promises of its ``Field``s: a call
a domain each period is most of what an exporter costs.  ``share`` spreads such calls.  A source that keeps things
has ``invalidate`` and ``invalidate_all``, which events call.

Both run in a lane's thread, with ``session.connection`` the lane's own read-only connection, which is opened anew
when it died: never keep it, nor objects found on it.  Neither may sleep or wait for anything but libvirt.

A part's Records stand on every page until the part is read again, at most two periods; they go at once when a
read fails or is late, when the part is no longer listed, when libvirt does not answer, and, for a domain, when it
ends or hangs: its Records have the domain's own Subject (``key`` is (uuid, id), kind ``domain``).
"""

from __future__ import annotations

import logging
import threading
import time
import zlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import libvirt

from .connection import ConnectionDownError, Session
from .snapshot import Record

log = logging.getLogger(__name__)

Part = Hashable
LISTING = object()
"""Stands for the call of ``parts`` itself where a part is named."""


@dataclass(frozen=True, slots=True)
class RunningDomain:
    """A running domain of the last sample."""

    uuid: str
    id: int
    name: str

    def __str__(self) -> str:
        return f"domain {self.name:.200}"


@dataclass(frozen=True, slots=True)
class Scope:
    """What the last sample knows.  ``hung`` are the uuids whose monitor is held up: ask nothing of their QEMU.

    ``wants`` says by uuid and name which domains are watched at all; those that run are chosen already.
    """

    running: tuple[RunningDomain, ...] = ()
    hung: frozenset[str] = frozenset()
    wants: Callable[[str, str], bool] = lambda uuid, name: True

    @property
    def healthy(self) -> tuple[RunningDomain, ...]:
        return tuple(domain for domain in self.running if domain.uuid not in self.hung)


class UnreadError(Exception):
    """A source could not ask for a part, and says why: no defect, and no call of libvirt's that failed."""


class Source(Protocol):
    """A periodic reading; see the module's text."""

    @property
    def collector(self) -> str: ...
    @property
    def period_s(self) -> float: ...
    @property
    def deadline_s(self) -> float: ...
    def parts(self, session: Session, scope: Scope) -> Sequence[Part]: ...
    def read(self, session: Session, part: Part) -> Iterable[Record]: ...


@runtime_checkable
class Keeping(Protocol):
    """A Source that keeps what it read of a domain until an event or its own clock says otherwise.  Any thread."""

    def invalidate(self, uuid: str) -> None: ...
    def invalidate_all(self) -> None: ...


def in_words(part: Part) -> str:
    """A part as the log names it."""
    return " ".join(filter(None, map(str, part))) if isinstance(part, tuple) else str(part)


def share(uuid: str) -> float:
    """A domain's own number from 0 to 1, so that what is due once in a while is not due for all at once."""
    return zlib.crc32(uuid.encode()) / 2**32


class Reading:
    """One call's progress.  Filled by the lane's thread until ``leave``, looked at by the background thread."""

    def __init__(self, source: Source, scope: Scope, parts: Sequence[Part] | None, skip: frozenset[Part]) -> None:
        self.source = source
        self._scope = scope
        self._lock = threading.Lock()
        self._rest = list(reversed(parts)) if parts is not None else []
        self.listed: tuple[Part, ...] | None = None  # set by a call that lists
        self.skip = skip  # parts whose last call has not come back
        self._lists = parts is None
        self._left = False
        self.part: Part = LISTING
        self.since_s: float | None = None  # a call still opening its connection is late, too: see ``late``
        self.results: dict[Part, tuple[float, tuple[Record, ...]]] = {}
        self.failed: dict[Part, str] = {}

    def work(self, session: Session) -> None:
        """In the lane.  Raises what ends the whole call: the connection is gone, or listing failed."""
        self.since_s = time.monotonic()
        session.open()
        if self._lists:
            self.listed = tuple(self.source.parts(session, self._scope))
            with self._lock:
                self._rest = [] if self._left else [part for part in reversed(self.listed) if part not in self.skip]
        while (part := self._next()) is not None:
            self._read(session, part[0])

    def leave(self) -> list[Part]:
        """Give the present part up; what was still to be read besides."""
        with self._lock:
            self._left = True
            rest, self._rest = self._rest, []
            return rest[::-1]

    def late(self, now_s: float, started_s: float) -> bool:
        """Whether the present part takes longer than it may."""
        return now_s - (self.since_s or started_s) > self.source.deadline_s

    def _next(self) -> tuple[Part] | None:
        with self._lock:
            if self._left or not self._rest:
                return None
            self.part = self._rest.pop()
            self.since_s = time.monotonic()
            return (self.part,)

    def _read(self, session: Session, part: Part) -> None:
        read_at_s = time.monotonic()
        try:
            records = tuple(self.source.read(session, part))
        except ConnectionDownError:
            raise
        except libvirt.libvirtError as error:
            if session.lost(error):
                raise
            self._store(part, None, read_at_s, str(error))
        except UnreadError as error:
            self._store(part, None, read_at_s, str(error))
        except Exception as error:  # one source's bug must not cost the others
            log.exception("%s: reading %s failed", self.source.collector, in_words(part))
            self._store(part, None, read_at_s, str(error))
        else:
            self._store(part, records, read_at_s, "")

    def _store(self, part: Part, records: tuple[Record, ...] | None, read_at_s: float, why: str) -> None:
        with self._lock:
            if self._left:
                return
            if records is None:
                self.failed[part] = why
            else:
                self.results[part] = (read_at_s, records)
