"""Bearer tokens for the history and control APIs: who asks, what they may do, and to which domains.

A token reads `vgt_ID_SECRET`. The file holds only the SHA-256 of the whole token; 256 random bits need no slow
hash. The file is read again when it changes, so that tokens are made and revoked without a restart. A file that
cannot be read or trusted lets nobody in: a revocation must not be undone by a typing mistake.

    tokens:
      - id: 5d2f6c0a91e3
        name: grafana
        role: reader
        domains: ["web-*"]
        created: 2026-01-31T12:00:00Z
        expires: 2027-01-31T12:00:00Z
        sha256: 64 hexadecimal digits
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import stat
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_serializer

from exporter.errors import SettingsError
from exporter.secret_files import warn_if_others_read
from exporter.strict_yaml import StrictLoader
from exporter.token_form import PREFIX, TOKEN

_log = logging.getLogger(__name__)

# Thousands of tokens; a bigger file is a mistake, and would be read again at each change.
_MOST_BYTES = 1024 * 1024
_LONGEST_HEADER = 512
_UNKNOWN_SHA256 = "0" * 64


class Role(IntEnum):
    """What a token may do; each role includes the ones below it. ALERTS sends alerts to the rules, and sees nothing."""

    ALERTS = 0
    READER = 1
    OPERATOR = 2
    ADMIN = 3

    @classmethod
    def parse(cls, value: object) -> Role:
        """A role from its lower-case name; raises ValueError for anything else."""
        if isinstance(value, Role):
            return value
        try:
            return cls[str(value).upper()] if isinstance(value, str) and value.islower() else cls(-1)
        except (KeyError, ValueError):
            raise ValueError("is not a role; roles are alerts, reader, operator, admin") from None

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Principal:
    """Who a request comes from. `domains` are shell patterns of domain names; `*` is all of them."""

    token_id: str
    name: str
    role: Role
    domains: tuple[str, ...]

    def allows(self, role: Role) -> bool:
        """Whether this principal may do what `role` may."""
        return self.role >= role

    def allows_domain(self, name: str) -> bool:
        """Whether a domain of this name is within the token's scope; upper and lower case differ."""
        return any(fnmatchcase(name, pattern) for pattern in self.domains)

    @property
    def allows_every_domain(self) -> bool:
        """True where no pattern narrows the scope; what concerns the whole host needs it."""
        return "*" in self.domains

    def __str__(self) -> str:
        return f"{self.name} ({self.token_id})"


