"""What a sample makes the inventory read again without an event."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from collectors.connection import Session
from collectors.domain_records import DomainRecords
from collectors.inventory import Inventory
from collectors.snapshot import Subject
from tests.collectors.scripted import Guest, ScriptedLibvirt, ScriptedOpener

XML = ("<domain type='qemu' id='{id}'><name>{name}</name><uuid>{uuid}</uuid><vcpu current='{vcpus}'>4</vcpu>"
       "<os><type>hvm</type></os><devices/></domain>")


class Following:
    """One guest, its XML and the number of vCPUs that it has."""

    def __init__(self) -> None:
        scripted = ScriptedLibvirt()
        self.guest: Guest = scripted.start("grows")
        self.key = (self.guest.uuid, self.guest.id)
        self.define(1)
        self.inventory = Inventory()
        self.session = Session(ScriptedOpener(scripted))
        self.records = DomainRecords(("state", "vcpu"), self.inventory, None)

    def define(self, vcpus: int) -> None:
        guest = self.guest
        guest.xml = XML.format(id=guest.id, name=guest.name, uuid=guest.uuid, vcpus=vcpus)

    def sample(self, vcpus: int) -> bool:
        """Whether the XML was read for it: that before, and then the statistics, as the sampler does."""
        stale = self.records.stale([self.key])
        if stale:
            self.records.find(self.session, [self.key])
        list(self.records.records(Subject("domain", self.key, ()), self.key, {"vcpu.current": vcpus}, 0.0, True))
        return stale

    @property
    def known(self) -> int | None:
        definition = self.inventory.details(*self.key)
        return definition.vcpus_current if definition is not None else None


@pytest.fixture
def following() -> Iterator[Following]:
    made = Following()
    yield made
    made.session.close()


def test_a_plugged_vcpu_has_the_xml_read_again(following: Following) -> None:
    assert [following.sample(1), following.sample(1)] == [True, False]
    following.define(2)  # libvirt sends no event for it
    assert [following.sample(2), following.sample(2), following.sample(2)] == [False, True, False]
    assert following.known == 2


def test_an_unplugged_vcpu_of_which_the_xml_speaks_a_little_longer(following: Following) -> None:
    following.define(2)
    assert [following.sample(2), following.sample(1), following.sample(1)] == [True, False, True]
    following.define(1)
    assert [following.sample(1), following.sample(1)] == [True, False]
    assert following.known == 1


def test_an_xml_that_stays_of_another_mind_is_not_read_at_each_sample(following: Following) -> None:
    following.sample(1)
    assert [following.sample(3) for _ in range(20)].count(True) == 3
