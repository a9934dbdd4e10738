"""The history API's limits in front of a database that does not answer: callers are told in time, threads are few."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from starlette.applications import Starlette

from collectors import COLLECTORS
from exporter.access import api_middleware
from exporter.archive.history_errors import HistoryError
from exporter.archive.history_fields import HistoryFields
from exporter.history_api import MOST_AT_ONCE, HistoryApi
from exporter.refusals import Refusals
from exporter.token_changes import create_token
from exporter.tokens import Role, TokenFile
from tests.exporter.served import serving


class Silent:
    """In place of a database: whoever asks waits until it is released."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.asking = threading.Semaphore(0)
        self.asked = 0

    def __call__(self):
        self.asked += 1
        self.asking.release()
        assert self.release.wait(60)
        raise HistoryError("the archive is gone")


class Api:
    def __init__(self, port: int, token: str, refusals: Refusals) -> None:
        self.port, self.token, self.refusals = port, token, refusals

    def status(self) -> int:
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request("GET", "/api/v1/history/domains", headers={"Authorization": f"Bearer {self.token}"})
            answer = connection.getresponse()
            answer.read()
            return answer.status


@pytest.fixture
def silent() -> Iterator[Silent]:
    made = Silent()
    yield made
    made.release.set()


@pytest.fixture
def api(silent: Silent, tmp_path: Path) -> Iterator[Api]:
    path, refusals = tmp_path / "tokens.yml", Refusals()
    guard = api_middleware(TokenFile(path), refusals, longest_answer_s=0.5)
    routes = HistoryApi(silent, HistoryFields(COLLECTORS)).routes()
    token = create_token(path, "reader", Role.READER, ("*",), datetime.now(UTC), None)[1]
    with serving(Starlette(routes=routes, middleware=guard)) as port:
        yield Api(port, token, refusals)


def test_callers_are_told_while_the_database_is_still_silent(api: Api, silent: Silent) -> None:
    # Each answer comes although nothing has released the database.
    assert api.status() == 503
    assert not silent.release.is_set()
    assert api.refusals["timeout"] == 1


def test_reads_that_were_given_up_keep_their_places(api: Api, silent: Silent) -> None:
    for _ in range(MOST_AT_ONCE + 4):
        assert api.status() == 503
    assert silent.asked == MOST_AT_ONCE
    silent.release.set()
    for _ in range(MOST_AT_ONCE):
        assert silent.asking.acquire(timeout=30)
    # The places are free again: others reach the database, and hear of its failure.
    assert api.status() == 503
    assert silent.asked > MOST_AT_ONCE


def test_a_thread_that_the_machine_refuses_keeps_no_place(
    api: Api, silent: Silent, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent.release.set()

    def refused(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr("exporter.history_api.Thread.start", refused)
        assert {api.status() for _ in range(MOST_AT_ONCE)} == {500}
    assert api.status() == 503
    assert silent.asked == 1
