"""What no output may hold: tokens, passwords inside URIs, password hashes, private keys. Found by their form.

Every secret that a test makes has one of these forms, or is the password of an embedded server, which lies in a file
of its own; so whatever test, server or message shows one, it is found here without being told of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_FORMS = {
    "a token": re.compile(r"vgt_[0-9a-f]{12}_[A-Za-z0-9_-]{20,}"),
    "a password in a URI": re.compile(r"mongodb(?:\+srv)?://[^\s:/@'\"]+:(?!\*+@|<[a-z]+>@)[^\s@'\"]+@"),
    "a password's hash": re.compile(r"\$2[aby]\$\d\d\$[./A-Za-z0-9]{53}"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
}
OUTPUT_FILES = ("log", "*.log", "*.out", "*.err", "audit.jsonl")
"""How files are called that servers and commands of the tests write for people."""


def leaks(text: str, passwords: frozenset[str] = frozenset()) -> list[str]:
    """What kinds of secret the text shows, each with the line around it, the secret itself cut."""
    found = [(kind, match.start()) for kind, form in _FORMS.items() for match in form.finditer(text)]
    found += [("an embedded server's password", text.index(password)) for password in passwords if password in text]
    return [f"{kind}: {text[text.rfind(chr(10), 0, at) + 1:at + 8]}..." for kind, at in found]


def passwords_below(folder: Path) -> frozenset[str]:
    """The passwords of the embedded servers that ran with their state below `folder`."""
    return frozenset(file.read_text().strip() for file in folder.rglob("embedded/password")) - {""}


def leaks_below(folder: Path, passwords: frozenset[str]) -> Iterator[str]:
    """What the output files below `folder` show."""
    for pattern in OUTPUT_FILES:
        for file in folder.rglob(pattern):
            if file.is_file() and not file.is_symlink():
                yield from (f"{file.name} of {file.parent.name}: {leak}" for leak in
                            leaks(file.read_text(errors="replace"), passwords))  # fmt: skip
