"""What every test may use, how hypothesis searches, and a watch over all output for secrets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.leaked_secrets import leaks, leaks_below, passwords_below
from tests.leftover_watchdogs import ended_with_this_process

# The same examples at every run, so that a change is judged by itself and not by luck; on a loaded machine an example
# may take long.  HYPOTHESIS_PROFILE=random searches anew: do that when you touch what such a test covers.
settings.register_profile("fixed", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("random", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite golden files and docs/metrics.md")


_shown: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keeps what each test printed and logged, as the run would show it."""
    _shown.extend(f"{report.nodeid}, {title}:\n{text}" for title, text in report.sections)


@pytest.fixture(scope="session", autouse=True)
def no_secret_in_any_output(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """At the end: neither what tests printed nor what their servers logged shows a secret, whichever test made it."""
    yield
    folder = tmp_path_factory.getbasetemp()
    passwords = passwords_below(folder)
    found = [*(leak for text in _shown for leak in leaks(text, passwords)), *leaks_below(folder, passwords)]
    assert not found, f"secrets in the output: {found}"


@pytest.fixture(scope="session", autouse=True)
def no_watchdog_is_left() -> Iterator[None]:
    """Those of interface changes that nobody confirmed end with the run, however it ends."""
    with ended_with_this_process():
        yield


class Golden:
    """Compares a text with a file of the repository, or rewrites the file where the run says so."""

    def __init__(self, update: bool) -> None:
        self._update = update

    def check(self, path: Path, text: str) -> None:
        if self._update:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert path.exists(), f"{path.name} is missing: run pytest --update-golden and look at the difference"
        assert text == path.read_text(), f"{path.name} is not current: run pytest --update-golden"


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.config.getoption("--update-golden"))
