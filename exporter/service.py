"""The composition root: builds the exporter from its settings and runs it."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from collectors import COLLECTORS, HASTENED_BY, SOURCES
from collectors.background import Background
from collectors.batch import Builder
from collectors.bulk import build_info
from collectors.compat import OLD_NUMBERS, OldPools, compat_collector, renamed, with_old_numbers
from collectors.connection import Opener, host_identity, is_local
from collectors.domain_records import DomainRecords
from collectors.event_counts import EventCounts
from collectors.event_names import COUNTED
from collectors.events import Event, EventListener
from collectors.fields import Collector
from collectors.filters import Cap, Filters
from collectors.inventory import INVENTORY, Inventory
from collectors.kernel import KernelSource, raise_open_files_limit
from collectors.lanes import LanePool, Slots
from collectors.layout import Compiler
from collectors.periodic import Keeping, Source
from collectors.sampler import Sampler
from collectors.sampling import sampling
from collectors.snapshot import Record
from collectors.target import Target

from .choosing import filters_of
from .config import Settings
from .malloc import share_arenas
from .metrics_app import exporter_application
from .page import TargetPage, process_registry
from .refusals import Refusals
from .server import front_of, listening_sockets, serve_sockets
from .version import VERSION

if TYPE_CHECKING:
    from starlette.middleware import Middleware
    from starlette.routing import Route

    from .archive.archive import Archive

log = logging.getLogger(__name__)

BACKGROUND_LANES = 2
API_PATHS = "/api/"
"""Paths that need a bearer token; the web configuration's passwords are for the others."""


class Exporter:
    """One target with its page, threads and connections; ``start`` and ``stop`` from the main thread."""

    def __init__(self, settings: Settings, refusals: Refusals | None = None) -> None:
        enabled = [c for c in COLLECTORS if c.name in settings.collector.enabled]
        opener = Opener(settings.libvirt.uri)
        filters = filters_of(settings.filter)
        self.inventory = Inventory(also=renamed(settings.compat.names), labels=settings.metadata.mapped,
                                   inactive=bool(filters.metadata) or INVENTORY in enabled)
        counts = EventCounts(lambda: self.events.connected)
        counting = settings.collector.known.get("events", False)
        self.events = EventListener(Opener(settings.libvirt.uri), self.inventory,
                                    [self._hasten, *([counts.heard] if counting else [])], COUNTED, self._hasten_all)
        slots = Slots()
        self.pool = LanePool(opener, settings.sampling.lanes, slots)
        slow = LanePool(opener, BACKGROUND_LANES, slots, "background")
        self.sources: list[Source] = [SOURCES[c.name](self.inventory) for c in enabled if c.name in SOURCES]
        if "inovex" in settings.compat.names:
            self.sources = [OldPools(s) if s.collector == "storage" else s for s in self.sources]
        self.background = Background(slow, self.sources)
        self.archive = _archive(settings)
        own = [sampling(enabled), *(archive_collectors() if self.archive else ())]
        compat = compat_collector(settings.compat.names)
        own += [compat] if compat is not None else []
        compiler = Compiler([*own, *enabled])
        cap = Cap(settings.filter.max_series_per_domain, settings.filter.max_series)
        capped = bool(settings.filter.max_series_per_domain or settings.filter.max_series)
        builder = Builder(compiler, self._choice(filters, settings.compat.names), cap if capped else None)
        local = is_local(settings.libvirt.uri, os.environ.get("LIBVIRT_DEFAULT_URI"))
        kernel = KernelSource() if local and settings.sampling.kernel == "auto" else None
        groups = {"state", *(group for collector in enabled for group in collector.groups)}
        records = DomainRecords(groups, self.inventory, kernel)
        sampler = Sampler(self.pool, self.inventory, enabled, records, self.background, settings.sampling.chunk,
                          build_info(VERSION), heard=[counts] if counting else (), wants=filters.wants,
                          own_records=[cap.own_record, opener.unsupported.own_record,
                                       *([self.archive.own_record] if self.archive else [])])
        self.target = Target(sampler, builder, settings.sampling.max_age, settings.sampling.interval,
                             [self.archive.record] if self.archive else ())
        registry = None if settings.web.disable_exporter_metrics else process_registry(refusals)
        self.page = TargetPage(self.target, builder.catalogue.families, families_of([*own, *enabled]), registry)

    def _choice(self, filters: Filters, compat: Sequence[str]) -> Callable[[Sequence[Record]], Sequence[Record]] | None:
        """What is done with each sample's Records, None for nothing."""
        choosing = bool(filters.metadata or filters.device)
        old = bool(set(compat) & OLD_NUMBERS)

        def chosen(found: Sequence[Record]) -> Sequence[Record]:
            if choosing:
                found = filters.chosen(found, self.inventory.details)
            return with_old_numbers(found) if old else found

        return chosen if choosing or old else None

    def _hasten(self, event: Event) -> None:
        """Have read again what an event says has changed."""
        hastened = HASTENED_BY.get(event.kind, ())
        for source in self.sources:
            if source.collector in hastened:
                if isinstance(source, Keeping):
                    source.invalidate(event.uuid)
                self.background.hasten(source.collector)

    def _hasten_all(self) -> None:
        """Have read again what is kept by events, some of which may have been missed."""
        for source in self.sources:
            if isinstance(source, Keeping):
                source.invalidate_all()
                self.background.hasten(source.collector)

    def start(self) -> None:
        """Start the threads; libvirt need not be there yet."""
        self.events.start()
        self.background.start()
        if self.archive is not None:
            self.archive.start()
        self.target.start()

    def stop(self) -> None:
        """End threads and connections; waits for none that libvirt holds up."""
        self.target.stop()
        self.background.stop()
        self.events.stop()
        self.page.close()
        self.pool.stop()
        if self.archive is not None:
            self.archive.stop()


