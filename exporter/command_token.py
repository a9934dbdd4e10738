"""`virtgauge token create|list|revoke`: the bearer tokens of the history and control APIs."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from exporter.config import Settings
from exporter.errors import UsageError
from exporter.setting_catalogue import collector_defaults
from exporter.setting_loading import load_settings
from exporter.setting_types import parse_duration
from exporter.token_changes import create_token, revoke_token
from exporter.tokens import Role, Token, read_tokens

_DEFAULT_LIFE = "365d"


def build() -> click.Command:
    """The group with its three commands."""
    return command(collector_defaults())


def command(collectors: Mapping[str, bool]) -> click.Group:
    """As `build`, for these collectors (name to default), whose settings the file may hold."""

    def path_of(config_file: str | None, token_file: str | None, state_directory: str | None) -> Path:
        flags = {"config.file": config_file, "web.token_file": token_file, "state.directory": state_directory}
        is_root = os.geteuid() == 0
        settings = load_settings(Settings, flags=flags, environ=os.environ, collectors=collectors, is_root=is_root)
        return token_file_path(settings)

    group = click.Group(
        "token",
        help="Make, list and revoke the bearer tokens of the history and control APIs.",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for made in (_create(path_of), _list(path_of), _revoke(path_of)):
        group.add_command(made)
    return group


def token_file_path(settings: Settings) -> Path:
    """Where the tokens are: web.token_file, else tokens.yml in the state folder."""
    return settings.web.token_file or settings.state.directory / "tokens.yml"


_PathOf = Callable[[str | None, str | None, str | None], Path]


def _create(path_of: _PathOf) -> click.Command:
    def run(
        name: str, role: str, domain: tuple[str, ...], expires: str,
        config_file: str | None, token_file: str | None, state_directory: str | None,
    ) -> None:  # fmt: skip
        now = datetime.now(UTC).replace(microsecond=0)
        path = path_of(config_file, token_file, state_directory)
        token, text = create_token(path, name, _role(role), domain, now, expiry(expires, now))
        click.echo(f"token {token.name} ({token.id}): role {token.role}, expires {_when(token.expires)}; "
                   f"its hash is in {path}; the token itself is shown only now", err=True)  # fmt: skip
        click.echo(text)

    return click.Command(
        "create",
        callback=run,
        params=[
            click.Argument(["name"]),
            click.Option(["--role"], metavar="ROLE", required=True,
                         help="alerts only sends alerts to rules; reader sees, operator acts on guests, admin acts on "
                              "the host."),
            click.Option(["--domain"], multiple=True, default=("*",), show_default=True,
                         help="Shell pattern of the domain names it is good for; repeatable."),
            click.Option(["--expires"], default=_DEFAULT_LIFE, show_default=True,
                         help="How long it is good, like 90d, or never."),
            *_where(),
        ],
        help="Make a token and print it once, on standard output.",
    )  # fmt: skip


def _list(path_of: _PathOf) -> click.Command:
    def run(config_file: str | None, token_file: str | None, state_directory: str | None) -> None:
        now = datetime.now(UTC)
        rows: list[tuple[str, ...]] = [("ID", "NAME", "ROLE", "DOMAINS", "CREATED", "EXPIRES")]
        tokens = read_tokens(path_of(config_file, token_file, state_directory))
        rows += [_row(token, now) for token in tokens]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for row in rows:
            click.echo("  ".join(f"{text:<{width}}" for text, width in zip(row, widths, strict=True)).rstrip())

    return click.Command("list", callback=run, params=_where(), help="Show all tokens, without their secrets.")


def _revoke(path_of: _PathOf) -> click.Command:
    def run(name_or_id: str, config_file: str | None, token_file: str | None, state_directory: str | None) -> None:
        token = revoke_token(path_of(config_file, token_file, state_directory), name_or_id)
        click.echo(f"token {token.name} ({token.id}) is revoked; running services refuse it from their next request")

    params = [click.Argument(["name_or_id"]), *_where()]
    return click.Command("revoke", callback=run, params=params, help="Take a token's rights away at once.")


def _where() -> list[click.Parameter]:
    return [
        click.Option(["--config.file", "config_file"], metavar="FILE", help="The service's settings."),
        click.Option(["--web.token-file", "token_file"], metavar="TOKEN_FILE",
                     help="The file of the tokens. [default: tokens.yml in the state folder]"),
        click.Option(["--state.directory", "state_directory"], metavar="DIRECTORY", help="The state folder."),
    ]  # fmt: skip


def _role(text: str) -> Role:
    try:
        return Role.parse(text)
    except ValueError as error:
        raise UsageError(f"--role {text[:70]!r} {error}") from None


def expiry(text: str, now: datetime) -> datetime | None:
    """The moment a life like 90d ends; None for never. Raises UsageError for anything else."""
    if text == "never":
        return None
    try:
        return now + timedelta(seconds=parse_duration(text))
    except (ValueError, OverflowError):
        raise UsageError(f"--expires {text!r} is not a duration; write it like 90d, or never") from None


def _row(token: Token, now: datetime) -> tuple[str, ...]:
    ended = " (expired)" if token.expired(now) else ""
    expires = _when(token.expires) + ended
    return token.id, token.name, str(token.role), ",".join(token.domains), _when(token.created), expires


def _when(moment: datetime | None) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if moment else "never"
