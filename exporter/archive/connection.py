"""Connections to the database: from settings to a pymongo client, with safe defaults and no secret in any text."""

from __future__ import annotations

import contextlib
import fcntl
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import parse_qsl

from pymongo import MongoClient
from pymongo.database import Database as PyMongoDatabase
from pymongo.errors import ConfigurationError, DuplicateKeyError, InvalidURI, PyMongoError

from exporter.archive.documents import META, OBJECTS, SCHEMA_VERSION
from exporter.archive.embedded import START_TIMEOUT_S, EmbeddedServer, running_uri
from exporter.archive.errors import ArchiveBusyError, ArchiveError, SchemaError
from exporter.config import ArchiveSettings
from exporter.errors import SettingsError
from exporter.secret_files import warn_if_others_read
from exporter.setting_types import mask_passwords

Database: TypeAlias = PyMongoDatabase[dict[str, Any]]

EMBEDDED = "embedded"
_DEFAULTS: dict[str, Any] = {
    "w": "majority", "journal": True, "retryWrites": True, "retryReads": True, "serverSelectionTimeoutMS": 5000,
    "connectTimeoutMS": 5000, "socketTimeoutMS": 30_000, "maxPoolSize": 4, "maxIdleTimeMS": 300_000,
    "waitQueueTimeoutMS": 5000}
# A drop or an index build there stalls everything else for as long.  It is one server on this machine, without a
# primary to look out for: asking it often how it is would be most of an idle archive's cost.
_EMBEDDED_DEFAULTS: dict[str, Any] = _DEFAULTS | {"w": 1, "socketTimeoutMS": 120_000, "serverMonitoringMode": "poll",
                                                  "heartbeatFrequencyMS": 60_000}

@dataclass(frozen=True, slots=True)
class Address:
    """Where the database is and who asks; ``repr`` shows no password."""

    uri: str = field(repr=False)
    database: str
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    embedded: bool = False

    @property
    def shown(self) -> str:
        """For logs and errors: no password in it."""
        return EMBEDDED if self.embedded else mask_passwords(self.uri)

    def check(self) -> None:
        """Raises SettingsError for a URI that the driver refuses or does not understand in full.  Main thread."""
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            try:
                self.connect("virtgauge").close()
            except UserWarning as warning:
                raise SettingsError(f"archive.uri: {self.shown} has an option or value that is not known "
                                    f"({mask_passwords(str(warning))}); correct it") from warning

    def connect(self, application: str) -> MongoClient[dict[str, Any]]:
        """A client, which connects by itself later.  Raises SettingsError for a URI that pymongo refuses.

        Not to be carried across a fork.  What the URI says wins over the defaults here.
        """
        given = {name.lower() for name, _ in parse_qsl(self.uri.partition("?")[2], keep_blank_values=True)}
        defaults = _EMBEDDED_DEFAULTS if self.embedded else _DEFAULTS
        options = {name: value for name, value in defaults.items() if name.lower() not in given}
        if self.username is not None:
            options["username"] = self.username
        if self.password is not None:
            options["password"] = self.password
        try:
            # Not at once: an SRV name is looked up at the first use, so that a name server that is away is a fault of
            # the archive like any other, and no reason not to start.
            client: MongoClient[dict[str, Any]] = MongoClient(self.uri, appname=application[:100], tz_aware=True,
                                                              uuidRepresentation="standard", connect=False, **options)
        except (InvalidURI, ConfigurationError, ValueError, TypeError, OSError) as error:
            cause = mask_passwords(str(error))
            raise SettingsError(f"archive.uri: {self.shown} cannot be used ({cause}); correct it") from error
        if not client.write_concern.acknowledged:
            client.close()
            raise SettingsError("archive.uri: w=0 would lose samples unseen; leave w out or write w=majority")
        return client


