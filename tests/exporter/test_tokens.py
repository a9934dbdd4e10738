"""Bearer tokens: made, listed and revoked by the real command; read, refused and read again by TokenFile."""

from __future__ import annotations

import os
import stat
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from exporter import cli, command_token, tokens
from exporter.errors import SettingsError, UsageError, VirtgaugeError
from exporter.token_changes import create_token, revoke_token
from exporter.tokens import Principal, Role, TokenFile, read_tokens

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
LATER = NOW + timedelta(days=90)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tokens.yml"


def made(path, name="grafana", role=Role.READER, domains=("*",), expires=LATER):
    return create_token(path, name, role, domains, NOW, expires)[1]


def opened(path, now=NOW):
    return TokenFile(path, lambda: now)


def entry(**changed):
    whole = {"id": "0" * 12, "name": "n", "role": "reader", "domains": ["*"], "created": NOW.isoformat(),
             "expires": None, "sha256": "0" * 64}  # fmt: skip
    return {key: value for key, value in (whole | changed).items() if value is not ...}


def test_a_token_speaks_for_its_principal(path):
    text = made(path, role=Role.OPERATOR, domains=("web-*", "db-?"))
    principal = opened(path).authenticate(f"Bearer {text}")
    assert principal == Principal(text.split("_")[1], "grafana", Role.OPERATOR, ("web-*", "db-?"))
    assert str(principal) == f"grafana ({text.split('_')[1]})"
    assert [principal.allows(role) for role in Role] == [True, True, True, False]
    names = ("web-1", "db-1", "db-10", "WEB-1", "mail", "")
    assert [principal.allows_domain(name) for name in names] == [True, True, False, False, False, False]
    assert not principal.allows_every_domain


def test_the_file_holds_no_token_and_only_its_owner_reads_it(path):
    text = made(path)
    assert text not in path.read_text()
    assert text.split("_", 2)[2] not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True)])
def test_a_file_that_all_may_read_is_warned_of(path, caplog, mode, warned):
    made(path)
    path.chmod(mode)
    opened(path)
    assert ("hashes of the tokens; run chmod o-r" in caplog.text) == warned


def test_wrong_headers_are_nobody(path):
    text = made(path)
    file = opened(path)
    other = text[:-1] + ("A" if text[-1] != "A" else "B")
    for header in (None, "", "Bearer", "Bearer ", text, f"Basic {text}", f"Bearer {other}", f"Bearer {text} x",
                   f"Bearer {text}, Bearer {text}", f"Bearer vgt_{'0' * 12}_{text.split('_', 2)[2]}",
                   f"Bearer {text}" + "A" * 600, "Bearer \udcff", f"Bearer {text[:-5]}"):  # fmt: skip
        assert file.authenticate(header) is None, header
    assert file.authenticate(f"bearer  {text}").name == "grafana"


@given(st.one_of(st.text(), st.text().map("Bearer ".__add__), st.text().map("Bearer vgt_000000000000_".__add__)))
def test_no_header_raises_or_gets_in(header):
    assert EMPTY.authenticate(header) is None


EMPTY = TokenFile.__new__(TokenFile)
EMPTY._path, EMPTY._now, EMPTY._seen, EMPTY._tokens = tokens.Path("/nonexistent/tokens.yml"), lambda: NOW, (), {}


def test_expiry_is_to_the_moment(path):
    text = made(path)
    assert opened(path, LATER - timedelta(microseconds=1)).authenticate(f"Bearer {text}")
    assert opened(path, LATER).authenticate(f"Bearer {text}") is None
    forever = made(path, "forever", expires=None)
    assert opened(path, datetime.max.replace(tzinfo=UTC)).authenticate(f"Bearer {forever}")


def test_made_and_revoked_without_a_restart(path, caplog):
    file = opened(path)
    assert "virtgauge token create" in caplog.text
    text = made(path)
    assert file.authenticate(f"Bearer {text}").name == "grafana"
    second = made(path, "second")
    assert file.authenticate(f"Bearer {second}").name == "second"
    assert revoke_token(path, "grafana").name == "grafana"
    assert file.authenticate(f"Bearer {text}") is None
    assert file.authenticate(f"Bearer {second}").name == "second"
    path.unlink()
    assert file.authenticate(f"Bearer {second}") is None
    assert text not in caplog.text


