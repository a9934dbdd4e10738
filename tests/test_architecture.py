"""The import rules: who may know whom (docs/architecture.md)."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.samples import REPOSITORY

PACKAGES = ("collectors", "exporter")
MODULES = sorted(path.relative_to(REPOSITORY) for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))
# Modules that may import a library, by the library; a folder stands for all in it.
LIBVIRT = (
    "collectors/connection.py", "collectors/sampler.py", "collectors/bulk.py", "collectors/lanes.py",
    "collectors/liveness.py", "collectors/periodic.py",
    "collectors/inventory.py", "collectors/events.py", "collectors/host.py", "collectors/storage.py",
    "collectors/virtual_networks.py", "collectors/job_reading.py", "collectors/domain_lists.py",
    "collectors/support.py", "collectors/last_error.py",
    "collectors/per_domain.py", "collectors/agent_reading.py", "exporter/control/", "exporter/demonstration/")
PROMETHEUS_CLIENT = ("exporter/exposition.py", "exporter/page.py", "exporter/server.py", "exporter/control/",
                     "exporter/control_service.py")
HEAVY = {"rich", "yaml", "numpy", "starlette", "uvicorn", "pymongo", "prometheus_client", "pycdlib"}
PYMONGO = ("exporter/archive/",)
# What exporter/control may use of the rest of virtgauge. Of the collectors: libvirt's event loop, of which a process
# can have but one; the names of states, reasons, devices and events, and what counts as an agent that answers, so that
# control and metrics say the same words.
FOR_CONTROL = {"collectors.agent_reading", "collectors.connection", "collectors.domain", "collectors.domain_xml",
               "collectors.event_names", "exporter.nearest",
               "exporter.errors", "exporter.config", "exporter.server", "exporter.webconfig",
               "exporter.access", "exporter.tokens", "exporter.refusals",
               "exporter.archive.spool", "exporter.archive.writer", "exporter.archive.timespan",
               "exporter.secret_files", "exporter.setting_types", "exporter.strict_yaml", "exporter.expressions",
               "exporter.openapi", "exporter.version"}
# Only these build the parts of the program and hand them to each other.
BUILDERS = ("exporter/service.py", "exporter/control_service.py", "exporter/cli.py", "exporter/command_exporter.py")
BUILT = {"Opener", "LanePool", "Inventory", "EventListener", "Sampler", "Target", "Builder", "Compiler", "TargetPage",
         "Exporter"}


def name_of(module: Path) -> str:
    return ".".join(module.with_suffix("").parts).removesuffix(".__init__")


def imports(module: Path) -> Iterator[str]:
    """Absolute names of all that a module imports, also inside functions and under TYPE_CHECKING."""
    package = name_of(module).split(".") if module.name == "__init__.py" else name_of(module).split(".")[:-1]
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                as_module = REPOSITORY / Path(*f"{origin}.{alias.name}".split(".")).with_suffix(".py")
                yield f"{origin}.{alias.name}" if as_module.exists() else origin


def tree(module: Path) -> ast.Module:
    return ast.parse((REPOSITORY / module).read_text())


def allowed(module: Path, places: tuple[str, ...]) -> bool:
    text = module.as_posix()
    return any(text.startswith(place) if place.endswith("/") else text == place for place in places)


def importers(library: str) -> set[Path]:
    return {module for module in MODULES for name in imports(module) if name.partition(".")[0] == library}


def test_there_are_modules() -> None:
    assert len(MODULES) > 20
    assert "collectors.batch" in set(imports(Path("exporter/exposition.py")))


@pytest.mark.parametrize("module", [m for m in MODULES if m.parts[0] == "collectors"], ids=str)
def test_collectors_never_import_exporter(module: Path) -> None:
    assert not [name for name in imports(module) if name.partition(".")[0] == "exporter"]


@pytest.mark.parametrize(("library", "places"), [
    ("libvirt", LIBVIRT), ("prometheus_client", PROMETHEUS_CLIENT), ("pymongo", PYMONGO), ("bson", PYMONGO),
    ("secantusdb", ()),
])
def test_a_library_is_imported_only_where_it_belongs(library: str, places: tuple[str, ...]) -> None:
    assert [str(module) for module in sorted(importers(library)) if not allowed(module, places)] == []


def test_control_uses_little_of_the_rest() -> None:
    for module in MODULES:
        if module.as_posix().startswith("exporter/control/"):
            own = [name for name in imports(module) if name.partition(".")[0] in PACKAGES]
            strangers = [name for name in own if name not in FOR_CONTROL and not name.startswith("exporter.control")]
            assert strangers == [], f"{module} imports {strangers}"


def test_only_the_composition_root_builds_things() -> None:
    for module in MODULES:
        if allowed(module, BUILDERS):
            continue
        made = {node.func.id for node in ast.walk(tree(module))
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
        assert made & BUILT == set(), f"{module} builds {made & BUILT}; it should be handed them"


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_importing_a_module_reads_no_environment_and_starts_nothing(module: Path) -> None:
    for statement in at_import(tree(module).body):
        for node in ast.walk(statement):
            assert not isinstance(node, ast.Global)
            if isinstance(node, ast.Attribute):
                assert (getattr(node.value, "id", ""), node.attr) not in {("os", "environ"), ("os", "getenv")}
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                raise AssertionError(f"{module}:{node.lineno} does something when imported")


def at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run when a module is imported: not what is in functions, nor under ``__main__``."""
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(statement, ast.If) and "__name__" in ast.dump(statement.test):
            continue
        if isinstance(statement, ast.ClassDef):
            yield from at_import(statement.body)
        else:
            yield statement


def test_importing_everything_starts_no_thread_and_registers_nothing() -> None:
    names = [name_of(module) for module in MODULES if module.name != "__main__.py"]
    code = ("import importlib, threading, prometheus_client\n"
            "before = set(prometheus_client.REGISTRY._collector_to_names)\n"
            f"for name in {names!r}: importlib.import_module(name)\n"
            "assert threading.active_count() == 1, threading.enumerate()\n"
            "assert set(prometheus_client.REGISTRY._collector_to_names) == before\n")
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=REPOSITORY, capture_output=True, text=True,
                          timeout=120, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "words", [["domain", "list"], ["interface", "undefine", "--help"], ["control", "audit"]], ids=" ".join
)
def test_a_command_loads_no_library_that_it_does_not_use(words: list[str], tmp_path: Path) -> None:
    """A script may run hundreds of commands."""
    command = [*words, "--state.directory", str(tmp_path)]
    command += ["--libvirt.uri", "test:///default"] if words[0] == "domain" else []
    command += [] if "--help" in words else ["--output", "json"]
    code = ("import sys; from exporter.cli import run\n"
            f"assert run({command!r}) == 0\n"
            f"loaded = {HEAVY!r} & set(sys.modules)\n"
            "assert not loaded, loaded\n")
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120,
                          check=False)
    assert done.returncode == 0, done.stderr


def test_no_module_is_named_for_nothing() -> None:
    assert not {module.stem for module in MODULES} & {"utils", "util", "helpers", "base", "manager", "common"}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_modules_are_short_enough_to_read(module: Path) -> None:
    assert len((REPOSITORY / module).read_text().splitlines()) <= 400
