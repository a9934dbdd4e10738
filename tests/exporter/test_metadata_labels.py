"""Labels from domains' metadata: what can be mapped, and what is named at start with status 2."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from exporter.config import Settings
from exporter.errors import SettingsError
from exporter.metadata_labels import metadata_labels
from exporter.setting_loading import effective_settings, load_settings

METADATA = ElementTree.fromstring(
    "<metadata><s:guest xmlns:s='urn:site' s:kind='k' plain='p'><s:team name='a'>blue</s:team>"
    "<s:team name='b'>red<s:sub/></s:team></s:guest><g xmlns='urn:other'><team>green</team></g></metadata>")


def load(**given: object) -> Settings:
    flags = {f"metadata.{name}": value for name, value in given.items()}
    return load_settings(Settings, flags=flags, environ={"HOME": "/home/op"}, collectors={}, is_root=False)


@pytest.mark.parametrize(("path", "value"), [
    ("s:guest/s:team", "blue"), ("s:guest/s:team/text()", "blue"), ("s:guest/s:team[@name='b']", "red"),
    ("s:guest/s:team[2]", "red"), ("s:guest/s:team/@name", "a"), ("s:guest/@plain", "p"), ("s:guest/@s:kind", "k"),
    ("s:guest/@{urn:site}kind", "k"), ("{urn:other}g/{urn:other}team", "green"), ("{*}g/{*}team", "green"),
    (".//{*}team", "blue"), ("s:guest/s:team[.='red']/@name", "b"), ("s:guest/s:none", ""), ("s:guest/@none", ""),
    ("team", ""), ("@none", "")])
def test_paths(path: str, value: str) -> None:
    label, = metadata_labels([f"team={path}"], ["s=urn:site"])
    assert label.value(METADATA) == value


def test_the_settings_give_the_labels_and_print_them() -> None:
    settings = load(labels=["team=s:guest/s:team[@name='a,b']", "kind = s:guest/@s:kind"], namespaces=["s=urn:site"])
    assert [label.name for label in settings.metadata.mapped] == ["team", "kind"]
    assert "kind=s:guest/@s:kind" in effective_settings(settings)
    assert load().metadata.mapped == ()


@pytest.mark.parametrize(("labels", "parts"), [
    (["9team=a"], ["metadata.labels", "'9team'", "label name"]), (["te-am=a"], ["'te-am'"]),
    (["__team=a"], ["'__team'"]), (["team"], ["maps no XPath", "write it like"]), (["=a"], ["label name"]),
    (["team="], ["maps no XPath"]), (["title=a"], ["has already (title)", "choose another"]),
    (["uuid=a"], ["uuid"]), (["job=a"], ["Prometheus sets itself (job)"]), (["instance=a"], ["instance"]),
    (["team=a", "team=b"], ["team twice"]),
    (["team=a["], ["the XPath of team", "'a['"]), (["team=/a"], ["absolute path", "inside <metadata>"]),
    (["team=a[b=]"], ["the XPath of team"]), (["team=a//"], ["the XPath of team"]),
    (["team=a/"], ["the XPath of team"]),
    (["team=x:a"], ["'x'", "metadata.namespaces"]), (["team=a/@x:b"], ["'x'", "metadata.namespaces"]),
    (["team=string(a)"], ["the XPath of team"]), (["team=a | b"], ["the XPath of team"]),
    (["team=a[position()=1]"], ["the XPath of team"]), (["team=a[]"], ["the XPath of team"])])
def test_what_cannot_be_a_label_is_named_at_start(labels: list[str], parts: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        load(labels=labels)
    assert caught.value.exit_status == 2
    text = str(caught.value)
    assert text.startswith("metadata")
    assert len(text.splitlines()) == 1
    assert all(part in text for part in parts), text


@pytest.mark.parametrize("namespace", ["s", "s=", "=urn", "1s=urn", "s=a b", "s={urn}"])
def test_what_is_no_namespace_is_named_at_start(namespace: str) -> None:
    with pytest.raises(SettingsError, match=r"metadata\.namespaces"):
        load(namespaces=[namespace])