def test_a_file_broken_while_running_lets_nobody_in_until_it_is_corrected(path, caplog):
    text = made(path)
    good = path.read_bytes()
    file = opened(path)
    path.write_text("tokens: [")
    assert file.authenticate(f"Bearer {text}") is None
    assert file.authenticate(f"Bearer {text}") is None
    assert len([r for r in caplog.records if r.levelname == "ERROR"]) == 1
    path.write_bytes(good)
    assert file.authenticate(f"Bearer {text}")


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("tokens: [", "line 1: broken YAML"),
        ("- 1", "its top"),
        ("tokens: 5", "tokens: Input should be a valid list"),
        ("token: []", "token: Extra inputs"),
        ({"tokens": [entry(role="root")]}, "tokens.0.role: is not a role; roles are alerts, reader, operator, admin"),
        ({"tokens": [entry(role="READER")]}, "is not a role"),
        ({"tokens": [entry(role=3)]}, "is not a role"),
        ({"tokens": [entry(domains=[])]}, "tokens.0.domains"),
        ({"tokens": [entry(domains="*")]}, "tokens.0.domains"),
        ({"tokens": [entry(sha256="planted-secret")]}, "tokens.0.sha256"),
        ({"tokens": [entry(expires=...)]}, "tokens.0.expires: Field required"),
        ({"tokens": [entry(expires="soon")]}, "tokens.0.expires"),
        ({"tokens": [entry(expires="2026-01-01T00:00:00")]}, "timezone"),
        ({"tokens": [entry(id="x")]}, "tokens.0.id"),
        ({"tokens": [entry(name="a b")]}, "tokens.0.name"),
        ({"tokens": [entry(scope=1)]}, "tokens.0.scope"),
        ({"tokens": [entry(), entry(name="m")]}, "id 000000000000 is there twice"),
        ({"tokens": [entry(), entry(id="1" * 12)]}, "name n is there twice"),
        ("tokens: []\n" + "#" * (1024 * 1024), "larger"),
        (b"\xff\xff\xff", "broken YAML"),
        ("\x00", "broken YAML"),
        ("[" * 5000, "broken YAML"),
    ],
)
def test_bad_files_name_file_and_cause(path, content, cause):
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    with pytest.raises(SettingsError, match="token file") as caught:
        TokenFile(path)
    assert cause in str(caught.value)
    assert str(path) in str(caught.value)
    assert "planted-secret" not in str(caught.value)


@given(st.binary(max_size=200))
def test_any_bytes_are_tokens_or_a_settings_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzzed.yml"
    path.write_bytes(content)
    path.chmod(0o600)
    with suppress(SettingsError):
        assert read_tokens(path) == []


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_is_refused(path, mode):
    text = made(path)
    file = opened(path)
    path.chmod(mode)
    with pytest.raises(SettingsError, match="chmod go-w"):
        TokenFile(path)
    assert file.authenticate(f"Bearer {text}") is None


def test_a_folder_that_others_may_write_is_refused_unless_sticky(path):
    made(path)
    path.parent.chmod(0o777)
    with pytest.raises(SettingsError, match=r"folder .* chmod go-w"):
        TokenFile(path)
    path.parent.chmod(0o1777)
    TokenFile(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
def test_a_file_of_another_user_is_refused_and_a_new_one_goes_to_the_folders_user(path):
    path.parent.chmod(0o755)
    os.chown(path.parent, 12345, 12345)
    # Root may make the first token in the service's own folder, which the service, not root, can then trust.
    create_token(path, "first", Role.READER, ("*",), NOW, None)
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 12345)
    with pytest.raises(SettingsError, match="belongs to user 12345"):
        TokenFile(path)


