"""The inventory: what each domain is made of, from its XML; read once and again after an event.

One XML costs libvirtd 0.2 ms and no monitor command, but most of it never changes while a domain runs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import libvirt

from .connection import Session
from .domain_lists import lookup
from .domain_xml import (
    BLOCK_INFO,
    BLOCK_LIMITS,
    DOMAIN_INFO,
    INTERFACE_INFO,
    Definition,
    DomainXMLError,
    constants,
    parse,
)
from .fields import Collector, Constant, Info
from .owner_metadata import MappedLabel

log = logging.getLogger(__name__)

MOST_AGE_S = 600.0
"""Age at which an XML is read again without an event: a new balloon statistics period, for one, sends none."""

_ALL = "its info and limit series are absent"
_OWNER = "the labels that this concerns are empty"

Key = tuple[str, int]
"""A domain: (uuid, id).  A restart gives another id, thus another key; -1 is the id of one that is off."""


_BYTES = {"total": "bytes read and written", "read": "bytes read", "write": "bytes written"}
_REQUESTS = {"total": "read and write requests", "read": "read requests", "write": "write requests"}


def _limit(element: str, name: str) -> Info:
    word, what = element.split("_")[:2]
    since = "2.4.0" if element.endswith("_length") else "1.2.11" if element.endswith("_max") else "0.9.8"
    if word == "size":
        text, unit, since = "Bytes from which a request counts as several for the request limits", "bytes", "1.2.11"
    elif element.endswith("_length"):
        text, unit = f"Seconds that a burst of {(_BYTES if what == 'bytes' else _REQUESTS)[word]} may last", "seconds"
    elif what == "bytes":
        text, unit = f"Most {_BYTES[word]} a second", "bytes a second"
    else:
        text, unit = f"Most {_REQUESTS[word]} a second", "requests a second"
    burst = ", in a burst" if element.endswith("_max") else ""
    return Info(name, f"{text}{burst}; absent without a limit (domain XML <iotune><{element}>, {unit}).",
                ("domain", "target_device"), source=f"domain XML <iotune><{element}>", since=since)


INVENTORY = Collector(
    name="inventory",
    help="Names and owner of each domain, devices and block limits of those that run, from the XML.",
    declarations=(
        Info(DOMAIN_INFO,
             "Always 1; what the domain is and who owns it, from OpenStack nova's, KubeVirt's or oVirt's metadata, and "
             "the labels of metadata.labels (domain XML <domain>, <os>, <title>, <description>, <metadata>, text).",
             ("domain", "uuid", "type", "os_type", "arch", "machine", "title", "description", "instance_name",
              "flavor", "project_name", "project_uuid", "user_name", "user_uuid", "root_type", "root_uuid")),
        Info(BLOCK_INFO, "Always 1; what the disk is and where its data lies (domain XML <disk>, text).",
             ("domain", "target_device", "bus", "disk_type", "driver_type", "cache", "discard", "serial",
              "source_file"), source="domain XML <disk>"),
        Info(INTERFACE_INFO,
             "Always 1; what the network interface is; one without a device on the host stands under its alias "
             "(domain XML <interface>, text; MTU in bytes; virtual_interface is Open vSwitch's id of it).",
             ("domain", "target_device", "mac", "model", "type", "source_bridge", "mtu", "virtual_interface"),
             source="domain XML <interface>"),
        *(_limit(element, name) for element, name in BLOCK_LIMITS.items()),
    ),
)


@dataclass(frozen=True, slots=True)
class _Entry:
    """What one reading gave; ``definition`` is None where the XML did not parse.  ``epoch``: see Inventory.

    ``read_at_s`` is the monotonic time before the reading.
    """

    definition: Definition | None
    constants: tuple[Constant, ...] | None
    epoch: int
    read_at_s: float


class Inventory:
    """Cache of the domains' Definitions and their constant series.  Any thread, unless a method says.

    Each invalidation counts an epoch up and marks what it concerns with it.  An entry is good if it was read at
    an epoch not below its marks, so that an event that comes while the XML is on its way is not lost; and, of a
    running domain, if it is younger than MOST_AGE_S.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic,
                 also: Callable[[tuple[Constant, ...]], tuple[Constant, ...]] = lambda own: own,
                 labels: Sequence[MappedLabel] = (), inactive: bool = False) -> None:
        """``also`` adds to the constant series of a domain, say under other names; ``labels`` to its info.

        ``inactive`` says that domains that do not run are read, too, under the id -1.
        """
        self.inactive = inactive
        self._also = also
        self._labels = tuple(labels)
        self._clock = clock
        self._lock = threading.Lock()  # never held across a libvirt call
        self._entries: dict[Key, _Entry] = {}
        self._reading: set[Key] = set()
        self._epoch = 0
        self._all_mark = 0
        self._marks: dict[str, int] = {}
        self._repeats: dict[str, int] = {}
        self._unread: set[str] = set()  # of these the domains of which nothing could be read, not only their metadata

    @property
    def failures(self) -> int:
        """Domains whose XML could not be read in full the last time, of those wanted last."""
        with self._lock:
            return len(self._repeats)

    @property
    def unread(self) -> int:
        """Of the failures the domains of which the XML gave nothing."""
        with self._lock:
            return len(self._unread)

    def stale(self, wanted: Iterable[Key]) -> bool:
        """Whether a refresh would have something to read or to forget."""
        keys = frozenset(wanted)
        uuids = {uuid for uuid, _ in keys}
        with self._lock:
            return (not self._entries.keys() <= keys or not self._repeats.keys() <= uuids
                    or any(key not in self._reading and not self._good(key) for key in keys))

    def constants(self, uuid: str, id: int) -> tuple[Constant, ...] | None:
        """The domain's constant series, the same object as long as nothing changed; None while unknown."""
        with self._lock:
            entry = self._entries.get((uuid, id))
        return entry.constants if entry is not None else None

    def details(self, uuid: str, id: int) -> Definition | None:
        """The domain's Definition, the same object as long as nothing changed; None while unknown."""
        with self._lock:
            entry = self._entries.get((uuid, id))
        return entry.definition if entry is not None else None

    def invalidate(self, uuid: str) -> None:
        """Have the domain's XML read again by the next refresh; until then what is known stays."""
        with self._lock:
            self._epoch += 1
            self._marks[uuid] = self._epoch

    def invalidate_all(self) -> None:
        """Have every domain's XML read again: events may have been missed."""
        with self._lock:
            self._epoch += 1
            self._all_mark = self._epoch
            self._marks = {}

    def refresh(self, session: Session, wanted: Iterable[Key]) -> None:
        """Read the XML of what is wanted and unknown or invalidated; forget what is not wanted.

        ``wanted`` are all running domains of the target, and those that are off where ``inactive``; what another lane
        is reading is left to it.  Runs in the thread of the session's lane.  Raises ConnectionDownError and, if the
        connection died or the domains cannot be listed, libvirtError; any other failure costs only its domain's series.
        """
        keys = frozenset(wanted)
        claimed, epoch = self._claim(keys)
        try:
            ids = dict(claimed)
            found = session.domains([uuid for uuid, id_ in claimed if id_ >= 0])
            stopped = [lookup(session, uuid) for uuid, id_ in claimed if id_ < 0]
            for domain in (*found, *filter(None, stopped)):
                uuid = domain.UUIDString()
                self._read(session, domain, (uuid, ids[uuid]), epoch)
        finally:
            with self._lock:
                self._reading.difference_update(claimed)

    def _claim(self, keys: frozenset[Key]) -> tuple[list[Key], int]:
        """The keys that this call is to read, and the epoch: no domain is read by two lanes at once."""
        with self._lock:
            self._entries = {key: entry for key, entry in self._entries.items() if key in keys}
            kept = {uuid for uuid, _ in keys | self._reading}
            self._marks = {uuid: mark for uuid, mark in self._marks.items() if uuid in kept}
            self._repeats = {uuid: count for uuid, count in self._repeats.items() if uuid in kept}
            self._unread &= kept
            claimed = [key for key in sorted(keys) if key not in self._reading and not self._good(key)]
            self._reading.update(claimed)
            return claimed, self._epoch

    def _good(self, key: Key) -> bool:
        entry = self._entries.get(key)
        return (entry is not None and entry.epoch >= max(self._all_mark, self._marks.get(key[0], 0))
                and (key[1] < 0 or self._clock() - entry.read_at_s < MOST_AGE_S))

    def _read(self, session: Session, domain: libvirt.virDomain, key: Key, epoch: int) -> None:
        read_at_s = self._clock()
        try:
            definition = parse(domain.XMLDesc(0), self._labels)
        except libvirt.libvirtError as error:
            if session.lost(error):
                raise
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:  # else it is gone meanwhile
                self._failed(key[0], domain.name(), f"no inventory: {error}", _ALL)
            return
        except DomainXMLError as error:
            # Kept as broken until an event says that it changed: reading it at each sample would not mend it.
            self._store(key, _Entry(None, None, epoch, read_at_s))
            self._failed(key[0], domain.name(), f"no inventory: {error}", _ALL)
            return
        # Else it was stopped or started anew: what is wanted is no longer so.
        if (-1 if definition.id is None else definition.id) == key[1]:
            self._store(key, _Entry(definition, self._also(constants(definition)), epoch, read_at_s))
        if definition.metadata_problem:
            self._failed(key[0], domain.name(), f"its metadata: {definition.metadata_problem}", _OWNER)
        else:
            self._mended(key[0], domain.name())

    def _store(self, key: Key, entry: _Entry) -> None:
        with self._lock:
            old = self._entries.get(key)
            if old is not None:  # the same objects where they are equal: nothing is recompiled
                entry = replace(
                    entry, constants=old.constants if old.constants == entry.constants else entry.constants,
                    definition=old.definition if old.definition == entry.definition else entry.definition)
            self._entries[key] = entry

    def _failed(self, uuid: str, name: str, why: str, lost: str) -> None:
        with self._lock:
            count = self._repeats[uuid] = self._repeats.get(uuid, 0) + 1
            (self._unread.add if lost == _ALL else self._unread.discard)(uuid)
        if count in (1, 10, 100) or count % 1000 == 0:
            log.warning("domain %.200s: %s (failure %d); %s", name, why, count, lost)

    def _mended(self, uuid: str, name: str) -> None:
        with self._lock:
            count = self._repeats.pop(uuid, 0)
            self._unread.discard(uuid)
        if count:
            log.info("domain %.200s: its inventory is whole after %d failures", name, count)
