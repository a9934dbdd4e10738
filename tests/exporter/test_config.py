"""Settings: three spellings, precedence, and errors that name the thing, the cause and the next step."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
from pydantic import Field, SecretStr, ValidationError

from exporter.config import Section, Settings
from exporter.config_reference import reference
from exporter.errors import SettingsError
from exporter.listening import ListenAddress
from exporter.setting_catalogue import catalogue
from exporter.setting_loading import MASK, effective_settings, load_settings, warn_of_secrets_in_the_open
from exporter.setting_types import SECRET, parse_duration, parse_libvirt_uri

COLLECTORS = {"domain": True, "block": True, "virtual_networks": False}


class ArchiveSettings(Section):
    password: Annotated[SecretStr | None, SECRET] = Field(default=None, description="Archive password.")


class WithSecret(Settings):
    archive: ArchiveSettings = ArchiveSettings()


def load(flags=None, environ=None, file=None, *, model=Settings, tmp_path=None, is_root=False):
    flags = dict(flags or {})
    if file is not None:
        path = tmp_path / "virtgauge.yml"
        path.write_text(file)
        flags["config.file"] = str(path)
    return load_settings(
        model, flags=flags, environ={"HOME": "/home/op"} | (environ or {}), collectors=COLLECTORS, is_root=is_root
    )


def problem(*args, **kwargs):
    with pytest.raises(SettingsError) as caught:
        load(*args, **kwargs)
    assert caught.value.exit_status == 2
    return str(caught.value)


def test_defaults():
    settings = load()
    assert settings.libvirt.uri is None
    assert settings.web.listen_address == (ListenAddress("", 9177),)
    assert settings.web.telemetry_path == "/metrics"
    assert (settings.sampling.max_age, settings.sampling.interval) == (1.0, 15.0)
    assert (settings.sampling.lanes, settings.sampling.chunk, settings.sampling.kernel) == (3, 16, "auto")
    assert settings.collector.enabled == {"domain", "block"}
    assert settings.state.directory == Path("/home/op/.local/state/virtgauge")
    assert settings.compat.names == ()


@pytest.mark.parametrize(
    ("environ", "is_root", "folder"),
    [
        ({}, True, "/var/lib/virtgauge"),
        ({"XDG_STATE_HOME": "/x"}, False, "/x/virtgauge"),
        ({"XDG_STATE_HOME": "relative"}, False, "/home/op/.local/state/virtgauge"),
        ({"VIRTGAUGE_STATE_DIRECTORY": "/s"}, True, "/s"),
    ],
)
def test_state_directory(environ, is_root, folder):
    assert load(environ=environ, is_root=is_root).state.directory == Path(folder)


def test_flag_over_environment_over_file(tmp_path):
    file = "sampling: {max_age: 4s, interval: 20, lanes: 2}\n"
    environ = {"VIRTGAUGE_SAMPLING_MAX_AGE": "3s", "VIRTGAUGE_SAMPLING_INTERVAL": "30"}
    sampling = load({"sampling.max_age": "2s"}, environ, file, tmp_path=tmp_path).sampling
    assert (sampling.max_age, sampling.interval, sampling.lanes) == (2.0, 30.0, 2)


def test_the_three_spellings_of_each_setting_agree(tmp_path):
    values = {
        "libvirt.uri": "test:///default",
        "web.listen_address": "[::1]:1",
        "web.telemetry_path": "/m",
        "web.disable_exporter_metrics": "true",
        "web.token_file": "/t",
        "web.systemd_socket": "true",
        "web.config.file": "/w",
        "web.max_requests": "7",
        "collector.disable_defaults": "true",
        "collector.virtual_networks": "true",
        "log.level": "debug",
        "log.format": "json",
        "sampling.max_age": "500ms",
        "sampling.interval": "1m30s",
        "sampling.kernel": "off",
        "sampling.lanes": "4",
        "sampling.chunk": "8",
        "host.name": "kestrel",
        "state.directory": "/s",
        "compat.names": "tinkoff,kumina",
        **{f"filter.{what}_{way}": "web-[0-9]+" for what in ("domain", "uuid", "metadata", "device")
           for way in ("include", "exclude")},
        "metadata.labels": "team={*}guest/{*}team,mail={*}guest/@mail",
        "metadata.namespaces": "site=https://example.org/guests/1.0",
        "filter.max_series_per_domain": "500",
        "filter.max_series": "90000",
        "control.listen_address": "[::1]:2",
        "control.image_directory": "/i,/j",
        "control.rules_file": "/r.yml",
        "control.migration_destination": "kvm2=qemu+tls://kvm2.example.org/system",
        "control.agent.enabled": "true",
        "control.agent.period": "2m",
        "archive.uri": "mongodb://mongo.example.org/?authSource=admin",
        "archive.database": "fleet",
        "archive.username": "op",
        "archive.password_file": "/p",
        "archive.window": "2m",
        "archive.partition": "hour",
        "archive.spool.limit": "2GiB",
        "archive.spool.full": "newest",
        "archive.retention.raw": "3d",
        "archive.retention.five_minutes": "30d",
        "archive.retention.hourly": "1y",
    }
    known = {key: setting for key, setting in catalogue(Settings, COLLECTORS).items() if not setting.secret}
    assert set(values) | {"collector.domain", "collector.block", "config.file", "config.check"} == set(known)
    for key, value in values.items():
        *sections, name = key.split(".")
        by_flag = load({key: value})
        by_environment = load(environ={known[key].environment: value})
        # Numbers and switches are bare in YAML, text is quoted.
        in_yaml = value if value == "true" or value.isdigit() else f"'{value}'"
        opened = "".join(f"{section}: {{" for section in sections)
        by_file = load(file=f"{{{opened}{name}: {in_yaml}{'}' * len(sections)}}}\n", tmp_path=tmp_path)
        assert by_flag == by_environment == by_file.model_copy(update={"config": by_flag.config}), key
        assert by_flag != load(), key


def test_names_of_variables_are_distinct():
    known = catalogue(Settings, COLLECTORS).values()
    assert len({setting.environment for setting in known}) == len(known)
    flags = [setting.flag for setting in known if setting.flag]
    assert len(set(flags)) == len(flags)
    assert all(setting.help for setting in known)


def test_an_empty_variable_counts_as_not_set():
    assert load(environ={"VIRTGAUGE_HOST_NAME": ""}).host.name is None


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        load().sampling.lanes = 2


@pytest.mark.parametrize(
    ("flags", "enabled"),
    [
        ({"collector.virtual_networks": True}, {"domain", "block", "virtual_networks"}),
        ({"collector.block": False}, {"domain"}),
        ({"collector.disable_defaults": True}, set()),
        ({"collector.disable_defaults": True, "collector.block": True}, {"block"}),
    ],
)
def test_collector_switches(flags, enabled):
    assert load(flags).collector.enabled == enabled


@pytest.mark.parametrize("text", ["", "# nothing\n", "web:\n", "sampling: {max_age: null}\n"])
def test_a_file_may_say_nothing(tmp_path, text):
    assert load(file=text, tmp_path=tmp_path).sampling == load().sampling


@pytest.mark.parametrize(
    ("file", "parts"),
    [
        ("sampling: {max-age: 1s}", ["sampling.max-age", "unknown key", "sampling.max_age"]),
        ("sampilng: {max_age: 1s}", ["sampilng", "unknown key", "nearest is sampling"]),
        ("collector: {blok: true}", ["collector.blok", "collector.block"]),
        ("collector: {block: 1}", ["collector.block", "true or false"]),
        ("sampling: 5", ["sampling in", "section", "sampling.max_age"]),
        ("sampling: {lanes: '3'}", ["sampling.lanes", "'3' should be a valid integer", "default (3)"]),
        ("sampling: {lanes: 9}", ["sampling.lanes", "9 should be less than or equal to 4"]),
        ("sampling: {chunk: true}", ["sampling.chunk", "integer"]),
        ("sampling: {max_age: fast}", ["sampling.max_age", "'fast'", "15s"]),
        ("sampling: {kernel: on}", ["sampling.kernel", "'auto' or 'off'"]),
        ("web: {listen_address: 9177}", ["web.listen_address", "9177 is neither text nor a list"]),
        ("web: {listen_address: []}", ["web.listen_address", "at least one"]),
        ("web: {listen_address: ['::1:9177']}", ["web.listen_address", "brackets"]),
        ("web: {disable_exporter_metrics: 'yes'}", ["web.disable_exporter_metrics", "boolean"]),
        ("config: {check: true}", ["config.check", "--config.check"]),
        ("log: {level: loud}", ["log.level", "'loud'", "'debug', 'info', 'warn' or 'error'"]),
        ("compat: {names: [foo]}", ["compat.names", "'tinkoff', 'inovex' or 'kumina'"]),
        ("- web", ["its top is a list"]),
        ("web:\n  a: [1\nlog: x\n", ["line 3", "broken YAML"]),
        ("web:\n\ttelemetry_path: /m\n", ["line 2", "broken YAML"]),
        ("log: {level: info}\nlog: {level: warn}\n", ["line 2", "'log' is given twice"]),
        ("log: !!python/object:os.system {}\n", ["line 1", "broken YAML"]),
    ],
)
def test_errors_in_a_file_name_thing_cause_and_next_step(tmp_path, file, parts):
    message = problem(file=file, tmp_path=tmp_path)
    assert "\n" not in message
    for part in [*parts, "virtgauge.yml"]:
        assert part in message


@pytest.mark.parametrize(
    ("environ", "parts"),
    [
        ({"VIRTGAUGE_SAMPLING_MAXAGE": "1"}, ["VIRTGAUGE_SAMPLING_MAXAGE", "nearest is VIRTGAUGE_SAMPLING_MAX_AGE"]),
        ({"VIRTGAUGE_SAMPLING_LANES": "many"}, ["sampling.lanes (VIRTGAUGE_SAMPLING_LANES)", "'many'"]),
        ({"VIRTGAUGE_COLLECTOR_BLOCK": "maybe"}, ["collector.block", "'maybe'", "true or false"]),
    ],
)
def test_errors_in_the_environment(environ, parts):
    message = problem(environ=environ)
    assert all(part in message for part in parts)


def test_every_problem_is_told_at_once(tmp_path):
    message = problem({"sampling.lanes": "1"}, {"VIRTGAUGE_X": "1"}, "web: {x: 1}", tmp_path=tmp_path)
    assert len(message.splitlines()) == 3


@pytest.mark.parametrize(("text", "mode", "named"), [
    ("archive: {uri: 'mongodb://h', password: hidden}", 0o644, "archive.password;"),
    ("archive: {uri: 'mongodb://me:hidden@h'}", 0o644, "archive.uri;"),
    ("archive: {uri: 'mongodb://me:hidden@h'}", 0o640, ""),
    ("archive: {uri: 'mongodb://h'}", 0o644, ""),
], ids=["password", "URI with password", "not for all", "no secret"])  # fmt: skip
def test_a_file_with_a_secret_that_all_may_read_is_warned_of(tmp_path, caplog, text, mode, named):
    settings = load(file=text, tmp_path=tmp_path)
    (tmp_path / "virtgauge.yml").chmod(mode)
    warn_of_secrets_in_the_open(settings, COLLECTORS)
    assert bool(caplog.records) == bool(named)
    assert named in caplog.text
    assert "hidden" not in caplog.text


def test_unreadable_files(tmp_path):
    assert "No such file" in problem({"config.file": str(tmp_path / "absent.yml")})
    assert "Is a directory" in problem({"config.file": str(tmp_path)})
    binary = tmp_path / "binary.yml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in problem({"config.file": str(binary)})
    binary.write_bytes(b"a: \x00")
    assert "broken YAML" in problem({"config.file": str(binary)})


def test_a_secret_has_no_flag_and_is_never_shown(tmp_path):
    settings = load(environ={"VIRTGAUGE_ARCHIVE_PASSWORD": "hunter2"}, model=WithSecret)
    assert settings.archive.password.get_secret_value() == "hunter2"
    assert "hunter2" not in effective_settings(settings) + repr(settings)
    assert MASK in effective_settings(settings)
    assert catalogue(WithSecret, {})["archive.password"].flag is None
    assert "VIRTGAUGE_ARCHIVE_PASSWORD" in problem({"archive.password": "hunter2"}, model=WithSecret)
    wrong = problem(file="archive: {password: [hunter2]}", model=WithSecret, tmp_path=tmp_path)
    assert "archive.password" in wrong
    assert "hunter2" not in wrong


def test_effective_settings_can_be_read_again(tmp_path):
    flags = {"collector.block": False, "web.listen_address": ("[::1]:9177", ":1"), "sampling.kernel": "off",
             "sampling.max_age": "250ms", "libvirt.uri": "test:///default", "compat.names": "kumina"}  # fmt: skip
    settings = load(flags)
    again = load(file=effective_settings(settings), tmp_path=tmp_path)
    assert again.model_copy(update={"config": settings.config}) == settings


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("1s", 1), ("500ms", 0.5), (15, 15), ("15", 15), ("1m30s", 90), ("1.5h", 5400), (0.25, 0.25), ("1d", 86400)],
)
def test_durations(value, seconds):
    assert parse_duration(value) == seconds


@pytest.mark.parametrize("value", ["", "s", "-1s", "1 s", "1x", "nan", True, None, [1], "1s2"])
def test_what_is_no_duration(value):
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(value)


@pytest.mark.parametrize("value", ["nan", float("nan"), float("inf"), -1])
def test_a_duration_is_a_number_within_bounds(value):
    assert "sampling.interval" in problem({"sampling.interval": value})


@pytest.mark.parametrize(
    "uri",
    ["qemu:///system", "qemu:///session", "test:///default", "test:///srv/t.xml", "qemu+ssh://root@host:22/system",
     "qemu+unix:///system?socket=/run/x.sock", "qemu+tls://[fe80::1]/system", "xen:///", "QEMU:///system"],
)  # fmt: skip
def test_libvirt_uris(uri):
    assert parse_libvirt_uri(uri) == uri


@pytest.mark.parametrize(
    "uri",
    ["", "nonsense", "qemu//system", "qemu:system", "quemu:///system", "http://x/", "qemu+shh://h/system",
     "qemu+ssh://h:port/system", "qemu:///sys tem", "qemu:///system\n", "qemu+ssh://[::1/system", "qemu+ssh://@/s", 5],
)  # fmt: skip
def test_malformed_libvirt_uris(uri):
    with pytest.raises(ValueError, match=r"write it like|nearest"):
        parse_libvirt_uri(uri)


def test_a_malformed_uri_is_named_with_its_flag():
    message = problem({"libvirt.uri": "quemu:///system"})
    assert message.startswith("libvirt.uri (--libvirt.uri): 'quemu:///system' names no driver")


@pytest.mark.parametrize("path", ["metrics", "/-/ready", "/a b", "/m?x=1", "/{x}", "", "/api/metrics", "/api"])
def test_telemetry_paths_that_cannot_be(path):
    assert "web.telemetry_path" in problem({"web.telemetry_path": path})


@pytest.mark.parametrize(
    ("text", "address"),
    [(":9177", ("", 9177)), ("127.0.0.1:0", ("127.0.0.1", 0)), ("[::1]:80", ("::1", 80)), ("host:1", ("host", 1))],
)
def test_listen_addresses(text, address):
    parsed = ListenAddress.parse(text)
    assert (parsed.host, parsed.port) == address
    assert str(parsed) == text


@pytest.mark.parametrize("text", ["9177", "::1:9177", "host:", "host:http", ":65536", ":-1", "a/b:1", ":²", "[::1:1"])
def test_malformed_listen_addresses(text):
    with pytest.raises(ValueError, match=r"write it like|above 65535|brackets"):
        ListenAddress.parse(text)


def test_the_reference_is_current():
    page = Path(__file__).parents[2] / "docs" / "configuration.md"
    assert page.read_text() == reference(), "run: python -m exporter.config_reference > docs/configuration.md"
