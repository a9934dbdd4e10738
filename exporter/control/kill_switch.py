"""The kill switch of the rules."""

from __future__ import annotations

import contextlib
from pathlib import Path

from exporter.control.errors import UnreachableError


class KillSwitch:
    """A file: while it is there no rule acts. Any process, any thread; `hold` also from a signal's handler."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "rules-stopped"
        self._word = folder / "rules-go"
        """Touched by each word to go on: one that held without the file hears of it in any process."""
        self._held_since: tuple[int, ...] | None = None
        """What `_word` was when this process began to hold without the file; None where it does not."""

    def prepare(self) -> None:
        """Makes the file of the word to go on, which may later need to be heard on a full disk."""
        with contextlib.suppress(OSError):
            self._word.touch(0o600)

    def is_on(self) -> bool:
        held_since = self._held_since
        return self.path.exists() or (held_since is not None and held_since == _stamp(self._word))

    def hold(self) -> None:
        """On in this process at once, until it is turned, one way or the other, by any process."""
        self._held_since = _stamp(self._word)

    def turn(self, on: bool, by: str) -> None:
        """Raises UnreachableError where the folder cannot be written; on, it holds in this process all the same."""
        try:
            if on:
                self.hold()
                self.path.write_text(f"{by}\n")
            else:
                self.path.unlink(missing_ok=True)
                self._touch_word()
        except OSError as error:
            raise UnreachableError(f"the kill switch {self.path} cannot be turned ({error.strerror})",
                                   next_step="make room, or run as the account that owns it") from error  # fmt: skip
        self._held_since = None

    def _touch_word(self) -> None:
        try:
            self._word.touch(0o600)
        except PermissionError:  # root's, where the service's account owns the folder
            self._word.unlink()
            self._word.touch(0o600)


def _stamp(file: Path) -> tuple[int, ...]:
    """What each touch changes; empty where there is no file."""
    try:
        found = file.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns
