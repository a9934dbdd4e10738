"""A word in the log about files with secrets that every user of the machine can read."""

from __future__ import annotations

import logging
import stat
from contextlib import suppress
from pathlib import Path

_log = logging.getLogger(__name__)


def warn_if_others_read(path: Path, what: str) -> None:
    """`what` is the secret, as in "the certificate's key". Follows links; a file that is not there is no matter."""
    with suppress(OSError):
        if path.stat().st_mode & stat.S_IROTH:
            _log.warning("all users of this machine can read %s; run chmod o-r on the file", what,
                         extra={"file": str(path)})  # fmt: skip
