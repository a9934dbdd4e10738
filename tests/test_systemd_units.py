"""The systemd units: systemd takes them, they keep their promises, and virtgauge knows their flags."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.samples import REPOSITORY

UNITS = sorted((REPOSITORY / "setup/systemd").iterdir())
PROGRAM = "/opt/virtgauge/bin/virtgauge"


def directive(unit: Path, name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)$", unit.read_text(), re.MULTILINE)


@pytest.fixture(params=UNITS, ids=lambda unit: unit.name)
def unit(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_systemd_has_nothing_to_say_and_calls_it_safe(unit: Path, tmp_path: Path) -> None:
    # The program is not there where the tests run.
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace(PROGRAM, "/bin/true"))
    told = subprocess.run(["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True, check=False)
    assert (told.returncode, unit.name in told.stderr) == (0, False), told.stderr
    most = {"virtgauge-exporter.service": 20, "virtgauge-control.service": 32}[unit.name]  # tenths
    rating = ["systemd-analyze", "security", "--offline=true", "--no-pager", f"--threshold={most}", copy]
    told = subprocess.run(rating, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout


def test_its_flags_and_variables_are_known(unit: Path, tmp_path: Path) -> None:
    (started,) = directive(unit, "ExecStart")
    program, *words = shlex.split(started)
    assert program == PROGRAM
    (tmp_path / "settings.yml").write_text("log: {level: warn}\n")
    words = [re.sub(r"(--config.file=).*", rf"\g<1>{tmp_path}/settings.yml", word) for word in words]
    variables = dict(pair.split("=", 1) for line in directive(unit, "Environment") for pair in line.split())
    found = subprocess.run(
        [sys.executable, "-c", "from exporter.cli import main; main()", *words, "--config.check"],
        env={name: value.replace("%S", str(tmp_path)) for name, value in variables.items()},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert f"directory: {tmp_path}" in found.stdout


def test_the_page_names_each_unit() -> None:
    page = (REPOSITORY / "docs/install.md").read_text()
    for unit in UNITS:
        assert f"setup/systemd/{unit.name}" in page
        assert all(f"/{folder}" in page for folder in directive(unit, "StateDirectory"))
