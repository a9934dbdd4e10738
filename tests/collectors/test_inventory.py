"""Inventory on libvirt's own test driver; a fake domain only for what that driver never does."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from collectors.connection import Opener, Session
from collectors.domain_xml import BLOCK_LIMITS, DOMAIN_INFO
from collectors.fields import Info
from collectors.inventory import INVENTORY, MOST_AGE_S, Inventory

FIXTURES = Path(__file__).parent.parent / "fixtures" / "xml"
UUID, ID = "ff91d2dc-69a1-43ef-abde-c9e4e9a0305b", 1  # of the fixture


class FakeDomain:
    """A domain whose XML a test decides; a libvirtError or a callable in its place is raised or called."""

    def __init__(self, uuid: str, xml: Any) -> None:
        self.uuid = uuid
        self.xml = xml
        self.calls = 0

    def UUIDString(self) -> str:  # noqa: N802
        return self.uuid

    def name(self) -> str:
        return "guest"

    def XMLDesc(self, flags: int) -> str:  # noqa: N802
        assert flags == 0
        self.calls += 1
        xml = self.xml() if callable(self.xml) else self.xml
        if isinstance(xml, Exception):
            raise xml
        return str(xml)


class FakeConnection:
    def isAlive(self) -> int:  # noqa: N802
        return 1


class FakeSession:
    connection = FakeConnection()

    def __init__(self, *domains: FakeDomain) -> None:
        self._domains = domains

    def lost(self, error: libvirt.libvirtError) -> bool:
        return error.get_error_code() == libvirt.VIR_ERR_SYSTEM_ERROR

    def domains(self, uuids: Iterable[str]) -> list[FakeDomain]:
        wanted = set(uuids)
        return [domain for domain in self._domains if domain.uuid in wanted]


def error(code: int) -> libvirt.libvirtError:
    made = libvirt.libvirtError("refused")
    made.err = (code, libvirt.VIR_FROM_QEMU, "refused", 2, None, None, None, 0, 0)
    return made


def refresh(inventory: Inventory, *domains: FakeDomain, wanted: Iterable[tuple[str, int]] = ((UUID, ID),)) -> None:
    inventory.refresh(FakeSession(*domains), wanted)  # type: ignore[arg-type]


@pytest.fixture
def xml() -> str:
    return (FIXTURES / "nova.xml").read_text()


@pytest.fixture
def session() -> Iterator[Session]:
    session = Session(Opener("test:///default"))
    yield session
    session.close()


def running(session: Session) -> list[tuple[str, int]]:
    return [(d.UUIDString(), d.ID()) for d in session.connection.listAllDomains(1)]


def test_live_domain(session: Session) -> None:
    inventory, wanted = Inventory(), running(session)
    (uuid, id_), = wanted
    assert inventory.stale(wanted)
    assert inventory.constants(uuid, id_) is None
    inventory.refresh(session, wanted)
    found, details = inventory.constants(uuid, id_), inventory.details(uuid, id_)
    assert found is not None
    assert details is not None
    assert found[0].name == DOMAIN_INFO
    assert (details.uuid, details.id, details.name) == (uuid, id_, "test")
    assert not inventory.stale(wanted)
    assert inventory.failures == 0


def test_changed_title_is_seen_after_invalidation_only(session: Session) -> None:
    inventory, wanted = Inventory(), running(session)
    (uuid, id_), = wanted
    inventory.refresh(session, wanted)
    before = inventory.constants(uuid, id_)
    writer = libvirt.open("test:///default")
    try:
        domain = writer.lookupByUUIDString(uuid)
        domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_TITLE, "new title", None, None, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        inventory.refresh(session, wanted)
        assert inventory.constants(uuid, id_) is before
        inventory.invalidate(uuid)
        assert inventory.stale(wanted)
        assert inventory.constants(uuid, id_) is before  # until it has been read again
        inventory.refresh(session, wanted)
        after = inventory.constants(uuid, id_)
        assert after is not None
        assert ("title", "new title") in after[0].labels
        domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_TITLE, None, None, None, libvirt.VIR_DOMAIN_AFFECT_LIVE)
    finally:
        writer.close()


def test_restart_is_another_entry(session: Session) -> None:
    inventory, wanted = Inventory(), running(session)
    (uuid, id_), = wanted
    inventory.refresh(session, wanted)
    writer = libvirt.open("test:///default")
    try:
        domain = writer.lookupByUUIDString(uuid)
        domain.destroy()
        domain.create()
    finally:
        writer.close()
    (same, new_id), = again = running(session)
    assert (same, new_id != id_) == (uuid, True)
    assert inventory.constants(uuid, new_id) is None
    inventory.invalidate(uuid)
    inventory.refresh(session, wanted)  # with the old id: what runs now is another one
    assert inventory.constants(uuid, new_id) is None
    inventory.refresh(session, again)
    assert inventory.constants(uuid, new_id) is not None
    assert inventory.constants(uuid, id_) is None


def test_same_objects_when_a_reading_changes_nothing(xml: str) -> None:
    inventory, domain = Inventory(), FakeDomain(UUID, xml)
    refresh(inventory, domain)
    series, details = inventory.constants(UUID, ID), inventory.details(UUID, ID)
    inventory.invalidate_all()
    refresh(inventory, domain)
    assert domain.calls == 2
    assert inventory.constants(UUID, ID) is series
    assert inventory.details(UUID, ID) is details
    refresh(inventory, domain)
    assert domain.calls == 2


def test_series_stay_the_same_object_when_only_details_change(xml: str) -> None:
    inventory, domain = Inventory(), FakeDomain(UUID, xml)
    refresh(inventory, domain)
    series = inventory.constants(UUID, ID)
    domain.xml = xml.replace("<currentMemory unit='KiB'>65536", "<currentMemory unit='KiB'>4096")
    inventory.invalidate(UUID)
    refresh(inventory, domain)
    details = inventory.details(UUID, ID)
    assert details is not None
    assert details.memory_bytes == 4 << 20
    assert inventory.constants(UUID, ID) is series


def test_read_again_after_its_time_without_an_event(xml: str) -> None:
    now_s = [100.0]
    inventory, domain = Inventory(lambda: now_s[0]), FakeDomain(UUID, xml)
    refresh(inventory, domain)
    now_s[0] += MOST_AGE_S - 1
    assert not inventory.stale([(UUID, ID)])
    now_s[0] += 1
    assert inventory.stale([(UUID, ID)])
    refresh(inventory, domain)
    assert domain.calls == 2


def test_event_while_the_xml_is_on_its_way_is_not_lost(xml: str) -> None:
    inventory = Inventory()

    def changed_at_once() -> str:
        inventory.invalidate(UUID)
        return xml

    refresh(inventory, FakeDomain(UUID, changed_at_once))
    assert inventory.constants(UUID, ID) is not None
    assert inventory.stale([(UUID, ID)])


def test_forgets_what_is_not_wanted(xml: str) -> None:
    inventory = Inventory()
    refresh(inventory, FakeDomain(UUID, xml))
    assert inventory.stale([])
    refresh(inventory, wanted=())
    assert inventory.constants(UUID, ID) is None
    assert not inventory.stale([])


def test_broken_xml_costs_its_domain_only_and_is_logged_once(xml: str, caplog: pytest.LogCaptureFixture) -> None:
    inventory = Inventory()
    broken, other = FakeDomain(UUID, "<domain"), FakeDomain("b", xml)
    wanted = ((UUID, ID), ("b", ID))
    with caplog.at_level(logging.INFO):
        for _ in range(5):
            refresh(inventory, broken, other, wanted=wanted)
            inventory.invalidate(UUID)
        assert len(caplog.records) == 1
        assert "guest" in caplog.text
        assert inventory.failures == 1
        assert inventory.constants(UUID, ID) is None
        assert inventory.constants("b", ID) is not None
        broken.xml = xml
        refresh(inventory, broken, other, wanted=wanted)
    assert inventory.failures == 0
    assert inventory.constants(UUID, ID) is not None
    assert "after 5 failures" in caplog.text


def test_broken_xml_is_not_read_at_each_sample() -> None:
    inventory, broken = Inventory(), FakeDomain(UUID, "<domain")
    for _ in range(3):
        refresh(inventory, broken)
    assert broken.calls == 1
    assert inventory.failures == 1
    refresh(inventory, wanted=())
    assert inventory.failures == 0


def test_broken_xml_takes_the_old_series_away(xml: str) -> None:
    inventory, domain = Inventory(), FakeDomain(UUID, xml)
    refresh(inventory, domain)
    domain.xml = "<domain"
    inventory.invalidate(UUID)
    refresh(inventory, domain)
    assert inventory.constants(UUID, ID) is None


def test_domain_that_is_gone_is_no_failure() -> None:
    inventory = Inventory()
    refresh(inventory, FakeDomain(UUID, error(libvirt.VIR_ERR_NO_DOMAIN)))
    assert inventory.failures == 0
    assert inventory.constants(UUID, ID) is None


def test_refused_xml_is_a_failure_and_tried_again(xml: str) -> None:
    inventory, domain = Inventory(), FakeDomain(UUID, error(libvirt.VIR_ERR_ACCESS_DENIED))
    refresh(inventory, domain)
    assert inventory.failures == 1
    assert inventory.stale([(UUID, ID)])
    domain.xml = xml
    refresh(inventory, domain)
    assert inventory.failures == 0
    refresh(inventory, FakeDomain(UUID, error(libvirt.VIR_ERR_ACCESS_DENIED)), wanted=())
    assert not inventory.stale([])


def test_dead_connection_is_left_to_the_lane(xml: str) -> None:
    inventory, domain = Inventory(), FakeDomain(UUID, error(libvirt.VIR_ERR_SYSTEM_ERROR))
    with pytest.raises(libvirt.libvirtError):
        refresh(inventory, domain)
    domain.xml = xml
    refresh(inventory, domain)
    assert inventory.constants(UUID, ID) is not None


def test_a_domain_being_read_is_left_to_its_lane_and_nobody_waits(xml: str) -> None:
    inventory, reached, go_on = Inventory(), threading.Event(), threading.Event()

    def hang() -> str:
        reached.set()
        go_on.wait(10)
        return xml

    hung, other = FakeDomain(UUID, hang), FakeDomain("b", xml)
    stuck = threading.Thread(target=refresh, args=(inventory, hung))
    stuck.start()
    assert reached.wait(10)
    refresh(inventory, hung, other, wanted=((UUID, ID), ("b", ID)))
    assert hung.calls == 1
    assert inventory.constants("b", ID) is not None
    assert not inventory.stale([(UUID, ID), ("b", ID)])
    go_on.set()
    stuck.join(10)
    assert inventory.constants(UUID, ID) is not None


def test_declarations() -> None:
    names = [d.name for d in INVENTORY.declarations]
    assert len(names) == len(set(names)) == 3 + 19
    assert set(BLOCK_LIMITS.values()) < set(names)
    assert INVENTORY.default
    for declaration in INVENTORY.declarations:
        assert isinstance(declaration, Info)
        assert "domain XML <" in declaration.help
        assert declaration.help.endswith(".")
        assert declaration.labels[0] == "domain"
