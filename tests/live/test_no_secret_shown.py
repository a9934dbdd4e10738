"""A secret in every setting that takes one, in both services and on the command line: none of it is shown or kept."""

from __future__ import annotations

import base64
import http.client
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import bcrypt
import pytest
import yaml

from exporter.config import Settings
from exporter.errors import SettingsError
from exporter.setting_catalogue import Setting, catalogue
from exporter.setting_loading import effective_settings, load_settings
from exporter.token_changes import create_token
from exporter.tokens import Role
from tests.control_service import ControlService
from tests.live.secured import SecureServer, make_pairs
from tests.live.servers import free_port

VIRTGAUGE = str(Path(sys.executable).with_name("virtgauge"))
PLANTED = "planted-Secret-5f1"
KNOWN = catalogue(Settings, {})
# What a text setting may be given, a password in each. The first that a setting takes is planted in it.
SHAPES = (
    "mongodb://someone:{}@127.0.0.1:1/?serverSelectionTimeoutMS=100",
    "test:///default?password={}",
    "qemu+tls://someone:{}@127.0.0.1:1/system",
    "kvm2=qemu+tls://someone:{}@127.0.0.1:1/system",
)


def planted(key: str) -> str:
    return f"{PLANTED}-{key.replace('.', '-')}"


def loaded(setting: Setting, text: str) -> Settings:
    """Raises SettingsError."""
    environ = {setting.environment: text}
    if setting.key != "archive.username":
        environ |= {"VIRTGAUGE_ARCHIVE_USERNAME": "someone"}
    return load_settings(Settings, flags={}, environ=environ, collectors={}, is_root=False)


def takes(setting: Setting, text: str) -> bool:
    with suppress(SettingsError):
        loaded(setting, text)
        return True
    return False


def secret_settings() -> dict[str, str]:
    """Every setting that takes a secret, with one of its own: a new one is here by itself."""
    found = {key: planted(key) for key, setting in KNOWN.items() if setting.secret}
    for key, setting in KNOWN.items():
        if setting.may_hold_password:
            found[key] = next(text for shape in SHAPES if takes(setting, text := shape.format(planted(key))))
    assert {"archive.password", "history.token", "archive.uri", "libvirt.uri"} <= set(found)
    return found


# A namespace is a name; it is written like a URI and opens nothing.
NAMES = {"metadata.namespaces"}


def shown_or_refused(setting: Setting, text: str) -> tuple[str, bool]:
    """What `--config.check` prints, and whether it is an error."""
    try:
        return effective_settings(loaded(setting, text)), False
    except SettingsError as error:
        return str(error), True


@pytest.mark.parametrize("key", [key for key, setting in KNOWN.items() if not setting.is_switch])
def test_a_setting_that_takes_uris_is_known_to_take_passwords_and_shows_none(key: str) -> None:
    setting = KNOWN[key]
    takes_secrets = setting.secret or setting.may_hold_password
    for shape in SHAPES:
        said, refused = shown_or_refused(setting, shape.format(PLANTED))
        if takes_secrets or not refused:
            # Of other settings a malformed value is shown; a path is nothing that has a password in it.
            assert PLANTED not in said or "Path" in str(setting.type)
        if not refused and not takes(setting, "word"):
            assert takes_secrets or key in NAMES, "this setting takes URIs: it needs may_hold_password"


@pytest.mark.parametrize("key", secret_settings())
def test_a_secret_that_stands_where_something_is_wrong_is_not_shown(key: str, tmp_path: Path) -> None:
    value, setting, file = secret_settings()[key], KNOWN[key], tmp_path / "broken.yml"
    section, _, name = key.rpartition(".")
    for wrong in ([value], {"a": value}, f"{value} {value}", f"\t{value}", [[value]], f"x{value}",
                  f"qemu+tls://someone:{planted(key)}/system"):  # fmt: skip
        tree: object = {name: wrong}
        for part in reversed(section.split(".")):
            tree = {part: tree}
        file.write_text(yaml.safe_dump(tree))
        try:
            flags = {"config.file": str(file)}
            said = effective_settings(load_settings(Settings, flags=flags, environ={}, collectors={}, is_root=False))
        except SettingsError as error:
            said = str(error)
        assert PLANTED not in said
    if setting.may_hold_password:
        with pytest.raises(SettingsError, match="a flag must not hold a password") as caught:
            load_settings(Settings, flags={key: value}, environ={}, collectors={}, is_root=False)
        assert PLANTED not in str(caught.value)
    else:
        assert setting.flag is None


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_pairs(tmp_path)
    return tmp_path


