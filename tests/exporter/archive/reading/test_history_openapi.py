"""schemathesis against the history API as it is served: no crash, and no answer that its document does not have."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from datetime import UTC, datetime

import pytest
from cramjam import snappy
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from starlette.applications import Starlette

from collectors import COLLECTORS
from exporter.access import api_middleware
from exporter.archive.history_fields import HistoryFields
from exporter.history_api import MOST_ROWS, HistoryApi
from exporter.history_openapi import history_document
from exporter.openapi import OPENAPI_PATH
from exporter.refusals import Refusals
from exporter.token_changes import create_token
from exporter.tokens import Role, TokenFile
from tests.exporter.archive.reading.archived import Guest, raw_documents, samples, store
from tests.exporter.served import serving

jsonschema_rs = pytest.importorskip("jsonschema_rs")
schemathesis = pytest.importorskip("schemathesis")

pytestmark = pytest.mark.live

T0 = int(datetime(2026, 11, 20, tzinfo=UTC).timestamp())
DOCUMENT = history_document(MOST_ROWS, 11_000)
SCHEMA = schemathesis.openapi.from_dict(DOCUMENT)
# Some that are none, and one for everything: no matchers, from 1970 to 2026.
EVERYTHING = bytes(snappy.compress_raw(b"\x0a\x07\x10\x80\xf8\xd0\xb9\xd5\x33"))
schemathesis.openapi.media_type("application/x-protobuf", st.binary(max_size=60) | st.just(EVERYTHING)
                                | st.binary(max_size=60).map(lambda message: bytes(snappy.compress_raw(message))))


@pytest.fixture(scope="module")
def service(archive_client, tmp_path_factory):
    """(address, headers of a reader who may see all) of an API with two guests in its archive."""
    database, path = archive_client["test_openapi"], tmp_path_factory.mktemp("openapi") / "tokens.yml"
    for name in ("web1", "db1"):
        guest = Guest(name)
        store(database, raw_documents(guest, samples(guest, T0, T0 + 600)))
    guard = api_middleware(TokenFile(path), Refusals(), protected=("/api/",), exempt=(OPENAPI_PATH,))
    api = HistoryApi(lambda: database, HistoryFields(COLLECTORS), clock=lambda: T0 + 600)
    token = create_token(path, "reader", Role.READER, ("*",), datetime.now(UTC), None)[1]
    with serving(Starlette(routes=api.routes(), middleware=guard)) as port:
        yield f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {token}"}
    archive_client.drop_database("test_openapi")


def get(service, path, token=True):
    """(parsed body, headers)."""
    request = urllib.request.Request(service[0] + path, headers=service[1] if token else {})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer), answer.headers


@SCHEMA.parametrize()
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
def test_every_answer_is_a_documented_one(case, service):
    address, headers = service
    answer = case.call(base_url=address, headers=headers, timeout=60)
    checks = schemathesis.checks
    assert answer.status_code < 500, answer.text
    case.validate_response(answer, headers=headers, checks=(
        checks.response_schema_conformance, checks.content_type_conformance, checks.status_code_conformance))


def test_the_document_is_served_without_a_token_and_says_what_is_served(service):
    document, _ = get(service, OPENAPI_PATH, token=False)
    assert document == DOCUMENT
    routes = {route.path for route in HistoryApi(dict, HistoryFields(COLLECTORS)).routes()}
    assert routes == {*document["paths"], OPENAPI_PATH}


@pytest.mark.parametrize("name", ["query", "domains", "fields"])
def test_the_examples_are_of_their_schemas(name):
    operation = DOCUMENT["paths"][f"/api/v1/history/{name}"]["get"]
    for parameter in operation["parameters"]:
        jsonschema_rs.validate(parameter["schema"], parameter["example"])
    content = operation["responses"]["200"]["content"]["application/json"]
    jsonschema_rs.validate({**content["schema"], "components": DOCUMENT["components"]}, content["example"])


def test_what_the_example_asks_is_answered_with_values(service):
    """The fuzzed questions are mostly refused: this one must not be."""
    rows, _ = get(service, "/api/v1/history/query?domain=web1&field=cpu.usage&field=disk.write&since=24h")
    assert {row["field"] for row in rows} == {"cpu.usage_ratio", "block.write_bytes_per_second"}


@pytest.mark.parametrize("path", ["/api/v1/history/query?domain=web1&field=cpu.usage,disk.write&since=10m",
                                  "/api/v1/history/domains?"])
def test_pages_together_are_the_whole_answer(service, path):
    whole, headers = get(service, path)
    assert "Link" not in headers
    assert int(headers["X-Virtgauge-Rows"]) == len(whole)
    found, following = [], f"{path}&limit={max(1, len(whole) // 3)}"
    for _ in range(10):
        rows, headers = get(service, following)
        found += rows
        if "Link" not in headers:
            break
        address, _, relation = headers["Link"].partition("; ")
        assert relation == 'rel="next"'
        following = address.strip("<>")
    assert found == whole


def test_an_error_holds_the_requests_id(service):
    request = urllib.request.Request(f"{service[0]}/api/v1/history/query", headers={**service[1], "X-Request-ID": "r1"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=60)
    with caught.value as answer:
        assert json.load(answer)["request_id"] == "r1"
        assert answer.headers["X-Request-ID"] == "r1"
