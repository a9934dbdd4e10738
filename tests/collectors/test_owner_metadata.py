"""Owner metadata: what clouds and the settings read from it; hostile ones cost the field that they are in."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.domain_xml import DOMAIN_INFO, Definition, constants, parse
from collectors.filters import metadata_texts
from collectors.inventory import INVENTORY
from collectors.owner_metadata import LABEL_MOST_CHARACTERS, MOST_ELEMENTS, Owner
from exporter.metadata_labels import OWN_LABELS, metadata_labels

FIXTURES = Path(__file__).parent.parent / "fixtures" / "xml"
NOVA = ("<nova:instance xmlns:nova='http://openstack.org/xmlns/libvirt/nova/1.1'><nova:name>{}</nova:name>"
        "<nova:owner><nova:project uuid='p'>shop</nova:project></nova:owner></nova:instance>")
SITE = "<s:guest xmlns:s='urn:site'><s:team name='{}'>{}</s:team></s:guest>"
LABELS = metadata_labels(["team=s:guest/s:team", "team_name=s:guest/s:team/@name"], ["s=urn:site"])


def domain(metadata: str, before: str = "") -> Definition:
    text = (f"<domain type='kvm' id='1'><name>n</name><uuid>u</uuid>{before}<metadata>{metadata}</metadata>"
            "<vcpu>2</vcpu><devices><disk><target dev='vda' bus='virtio'/></disk></devices></domain>")
    return parse(text, LABELS)


def whole(guest: Definition) -> bool:
    """Whether everything but the metadata is there."""
    return (guest.name, guest.id, guest.vcpus_maximum, [d.target_device for d in guest.disks]) == ("n", 1, 2, ["vda"])


def test_mapped_labels_stand_on_the_info_series_behind_its_own() -> None:
    guest = domain(NOVA.format("web") + SITE.format("A", " blue "))
    info, = (c for c in constants(guest) if c.name == DOMAIN_INFO)
    assert [name for name, _ in info.labels] == [*OWN_LABELS[1:], "team", "team_name"]
    assert dict(info.labels)["team"] == "blue"
    assert dict(info.labels)["team_name"] == "A"
    assert dict(info.labels)["instance_name"] == "web"
    assert {"team=blue", "team_name=A", "project_name=shop"} <= set(metadata_texts(guest))
    assert all("team" not in dict(c.labels) for c in constants(guest) if c.name != DOMAIN_INFO)


def test_the_settings_know_the_labels_that_are_taken() -> None:
    declared, = (d for d in INVENTORY.declarations if d.name == DOMAIN_INFO)
    assert declared.labels == OWN_LABELS


def test_a_domain_without_them_has_empty_labels() -> None:
    assert domain("").owner.mapped == (("team", ""), ("team_name", ""))
    assert parse((FIXTURES / "bare.xml").read_text(), LABELS).owner == Owner(mapped=(("team", ""), ("team_name", "")))


def test_any_namespace_of_a_cloud() -> None:
    labels = metadata_labels(["cluster={*}vm/{*}clusterVersion", "desk=o:vm/o:custom/*"], ["o=http://ovirt.org/vm/1.0"])
    guest = parse((FIXTURES / "ovirt.xml").read_text(), labels)
    assert guest.owner == Owner("mail", mapped=(("cluster", "4.7"), ("desk", "post")))


@pytest.mark.parametrize("reference", ["a&x;b", "&x;", "&#x;", "&#xfffffff;", "&undefined"])
def test_an_entity_costs_the_field_that_it_is_in(reference: str) -> None:
    guest = domain(NOVA.format(reference) + SITE.format("A", "blue"))
    assert whole(guest)
    assert guest.owner == Owner(project_name="shop", project_uuid="p", mapped=(("team", "blue"), ("team_name", "A")))
    assert "entities" in guest.metadata_problem
    attribute = domain(NOVA.format("web") + SITE.format(reference, "blue"))
    assert attribute.owner.instance_name == "web"
    assert attribute.owner.mapped == (("team", "blue"), ("team_name", ""))


def test_known_entities_are_text() -> None:
    guest = domain(NOVA.format("&lt;a&gt; &amp; &quot;b&quot; &apos;&#65;&#x42;"))
    assert guest.owner.instance_name == "<a> & \"b\" 'AB"
    assert guest.metadata_problem == ""


def test_a_megabyte_costs_only_its_own_end() -> None:
    guest = domain(NOVA.format("n" * 2**20) + SITE.format("m" * 2**20, "blue"), f"<title>{'t' * 2**20}</title>")
    assert whole(guest)
    assert guest.owner.project_name == "shop"
    assert dict(guest.owner.mapped)["team"] == "blue"
    for text in (guest.title, guest.owner.instance_name, dict(guest.owner.mapped)["team_name"]):
        assert len(text) == LABEL_MOST_CHARACTERS
        assert text.endswith("…")


def test_too_many_elements_cost_the_part_that_they_are_in() -> None:
    crowd = f"<c:x xmlns:c='urn:crowd'>{'<c:y/>' * 300_000}</c:x>"
    started_s = time.process_time()
    guest = domain(NOVA.format("web") + crowd + SITE.format("A", "blue"))
    assert time.process_time() - started_s < 5  # 0.2 s where nothing else runs
    assert whole(guest)
    assert guest.owner.instance_name == "web"
    assert guest.owner.mapped == (("team", "blue"), ("team_name", "A"))
    assert str(MOST_ELEMENTS) in guest.metadata_problem


def test_depth() -> None:
    assert whole(domain("<a>" * 200_000 + "</a>" * 200_000))


@pytest.mark.parametrize("metadata", [
    SITE.format("A", "blue") + "<a>", SITE.format("A", "blue") + "</b>", SITE.format("A", "blue") + "<x:y/>",
    SITE.format("A", "blue") + "<!ENTITY x 'y'>"])
def test_what_does_not_parse_costs_what_comes_behind_it(metadata: str) -> None:
    guest = domain(metadata + NOVA.format("web"))
    assert whole(guest)
    assert dict(guest.owner.mapped)["team"] == "blue"
    assert guest.owner.instance_name == ""
    assert "does not parse" in guest.metadata_problem


@pytest.mark.parametrize("inside", [
    "<![CDATA[</metadata><vcpu>99</vcpu>]]>", "<!-- </metadata><metadata> -->", "<metadata>x</metadata>",
    "<metadata/>", "<?p </metadata>?>"])
def test_nothing_inside_ends_the_metadata_early(inside: str) -> None:
    guest = domain(f"<a>{inside}</a>" + SITE.format("A", "blue"))
    assert whole(guest)
    assert dict(guest.owner.mapped)["team"] == "blue"


def test_a_title_cannot_begin_them() -> None:
    guest = domain(SITE.format("A", "blue"), "<title>&lt;metadata&gt;</title>")
    assert guest.title == "<metadata>"
    assert dict(guest.owner.mapped)["team"] == "blue"


@given(st.text(alphabet=st.sampled_from("<>/&;#x!-[]?='\"ab \n"), max_size=60))
def test_no_metadata_cost_the_domain_anything(text: str) -> None:
    guest = domain(text + "<t/>")
    if not re.search(r"</\s*metadata", text):
        assert whole(guest)