def settings_file(folder: Path, settings: Mapping[str, str]) -> Path:
    tree: dict[str, Any] = {"log": {"level": "debug"}, "archive": {"window": "10s"}}
    for key, value in settings.items():
        section, _, name = key.partition(".")
        tree.setdefault(section, {})[name] = value
    file = folder / f"settings-{len(list(folder.glob('settings-*')))}.yml"
    file.write_text(yaml.safe_dump(tree))
    return file


def web_file(folder: Path) -> tuple[Path, str, str]:
    """The web configuration with a password and an inline key; its hash and a line of the key."""
    hashed = bcrypt.hashpw(planted("basic").encode(), bcrypt.gensalt(4)).decode()
    key = (folder / "server.key").read_text()
    web = {"tls_server_config": {"cert_file": "server.pem", "key": key}, "basic_auth_users": {"prom": hashed}}
    file = folder / "web.yml"
    file.write_text(yaml.safe_dump(web))
    return file, hashed, key.splitlines()[2]


def test_the_exporter_shows_no_secret_in_any_log_error_page_or_process_list(folder: Path) -> None:
    settings = secret_settings()
    del settings["archive.password"]  # beside one in the URI it is an error, tried below
    file = settings_file(folder, settings)
    token = create_token(folder / "tokens.yml", "reader", Role.READER, ("*",), datetime.now(UTC), None)[1]
    web, hashed, key_line = web_file(folder)
    port = free_port()
    environ = {name: value for name, value in os.environ.items() if not name.startswith("VIRTGAUGE_")}
    command = [VIRTGAUGE, "exporter", f"--config.file={file}", f"--web.config.file={web}",
               f"--web.listen-address=127.0.0.1:{port}", f"--state.directory={folder}"]  # fmt: skip
    basic = "Basic " + base64.b64encode(f"prom:{planted('basic')}".encode()).decode()
    with SecureServer(command, port, folder / "exporter.log", environ) as exporter:
        exporter.start()
        exporter.wait_ready()
        output = [_cmdlines(exporter.pid)]
        context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
        for path in ("/", "/metrics", "/-/ready", "/nope", "/api/v1/history/query?domain=x",
                     "/api/v1/history/domains", f"/metrics?collect[]={'x' * 10}"):  # fmt: skip
            for header in (basic, basic + "x", f"Bearer {token}", f"Bearer {token}x", f"Digest {planted('header')}"):
                output.append(_answer(port, context, path, header))
        assert any("HTTP 200" in text and "libvirt_up 1" in text for text in output)  # with the planted URI
        web.write_text(web.read_text().replace(hashed, planted("broken")))
        output.append(_answer(port, context, "/metrics", basic))
        output.append(_answer(port, context, f"/{token}", basic))
        exporter.stop()
    output.append((folder / "exporter.log").read_text())
    assert len(output[-1].splitlines()) > 5
    for arguments, more in _wrong_ways(folder, file, web):
        done = subprocess.run([VIRTGAUGE, *arguments], capture_output=True, text=True, timeout=60, check=False,
                              env=environ | more)  # fmt: skip
        output.append(done.stdout + done.stderr)
        assert "Traceback" not in output[-1]
    everything = "\n".join(output)
    assert [line for line in everything.splitlines() if PLANTED in line] == []
    for secret in (token, token.split("_", 2)[2], hashed, key_line, basic.split()[1]):
        assert secret not in everything


