"""One embedded server for the archive's tests; each test has a database of its own on it."""

from __future__ import annotations

import itertools

import pytest

from exporter.archive.embedded import EmbeddedServer, program
from tests.exporter.archive.archive_rig import PATIENCE_S

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def archive_server(tmp_path_factory):
    """A running EmbeddedServer that can be told to fail (configureFailPoint)."""
    if program() is None:
        pytest.skip("secantusdb is not installed")
    server = EmbeddedServer(tmp_path_factory.mktemp("server"), ["--enable-test-commands"])
    server.start()
    server.uri(PATIENCE_S)
    yield server
    server.stop()


@pytest.fixture
def database_name():
    """A name that no other test uses."""
    return f"test{next(_numbers)}"


@pytest.fixture
def own_server(tmp_path):
    """A server that only this test uses, since it suffers."""
    server = EmbeddedServer(tmp_path / "own")
    server.start()
    server.uri(PATIENCE_S)
    yield server
    server.stop()
