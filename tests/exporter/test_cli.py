"""The command line: exit statuses, one-line errors, lazy loading."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import yaml

from exporter import cli, command_exporter
from exporter.config import Settings
from exporter.errors import VirtgaugeError
from exporter.setting_catalogue import catalogue
from exporter.version import VERSION

COLLECTORS = {"domain": True, "block": True, "perf": False}


@pytest.fixture(autouse=True)
def _own_collectors(monkeypatch):
    monkeypatch.setattr(command_exporter, "build", lambda: command_exporter.command(COLLECTORS))
    for name in list(os.environ):
        if name.startswith("VIRTGAUGE_"):
            monkeypatch.delenv(name)


@pytest.fixture
def virtgauge(capsys):
    def run(*arguments):
        status = cli.run(arguments)
        out, err = capsys.readouterr()
        return status, out, err

    return run


def checked(virtgauge, *flags):
    status, out, err = virtgauge("exporter", "--config.check", *flags)
    assert (status, err) == (0, "")
    return yaml.safe_load(out)


@pytest.mark.parametrize("arguments", [["--version"], ["exporter", "--version"]])
def test_version(virtgauge, arguments):
    assert virtgauge(*arguments) == (0, f"virtgauge {VERSION}\n", "")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_the_commands(virtgauge, arguments):
    status, out, err = virtgauge(*arguments)
    assert (status, err) == (0, "")
    assert "exporter Serve the metrics" in " ".join(out.split())


def test_help_of_the_exporter_has_every_flag(virtgauge):
    status, out, _ = virtgauge("exporter", "--help")
    assert status == 0
    for setting in catalogue(Settings, COLLECTORS).values():
        assert setting.flag is None or setting.flag in out
    assert "--no-collector.perf" in out


def test_flags_with_blank_and_with_equals_sign(virtgauge):
    tree = checked(virtgauge, "--sampling.max-age", "500ms", "--log.level=debug", "--collector.perf",
                   "--no-collector.block", "--web.listen-address=:1", "--web.listen-address", "[::1]:2")  # fmt: skip
    assert tree["sampling"]["max_age"] == "0.5s"
    assert tree["log"]["level"] == "debug"
    assert tree["collector"] == {"disable_defaults": False, "domain": True, "block": False, "perf": True}
    assert tree["web"]["listen_address"] == [":1", "[::1]:2"]


def test_disable_defaults(virtgauge):
    tree = checked(virtgauge, "--collector.disable-defaults", "--collector.block")
    assert [name for name in COLLECTORS if tree["collector"][name]] == ["block"]


def test_environment_reaches_the_settings(virtgauge, monkeypatch):
    monkeypatch.setenv("VIRTGAUGE_HOST_NAME", "kestrel")
    assert checked(virtgauge)["host"]["name"] == "kestrel"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["exporter", "--sampling.maxage=1"], ["unknown flag --sampling.maxage", "--sampling.max-age"]),
        (["exporter", "--collector.blok"], ["--collector.blok", "nearest is --collector.block"]),
        (["exporter", "--no-collector.blok"], ["--no-collector.block"]),
        (["exporter", "--sampling.lanes=9"], ["sampling.lanes (--sampling.lanes)", "less than or equal to 4"]),
        (["exporter", "--sampling.lanes"], ["--sampling.lanes", "requires an argument"]),
        (["exporter", "stray"], ["stray", "--help"]),
        (["exporter", "--filter.domain-include=web("], ["filter.domain_include", "'web('", "regular expression"]),
        (["exporter", "--filter.device-exclude=*"], ["filter.device_exclude", "'*'", "regular expression"]),
        (["exporter", "--metadata.labels=a-b=c"], ["metadata.labels", "'a-b'", "label name"]),
        (["exporter", "--metadata.labels=team=s:guest"], ["metadata", "XPath of team", "'s:guest'", "prefix"]),
        (["exporter", "--libvirt.uri", "nonsense"], ["libvirt.uri", "'nonsense'", "qemu:///system"]),
        (["exporter", "--config.file=/nonexistent.yml"], ["/nonexistent.yml", "No such file", "--config.file"]),
        (["exporer"], ["unknown command 'exporer'", "nearest is exporter"]),
        (["--verison"], ["unknown flag --verison", "nearest is --version"]),
    ],
)
def test_bad_usage_is_one_line_and_status_2(virtgauge, arguments, parts):
    status, out, err = virtgauge(*arguments)
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert err.startswith("virtgauge: error: ")
    assert all(part in err for part in parts), err


def test_other_errors_are_status_1(virtgauge, monkeypatch):
    def fail(*_):
        raise VirtgaugeError("cannot listen on :1: taken; choose another")

    monkeypatch.setattr(command_exporter, "run_with", fail)
    assert virtgauge("exporter") == (1, "", "virtgauge: error: cannot listen on :1: taken; choose another\n")


def test_an_interrupt_is_status_130(virtgauge, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command_exporter, "run_with", interrupt)
    assert virtgauge("exporter")[0] == 130


def test_the_program_loads_only_what_it_serves_with():
    code = "import exporter.cli, sys; exporter.cli.run(['--help']); print(sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for heavy in ("numpy", "libvirt", "pydantic", "starlette", "uvicorn", "pymongo", "yaml"):
        assert f"'{heavy}'" not in done.stderr


def test_an_exporter_loads_neither_archive_nor_web_configuration_that_it_does_not_have():
    code = "import exporter.command_exporter, exporter.service, sys; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "'uvicorn'" in done.stdout
    for unserved in ("bcrypt", "exporter.webconfig", "fastapi", "pymongo", "re2", "rich", "yaml", "zstandard"):
        assert f"'{unserved}'" not in done.stdout


def test_the_real_command_checks_its_settings():
    command = [sys.executable, "-c", "from exporter.cli import main; main()", "exporter", "--config.check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert yaml.safe_load(done.stdout)["web"]["telemetry_path"] == "/metrics"
