"""The exporter's own connection for reading the archive, apart from the writer's: a slow query delays no write."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pymongo import MongoClient

from exporter.archive.connection import Address, Database
from exporter.archive.documents import Document


class Reading:
    """Opened when it is first asked for, and anew where the address changed. Any thread."""

    def __init__(self, address: Callable[[], Address]) -> None:
        """`address` may wait for the embedded server; it raises VirtgaugeError while there is none."""
        self._address = address
        self._lock = threading.Lock()
        self._open: tuple[Address, MongoClient[Document]] | None = None

    def database(self) -> Database:
        """The database; raises VirtgaugeError where there is none yet. Connects when it is used."""
        address = self._address()
        with self._lock:
            if self._open is not None and self._open[0] != address:
                self._open[1].close()
                self._open = None
            if self._open is None:
                self._open = address, address.connect("virtgauge history")
            return self._open[1][address.database]

    def close(self) -> None:
        """End the connections."""
        with self._lock:
            if self._open is not None:
                self._open[1].close()
                self._open = None
