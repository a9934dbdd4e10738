"""What the archive's fault tests share: an archive over a real server, a proxy that cuts, and the comparison."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from pymongo import MongoClient

from collectors.batch import Batch
from exporter.archive.archive import Archive
from exporter.archive.documents import Host, partition_span
from exporter.archive.embedded import EmbeddedServer
from exporter.archive.writer import Patience
from exporter.config import ArchiveSettings
from tests.exporter.archive.archive_samples import HOST, Guests, Truth, stored_of, truth_of

PATIENCE_S = 300.0
"""An upper bound for what happens soon on an idle machine; nothing is measured by it."""
QUICK = Patience(first_s=0.05, most_s=0.5, refused_s=0.3, pause_s=0.0)
START_S = 1_790_000_040
TIMEOUTS = "&serverSelectionTimeoutMS=1000&connectTimeoutMS=1000&socketTimeoutMS=1500"


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = PATIENCE_S, poll_s: float = 0.02) -> None:
    limit_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < limit_s, f"waited {timeout_s:.0f} s in vain until {what}"
        time.sleep(poll_s)


def uri_of(server: EmbeddedServer) -> str:
    """The server's URI with timeouts that tests can wait for."""
    return server.uri(PATIENCE_S) + TIMEOUTS


class Rig:
    """One Archive with guests whose samples the test knows: ``truth`` is what the database must hold in the end."""

    def __init__(self, state: Path, uri: str, database: str, *, host: Host = HOST, guests: Guests | None = None,
                 patience: Patience = QUICK, **settings: object) -> None:
        self.guests = guests or Guests(3, vcpus=2, disks=1, nics=1)
        self.truth: Truth = {}
        self.clock_s = float(START_S)
        self.monotonic_s = 1000.0
        self.archive = Archive(ArchiveSettings(uri=uri, database=database, **settings), state, lambda: host,
                               patience=patience, wall_clock=lambda: self.clock_s)

    def sample(self, count: int, step_s: float = 10.0, **options: object) -> list[Batch]:
        """Records ``count`` samples ``step_s`` apart and waits until they are safe in the spool (or counted lost)."""
        batches = []
        for _ in range(count):
            batch = self.guests.batch(self.clock_s, self.monotonic_s, **options)
            self.truth |= truth_of(batch)
            before = self.archive.spool.counts.spooled_samples
            self.archive.record(batch)
            wait_until(lambda before=before: self.archive.spool.counts.spooled_samples > before, "a sample is spooled",
                       poll_s=0.002)
            self.clock_s += step_s
            self.monotonic_s += step_s
            batches.append(batch)
        return batches

    def drain(self) -> None:
        """Ends the open window and waits until the database has acknowledged everything."""
        self.archive._recorder.stop(PATIENCE_S)
        wait_until(lambda: self.archive.spool.acknowledged >= self.archive.spool.durable_number,
                   "the database has everything", PATIENCE_S)


@contextlib.contextmanager
def rig(state: Path, uri: str, database: str, **options: object) -> Iterator[Rig]:
    made = Rig(state, uri, database, **options)
    made.archive.start()
    try:
        yield made
    finally:
        made.archive.stop()


def raw_documents(uri: str, database: str) -> list[dict[str, object]]:
    patient = uri.replace(TIMEOUTS, "")  # reading everything on a loaded machine takes longer than a fault may
    with MongoClient(patient, tz_aware=True, uuidRepresentation="standard") as client:
        found = client[database]
        names = [name for name in sorted(found.list_collection_names())
                 if name.startswith("raw_") and partition_span(name)]
        return [document for name in names for document in found[name].find()]


def assert_stored(uri: str, database: str, truth: Truth) -> list[dict[str, object]]:
    """Exactly the truth is in the database, each value once."""
    documents = raw_documents(uri, database)
    found, doubled = stored_of(documents)
    missing, surplus = truth.keys() - found.keys(), found.keys() - truth.keys()
    assert not missing, f"{len(missing)} of {len(truth)} values are missing, like {sorted(missing)[:3]}"
    assert not surplus, f"{len(surplus)} values were never sampled, like {sorted(surplus)[:3]}"
    assert found == truth
    assert not doubled
    return documents


class CuttingProxy:
    """A TCP proxy on loopback: closes every connection once so many more bytes went to the server, or holds up bytes.
    """

    def __init__(self, uri: str) -> None:
        self._target = (urlsplit(uri).hostname, urlsplit(uri).port)
        self._left: int | None = None
        self._held: bool | None = None
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.cuts = 0
        self.uri = uri.replace(f":{urlsplit(uri).port}/", f":{self.port}/")
        threading.Thread(target=self._accept, daemon=True).start()

    def cut_after(self, count: int) -> None:
        with self._lock:
            self._left = count

    def hold(self, to_server: bool) -> None:
        """From now on nothing goes to the server any more, or nothing comes back from it."""
        self._held = to_server

    def release(self) -> None:
        """Everything goes through again, on new connections."""
        self._held = None
        self._cut()

    def close(self) -> None:
        self._listening.close()
        self._cut()

    def _accept(self) -> None:
        while True:
            try:
                inside, _ = self._listening.accept()
                outside = socket.create_connection(self._target, 10)
            except OSError:
                return
            with self._lock:
                self._pairs.append((inside, outside))
            for source, sink, counted in ((inside, outside, True), (outside, inside, False)):
                threading.Thread(target=self._pump, args=(source, sink, counted), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1024):
                if self._held is counted:
                    continue
                if counted and self._used_up(len(data)):
                    sink.sendall(data[:len(data) // 2])
                    self._cut()
                    return
                sink.sendall(data)
        source.close()
        sink.close()

    def _used_up(self, count: int) -> bool:
        with self._lock:
            if self._left is None:
                return False
            self._left -= count
            if self._left > 0:
                return False
            self._left = None
            self.cuts += 1
            return True

    def _cut(self) -> None:
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