def _wrong_ways(folder: Path, file: Path, web: Path) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Command lines and environments in which each secret stands where something is wrong with it."""
    yield ["exporter", "--config.check", f"--config.file={file}"], {}
    yield ["control", "serve", "--config.check", f"--config.file={file}"], {}
    yield ["exporter", f"--web.config.file={web}", "--libvirt.uri=test:///default", f"--state.directory={folder}"], {}
    both = {f"VIRTGAUGE_{key.upper().replace('.', '_')}": value for key, value in secret_settings().items()}
    yield ["exporter", "--config.check"], both
    yield ["history", "web1", "--exporter=http://127.0.0.1:1"], both
    yield ["history", "web1"], {**both, "VIRTGAUGE_ARCHIVE_PASSWORD": ""}
    yield ["domain", "list"], {**both, "VIRTGAUGE_LIBVIRT_URI": f"qemu+tls://u:{planted('uri')}@127.0.0.1:1/system"}
    wrong_uri = {"VIRTGAUGE_ARCHIVE_URI": f"mongodb://u:{planted('uri')}@bad host:x"}
    yield ["exporter", "--config.check"], wrong_uri
    yield ["token", "list"], {"VIRTGAUGE_STATE_DIRECTORY": str(folder)}


@pytest.fixture
def service(folder: Path) -> Iterator[ControlService]:
    settings = secret_settings()
    settings |= {"archive.uri": "mongodb://someone@127.0.0.1:1/?serverSelectionTimeoutMS=100"}
    made = ControlService(folder, settings.pop("libvirt.uri"))
    # The URI stands in the file, as a password must: the service's usual flag for it goes.
    made.uri_flags = []
    made.environment["VIRTGAUGE_LIBVIRT_URI"] = made.uri
    made.start("--config.file", str(settings_file(folder, settings)))
    yield made
    made.stop()


def test_the_control_service_keeps_no_secret_outside_of_its_token_file(service: ControlService) -> None:
    assert service.process is not None
    output = [_cmdlines(service.process.pid)]

    def ask(*words: Any, **more: Any) -> None:
        status, document = service.ask(*words, **more)
        output.append(f"{status} {service.headers} {document}")

    good = service.tokens["admin"]
    for token in (None, "admin", "web", good + "x", good[:-1] + ("A" if good[-1] != "A" else "B"), planted("header")):
        for path in ("/metrics", "/api/v1/domains", "/api/v1/domains/test", "/api/v1/audit", "/nope"):
            ask("GET", path, token=token)
    # Where no token belongs: neither the log nor the trail keeps it.
    service.ask("GET", f"/api/v1/domains/{good}/xml", token=None)
    service.ask("POST", f"/api/v1/domains/{good}/suspend", {}, token="web")
    xml = (f"<domain type='test'><name>x</name><memory>8192</memory><os><type>hvm</type></os><devices>"
           f"<graphics type='vnc' passwd='{planted('vnc')}'/></devices></domain>")  # fmt: skip
    ask("POST", "/api/v1/domains:define-xml", {"parameters": {"xml": xml}})
    guest = {"name": "seeded", "type": "test", "memory_mib": 64, "vcpus": 1, "seed_hostname": "seeded",
             "seed_user_data": f"#cloud-config\npassword: {planted('seed')}\n"}  # fmt: skip
    for dry_run in (True, False):
        ask("POST", "/api/v1/domains:provision", {"parameters": guest, "dry_run": dry_run})
    for to in ("kvm2", "kvm3"):
        ask("POST", "/api/v1/domains/test/migrate", {"parameters": {"to": to}, "dry_run": True})
        ask("POST", "/api/v1/domains/test/migrate", {"parameters": {"to": to}})
    for path in ("/api/v1/audit?newest=1000", "/api/v1/annotations", "/api/v1/jobs", "/-/ready"):
        ask("GET", path)
    ask("GET", "/api/v1/openapi.json", token=None)
    service.stop()
    output.append((service.folder / "log").read_text())
    kept = [file for file in service.state.rglob("*") if file.is_file() and file.name != "tokens.yml"]
    assert {"audit.jsonl"} <= {file.name for file in kept}
    output += [file.read_bytes().decode(errors="replace") for file in kept]
    everything = "\n".join(output)
    assert [line for line in everything.splitlines() if PLANTED in line] == []
    for token in service.tokens.values():
        assert token.split("_", 2)[2] not in everything
        assert token.split("_", 2)[2] not in (service.state / "tokens.yml").read_text()


def _answer(port: int, context: ssl.SSLContext, path: str, authorization: str) -> str:
    with closing(http.client.HTTPSConnection("localhost", port, timeout=60, context=context)) as connection:
        connection.request("GET", path, headers={"Authorization": authorization})
        answer = connection.getresponse()
        return f"HTTP {answer.status} {answer.headers} {answer.read().decode()}"


def _cmdlines(pid: int) -> str:
    """The command lines of a process and all below it, as everybody on the machine can read them."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    own = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return "\n".join([own, *(_cmdlines(int(child)) for child in children)])
