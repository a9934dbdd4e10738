"""Command line and control service at once on real guests: one lock, one audit trail, one outcome."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import libvirt
import pytest

from exporter.control.audit import Trail
from exporter.control.connection import Session
from exporter.control.errors import ControlError, ForbiddenError
from exporter.control.executor import Actor, Executor, Request
from exporter.control.folders import Folders
from exporter.control.operations import OPERATIONS
from exporter.control.request_parameters import parse_parameters
from exporter.demonstration.private_hypervisor import PrivateHypervisor
from tests.control_service import ControlService
from tests.live.operating import eventually
from tests.live.sector_guests import SectorGuest, define, saying


@pytest.fixture
def service(hypervisor: PrivateHypervisor, tmp_path: Path) -> Iterator[ControlService]:
    service = ControlService(tmp_path, hypervisor.uri)
    try:
        yield service.start()
    finally:
        service.stop(signal.SIGKILL)


@pytest.fixture
def deaf(hypervisor: PrivateHypervisor) -> Iterator[SectorGuest]:
    """A running guest that ignores the power button."""
    guest = define(hypervisor, "web-deaf", saying("UP"))
    hypervisor.virsh("start", guest.name)
    yield guest
    if hypervisor.virsh("domstate", guest.name).strip() != "shut off":
        hypervisor.virsh("destroy", guest.name)
    hypervisor.virsh("undefine", "--managed-save", guest.name)


def command_line(service: ControlService, *words: str) -> tuple[int, str]:
    done = service.run("domain", *words, "--libvirt.uri", service.uri)
    return done.returncode, done.stderr


def test_a_long_operation_is_a_job_and_the_command_line_sees_it_busy(
    service: ControlService, deaf: SectorGuest
) -> None:
    eventually(lambda: "UP" in deaf.said(), "the guest's word")
    body = {
        "parameters": {"mode": "acpi", "acpi_timeout_s": 15, "resend_s": 2, "force": True},
        "confirm": deaf.name,
        "reason": "it hears nothing",
    }
    path = f"/api/v1/domains/{deaf.name}/shutdown"
    plan = service.ask("POST", path, {**body, "dry_run": True})[1]["plan"]
    assert plan["lost"]
    assert service.ask("GET", f"/api/v1/domains/{deaf.uuid}")[1]["details"]["state"] == "running"
    assert service.problem("POST", path, {**body, "confirm": "another"}) == (428, "unconfirmed")
    status, job = service.ask("POST", path, body, Idempotency_Key="once")
    assert (status, job["state"]) == (202, "running")
    location = service.headers["location"]
    status, error = command_line(service, "suspend", deaf.name)
    assert (status, "busy with domain.shutdown" in error) == (5, True)
    assert service.problem("POST", f"/api/v1/domains/{deaf.name}/reset", {"confirm": deaf.name}) == (423, "busy")
    assert service.ask("POST", path, body, Idempotency_Key="once")[1]["id"] == job["id"]
    done = service.finished(location)
    assert (done["state"], done["outcome"]["details"]["stopped_by"]) == ("succeeded", "force")
    status, result = service.ask("POST", path, body, Idempotency_Key="once")
    assert (status, result["changed"]) == (200, True)
    # The wanted state is there: asked again under another key, it changes nothing.
    status, result = service.ask("POST", path, body, Idempotency_Key="twice")
    assert (status, result["changed"]) == (200, False)


def test_a_job_is_cancelled_and_the_guest_runs_on(service: ControlService, deaf: SectorGuest) -> None:
    body = {"parameters": {"mode": "acpi", "acpi_timeout_s": 300, "resend_s": 2}}
    status, job = service.ask("POST", f"/api/v1/domains/{deaf.name}/shutdown", body)
    assert status == 202
    assert service.ask("POST", f"/api/v1/jobs/{job['id']}/cancel")[0] == 202
    done = service.finished(f"/api/v1/jobs/{job['id']}")
    assert (done["state"], done["status"]) == ("failed", 504)
    assert "still running" in done["outcome"]["detail"]
    assert service.ask("GET", f"/api/v1/domains/{deaf.name}")[1]["details"]["state"] == "running"


def test_a_service_killed_in_the_middle_of_a_long_operation(service: ControlService, deaf: SectorGuest) -> None:
    """kill -9: its next start says what is there now, repeats nothing, and the guest is free."""
    path = f"/api/v1/domains/{deaf.name}"
    body = {"parameters": {"mode": "acpi", "acpi_timeout_s": 300, "resend_s": 2}}
    status, _job = service.ask("POST", f"{path}/shutdown", body, Idempotency_Key="k")
    location = service.headers["location"]
    assert status == 202
    service.stop(signal.SIGKILL)
    service.start()
    job = service.finished(location)
    assert (job["state"], job["outcome"]["outcome_unknown"]) == ("interrupted", True)
    assert service.problem("POST", f"{path}/shutdown", body, Idempotency_Key="k") == (500, "interrupted")
    trail = Trail(service.state / "control" / "audit.jsonl")
    begun, told = trail.records()[-2:]
    assert (begun["event"], told["event"], told["operation"]) == ("begin", "interrupted", "domain.shutdown")
    assert "the domain is running" in str(told["outcome"])
    assert service.ask("POST", f"{path}/suspend", {})[1]["after"]["state"] == "paused"
    trail.verify()


def test_both_ways_at_once_end_in_one_state_with_one_trail(service: ControlService, deaf: SectorGuest) -> None:
    def by_api(turn: int) -> int:
        verb = ("suspend", "resume")[turn % 2]
        status: int = service.ask("POST", f"/api/v1/domains/{deaf.name}/{verb}", {})[0]
        return status

    def by_command(turn: int) -> int:
        return command_line(service, ("resume", "suspend")[turn % 2], deaf.uuid, "--wait", "20s")[0]

    with ThreadPoolExecutor(6) as pool:
        answers, statuses = pool.map(by_api, range(30)), pool.map(by_command, range(3))
        assert set(answers) <= {200, 202, 423}
        assert set(statuses) == {0}
    trail = Trail(service.state / "control" / "audit.jsonl")
    assert trail.verify() > 6
    records = trail.records()
    open_acts: set[object] = set()
    for record in records:  # no two acts on the guest overlap
        if record["event"] == "begin":
            assert not open_acts, record
            open_acts.add(record["act"])
        elif record["event"] == "end":
            open_acts.remove(record["act"])
    assert {record["way"] for record in records} == {"api", "command line"}
    last = [record for record in records if record["event"] == "end"][-1]
    state = service.ask("GET", f"/api/v1/domains/{deaf.name}")[1]["details"]["state"]
    assert state == {"domain.suspend": "paused", "domain.resume": "running"}[str(last["operation"])]


def test_a_backend_that_only_reads_interfaces_is_501_and_read_on(service: ControlService) -> None:
    """Debian's libvirt is built with udev's backend. One with netcf's would answer 200, and be begun and taken back."""
    before = service.ask("GET", "/api/v1/interfaces/lo")
    assert before[0] == 200
    status, document = service.ask("POST", "/api/v1/interfaces:begin", {})
    if status == 200:
        service.ask("POST", "/api/v1/interfaces:rollback", {})
        pytest.skip("this libvirt can change host interfaces")
    assert (status, document["libvirt_code"]) == (501, libvirt.VIR_ERR_NO_SUPPORT)
    assert "udev" in document["next_step"] + document["detail"]
    ethernet = {"parameters": {"name": "e9"}, "dry_run": True}
    assert service.problem("POST", "/api/v1/interfaces:define-ethernet", ethernet)[0] == 501
    assert service.problem("POST", "/api/v1/interfaces/lo/down", {"confirm": "lo"})[0] == 501
    assert service.ask("GET", "/api/v1/interfaces/lo")[1]["details"] == before[1]["details"]


