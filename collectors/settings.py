"""What libvirt keeps of each domain besides its XML: autostart, persistence, a saved image, its warnings."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import partial

from .connection import Session
from .domain_groups import domain_subject
from .fields import Collector, Declaration, Field, Kind
from .inventory import Inventory
from .periodic import RunningDomain, Scope
from .snapshot import Record, Value
from .snapshots import all_domains, lookup

_MESSAGES = (("deprecation", 1), ("tainting", 2))  # virDomainMessageType


def _switch(source: str, name: str, text: str, call: str, since: str) -> Declaration:
    return Field(f"settings.{source}", f"libvirt_domain_{name}", Kind.GAUGE,
                 f"1 if {text}, 0 if not ({call}, settings.{source}, boolean).", since=since)


SETTINGS = Collector(
    name="settings",
    help="Autostart, persistence, saved image and libvirt's warnings of each domain.",
    declarations=(
        _switch("autostart", "autostart", "the domain starts with the host", "virDomainGetAutostart", "0.2.1"),
        _switch("persistent", "persistent", "the domain is defined for good", "virDomainIsPersistent", "0.7.3"),
        _switch("managed-save", "managed_save", "a saved image waits for the domain's next start",
                "virDomainHasManagedSaveImage", "0.8.0"),
        *(Field(f"settings.messages.{kind}", "libvirt_domain_messages", Kind.GAUGE,
                "Number of libvirt's warnings about the domain by kind; absent without any (virDomainGetMessages, "
                "settings.messages.deprecation, settings.messages.tainting, count).", fixed=(("kind", kind),),
                since="7.1.0", zero_is_unknown=True) for kind, _ in _MESSAGES),
    ),
)


class SettingsSource:
    """Reads the domains one by one; none of the calls touches QEMU."""

    collector = SETTINGS.name
    period_s = 60.0
    deadline_s = 10.0

    def __init__(self, _inventory: Inventory) -> None:
        pass

    def parts(self, session: Session, scope: Scope) -> Sequence[RunningDomain]:
        return all_domains(session)

    def read(self, session: Session, part: object) -> Iterable[Record]:
        assert isinstance(part, RunningDomain)
        read_at_s = time.monotonic()
        domain = lookup(session, part.uuid)
        if domain is None:
            return
        answers: dict[str, Value | None] = {
            "settings.autostart": session.support.ask("autostart", domain.autostart),
            "settings.persistent": session.support.ask("isPersistent", domain.isPersistent),
            "settings.managed-save": session.support.ask("hasManagedSaveImage", lambda: domain.hasManagedSaveImage(0))}
        for kind, flag in _MESSAGES:
            messages = session.support.ask("messages", partial(domain.messages, flag))
            answers[f"settings.messages.{kind}"] = None if messages is None else len(messages)
        stats = {key: value for key, value in answers.items() if value is not None}
        yield Record(domain_subject(part), self.collector, stats, read_at_s)