def _archive(settings: Settings) -> Archive | None:
    """The archive of the settings, None where there is none; pymongo is loaded only for one."""
    if settings.archive.uri is None:
        return None
    from .archive.archive import Archive, HostOnce

    opener = Opener(settings.libvirt.uri)
    return Archive(settings.archive, settings.state.directory,
                   HostOnce(lambda: host_identity(opener), settings.host.name))


def _history_routes(archive: Archive | None) -> list[Route]:
    """The history API, where there is an archive."""
    if archive is None:
        return []
    from .archive.history_fields import HistoryFields
    from .history_api import HistoryApi

    return HistoryApi(archive.reading.database, HistoryFields(COLLECTORS), archive.unsealed,
                      waiting_since_s=archive.waiting_since_s).routes()


def _guarded(settings: Settings, refusals: Refusals) -> list[Middleware]:
    """What asks for a bearer token in front of the history API. Raises SettingsError for a bad token file."""
    from .access import api_middleware
    from .command_token import token_file_path
    from .openapi import OPENAPI_PATH
    from .tokens import TokenFile

    tokens = TokenFile(token_file_path(settings))
    return api_middleware(tokens, refusals, protected=(API_PATHS,), exempt=(OPENAPI_PATH,))


def archive_collectors() -> tuple[Collector, ...]:
    """The collector of the archive's own series; it has no flag and is on where there is an archive."""
    from .archive.metrics import ARCHIVE

    return (ARCHIVE,)


def families_of(collectors: Iterable[Collector]) -> dict[str, frozenset[str]]:
    """Names of each collector's families, for collect[]."""
    return {collector.name: frozenset(d.name for d in collector.declarations) for collector in collectors}


def run_exporter(settings: Settings) -> None:
    """Serve the page until SIGINT or SIGTERM.  Raises VirtgaugeError where it cannot listen."""
    raise_open_files_limit()
    share_arenas()
    refusals = Refusals()
    # Without an archive there is no API, and nobody else who would ask for a token there.
    front = front_of(settings.web, refusals, token_paths=(API_PATHS,) if settings.archive.uri else ())
    sockets = listening_sockets(settings.web, os.environ)  # early: a port in use must not start anything
    exporter = Exporter(settings, refusals)
    history = _history_routes(exporter.archive)
    guarded = _guarded(settings, refusals) if history else []
    app = exporter_application(exporter.page, settings, middleware=guarded, more=history)
    exporter.start()
    try:
        asyncio.run(serve_sockets(app, sockets, front=front))
    finally:
        exporter.stop()
