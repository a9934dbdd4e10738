"""The filters where a domain's XML is at hand and nothing else: for the guest agents."""

from __future__ import annotations

import pytest

from exporter.choosing import choice_by_xml, filters_of
from exporter.config import FilterSettings, MetadataSettings, Settings

NOVA = ("<domain><name>web</name><metadata><nova:instance xmlns:nova='http://openstack.org/xmlns/libvirt/nova/1.1'>"
        "<nova:owner><nova:project uuid='p-1'>{}</nova:project></nova:owner></nova:instance></metadata></domain>")
SITE = "<domain><name>web</name><metadata><s:guest xmlns:s='urn:site' team='{}'/></metadata></domain>"


def chosen(xml: str, **filters: str) -> bool:
    settings = Settings(filter=FilterSettings(**filters), metadata=MetadataSettings(
        labels=("team=site:guest/@team",), namespaces=("site=urn:site",)))
    return choice_by_xml(settings, filters_of(settings.filter))(xml)


@pytest.mark.parametrize(("xml", "filters", "expected"), [
    (NOVA.format("blue"), {"metadata_include": "project_name=blue"}, True),
    (NOVA.format("red"), {"metadata_include": "project_name=blue"}, False),
    (NOVA.format("red"), {"metadata_exclude": "project_name=red"}, False),
    (SITE.format("a"), {"metadata_include": "team=a"}, True),
    (SITE.format("b"), {"metadata_include": "team=a"}, False),
    ("no XML", {"metadata_include": "team=a"}, False),
    ("no XML", {"metadata_exclude": "team=a"}, True),
    ("no XML", {}, True),
])
def test_metadata_choose(xml: str, filters: dict[str, str], expected: bool) -> None:
    assert chosen(xml, **filters) is expected
