"""The embedded server: the secantusdb program as a child process on loopback, with a password of its own.

It is never imported, since its licence is GPL-2.0-only: it is a program that is started and spoken to over TCP.  A
thread starts it, watches it and starts it again; the kernel ends it with this process, however that ends.  The
folder belongs to one virtgauge at a time, which a lock in it sees to.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

from exporter.archive.errors import EmbeddedServerError

log = logging.getLogger(__name__)

PROGRAM = "secantusd-py"
START_TIMEOUT_S = 180.0
"""A store with many documents was seen to take 40 s."""
_BUSY = 0.05  # share of a core that a server which computes takes at least
_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
_USER = "virtgauge"
_LONGEST_LOG_BYTES = 1 << 20
_OPLOG_ENTRIES = "1000"  # the log holds whole copies of documents; nobody follows it
_CACHE = "128M"
_FAILURES_TO_MOVE = 3
"""Starts that fail in a row before another port is tried: clients know the old one."""



@dataclass(frozen=True, slots=True)
class Watch:
    """When a server that runs and does not answer is started anew.

    It is asked every ``every_s``, and every ``again_s`` once it was silent. It hangs where it was silent for
    ``silent_s``; one that computes meanwhile, as for a long drop, is slow and has ``busy_s``. ``stop_s`` is what it is
    given to end by itself.
    """

    every_s: float = 60.0
    again_s: float = 10.0
    silent_s: float = 120.0
    busy_s: float = 900.0
    stop_s: float = 20.0


# Run by the child before it becomes the server: dies with its parent's thread (prctl PR_SET_PDEATHSIG = 1, SIGKILL).
_BECOME = """\
import ctypes, os, sys
ctypes.CDLL(None, use_errno=True).prctl(1, 9, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def program() -> str | None:
    """Path of the server's program: beside this Python, else on PATH; None where it is not installed."""
    beside = Path(sys.executable).parent / PROGRAM
    return str(beside) if beside.exists() else shutil.which(PROGRAM)


class EmbeddedServer:
    """One server over one folder.  ``start`` and ``stop`` from one thread; the rest from any.

    Raises EmbeddedServerError where the program is not installed.
    """

    def __init__(self, folder: Path, more_arguments: Sequence[str] = (), watch: Watch | None = None) -> None:
        found = program()
        if found is None:
            raise EmbeddedServerError(f"archive.uri is embedded, but the program {PROGRAM} is not installed; "
                                      "install it with: pip install 'virtgauge[embedded]'")
        self._program = found
        self._more_arguments = more_arguments
        self._watch = watch or Watch()
        self._folder = folder
        self._port = 0
        self._failures = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = threading.Event()
        self._stopping = threading.Event()
        self._password = ""
        self._thread = threading.Thread(target=self._supervise, name="archive-server", daemon=True)

    def start(self) -> None:
        """Begin to start it; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """End the server cleanly and wait for it; kill it where it does not end."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(START_TIMEOUT_S)

    def uri(self, timeout_s: float) -> str:
        """How to reach it, password included, once it answers.  Raises EmbeddedServerError after ``timeout_s``."""
        if not self._ready.wait(timeout_s):
            raise EmbeddedServerError(f"the embedded archive server does not answer yet; {self._folder}/server.log "
                                      "holds what it said")
        return _uri(self._port, self._password)

    @property
    def pid(self) -> int | None:
        """Process id of the server, None while there is none."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def _supervise(self) -> None:
        pause_s = 0.5
        while not self._stopping.is_set():
            served = False
            try:
                self._prepare()
                self._serve()
                served = True
            except (OSError, PyMongoError, EmbeddedServerError) as error:
                log.warning("the embedded archive server does not start", extra={"error": str(error)})
            finally:
                self._ready.clear()
                self._end()
            if self._stopping.is_set():
                return
            pause_s = 0.5 if served else min(pause_s * 2, 30.0)
            self._stopping.wait(pause_s)

    def _prepare(self) -> None:
        """First start: makes the folder, the password and the user, over a loopback start without a password."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self._folder / "empty.toml").write_text("")  # keeps it from reading settings of the working folder
        password_file, user_made = self._folder / "password", self._folder / "user_made"
        if user_made.exists():
            self._password = password_file.read_text().strip()
            return
        self._password = secrets.token_urlsafe(24)
        _write_private(password_file, self._password)
        self._launch(with_password=False)
        with _client(f"mongodb://127.0.0.1:{self._port}/?directConnection=true") as client:
            rights = {"pwd": self._password, "roles": [{"role": "root", "db": "admin"}]}
            try:
                client.admin.command({"createUser": _USER, **rights})
            except OperationFailure:
                client.admin.command({"updateUser": _USER, **rights})  # a first start that was cut short
        self._end()
        _write_private(user_made, "")

    def _serve(self) -> None:
        process = self._launch(with_password=True)
        _write_private(self._folder / "address.json", json.dumps({"port": self._port, "pid": process.pid}))
        log.info("the embedded archive server answers", extra={"port": self._port, "pid": process.pid})
        self._ready.set()
        silence = _Silence(process.pid, self._port, self._watch)
        while not self._stopping.wait(1.0):
            if process.poll() is not None:
                log.warning("the embedded archive server ended; it is started again",
                            extra={"exit_status": process.returncode})
                return
            if silence.too_long():
                log.warning("the embedded archive server runs and does not answer; it is ended and started again",
                            extra={"pid": process.pid, "silent_seconds": round(silence.seconds)})
                return

    def _launch(self, with_password: bool) -> subprocess.Popen[bytes]:
        """Starts the process and waits until it answers."""
        self._port = self._port or _free_port()
        store = self._folder / "data"
        command = [sys.executable, "-c", _BECOME, str(os.getpid()), self._program, "--host", "127.0.0.1", "--port",
                   str(self._port), "--storage-path", str(store), "--oplog-max-entries", _OPLOG_ENTRIES,
                   "--cache-size", _CACHE, "--log-level", "WARNING", "--config", str(self._folder / "empty.toml"),
                   *self._more_arguments, *(["--auth"] if with_password else [])]
        log_file = self._folder / "server.log"
        mode = "ab" if log_file.exists() and log_file.stat().st_size < _LONGEST_LOG_BYTES else "wb"
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        with open(log_file, mode) as output:
            self._process = process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=kept, start_new_session=True,
                cwd=self._folder)
        uri = _uri(self._port, self._password) if with_password else f"mongodb://127.0.0.1:{self._port}/"
        limit_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < limit_s and not self._stopping.is_set():
            if process.poll() is not None:
                self._failures += 1
                if self._failures % _FAILURES_TO_MOVE == 0:
                    self._port = 0  # another program may have taken it
                raise EmbeddedServerError(f"it ended with status {process.returncode}; {log_file} holds what it said")
            if _answers(uri):
                self._failures = 0
                return process
            self._stopping.wait(0.1)
        raise EmbeddedServerError(f"it did not answer within {START_TIMEOUT_S:.0f} s; {log_file} holds what it said")

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(self._watch.stop_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class _Silence:
    """For how long a server did not answer."""

    def __init__(self, pid: int, port: int, watch: Watch) -> None:
        self.seconds = 0.0
        self._pid = pid
        self._uri = f"mongodb://127.0.0.1:{port}/?directConnection=true"  # whether it answers, it tells to anyone
        self._watch = watch
        self._ask_at_s = time.monotonic() + watch.every_s
        self._since_s: float | None = None
        self._cpu_s = 0.0

    def too_long(self) -> bool:
        """Asks where it is time to; whether it hangs.  Blocks for some seconds where it does not answer."""
        asked_s = time.monotonic()
        if asked_s < self._ask_at_s:
            return False
        if _answers(self._uri):
            self._since_s, self._ask_at_s = None, asked_s + self._watch.every_s
            return False
        self._ask_at_s = time.monotonic() + self._watch.again_s
        cpu_s = _cpu_s(self._pid)
        if self._since_s is None:
            self._since_s, self._cpu_s = asked_s, cpu_s
            return False
        self.seconds = time.monotonic() - self._since_s
        is_busy = cpu_s - self._cpu_s > _BUSY * self.seconds
        return self.seconds >= (self._watch.busy_s if is_busy else self._watch.silent_s)


def _cpu_s(pid: int) -> float:
    """CPU seconds of a process, 0 where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS_A_SECOND


def running_uri(folder: Path) -> str | None:
    """How to reach the server that another process runs over this folder; None where none answers."""
    try:
        port = int(json.loads((folder / "address.json").read_text())["port"])
        uri = _uri(port, (folder / "password").read_text().strip())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return uri if _answers(uri) else None


def _uri(port: int, password: str) -> str:
    # token_urlsafe's characters need no escaping.
    return f"mongodb://{_USER}:{password}@127.0.0.1:{port}/?authSource=admin&directConnection=true"


def _client(uri: str) -> MongoClient[dict[str, object]]:
    return MongoClient(uri, serverSelectionTimeoutMS=2000, connectTimeoutMS=2000, socketTimeoutMS=10_000)


def _answers(uri: str) -> bool:
    """Whether a ping comes back; a server that refuses the password is not ours."""
    address = uri.rpartition("@")[2].removeprefix("mongodb://").partition("/")[0]
    host, _, port = address.partition(":")
    try:
        # Cheap first: pymongo's own selection waits for long where nothing listens.
        socket.create_connection((host, int(port)), 1.0).close()
        with _client(uri) as client:
            client.admin.command("listDatabases" if "@" in uri else "ping")
        return True
    except (OSError, PyMongoError):
        return False


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def _write_private(path: Path, text: str) -> None:
    """Writes a file that only its owner can read, whole or not at all."""
    temporary = path.with_name(path.name + ".new")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)

