"""The history API behind bearer tokens: who sees which domain, over a real server, socket and archive."""

from __future__ import annotations

import http.client
import json
from contextlib import closing
from datetime import UTC, datetime
from urllib.parse import urlencode

import pytest
from cramjam import snappy
from starlette.applications import Starlette

from collectors import COLLECTORS
from exporter.access import api_middleware
from exporter.archive.history_fields import HistoryFields
from exporter.archive.history_question import Question
from exporter.history_api import HistoryApi
from exporter.history_source import history_rows
from exporter.refusals import Refusals
from exporter.token_changes import create_token
from exporter.tokens import Role, TokenFile
from tests.exporter.archive.reading.archived import Guest, raw_documents, samples, store
from tests.exporter.served import serving

pytestmark = pytest.mark.live

FIELDS = HistoryFields(COLLECTORS)
T0 = int(datetime(2026, 11, 20, tzinfo=UTC).timestamp())
NAMES = ("web1", "db1")


class Served:
    def __init__(self, port, path, guests, refusals):
        self.port, self.path, self.guests, self.refusals = port, path, guests, refusals

    def token(self, *domains, role=Role.READER):
        return create_token(self.path, f"{role}{len(domains)}", role, domains, datetime.now(UTC), None)[1]

    def ask(self, path, token=None, body=None, **parameters):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        target = f"{path}?{urlencode(parameters)}" if parameters else path
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request("POST" if body else "GET", target, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()


@pytest.fixture
def served(database, tmp_path):
    guests = {name: Guest(name, busy=lambda t: 0.5) for name in NAMES}
    for guest in guests.values():
        store(database, raw_documents(guest, samples(guest, T0, T0 + 600)))
    refusals, path = Refusals(), tmp_path / "tokens.yml"
    guard = api_middleware(TokenFile(path), refusals, protected=("/api/",))
    api = HistoryApi(lambda: database, FIELDS, clock=lambda: T0 + 600)
    with serving(Starlette(routes=api.routes(), middleware=guard)) as port:
        yield Served(port, path, guests, refusals)


PATHS = ("/api/v1/history/query?domain=web1", "/api/v1/history/domains", "/api/v1/history/fields", "/api/v1/read")


def test_nobody_reads_without_a_token(served):
    for path in PATHS:
        status, body = served.ask(path, body=b"x" if path.endswith("read") else None)
        assert status == 401
        assert "bearer token" in json.loads(body)["error"]
    assert served.refusals["token"] == len(PATHS)


def test_a_scope_limits_what_is_seen_by_name_by_uuid_in_lists_and_by_remote_read(served):
    everything, web = served.token("*"), served.token("web*", "nothing")
    uuids = {row["domain"]: row["uuid"] for row in json.loads(served.ask("/api/v1/history/domains", everything)[1])}
    assert set(uuids) == set(NAMES)
    assert [row["domain"] for row in json.loads(served.ask("/api/v1/history/domains", web)[1])] == ["web1"]
    for domain, statuses in {"web1": (200, 200), uuids["web1"]: (200, 200), "db1": (200, 403),
                             uuids["db1"]: (200, 403), "db2": (400, 403)}.items():  # fmt: skip
        asked = [served.ask("/api/v1/history/query", token, domain=domain) for token in (everything, web)]
        assert tuple(status for status, _ in asked) == statuses, domain
        # Not even an error names what is out of scope, beyond what was asked for or found by its UUID.
        if domain != "db1":
            assert b"db1" not in asked[1][1]
    # The nearest name is of those that the token reaches, and so is the nearest host.
    assert b"nearest is web1" in served.ask("/api/v1/history/query", web, domain="web_db1")[1]
    assert served.refusals["domain"] == 3
    # A query for everything: no matchers, all of the time.
    request = bytes(snappy.compress_raw(b"\x0a\x07\x10" + _varint((T0 + 600) * 1000)))
    bodies = [served.ask("/api/v1/read", token, request)[1] for token in (everything, web)]
    answers = [bytes(snappy.decompress_raw(body)) for body in bodies]
    assert [(b"web1" in answer, b"db1" in answer) for answer in answers] == [(True, True), (True, False)]


def test_a_token_that_sends_alerts_sees_nothing(served):
    sender = served.token("*", role=Role.ALERTS)
    statuses = [served.ask(path, sender, b"x" if path.endswith("read") else None)[0] for path in PATHS]
    assert statuses == [403] * len(PATHS)


def test_the_command_line_shows_its_token(served):
    url, question = f"http://127.0.0.1:{served.port}", Question("web1", (), str(T0), str(T0 + 600), "", "", "")
    token = served.token("*")
    found = history_rows(question, url, _no_database, FIELDS, token)
    assert found.rows
    assert "exporter at" in found.origin
    with pytest.raises(ZeroDivisionError):
        history_rows(question, url, _no_database, FIELDS)


def _no_database():
    raise ZeroDivisionError


def _varint(number):
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])
