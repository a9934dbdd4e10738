"""The history API's OpenAPI 3.1 document, with an example for each request and answer. Pure."""

from __future__ import annotations

from typing import Any

from exporter.openapi import ERRORS, answer, api_document, reference

_PROTOBUF = "application/x-protobuf"
_TIME = "2026-11-22T10:00:00Z"
_ROW = {"time": _TIME, "domain": "web1", "host": "alpha", "field": "cpu.usage_ratio", "device": "",
        "min": 0.02, "avg": 0.11, "max": 0.97}  # fmt: skip
_DOMAIN = {"domain": "web1", "uuid": "d61f00c8-8819-5aef-9860-c529fe864c9e", "host": "alpha",
           "first_seen": "2026-10-01T08:00:00Z", "last_seen": _TIME}  # fmt: skip
_FIELD = {"field": "block.read_bytes_per_second", "metric": "libvirt_domain_block_read_bytes_per_second",
          "unit": "B/s", "device": "target_device", "help": "Bytes read a second (block.<n>.rd.bytes)."}  # fmt: skip


def history_document(most_rows: int, most_points: int) -> dict[str, Any]:
    """The whole document; `most_rows` of one answer, `most_points` of one series."""
    page = _page(most_rows)
    paths = {
        "/api/v1/history/query": {"get": _reading(
            "history.query", "Points of one domain's fields over a span, as flat rows.",
            "A gap's numbers are null. The span decides the resolution unless `step` does; the header "
            "X-Virtgauge-Resolution says what was read.",
            [*_question(most_points), *page], "Row", _ROW,
            {"X-Virtgauge-Resolution": "What was read from, like `five_minutes until ..., then raw`.",
             "X-Virtgauge-Unsealed": "true where samples that the database does not have yet are included."},
        )},
        "/api/v1/history/domains": {"get": _reading(
            "history.domains", "The domains that the archive knows, by name; of them those in the token's scope.", "",
            [_host("web1"), *page], "Domain", _DOMAIN, {},
        )},
        "/api/v1/history/fields": {"get": _reading(
            "history.fields", "What can be asked for.", "Short words like cpu.usage and metric names are understood, "
            "too.", [], "Field", _FIELD, {},
        )},
        "/api/v1/read": {"post": _remote_read()},
    }  # fmt: skip
    title, description = "virtgauge history API", "Reads the archive of this host's guests. Changes nothing."
    return api_document(title, description, paths, _schemas())


def _reading(
    name: str, summary: str, description: str, parameters: list[dict[str, Any]], row: str, example: dict[str, Any],
    headers: dict[str, str],
) -> dict[str, Any]:  # fmt: skip
    paged = {"Link": "Where there are more rows: the address of the next ones, `<...>; rel=\"next\"`.",
             "X-Virtgauge-Rows": "How many rows all pages have together."} if parameters else {}  # fmt: skip
    content = {"schema": {"type": "array", "items": reference(row)}, "example": [example]}
    found = {
        "description": "The rows.",
        "headers": {key: {"schema": {"type": "string"}, "description": text}
                    for key, text in {**headers, **paged}.items()},
        "content": {"application/json": content},
    }  # fmt: skip
    return {
        "operationId": name, "summary": summary, "description": f"{description} Needs the role reader.".strip(),
        "tags": ["history"], "parameters": parameters, "responses": {"200": found, **_errors()},
    }  # fmt: skip


def _question(most_points: int) -> list[dict[str, Any]]:
    moment = {"type": "string"}
    names = {"type": "array", "items": {"type": "string", "minLength": 1}}
    return [
        _parameter("domain", {"type": "string", "minLength": 1}, "Name or UUID.", "web1", required=True),
        {**_parameter("field", names, "Fields, repeated or with commas; cpu.usage where none is given.",
                      ["cpu.usage", "disk.write"]), "style": "form", "explode": True},
        _parameter("since", moment, "Beginning: a length back from now, a time, or seconds or milliseconds since the "
                   "epoch; 1h where nothing is said.", "24h"),
        _parameter("until", moment, "End, written likewise; now where nothing is said.", "now"),
        _parameter("step", {"type": "string"}, "Time between points; chosen where nothing is said.", "5m"),
        _parameter("points", {"type": "integer", "minimum": 2, "maximum": most_points},
                   "Most points of a series.", 1000),
        _host("alpha"),
    ]  # fmt: skip


def _host(example: str) -> dict[str, Any]:
    return _parameter("host", {"type": "string"}, "Only domains of the host with this name.", example)


def _page(most_rows: int) -> list[dict[str, Any]]:
    return [
        _parameter("limit", {"type": "integer", "minimum": 1, "maximum": most_rows}, "Most rows of this answer.", 1000),
        _parameter("offset", {"type": "integer", "minimum": 0}, "Rows to leave out before them.", 0),
    ]


def _parameter(
    name: str, schema: dict[str, Any], description: str, example: object, *, required: bool = False
) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": required, "schema": schema, "description": description,
            "example": example}  # fmt: skip


def _remote_read() -> dict[str, Any]:
    binary = {_PROTOBUF: {"schema": {"type": "string", "format": "binary"}}}
    errors = _errors() | {"413": answer(ERRORS["413"], "Error")}
    return {
        "operationId": "remote.read", "summary": "Prometheus's remote-read protocol.",
        "description": "A snappy-compressed ReadRequest in, a snappy-compressed ReadResponse (SAMPLES) out. What "
        "stands in the address's query is a label that each series gets, like ?job=libvirt. Needs the role reader.",
        "tags": ["history"], "requestBody": {"required": True, "content": binary},
        "responses": {"200": {"description": "The series.", "content": binary}, **errors},
    }  # fmt: skip


def _errors() -> dict[str, Any]:
    texts = {
        "400": "The question makes no sense; the text says why and names what is nearest.",
        "401": ERRORS["401"],
        "403": "The token's scope does not hold the domain.",
        "503": "The archive does not answer, or not in time.",
    }
    return {status: answer(text, "Error") for status, text in texts.items()}


def _schemas() -> dict[str, Any]:
    text, moment, number = {"type": "string"}, {"type": "string", "format": "date-time"}, {"type": ["number", "null"]}
    return {
        "Row": _object({"time": moment, "domain": text, "host": text, "field": text, "device": text,
                        "min": number, "avg": number, "max": number}),
        "Domain": _object({"domain": text, "uuid": {"type": "string", "format": "uuid"}, "host": text,
                           "first_seen": moment, "last_seen": moment}),
        "Field": _object({"field": text, "metric": text, "unit": text, "device": text, "help": text}),
        "Error": _object({"error": text, "request_id": {
            "type": "string", "description": "As in the header X-Request-ID; the log has it, too."}}),
    }  # fmt: skip


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
