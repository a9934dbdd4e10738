"""The kill switch of the rules."""

from __future__ import annotations

from pathlib import Path

from exporter.control.errors import UnreachableError


class KillSwitch:
    """A file: while it is there no rule acts. Any process, any thread; `hold` also from a signal's handler."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "rules-stopped"
        self._held = False

    def is_on(self) -> bool:
        return self._held or self.path.exists()

    def hold(self) -> None:
        """On in this process at once, until it is turned, on the disk, one way or the other."""
        self._held = True

    def turn(self, on: bool, by: str) -> None:
        """Raises UnreachableError where the folder cannot be written; on, it holds in this process all the same."""
        try:
            if on:
                self.hold()
                self.path.write_text(f"{by}\n")
            else:
                self.path.unlink(missing_ok=True)
        except OSError as error:
            raise UnreachableError(f"the kill switch {self.path} cannot be turned ({error.strerror})",
                                   next_step="make room, or run as the account that owns it") from error  # fmt: skip
        self._held = False
