"""The wheel holds exactly the packages, the command starts, the version is told once."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from exporter.version import VERSION
from tests.samples import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())


def source_files() -> set[str]:
    packages = PROJECT["tool"]["setuptools"]["packages"]
    return {path.relative_to(REPOSITORY).as_posix() for package in packages
            for path in (REPOSITORY / package.replace(".", "/")).iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy, so that no build folder stays in the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns("__pycache__", "screenshots")
    for name in ("collectors", "exporter", "grafana"):
        if (REPOSITORY / name).exists():
            shutil.copytree(REPOSITORY / name, folder / "source" / name, ignore=ignore)
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(REPOSITORY / name, folder / "source" / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), "source"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    built, = folder.glob("*.whl")
    return built


def test_every_package_is_listed() -> None:
    found = {".".join(path.parent.relative_to(REPOSITORY).parts) for top in ("collectors", "exporter")
             for path in (REPOSITORY / top).rglob("__init__.py")}
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])


def test_the_wheel_holds_exactly_the_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    about = {name for name in names if name.startswith(f"virtgauge-{VERSION}.dist-info/")}
    # The dashboards are installed inside the exporter, so that the command can export them.
    dashboards = {name for name in names if name.startswith("exporter/grafana/")}
    assert names - about - dashboards == source_files()
    assert {f"exporter/grafana/{path.relative_to(REPOSITORY / 'grafana').as_posix()}"
            for part in ("dashboards", "alerts", "provisioning", "provisioning-more", "examples", "rules")
            for path in (REPOSITORY / "grafana" / part).rglob("*")
            if path.suffix in {".json", ".yml", ".md"}} == dashboards
    assert any(name.endswith("LICENSE") for name in about)
    assert {"collectors/py.typed", "exporter/py.typed"} <= names


def test_the_wheel_names_the_command_and_needs_what_the_project_says(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        points = archive.read(f"virtgauge-{VERSION}.dist-info/entry_points.txt").decode()
        metadata = archive.read(f"virtgauge-{VERSION}.dist-info/METADATA").decode()
    assert "virtgauge = exporter.cli:main" in points
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.11" in metadata
    for extra in ("embedded", "dev"):
        assert f"Provides-Extra: {extra}" in metadata


def test_the_command_tells_the_version() -> None:
    command = Path(sys.executable).parent / "virtgauge"
    done = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert VERSION in done.stdout


def test_the_changelog_has_the_version_on_top() -> None:
    headings = re.findall(r"^## \[?([^\s\]]+)", (REPOSITORY / "CHANGELOG.md").read_text(), re.M)
    assert next(heading for heading in headings if heading.lower() != "unreleased") == VERSION
