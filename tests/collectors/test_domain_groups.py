"""Tests of the specialist groups' source, on libvirt's own test driver."""

from __future__ import annotations

import libvirt
import pytest

from collectors import COLLECTORS, SOURCES
from collectors.connection import Opener, Session
from collectors.domain_groups import GroupsSource, groups_source
from collectors.inventory import Inventory
from collectors.iothread import GROUPS, IOTHREAD
from collectors.periodic import RunningDomain, Scope


@pytest.fixture
def session() -> Session:
    return Session(Opener("test:///default"))


def running(session: Session) -> RunningDomain:
    domain, = session.connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE)
    return RunningDomain(domain.UUIDString(), domain.ID(), domain.name())


def test_a_domain_without_any_of_it_gives_no_record(session: Session) -> None:
    source = groups_source(IOTHREAD, GROUPS)
    domain = running(session)
    assert list(source.parts(session, Scope((domain,), frozenset()))) == [domain]
    assert list(source.parts(session, Scope((domain,), frozenset({domain.uuid})))) == []
    assert list(source.read(session, domain)) == []


def test_only_declared_keys_are_kept(session: Session) -> None:
    source = GroupsSource("iothread", 1, frozenset({"state.state"}))
    record, = source.read(session, running(session))
    assert dict(record.stats) == {"state.state": 1}
    assert record.subject.key == (running(session).uuid, running(session).id)


def test_a_domain_that_was_started_anew_gives_nothing(session: Session) -> None:
    domain = running(session)
    source = GroupsSource("iothread", 1, frozenset({"state.state"}))
    assert list(source.read(session, RunningDomain(domain.uuid, domain.id + 1, domain.name))) == []


def test_every_source_is_of_a_collector_that_asks_the_sampling_for_nothing() -> None:
    by_name = {collector.name: collector for collector in COLLECTORS}
    for name, make in SOURCES.items():
        assert make(Inventory()).collector == name
        assert by_name[name].groups == ()
