"""YAML that is read: nothing twice, nothing that grows, nothing but YAML's own errors; and each file's own error."""

from __future__ import annotations

import string
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from exporter.config import Settings
from exporter.control.rule_reading import parse_rules
from exporter.errors import VirtgaugeError
from exporter.setting_loading import load_settings
from exporter.strict_yaml import MOST_NODES, StrictLoader
from exporter.tokens import read_tokens
from exporter.webconfig import read_webconfig

# Eight lines that stand for a hundred million values.
BOMB = "".join(
    f"{name}: &{name} [{', '.join(['*' + before if before else 'x'] * 10)}]\n"
    for before, name in zip(["", *"abcdefg"], "abcdefgh", strict=True)
)


def load(text: str) -> object:
    return yaml.load(text, Loader=StrictLoader)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("a: 1\na: 2", "'a' is given twice"),
        ("{a: 1}: 2", "a key is a list or holds keys itself"),
        ("[a]: 2", "a key is a list or holds keys itself"),
        (BOMB, "with its aliases written out"),
        ("a: &a [*a]", "with its aliases written out"),
        ("&a [{b: *a}]", "with its aliases written out"),
        ("a: !!timestamp x", "this is no timestamp"),
        ("!!python/object/apply:os.system ['true']", "could not determine a constructor"),
    ],
)
def test_what_is_refused_and_where(text: str, cause: str) -> None:
    with pytest.raises(yaml.MarkedYAMLError, match=cause) as caught:
        load(text)
    assert caught.value.problem_mark is not None


def test_aliases_and_merged_keys_are_welcome_up_to_the_bound() -> None:
    assert load("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a") == {
        "a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 1, "y": 2}}  # fmt: skip
    assert load(f"&a [{'x,' * 400}]\n") == ["x"] * 400
    many = f"a: &a [{'x,' * 400}]\nb: [{'*a,' * (MOST_NODES // 401 - 2)}]"
    assert load(many)
    with pytest.raises(yaml.YAMLError):
        load(many + "\nc: [*a, *a]")


YAML_WORDS = st.sampled_from(
    ["a", ": ", "- ", "\n", "  ", "[", "]", "{", "}", ",", "? ", "!!timestamp ", "!!int ", "!!set ", "!!binary ", "&x ",
     "*x", "<<: ", "'", '"', "|", ">", "#", "1:99", "0x", "0b", "2020-99-99", ".inf", "---\n", "%YAML 9\n", "\\x", "é",
     *string.digits])  # fmt: skip


@given(st.lists(YAML_WORDS, max_size=12).map("".join))
def test_nothing_else_is_raised_than_it_says(text: str) -> None:
    with suppress(yaml.YAMLError, ValueError, RecursionError):
        load(text)


def settings_of(path: Path) -> Settings:
    flags = {"config.file": str(path)}
    return load_settings(Settings, flags=flags, environ={}, collectors={"block": True}, is_root=False)


@pytest.mark.parametrize("read", [settings_of, read_webconfig, read_tokens, lambda path: parse_rules(path.read_text())])
@pytest.mark.parametrize("text", [BOMB + "host: {name: *h}\ntokens: *h\nrules: *h", "a: &a [*a]", "[a]: b", "{}: 1",
                                  "a: !!timestamp x", "[" * 5000])  # fmt: skip
def test_each_file_has_its_own_one_line_error(tmp_path: Path, read, text: str) -> None:
    path = tmp_path / "file.yml"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(VirtgaugeError) as caught:
        read(path)
    assert len(str(caught.value)) < 500
