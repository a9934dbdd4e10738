"""Users' regular expressions: RE2's, whole texts, and no pair of expression and text that takes for ever."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.filters import Choice
from exporter.choosing import filters_of
from exporter.config import FilterSettings
from exporter.control.rule_reading import parse_rules
from exporter.expressions import LONGEST_EXPRESSION, Expression
from exporter.remote_read import Matcher, MatchType

# Python's engine would take longer than the universe is old for each of these.
ENDLESS = ["(a+)+b", "(a|a)*b", "(.*a){20}b", "([a-z]+)*b"]
TEXT = "a" * 1024
RULES = """
here: ['host = "h"']
rules:
- name: one
  match: ['alertname =~ "{}"']
  action: {{operation: domain.suspend}}
"""


@pytest.mark.parametrize("expression", ENDLESS)
def test_no_expression_of_a_user_takes_for_ever(expression: str) -> None:
    """Where users can write one: filters, rules, remote read."""
    assert not Expression(expression).fullmatch(TEXT)
    assert Expression(expression).fullmatch(TEXT + "b")
    filters = filters_of(FilterSettings(metadata_include=expression, domain_exclude=expression))
    assert filters.wants("uuid", TEXT)
    assert not filters.metadata.takes([TEXT])
    (rule,) = parse_rules(RULES.format(expression)).rules
    assert not rule.matches({"alertname": TEXT})
    assert not Matcher(MatchType.REGEX, "x", expression).matches(TEXT)


@pytest.mark.parametrize(
    ("expression", "text", "matches"),
    [("web-.*", "web-1", True), ("web", "web-1", False), ("a|b", "b", True), (".*", "a\nb", True),
     ("(?i)WEB", "web", True), ("", "", True), (r"\d+", "12", True), ("é+", "éé", True), (".", "\ud800", True),
     ("[[:alpha:]]+", "ab", True)],
)  # fmt: skip
def test_whole_texts(expression: str, text: str, matches: bool) -> None:
    assert Expression(expression).fullmatch(text) is matches
    assert Choice(include=Expression(expression)).takes([text]) is matches


@pytest.mark.parametrize(
    ("expression", "cause"),
    [("(", "missing )"), ("*", "no argument"), (r"(a)\1", "invalid escape"), ("(?=a)b", "invalid perl operator"),
     ("x" * (LONGEST_EXPRESSION + 1), "longer than"), ("\udcff", "a character that is none")],
)  # fmt: skip
def test_what_is_none(expression: str, cause: str) -> None:
    with pytest.raises(ValueError, match=cause.replace(")", r"\)")) as caught:
        Expression(expression)
    assert len(str(caught.value)) < 300
    assert "b'" not in str(caught.value)


@given(st.text(alphabet="ab.*+?()[]{}|^$\\d01,-:é\ud800", max_size=30), st.text(max_size=30))
def test_any_text_is_an_expression_or_a_value_error(expression: str, text: str) -> None:
    with suppress(ValueError):
        assert Expression(expression).fullmatch(text) in (True, False)
