"""The control service's composition root: builds it from the settings and runs it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from prometheus_client.registry import Collector
from starlette.routing import Route

from collectors.agent_reading import AgentSource
from collectors.background import Background
from collectors.batch import Builder
from collectors.connection import Opener, host_identity
from collectors.events import EventListener
from collectors.lanes import LanePool, Slots
from collectors.layout import Compiler
from exporter.access import api_middleware
from exporter.agent_page import AgentEvents, AgentPage, agent_declarations
from exporter.audited_refusals import AuditedRefusals
from exporter.choosing import choice_by_xml, filters_of
from exporter.command_token import token_file_path
from exporter.config import Settings
from exporter.control.alert_store import AlertStore
from exporter.control.api import EXEMPT, control_application
from exporter.control.api_running import Runner
from exporter.control.audit import Trail
from exporter.control.audit_metrics import AuditMetrics
from exporter.control.connection import Session
from exporter.control.control_metrics import ControlMetrics
from exporter.control.executor import Executor
from exporter.control.folders import Folders
from exporter.control.guest_agent import reading_turn
from exporter.control.jobs import JobStore
from exporter.control.operation import build_parameters
from exporter.control.operations import OPERATIONS
from exporter.control.problems import problem
from exporter.control.rule_api import rule_routes
from exporter.control.rule_engine import RuleEngine
from exporter.control.rule_file import RulesInForce
from exporter.control.startup import claim_service, control_folders, recover
from exporter.malloc import share_arenas
from exporter.page import process_registry
from exporter.refusals import Refusals
from exporter.server import front_of, listening_sockets, serve_sockets
from exporter.tokens import TokenFile

if TYPE_CHECKING:
    from exporter.archive.trail_archive import TrailArchive

_log = logging.getLogger(__name__)

# What running operations get at the end; libvirt's calls cannot be cut off, and the trail tells of the rest.
LAST_ACTS_S = 10.0
# Agents that are asked at the same time: a silent one holds its lane for 5 s.
AGENT_LANES = 4


def run_control(settings: Settings) -> None:
    """Serves the API until SIGINT or SIGTERM. Raises VirtgaugeError where it cannot listen or use its folder."""
    share_arenas()
    build_parameters()
    web = settings.web.model_copy(update={"listen_address": settings.control.listen_address})
    refusals = Refusals()
    front = front_of(web, refusals, token_paths=("/api/", "/metrics"))
    folders = control_folders(settings)
    jobs = JobStore(folders)
    tokens = TokenFile(token_file_path(settings))
    sockets = listening_sockets(web, os.environ)  # early: a port in use must not touch the jobs of a running service
    claim_service(folders, ", ".join(map(str, settings.control.listen_address)))  # held until the process ends
    executor = Executor(Session(settings.libvirt.uri), folders)
    for told in recover(executor):
        _log.warning("an operation was interrupted by the end of its process", extra={"act": told})
    left = jobs.interrupt_running(_interrupted())
    if left:
        _log.warning("jobs were interrupted by the end of an earlier service", extra={"jobs": left})
    metrics = ControlMetrics(folders)
    registry = process_registry(refusals)
    registry.register(metrics)
    archive = _trail_archive(settings, executor.trail)
    if archive is not None:
        registry.register(AuditMetrics(archive.state))
        archive.start()
    rules = _rules(settings, executor)
    routes: list[Route] = []
    if rules is not None:
        registry.register(rules.metrics)
        routes = rules.routes
        rules.engine.start()
    runner = Runner(executor, jobs, metrics)
    refused = AuditedRefusals(executor.trail)
    access = api_middleware(tokens, refusals, refused=refused.told, exempt=EXEMPT)
    agents = _agent_page(settings, folders)
    more = {"more_metrics": agents.page} if agents is not None else {}
    app = control_application(runner, OPERATIONS, registry, access, **more, more_routes=routes)
    if agents is not None:
        agents.start()
    try:
        asyncio.run(serve_sockets(app, sockets, front=front))
    finally:
        if agents is not None:
            agents.stop()
        if not runner.wait_until_idle(LAST_ACTS_S):
            _log.warning("operations still run; the audit trail will say at the next start what became of them")
        for job in jobs.write_late():
            _log.error("the outcome of a job is lost: there is still no room for it", extra={"job": job})
        refused.stop()
        if rules is not None:
            rules.engine.stop(LAST_ACTS_S)
        if archive is not None:
            archive.stop()


@dataclass(frozen=True)
class _Rules:
    engine: RuleEngine
    metrics: Collector
    routes: list[Route]


def _rules(settings: Settings, executor: Executor) -> _Rules | None:
    path = settings.control.rules_file
    if path is None:
        return None
    file = RulesInForce(path)
    store = AlertStore(executor.folders.private(executor.folders.state))
    engine = RuleEngine(file, store, executor, file_ok=lambda: not file.mistakes)

    def told(word: str, facts: dict[str, Any]) -> None:
        executor.trail.append(f"rule-{word}", facts)

    signal.signal(signal.SIGUSR1, engine.stop_by_signal)
    return _Rules(engine, engine.metrics, rule_routes(engine, store, file, told))


def _trail_archive(settings: Settings, trail: Trail) -> TrailArchive | None:
    if settings.archive.uri is None:
        return None
    from exporter.archive.archive import HostOnce
    from exporter.archive.trail_archive import TrailArchive

    opener = Opener(settings.libvirt.uri)
    host = HostOnce(lambda: host_identity(opener), settings.host.name)
    state = settings.state.directory
    return TrailArchive(settings.archive, trail.path.parent, trail.path, state / "archive", host)


def _agent_page(settings: Settings, folders: Folders) -> AgentPage | None:
    """What reads the guest agents, on connections and in threads of its own; None where it is off."""
    if not settings.control.agent.enabled:
        return None
    filters = filters_of(settings.filter)
    source = AgentSource(settings.control.agent.period, turn=partial(reading_turn, folders), wants=filters.wants,
                         chosen=choice_by_xml(settings, filters))
    opener = Opener(settings.libvirt.uri, read_only=False)
    background = Background(LanePool(opener, AGENT_LANES, Slots(), "agent"), [source], most_stuck=AGENT_LANES)
    events = AgentEvents(source, background)
    listener = EventListener(Opener(settings.libvirt.uri), events, [events.heard])
    return AgentPage(background, Builder(Compiler(agent_declarations())), listener)


def _interrupted() -> dict[str, object]:
    detail = "the service ended in the middle; whether it was done is unknown; it is not repeated"
    return problem(500, detail, "interrupted", outcome_unknown=True, next_step="look at the state and the audit trail")