def test_a_read_only_connection_is_refused_by_libvirt_whatever_is_asked(
    hypervisor: PrivateHypervisor, deaf: SectorGuest, tmp_path: Path
) -> None:
    session = Session(hypervisor.read_only_uri, read_only=True)
    executor = Executor(session, Folders(tmp_path / "control"))
    before = hypervisor.virsh("dumpxml", deaf.name), hypervisor.virsh("domstate", deaf.name)
    refused = 0
    try:
        for operation in OPERATIONS:
            if operation.noun != "domain" or operation.reads or not operation.takes_subject:
                continue
            if operation.parameters.model_json_schema().get("required"):
                continue
            asked = Request(Actor("tester", "test"), confirmed=deaf.name, deadline_s=20)
            try:
                result = executor.run(operation, deaf.name, parse_parameters(operation, {}), asked)
            except ForbiddenError:
                refused += 1
            except ControlError:
                continue  # the state did not allow it, before libvirt was asked
            else:
                assert not result.changed, operation.name
    finally:
        executor.close()
    assert refused >= 4
    assert before == (hypervisor.virsh("dumpxml", deaf.name), hypervisor.virsh("domstate", deaf.name))


def test_the_exporters_socket_shows_and_the_control_socket_acts(service: ControlService, deaf: SectorGuest) -> None:
    listed = service.run("domain", "list", "--libvirt.uri", service.uri, "--output", "json")
    rows = {row["name"]: row for row in json.loads(listed.stdout)["details"]["rows"]}
    assert rows[deaf.name]["state"] == "running"
    assert service.ask("GET", "/api/v1/domains", token="web")[1]["details"]["rows"][0]["name"] == deaf.name
    assert service.problem("POST", f"/api/v1/domains/{deaf.name}/suspend", {}, token="reader") == (403, "forbidden")
    assert service.ask("POST", f"/api/v1/domains/{deaf.name}/suspend", {}, token="web")[1]["after"]["state"] == "paused"