def test_tokens_made_at_once_are_all_there(path):
    threads = [threading.Thread(target=made, args=(path, f"t{number}")) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(token.name for token in read_tokens(path)) == [f"t{number}" for number in range(8)]
    assert [found.name for found in path.parent.iterdir()] == ["tokens.yml"]


def test_a_name_is_used_once_until_it_has_expired(path):
    made(path)
    with pytest.raises(UsageError, match="already"):
        made(path)
    create_token(path, "grafana", Role.READER, ("*",), LATER, None)
    assert [token.expires for token in read_tokens(path)] == [None]


@pytest.mark.parametrize("name", ["", " ", "a b", "x" * 65, "-a", "a\n", "é", "../x"])
def test_malformed_names_are_refused(path, name):
    with pytest.raises(UsageError, match="malformed"):
        made(path, name)
    assert not path.exists()


def test_revoking_what_is_not_there(path):
    with pytest.raises(UsageError, match="there are none"):
        revoke_token(path, "x")
    made(path)
    with pytest.raises(UsageError, match="nearest is grafana"):
        revoke_token(path, "grafanna")


def test_a_file_that_cannot_be_written(path):
    path.mkdir()
    with pytest.raises(VirtgaugeError, match="token file"):
        made(path)
    made(path / "inside.yml")
    with pytest.raises(VirtgaugeError, match="cannot be written"):
        made(path / "inside.yml" / "file-as-folder")


@pytest.fixture
def virtgauge(capsys, monkeypatch):
    monkeypatch.setattr(command_token, "build", lambda: command_token.command({"block": True}))
    for name in list(os.environ):
        if name.startswith("VIRTGAUGE_"):
            monkeypatch.delenv(name)

    def run(*arguments):
        status = cli.run(["token", *arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_the_command_creates_lists_and_revokes(virtgauge, path, monkeypatch):
    monkeypatch.setenv("VIRTGAUGE_WEB_TOKEN_FILE", str(path))
    status, out, err = virtgauge("create", "ops", "--role", "operator", "--domain", "web-*", "--domain", "db")
    assert (status, out.count("\n")) == (0, 1)
    assert out.strip() not in err
    assert "ops" in err
    principal = TokenFile(path).authenticate(f"Bearer {out.strip()}")
    assert (principal.role, principal.domains) == (Role.OPERATOR, ("web-*", "db"))
    _, listed, _ = virtgauge("list")
    assert "operator  web-*,db" in listed
    assert out.strip() not in listed
    assert read_tokens(path)[0].sha256 not in listed
    status, said, _ = virtgauge("revoke", "ops")
    assert (status, "revoked" in said) == (0, True)
    assert read_tokens(path) == []


def test_the_command_finds_the_file_by_flag_state_folder_and_config_file(virtgauge, path, tmp_path):
    assert virtgauge("create", "a", "--role=reader", f"--web.token-file={path}")[0] == 0
    assert virtgauge("create", "b", "--role=reader", f"--state.directory={tmp_path}")[0] == 0
    config = tmp_path / "config.yml"
    config.write_text(yaml.safe_dump({"web": {"token_file": str(path)}, "collector": {"block": False}}))
    assert virtgauge("create", "c", "--role=admin", "--expires=never", f"--config.file={config}")[0] == 0
    assert [token.name for token in read_tokens(path)] == ["a", "b", "c"]
    assert "never" in virtgauge("list", f"--web.token-file={path}")[1]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["create", "a"], "--role"),
        (["create", "a", "--role=root"], "--role 'root' is not a role; roles are alerts, reader, operator, admin"),
        (["create", "a", "--role=reader", "--expires=soon"], "like 90d"),
        (["create", "a", "--role=reader", "--expires=9999999y"], "like 90d"),
        (["create", "a b", "--role=reader"], "malformed"),
        (["revoke", "a"], "no token 'a'"),
        (["revoke"], "NAME_OR_ID"),
    ],
)
def test_the_commands_errors_are_one_line_and_status_2(virtgauge, path, arguments, part):
    status, out, err = virtgauge(*arguments, f"--web.token-file={path}")
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert part in err
