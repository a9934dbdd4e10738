"""The watch over the suite's output finds each kind of secret, and takes nothing else for one."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import bcrypt
import pytest

from exporter.token_changes import create_token
from exporter.tokens import Role
from tests.exporter import certificates
from tests.leaked_secrets import leaks, leaks_below, passwords_below


def token(folder: Path) -> str:
    return create_token(folder / "tokens.yml", "reader", Role.READER, ("*",), datetime.now(UTC), None)[1]


def key(folder: Path) -> str:
    certificates.authority(folder)
    return (folder / "ca.key").read_text()


@pytest.mark.parametrize("make", [
    token, key, lambda _: bcrypt.hashpw(b"x", bcrypt.gensalt(4)).decode(),
    lambda _: "mongodb://root:s3cret@db:27017/admin", lambda _: "mongodb+srv://u:p%40x@db.example",
], ids=["token", "key", "hash", "uri", "srv"])  # fmt: skip
def test_each_kind_is_found(make, tmp_path: Path) -> None:
    secret = make(tmp_path)
    (leak,) = leaks(f"fine\nts=1 msg={secret} more\nfine")
    assert secret not in leak
    log = tmp_path / "exporter-1.log"
    log.write_text(f"oh: {secret}\n")
    assert len(list(leaks_below(tmp_path, frozenset()))) == 1
    log.unlink()  # the whole run's watch looks here, too


def test_an_embedded_servers_password_is_found_wherever_it_ran(tmp_path: Path) -> None:
    (tmp_path / "state/archive/embedded").mkdir(parents=True)
    (tmp_path / "state/archive/embedded/password").write_text("abc-DEF_123\n")
    assert leaks("uri abc-DEF_123", passwords_below(tmp_path))


def test_what_is_masked_or_no_secret_is_not(tmp_path: Path) -> None:
    for text in ("mongodb://root:***@db:27017/admin", "mongodb://db:27017", "vgt_", "token ops (178884d36c10)"):
        assert leaks(text) == []
