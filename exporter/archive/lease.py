"""The lease of a host: one virtgauge at a time writes a host's samples into a database, wherever its state folder is.

Two exporters of one host with one state folder are told apart by its lock.  With two folders only the database knows of
both, so the one that writes says so there, and the other waits with its samples in its spool until that one is gone.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from pymongo.errors import DuplicateKeyError

from exporter.archive.connection import Database
from exporter.archive.documents import META, Host, moment
from exporter.archive.errors import HostBusyError

LEASE_S = 180
"""How long a lease is good after it was last renewed, at least; and at least three windows."""
_RENEW_S = 30.0
_CLOCK_STEP = timedelta(hours=1)
"""A lease from further in the future than this was written before the clock was set back."""


class HostLease:
    """The leases that one spool holds.  Used by the writer's thread only."""

    def __init__(self, spool: bytes, folder: Path, wall_clock: Callable[[], float] = time.time) -> None:
        """``spool`` is the spool's name: it keeps its lease over a restart.  ``folder`` is shown to others."""
        self._spool = spool.hex()
        self._folder = str(folder)
        self._wall_clock = wall_clock
        self._renewed_s: dict[Host, float] = {}

    def hold(self, database: Database, host: Host, window_s: int) -> None:
        """Takes the host's lease or renews it.  Raises HostBusyError where another spool has it, PyMongoError."""
        if time.monotonic() - self._renewed_s.get(host, -_RENEW_S) < _RENEW_S:
            return
        now = moment(round(self._wall_clock() * 1000))
        key = _key(host)
        ours = {"spool": self._spool, "host_name": host.name, "machine": socket.gethostname(), "process": os.getpid(),
                "folder": self._folder, "renewed": now,
                "until": now + timedelta(seconds=max(LEASE_S, 3 * window_s))}
        free = [{"spool": self._spool}, {"until": {"$lte": now}}, {"renewed": {"$gt": now + _CLOCK_STEP}}]
        try:
            database[META].update_one({"_id": key, "$or": free}, {"$set": ours}, upsert=True)
        except DuplicateKeyError as error:  # it is there, and none of the conditions holds
            found = database[META].find_one({"_id": key}) or {}
            raise HostBusyError(
                f"archive database {database.name!r}: the samples of host {host.name} ({host.uuid}) are written by "
                f"another virtgauge (process {found.get('process')} on {found.get('machine')}, state folder "
                f"{found.get('folder')}); stop one of the two, or give this one another archive.database. Its samples "
                f"wait in its spool; unless the other one writes again, it takes over after "
                f"{found.get('until')}") from error
        self._renewed_s[host] = time.monotonic()

    def release(self, database: Database) -> None:
        """Gives up what is held, at a clean end: whoever writes the host next need not wait.  Raises PyMongoError."""
        for host in list(self._renewed_s):
            database[META].delete_one({"_id": _key(host), "spool": self._spool})
            del self._renewed_s[host]


def _key(host: Host) -> str:
    return f"writer of {host.uuid}"
