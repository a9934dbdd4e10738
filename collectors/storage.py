"""Storage pools and, where wanted, their volumes.  Pool figures are those of its last refresh: none is forced."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import libvirt

from .connection import Session
from .fields import Collector, Declaration, Field, Kind, StateSet
from .inventory import Inventory
from .periodic import Scope
from .snapshot import Record, Subject, Value

STATES = ("inactive", "building", "running", "degraded", "inaccessible")
"""virStoragePoolState by number."""
MOST_VOLUMES = 2000
"""Most volumes of a pool that are read: each is a call that looks at the storage."""
_POOL = ("pool",)
_ACTIVE = 2


def _size(word: str, text: str) -> Declaration:
    return Field(f"pool.{word}", f"libvirt_pool_info_{word}_bytes", Kind.GAUGE,
                 f"{text}, as of its last refresh (virStoragePoolGetInfo, pool.{word}, bytes).", subject_labels=_POOL,
                 since="0.4.1")


STORAGE = Collector(
    name="storage",
    help="Storage pools: state and sizes.",
    declarations=(
        StateSet("pool.state", "libvirt_pool_state",
                 "State of the storage pool, 1 for the one it is in (virStoragePoolGetInfo, pool.state, enumeration).",
                 STATES, since="0.4.1", subject_labels=_POOL),
        _size("capacity", "Bytes of the storage pool"),
        _size("allocation", "Bytes of the storage pool that are taken"),
        _size("available", "Bytes of the storage pool that are free"),
        Field("pool.autostart", "libvirt_pool_autostart", Kind.GAUGE,
              "1 if the storage pool starts with the host, 0 if not (virStoragePoolGetAutostart, pool.autostart, "
              "boolean).", subject_labels=_POOL, since="0.4.1"),
        Field("pool.volumes", "libvirt_pool_volumes", Kind.GAUGE,
              "Number of volumes in the storage pool, as of its last refresh (virStoragePoolNumOfVolumes, "
              "pool.volumes, count).", subject_labels=_POOL, since="0.4.1"),
    ),
)


def _volume(word: str, text: str) -> Declaration:
    return Field(f"volume.<n>.{word}", f"libvirt_volume_{word}_bytes", Kind.GAUGE,
                 f"{text} (virStorageVolGetInfo, volume.<n>.{word}, bytes).", 1.0, "volume", "volume.<n>.name",
                 subject_labels=_POOL, since="0.4.1")


VOLUMES = Collector(
    name="volumes",
    help=f"Volumes of the storage pools, at most {MOST_VOLUMES} of each; every one costs a look at the storage.",
    declarations=(_volume("capacity", "Bytes of the volume as its user sees it"),
                  _volume("allocation", "Bytes of the storage that the volume takes")),
    default=False,
)


class PoolSource:
    """Reads the pools one by one: one on dead storage costs its own series."""

    collector = STORAGE.name
    period_s = 60.0
    deadline_s = 10.0

    def __init__(self, _inventory: Inventory) -> None:
        pass

    def parts(self, session: Session, scope: Scope) -> Sequence[str]:
        return _pool_names(session, 0)

    def read(self, session: Session, part: object) -> Iterable[Record]:
        read_at_s = time.monotonic()
        pool = _pool(session, str(part))
        if pool is None:
            return
        state, capacity, allocation, available = pool.info()
        stats: dict[str, Value] = {"pool.state": state, "pool.autostart": pool.autostart()}
        if state in (_ACTIVE, _ACTIVE + 1):  # of another one libvirt gives zeros
            stats |= {"pool.capacity": capacity, "pool.allocation": allocation, "pool.available": available,
                      "pool.volumes": pool.numOfVolumes()}
        yield Record(_subject(pool), self.collector, stats, read_at_s)


class VolumeSource:
    """Reads the volumes of each active pool."""

    collector = VOLUMES.name
    period_s = 300.0
    deadline_s = 60.0

    def __init__(self, _inventory: Inventory) -> None:
        pass

    def parts(self, session: Session, scope: Scope) -> Sequence[str]:
        return _pool_names(session, _ACTIVE_POOLS)

    def read(self, session: Session, part: object) -> Iterable[Record]:
        read_at_s = time.monotonic()
        pool = _pool(session, str(part))
        if pool is None:
            return
        stats: dict[str, Value] = {}
        volumes = sorted(pool.listAllVolumes(0), key=lambda volume: str(volume.name()))
        for number, volume in enumerate(volumes[:MOST_VOLUMES]):
            try:
                _type, capacity, allocation = volume.info()
            except libvirt.libvirtError as error:
                if session.lost(error):
                    raise
                continue  # removed meanwhile, or broken: its own series only
            stats |= {f"volume.{number}.name": volume.name(), f"volume.{number}.capacity": capacity,
                      f"volume.{number}.allocation": allocation}
        yield Record(_subject(pool), self.collector, stats, read_at_s)


_ACTIVE_POOLS = 2  # VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE


def _pool_names(session: Session, flags: int) -> list[str]:
    connection = session.connection
    pools = session.support.ask("listAllStoragePools", lambda: connection.listAllStoragePools(flags)) or []
    return sorted(pool.name() for pool in pools)


def _pool(session: Session, name: str) -> Any:
    """The pool of this name, None where it is gone."""
    try:
        return session.connection.storagePoolLookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_STORAGE_POOL:
            return None
        raise


def _subject(pool: Any) -> Subject:
    return Subject("pool", (pool.UUIDString(),), (("pool", pool.name()),))
