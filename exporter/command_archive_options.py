"""The flags of commands that read the archive, and the settings they stand for."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

from exporter.listening import ListenAddress

if TYPE_CHECKING:
    from exporter.archive.document_reader import Database
    from exporter.config import Settings

_FLAGS = {
    "config.file": "YAML file with settings.",
    "archive.uri": "MongoDB URI of the archive, or embedded.",
    "archive.database": "Database that the archive is in.",
    "state.directory": "State folder of the exporter, where the embedded archive is.",
}
NO_EXPORTER = "none"


@dataclass(frozen=True, slots=True)
class ArchivePlace:
    """`exporter`: URL of the exporter to ask first, None for none. `database` opens the database.

    `token` is the bearer token for the exporter, if there is one.
    """

    exporter: str | None
    database: Callable[[], AbstractContextManager[Database]]
    remote: bool  # a server of the user's own, not the embedded one
    token: str | None = field(default=None, repr=False)


def archive_options() -> list[click.Option]:
    """Flags that name the archive; each is also a setting of the exporter."""
    return [
        click.Option([f"--{key.replace('_', '-')}", key.replace(".", "__")], metavar=key.rpartition(".")[2].upper(),
                     help=text)
        for key, text in _FLAGS.items()
    ]


def exporter_option() -> click.Option:
    """`--exporter URL`."""
    return click.Option(
        ["--exporter"],
        default="",
        metavar="URL",
        help="Exporter to ask first, or none. [this host's, unless --archive.uri is given]",
    )


def settings_of(values: Mapping[str, str | None]) -> Settings:
    """Settings from these flags, the environment and the file. Raises SettingsError."""
    from exporter.config import Settings
    from exporter.setting_catalogue import collector_defaults
    from exporter.setting_loading import load_settings

    flags = {name.replace("__", "."): value for name, value in values.items() if value is not None}
    return load_settings(
        Settings, flags=flags, environ=os.environ, collectors=collector_defaults(), is_root=os.geteuid() == 0
    )


def read_settings(values: Mapping[str, str | None], exporter: str = NO_EXPORTER) -> ArchivePlace:
    """Settings from these flags, the environment and the file; opens nothing. Raises SettingsError."""
    from exporter.archive.connection import EMBEDDED, opened

    settings = settings_of(values)
    if not exporter:
        elsewhere = values.get("archive__uri") is not None
        exporter = NO_EXPORTER if elsewhere else _own_exporter(settings.web.listen_address[0])
    url = None if exporter == NO_EXPORTER else exporter
    token = settings.history.token.get_secret_value() if settings.history.token else None
    return ArchivePlace(
        url,
        lambda: opened(settings.archive, settings.state.directory, "virtgauge history"),
        settings.archive.uri not in (None, EMBEDDED),
        token,
    )


def _own_exporter(address: ListenAddress) -> str:
    if address.path:
        return NO_EXPORTER
    host = address.host if address.host not in ("", "0.0.0.0", "::") else "127.0.0.1"
    return f"http://[{host}]:{address.port}" if ":" in host else f"http://{host}:{address.port}"
