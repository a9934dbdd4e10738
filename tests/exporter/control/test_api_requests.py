"""What a request says: a reading operation's parameters out of a URL, each a value or InvalidError."""

from __future__ import annotations

from contextlib import suppress
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import QueryParams

from exporter.control.api_requests import Asked, idempotency_key, query_document, read_asked
from exporter.control.errors import InvalidError
from exporter.control.operation import Parameters
from exporter.control.request_parameters import parse_parameters
from exporter.control.webhook import read_webhook


class Every(Parameters):
    """A parameter of each kind."""

    number: int = 0
    share: float | None = None
    switch: bool = False
    names: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()


OPERATION: Any = SimpleNamespace(name="thing.show", parameters=Every)


def read(**query: object) -> Every:
    document = query_document(OPERATION, QueryParams(urlencode(query, doseq=True)))
    parameters = parse_parameters(OPERATION, document)
    assert isinstance(parameters, Every)
    return parameters


def test_values_of_each_kind() -> None:
    found = read(number="7", share="0.5", switch="TRUE", names=["a", "b,c"], numbers=["1", "2"])
    assert found == Every(number=7, share=0.5, switch=True, names=("a", "b,c"), numbers=(1, 2))


@pytest.mark.parametrize(
    "query",
    [{"number": "[" * 10_000}, {"number": "9" * 5000}, {"number": "NaN"}, {"number": "[1]"}, {"number": ""},
     {"share": "{}"}, {"switch": "maybe"}, {"number": ["1", "2"]}, {"nothing": "1"}, {"numbers": ["1", "x"]}],
)  # fmt: skip
def test_what_is_refused(query: dict[str, object]) -> None:
    with pytest.raises(InvalidError):
        read(**query)


NAMES = st.sampled_from([*Every.model_fields, "nothing"])


@given(st.dictionaries(NAMES, st.text() | st.sampled_from(["[", "1e999", "-0", "null", '"a"', "true"]), max_size=3))
def test_any_query_is_parameters_or_invalid(query: dict[str, str]) -> None:
    with suppress(InvalidError):
        read(**{name: text.encode("utf-8", "replace") for name, text in query.items()})


@given(st.binary(max_size=80) | st.text(alphabet='{}[]":,0123456789truefalsnul\\u d_ryow').map(str.encode))
def test_any_body_is_asked_or_alerts_or_invalid(body: bytes) -> None:
    with suppress(InvalidError):
        assert isinstance(read_asked("application/json", body), Asked)
    with suppress(InvalidError):
        assert isinstance(read_webhook(body), list)


@given(st.lists(st.text(), max_size=2))
def test_any_idempotency_key_is_taken_or_invalid(values: list[str]) -> None:
    with suppress(InvalidError):
        assert idempotency_key(values) in (None, *values)
