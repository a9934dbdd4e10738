"""What the OpenAPI 3.1 documents of the control and the history API have in common. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exporter.version import VERSION

OPENAPI_PATH = "/api/v1/openapi.json"
"""Where each API serves its document; no token is asked for it, since nothing in it is of this host."""
REFERENCE = "#/components/schemas/{model}"
ERRORS = {
    "401": "No bearer token, or one that is unknown, revoked or expired.",
    "413": "The body is larger than 1 MiB.",
}
"""Answers of the layer in front of both, see exporter.access."""


def api_document(title: str, description: str, paths: Mapping[str, Any], schemas: Mapping[str, Any]) -> dict[str, Any]:
    """The whole document of an API that bearer tokens guard."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": title,
            "version": VERSION,
            "description": description,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"bearer": []}],
        "paths": dict(paths),
        "components": {
            "schemas": dict(schemas),
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer",
                                           "description": "A token of `virtgauge token create`."}},
        },
    }  # fmt: skip


def reference(model: str) -> dict[str, str]:
    """A reference to one of the document's schemas."""
    return {"$ref": REFERENCE.format(model=model)}


def answer(description: str, model: str, media_type: str = "application/json") -> dict[str, Any]:
    """An answer whose body is of that schema."""
    return {"description": description, "content": {media_type: {"schema": reference(model)}}}
