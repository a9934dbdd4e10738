"""Makes and revokes tokens: changes the token file as a whole, one process at a time."""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from exporter.errors import UsageError, VirtgaugeError
from exporter.nearest import nearest
from exporter.tokens import Role, Token, new_token, read_tokens, written_tokens


def create_token(
    path: Path, name: str, role: Role, domains: tuple[str, ...], now: datetime, expires: datetime | None
) -> tuple[Token, str]:
    """Adds a token to the file, which it makes where there is none; gives the entry and the token.

    Raises UsageError for a name in use or malformed words, VirtgaugeError where the file cannot be written.
    """
    try:
        token, text = new_token(name, role, domains, now, expires)
    except ValueError:
        raise UsageError(
            f"token name {name[:70]!r} or a domain pattern is malformed; a name is up to 64 letters, digits and ._@-, "
            "a pattern is like 'web-*'"
        ) from None
    with _locked(path):
        tokens = read_tokens(path)
        # An expired token's name may be used again: that is what rotation does.
        tokens = [other for other in tokens if other.name != name or not other.expired(now)]
        if any(other.name == name for other in tokens):
            raise UsageError(f"there is a token named {name} already; revoke it first or choose another name")
        _replace(path, written_tokens([*tokens, token]))
    return token, text


def revoke_token(path: Path, name_or_id: str) -> Token:
    """Takes a token out of the file, by name or id, and gives its entry. Raises UsageError where there is none."""
    with _locked(path):
        tokens = read_tokens(path)
        found = next((token for token in tokens if name_or_id in (token.id, token.name)), None)
        if found is None:
            near = nearest(name_or_id, [token.name for token in tokens])
            hint = f"the nearest is {near}" if near else f"there are none in {path}"
            raise UsageError(f"no token {name_or_id[:70]!r}; {hint}; run 'virtgauge token list'")
        _replace(path, written_tokens([token for token in tokens if token != found]))
    return found


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One change at a time. The lock is on the folder, since the file itself is replaced."""
    try:
        path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _replace(path: Path, content: bytes) -> None:
    """Writes beside the file and renames: a reader sees the old file or the new one, also after a power cut."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        owner, group, mode = _rights(path)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            if os.geteuid() == 0:
                os.fchown(descriptor, owner, group)
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        draft.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with suppress(OSError):
            draft.unlink()
        raise _cannot_write(path, error) from error


def _rights(path: Path) -> tuple[int, int, int]:
    """Owner, group and mode for the new file: the old one's, else the folder's user alone.

    Root makes the file in the service's own folder, and the service must be able to read it.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        folder = path.parent.stat()
        return folder.st_uid, folder.st_gid, 0o600
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)


def _cannot_write(path: Path, error: OSError) -> VirtgaugeError:
    cause = error.strerror or str(error)
    return VirtgaugeError(f"token file {path}: cannot be written ({cause}); run as its owner, or as root")
