"""Runs the Debian programs that the demonstration is made of (libvirtd, virsh, unshare, ip, apt-get ...)."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from exporter.demonstration.errors import DemonstrationError

# An unprivileged user's PATH lacks these on Debian, and libvirtd and ip live there.
SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def find_program(name: str) -> str:
    """The path of an installed program.

    Raises DemonstrationError if it is not installed.
    """
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep) + list(SYSTEM_FOLDERS)
    found = shutil.which(name, path=os.pathsep.join(folders))
    if found is None:
        raise DemonstrationError(f"the program {name!r} is not installed; run 'make setup' to install what is missing")
    return found


def run_program(
    command: Sequence[str], *, timeout_s: float = 60.0, folder: Path | None = None, stdin: bytes = b""
) -> bytes:
    """Run a command to its end and return its standard output.

    Raises DemonstrationError if it is not installed, fails, or is not done after `timeout_s` seconds.
    """
    words = [find_program(command[0]), *command[1:]]
    try:
        done = subprocess.run(words, input=stdin, capture_output=True, timeout=timeout_s, cwd=folder, check=False)
    except subprocess.TimeoutExpired:
        raise DemonstrationError(f"'{' '.join(command)}' was not done after {timeout_s:g} s; try again") from None
    if done.returncode != 0:
        raise DemonstrationError(f"'{' '.join(command)}' failed: {_last_words(done)}")
    return done.stdout


def _last_words(done: subprocess.CompletedProcess[bytes]) -> str:
    """What a failed program said, on one line (virsh says the reason on its last line)."""
    text = done.stderr.decode(errors="replace").strip() or done.stdout.decode(errors="replace").strip()
    lines = [line.strip().removeprefix("error: ") for line in text.splitlines() if line.strip()]
    return ": ".join(lines[-2:]) or f"exit status {done.returncode}"
