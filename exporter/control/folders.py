"""The places control may use: its own state, the folders guests may be given files from, the hosts they may move to."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from exporter.control.destinations import Destination
from exporter.control.errors import InvalidError, UnreachableError


@dataclass(frozen=True)
class Folders:
    """`state` is control's part of the state folder. `images` are the folders a guest's disks, ISOs, kernels,
    firmware and seeds may lie in; `saves` is where memory images go (0700: they hold the guest's memory).
    """

    state: Path
    images: tuple[Path, ...] = ()
    destinations: tuple[Destination, ...] = ()
    """The hosts that guests may be moved to."""
    refuse: Callable[[Path], None] = lambda _path: None
    """Raises RefusedError for an image that the caller must not give to a guest."""

    @property
    def locks(self) -> Path:
        return self.state / "locks"

    @property
    def saves(self) -> Path:
        return self.state / "saves"

    @property
    def seeds(self) -> Path:
        """Beside the guests' disks: QEMU runs as a user of its own, which gets to no folder of ours."""
        return (self.images[0] / "virtgauge-seeds") if self.images else (self.state / "seeds")

    @property
    def trail(self) -> Path:
        return self.state / "audit.jsonl"

    def private(self, folder: Path, mode: int = 0o700) -> Path:
        """`folder`, made with `mode` if absent. Raises UnreachableError for a link, a file, or no right."""
        try:
            if not folder.exists():
                folder.mkdir(mode=mode, parents=True, exist_ok=True)
                folder.chmod(mode)  # whatever the umask says
            if not stat.S_ISDIR(folder.lstat().st_mode):
                raise NotADirectoryError(20, "is a link", str(folder))
        except OSError as error:
            raise UnreachableError(
                f"the folder {folder} cannot be used ({error.strerror})",
                next_step="set --state.directory to a folder of your own, or run as the account that owns it",
            ) from error
        return folder

    def image(self, text: str, what: str) -> Path:
        """An existing regular file or block device under one of `images`, links resolved.

        Raises InvalidError for a relative path, one outside the folders, a missing or special file, and what
        `refuse` raises.
        """
        path, mode = self._under_images(text, what)
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise InvalidError(f"{what} {text} is neither a file nor a block device", next_step="choose another")
        self.refuse(path)
        return path

    def image_folder(self, text: str, what: str) -> Path:
        """An existing folder that is one of `images` or under one, links resolved. Raises InvalidError as `image`."""
        path, mode = self._under_images(text, what)
        if not stat.S_ISDIR(mode):
            raise InvalidError(f"{what} {text} is no folder", next_step="choose another")
        return path

    def _under_images(self, text: str, what: str) -> tuple[Path, int]:
        allowed = ", ".join(map(str, self.images)) or "none is configured"
        if not os.path.isabs(text) or "\0" in text:
            raise InvalidError(f"{what} {text!r} is not an absolute path", next_step=f"choose one under: {allowed}")
        path = Path(os.path.realpath(text))
        if not any(path.is_relative_to(os.path.realpath(folder)) for folder in self.images):
            raise InvalidError(f"{what} {text} is outside the image folders", next_step=f"choose one under: {allowed}")
        try:
            return path, path.stat().st_mode
        except OSError as error:
            raise InvalidError(f"{what} {text}: {error.strerror}", next_step="check the path") from error