class Token(BaseModel):
    """One entry of the file. Holds no secret."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")]
    role: Annotated[Role, BeforeValidator(Role.parse)]
    domains: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=256)], ...], Field(min_length=1)]
    created: AwareDatetime
    expires: AwareDatetime | None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

    @field_serializer("role")
    def _role_name(self, role: Role) -> str:
        return str(role)

    def expired(self, now: datetime) -> bool:
        """Whether the token is no longer good at `now`."""
        return self.expires is not None and now >= self.expires

    @property
    def principal(self) -> Principal:
        return Principal(self.id, self.name, self.role, self.domains)


class _Document(BaseModel):
    model_config = ConfigDict(extra="forbid")

    tokens: list[Token] = []


def new_token(
    name: str, role: Role, domains: tuple[str, ...], now: datetime, expires: datetime | None
) -> tuple[Token, str]:
    """An entry for the file, and the token itself, which is nowhere else. Raises ValueError for a bad name or scope."""
    identity = secrets.token_hex(6)
    text = f"{PREFIX}_{identity}_{secrets.token_urlsafe(32)}"
    token = Token(
        id=identity, name=name, role=role, domains=domains, created=now, expires=expires, sha256=_sha256(text)
    )
    return token, text


def read_tokens(path: Path) -> list[Token]:
    """The file's entries; none where there is no file.

    Raises SettingsError where it is unreadable, malformed, or someone else than its user and root could change it.
    """
    try:
        with path.open("rb") as file:
            check_trusted(path, os.fstat(file.fileno()))
            content = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        return []
    except OSError as error:
        cause = error.strerror or str(error)
        raise SettingsError(
            f"token file {path}: cannot be read ({cause}); check --web.token-file and the rights"
        ) from error
    if len(content) > _MOST_BYTES:
        raise SettingsError(f"token file {path}: is larger than {_MOST_BYTES} bytes; revoke tokens that are not used")
    return _parsed(path, content)


def check_trusted(path: Path, found: os.stat_result) -> None:
    """Raises SettingsError where another user could change the file, and so make tokens for himself."""
    folder = path.parent.stat()
    for what, status in ((f"token file {path}", found), (f"folder {path.parent} of the token file", folder)):
        if status.st_uid not in (0, os.geteuid()):
            raise SettingsError(f"{what}: belongs to user {status.st_uid}, who could make tokens; give it to root")
        writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
        if writable and not sticky:
            raise SettingsError(f"{what}: others may write it and so make tokens; run chmod go-w on it")


class TokenFile:
    """The tokens of one file, kept up with it. Any thread may call; each call looks at the file's times (2 us).

    A changed file is read by the call that finds it so: half a second for a thousand tokens, hence `is_current`.
    """

    def __init__(self, path: Path, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """Reads the file. Raises SettingsError as `read_tokens` does: a bad file is found at the start."""
        self._path = path
        self._now = now
        self._seen = _identity(path)
        self._tokens = {token.id: token for token in read_tokens(path)}
        warn_if_others_read(path, "the names, scopes and hashes of the tokens")
        if not self._tokens:
            _log.warning("no tokens, so nobody is let in; run virtgauge token create", extra={"file": str(path)})

    def authenticate(self, header: str | None) -> Principal | None:
        """Who an Authorization header speaks for; None where it is absent, malformed, unknown, revoked or expired."""
        text = _bearer_token(header)
        if text is None:
            return None
        token = self._current().get(text.split("_", 2)[1])
        # Compared for unknown ids too, so that the answer's time tells nothing about which ids exist.
        matches = hmac.compare_digest(_sha256(text), token.sha256 if token else _UNKNOWN_SHA256)
        if token is None or not matches or token.expired(self._now()):
            return None
        return token.principal

    def is_current(self) -> bool:
        """False where the next call would read the file again."""
        return _identity(self._path) == self._seen

    def keep_up(self) -> None:
        """Reads the file again if it has changed. Raises nothing."""
        self._current()

    def _current(self) -> dict[str, Token]:
        seen = _identity(self._path)
        if seen != self._seen:
            try:
                tokens = {token.id: token for token in read_tokens(self._path)}
                _log.info("tokens read again", extra={"file": str(self._path), "tokens": len(tokens)})
            except SettingsError as error:
                tokens = {}
                _log.error("nobody is let in until the token file is corrected", extra={"cause": str(error)})
            self._tokens, self._seen = tokens, seen
        return self._tokens


def _bearer_token(header: str | None) -> str | None:
    if header is None or len(header) > _LONGEST_HEADER:
        return None
    scheme, _, text = header.strip().partition(" ")
    return text.strip() if scheme.lower() == "bearer" and TOKEN.fullmatch(text.strip()) else None


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _identity(path: Path) -> tuple[int, ...]:
    """What changes with the file's content or owner; empty where there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _parsed(path: Path, content: bytes) -> list[Token]:
    try:
        tokens = _Document.model_validate(yaml.load(content, Loader=StrictLoader) or {}).tokens
    except ValidationError as error:
        # Without the input: someone may have written the token itself where its hash belongs.
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "its top"
        cause = first["msg"].removeprefix("Value error, ")
        raise SettingsError(f"token file {path}: {where}: {cause}; correct it") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise SettingsError(f"token file {path}{where}: broken YAML; correct it") from None
    for field in ("id", "name"):
        times = Counter(getattr(token, field) for token in tokens)
        if repeated := [value for value, count in times.items() if count > 1]:
            raise SettingsError(f"token file {path}: the {field} {min(repeated)} is there twice; revoke one")
    return tokens


def written_tokens(tokens: list[Token]) -> bytes:
    """The file's content for these entries."""
    head = "# Tokens of virtgauge, hashed; 'virtgauge token' writes this file.\n"
    return (head + yaml.safe_dump(_Document(tokens=tokens).model_dump(mode="json"), sort_keys=False)).encode()