def address_of(settings: ArchiveSettings) -> Address:
    """The remote address of the settings.  Raises SettingsError; ``archive.uri`` must be set and not embedded."""
    assert settings.uri is not None
    password = settings.password.get_secret_value() if settings.password is not None else None
    if settings.password_file is not None:
        password = _password_in(settings.password_file)
    if password is not None and settings.username is None and "@" not in settings.uri:
        raise SettingsError("archive.password: there is no user name; set archive.username")
    return Address(settings.uri, settings.database, settings.username, password)


def _password_in(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SettingsError(f"archive.password_file {path}: cannot be read ({cause}); check the file and its "
                            "rights") from error
    password = text.rstrip("\r\n")
    if not password:
        raise SettingsError(f"archive.password_file {path}: is empty; write the password into it")
    warn_if_others_read(path, "the archive's password")
    return password


def check_schema(database: Database, create: bool) -> None:
    """Raises SchemaError where the database's schema is of another version than ours; PyMongoError as it comes.

    ``create`` writes the version where there is none yet.
    """
    meta = database[META]
    found = meta.find_one({"_id": "schema"})
    if found is None:
        if not create:
            return
        with contextlib.suppress(DuplicateKeyError):  # another host was first
            meta.insert_one({"_id": "schema", "version": SCHEMA_VERSION, "created": datetime.now(UTC)})
        found = meta.find_one({"_id": "schema"})
    version = found.get("version") if found else None
    if version != SCHEMA_VERSION:
        raise SchemaError(f"archive database {database.name!r} has schema version {version!r}, this virtgauge knows "
                          f"version {SCHEMA_VERSION}; use the virtgauge that wrote it, or another archive.database")
    if create:
        for name in ("name", "uuid"):  # a domain is looked up by either
            database[OBJECTS].create_index(name)


class FolderLock:
    """A folder that belongs to one process at a time: the archive's, the embedded server's.

    Released when the process ends, however it ends.
    """

    def __init__(self, folder: Path) -> None:
        """Raises ArchiveBusyError where another process has it, ArchiveError where it cannot be made."""
        path = folder / "lock"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ArchiveError(f"archive folder {folder}: {error.strerror}; check its rights, or choose another "
                               "with state.directory") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(self._file, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._file)
            raise ArchiveBusyError(f"archive folder {folder} is in use by process {owner}: virtgauge runs already "
                                   "on this host; stop it, or give this one a state.directory of its own") from error
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let others have it."""
        os.close(self._file)


@contextlib.contextmanager
def opened(settings: ArchiveSettings, state: Path, application: str = "virtgauge") -> Iterator[Database]:
    """The archive's database for a command: remote, or of the embedded server, which is started if it does not run.

    ``state`` is state.directory.  Raises ArchiveError with the cause where it cannot be had, SettingsError where
    archive.uri is wrong or absent.
    """
    if settings.uri is None:
        raise SettingsError("archive.uri: there is no archive; set it to embedded or a MongoDB URI")
    with contextlib.ExitStack() as stack:
        if settings.uri == EMBEDDED:
            address = Address(_embedded_uri(state / "archive", stack), settings.database, embedded=True)
        else:
            address = address_of(settings)
            address.check()
        client = stack.enter_context(address.connect(application))
        database = client[settings.database]
        try:
            check_schema(database, create=False)
        except PyMongoError as error:
            raise ArchiveError(f"archive {address.shown}: {mask_passwords(str(error))[:300]}; check archive.uri, the "
                               "password and that the server runs") from error
        try:
            yield database
        except PyMongoError as error:
            raise ArchiveError(f"archive {address.shown}: {mask_passwords(str(error))[:300]}; check that the server "
                               "runs and that the user may read and write archive.database") from error


def _embedded_uri(folder: Path, stack: contextlib.ExitStack) -> str:
    running = running_uri(folder / EMBEDDED)
    if running is not None:
        return running
    # The server's own lock: an exporter that writes elsewhere holds the archive's for as long as it runs.
    lock = FolderLock(folder / EMBEDDED)
    stack.callback(lock.release)
    server = EmbeddedServer(folder / EMBEDDED)
    stack.callback(server.stop)
    server.start()
    return server.uri(START_TIMEOUT_S)
