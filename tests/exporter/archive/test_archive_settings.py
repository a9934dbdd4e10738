"""Archive settings: URIs, sizes, and passwords that are taken from safe places only and shown nowhere."""

from __future__ import annotations

import pytest

from exporter.archive.connection import Address, address_of
from exporter.config import ArchiveSettings, Settings
from exporter.errors import SettingsError
from exporter.setting_loading import effective_settings, load_settings
from exporter.setting_types import mask_passwords, parse_archive_uri, parse_size

SECRET_URI = "mongodb://root:s3cr%40t@mongo.example.org:27017/admin?tls=true&tlsCertificateKeyFilePassword=s3cr3t"


def load(flags=None, environ=None):
    return load_settings(Settings, flags=flags or {}, environ={"HOME": "/h"} | (environ or {}),
                         collectors={}, is_root=False)


@pytest.mark.parametrize("uri", [
    "embedded", "mongodb://localhost", SECRET_URI, "mongodb://a:1,b:2,c:3/?replicaSet=rs0",
    "mongodb+srv://cluster0.example.org/", "mongodb://u@h/?authMechanism=SCRAM-SHA-1&authSource=other"])
def test_uris_that_can_be(uri):
    assert parse_archive_uri(uri) == uri


@pytest.mark.parametrize(("uri", "cause"), [
    ("localhost:27017", "no MongoDB URI"), ("mongodb://", "no host"), ("mongodb://u:p@/x", "no host"),
    ("mongodb://u:p@ss@h/", "%40"), ("mongodb://h\nx", "control character"), ("Embedded", "no MongoDB URI"),
    (5, "URI")])
def test_uris_that_cannot_be(uri, cause):
    with pytest.raises(ValueError, match=cause):
        parse_archive_uri(uri)


@pytest.mark.parametrize(("text", "size"), [("8GiB", 8 << 30), ("1.5 MiB", 3 << 19), ("4096", 4096), (7, 7)])
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["8GB", "", "-1", "many", True, 1.5])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="not a size"):
        parse_size(text)


def test_a_password_in_a_flag_is_refused_and_not_shown():
    with pytest.raises(SettingsError, match=r"archive\.uri.*VIRTGAUGE_ARCHIVE_URI") as caught:
        load({"archive.uri": SECRET_URI})
    assert "s3cr" not in str(caught.value)
    assert load({"archive.uri": "mongodb://root@h/"}).archive.uri == "mongodb://root@h/"


@pytest.mark.parametrize("scheme", ["mongodb", "mongodb+srv", "qemu+tcp"])
@pytest.mark.parametrize("user", ["u", "", "long" * 200])
def test_a_long_password_is_one_too(scheme, user):
    shown = mask_passwords(f"cannot reach {scheme}://{user}:{'s3cr' * 500}@h:1/x: refused")
    assert shown == f"cannot reach {scheme}://{user}:***@h:1/x: refused"


def test_passwords_are_masked_wherever_settings_are_shown():
    settings = load(environ={"VIRTGAUGE_ARCHIVE_URI": SECRET_URI, "VIRTGAUGE_ARCHIVE_PASSWORD": "other5"})
    for text in (effective_settings(settings), repr(address_of(settings.archive)),
                 address_of(settings.archive).shown, mask_passwords(f"cannot reach {SECRET_URI}: refused")):
        assert "s3cr" not in text
        assert "other5" not in text
    assert "mongo.example.org" in address_of(settings.archive).shown
    with pytest.raises(SettingsError) as caught:
        load(environ={"VIRTGAUGE_ARCHIVE_URI": "mongodb://u:hidden@ba d/"})
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize("uri", [
    "mongodb://root:hidden@h:99999/", "mongodb://root:hidden@h/?authMechanism=NOSUCH", "mongodb://root:hid%zz@[::/",
    "mongodb://root:hidden@h/?w=0", "mongodb://root:hidden@h/?colour=red", "mongodb://root:hidden@h/?tls=true&tlsCAFile=/no/such/file"])
def test_a_uri_that_the_driver_refuses_says_why_without_the_password(uri):
    with pytest.raises(SettingsError, match=r"archive\.uri") as caught:
        Address(uri, "virtgauge").check()
    assert "hid" not in str(caught.value)


@pytest.mark.parametrize("uri", ["mongodb+srv://root:hidden@nowhere.invalid/", "mongodb://root:hidden@nowhere.invalid/"])
def test_a_name_that_cannot_be_looked_up_now_is_no_wrong_setting(uri):
    Address(uri, "virtgauge").check()


def test_the_password_comes_from_a_file(tmp_path):
    (tmp_path / "password").write_text("from file\n")
    settings = ArchiveSettings(uri="mongodb://root@h/", password_file=tmp_path / "password")
    assert address_of(settings).password == "from file"
    with Address("mongodb://h/", "d", "root", "p@ss:w/rd").connect("test") as client:
        assert "p@ss:w/rd" not in repr(client)


@pytest.mark.parametrize(("mode", "warned"), [(0o600, False), (0o640, False), (0o644, True)])
def test_a_password_file_that_all_may_read_is_warned_of(tmp_path, caplog, mode, warned):
    (tmp_path / "password").write_text("hidden")
    (tmp_path / "password").chmod(mode)
    address_of(ArchiveSettings(uri="mongodb://root@h/", password_file=tmp_path / "password"))
    assert ("can read the archive's password; run chmod o-r" in caplog.text) == warned


@pytest.mark.parametrize(("content", "cause"), [(None, "No such file"), (b"", "is empty"), (b"\xff\xfe", "not UTF-8")])
def test_a_password_file_that_is_no_use(tmp_path, content, cause):
    if content is not None:
        (tmp_path / "password").write_bytes(content)
    with pytest.raises(SettingsError, match=cause):
        address_of(ArchiveSettings(uri="mongodb://root@h/", password_file=tmp_path / "password"))


def test_a_password_needs_a_user(tmp_path):
    (tmp_path / "password").write_text("x")
    with pytest.raises(SettingsError, match=r"archive\.username"):
        address_of(ArchiveSettings(uri="mongodb://h/", password_file=tmp_path / "password"))


def test_writes_are_journaled_unless_the_uri_says_otherwise():
    with Address("mongodb://h/", "d").connect("test") as client:
        assert client.write_concern.document == {"w": "majority", "j": True}
    with Address("mongodb://h/?w=2&journal=false", "d").connect("test") as client:
        assert client.write_concern.document == {"w": 2, "j": False}
    with Address("mongodb://h/", "d", embedded=True).connect("test") as client:
        assert client.write_concern.document == {"w": 1, "j": True}
