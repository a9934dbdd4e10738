"""The control API over HTTP: a real `virtgauge control serve` on a node of libvirt's test driver."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from exporter.control.audit import Trail
from exporter.control.examples import EXAMPLES
from exporter.control.folders import Folders
from exporter.control.interface_change import LOCK_KEY
from exporter.control.jobs import JobStore
from exporter.control.locks import Locks
from exporter.control.openapi import openapi_document, operation_path
from exporter.control.operation import Role
from exporter.control.operations import OPERATIONS, by_name
from exporter.control.request_parameters import parse_parameters
from exporter.tokens import Role as TokenRole
from tests.control_service import ControlService

NODE = """<node>
<interface type='ethernet' name='lan0'><mac address='52:54:00:AA:BB:01'/></interface>
<domain type='test'><name>web1</name><uuid>6695eb01-f6a4-8304-79aa-97f2502e193f</uuid>
<memory>8192</memory><os><type>hvm</type></os></domain>
<domain type='test'><name>db1</name><uuid>6695eb01-f6a4-8304-79aa-97f2502e1940</uuid>
<memory>8192</memory><os><type>hvm</type></os></domain></node>"""
def new_service(folder):
    (folder / "node.xml").write_text(NODE)
    return ControlService(folder, f"test://{folder}/node.xml")


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    service = new_service(tmp_path_factory.mktemp("control")).start()
    yield service
    assert service.stop() in (0, None)


def names(service):
    return {row["name"] for row in service.ask("GET", "/api/v1/interfaces")[1]["details"]["rows"]}


def test_reading(service):
    status, found = service.ask("GET", "/api/v1/domains", token="reader")
    assert (status, [row["name"] for row in found["details"]["rows"]]) == (200, ["db1", "web1"])
    for reference in ("web1", "6695eb01-f6a4-8304-79aa-97f2502e193f"):
        assert service.ask("GET", f"/api/v1/domains/{reference}")[1]["details"]["name"] == "web1"
    assert "<name>web1</name>" in service.ask("GET", "/api/v1/domains/web1/xml")[1]["details"]["xml"]
    assert service.ask("GET", "/api/v1/interfaces/52:54:00:aa:BB:01")[1]["details"]["name"] == "lan0"
    assert service.ask("GET", "/api/v1/interfaces?inactive=true")[1]["details"]["rows"] == []


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "kind"),
    [
        ("GET", "/api/v1/domains/web2", None, 404, "not-found"),
        ("GET", "/api/v1/nothing", None, 404, "no-such-path"),
        ("GET", "/api/v1/interfaces?nonsense=1", None, 422, "invalid"),
        ("GET", "/api/v1/interfaces?inactive=maybe", None, 422, "invalid"),
        ("GET", "/api/v1/interfaces?inactive=1&inactive=0", None, 422, "invalid"),
        ("GET", "/api/v1/domains/%00", None, 422, "invalid"),
        ("DELETE", "/api/v1/domains/web1", None, 405, "no-such-method"),
        ("POST", "/api/v1/interfaces:define-vlan", {"parameters": {"parent": "lan0", "tag": 4095}}, 422, "invalid"),
        ("POST", "/api/v1/interfaces:define-vlan", {"parameters": {}}, 422, "invalid"),
        ("POST", "/api/v1/interfaces:define-vlan", {"params": {}}, 422, "invalid"),
        ("POST", "/api/v1/interfaces:define-vlan", "{", 422, "invalid"),
        ("POST", "/api/v1/interfaces:begin", "[" * 100_000, 422, "invalid"),
        ("POST", "/api/v1/interfaces:commit", {}, 409, "refused"),
        ("POST", "/api/v1/interfaces/lan0/undefine", {"parameters": {"commit": True}}, 428, "unconfirmed"),
        ("POST", "/api/v1/interfaces/lan0/undefine", {"parameters": {"commit": True}, "confirm": "x"}, 428,
         "unconfirmed"),
        ("GET", "/api/v1/jobs/0000", None, 404, "not-found"),
        ("GET", "/api/v1/jobs/..%2f..%2faudit", None, 404, "no-such-path"),
    ],
)  # fmt: skip
def test_errors_are_problem_details(service, method, path, body, status, kind):
    assert service.problem(method, path, body) == (status, kind)


def test_a_body_must_say_that_it_is_json(service):
    # A form of a hostile page can send text/plain with the browser's own rights, but no application/json.
    assert service.problem("POST", "/api/v1/interfaces:begin", "{}", Content_Type="text/plain") == (422, "invalid")


def test_a_body_above_a_mebibyte_is_refused_before_it_comes(service):
    assert service.problem("POST", "/api/v1/interfaces:begin", Content_Length="2000000") == (413, "too-large")


@pytest.mark.parametrize("token", [None, "nonsense", "vgt_000000000000_" + "A" * 43])
def test_nobody_gets_in_without_a_token(service, token):
    for path in ("/api/v1/domains", "/api/v1/jobs", "/metrics", "/api/v1/nothing"):
        assert service.problem("GET", path, token=token) == (401, "unauthenticated")
    assert service.headers["www-authenticate"].startswith("Bearer")
    assert service.ask("GET", "/-/healthy", token=None)[0] == 200


def test_roles(service):
    for token in ("reader", "operator"):
        assert service.problem("POST", "/api/v1/interfaces:begin", {}, token=token) == (403, "forbidden")
    assert service.problem("POST", "/api/v1/domains/web1/suspend", {}, token="reader") == (403, "forbidden")
    assert service.ask("POST", "/api/v1/domains/web1/suspend", {"dry_run": True}, token="operator")[0] == 200
    assert service.problem("POST", "/api/v1/interfaces/lan0/down", {}, token="reader") == (403, "forbidden")
    assert service.ask("GET", "/api/v1/interfaces", token="reader")[0] == 200
    trail = Trail(Folders(service.state / "control").trail)
    deadline_s = time.monotonic() + 30
    while not any(r["event"] == "access-refused" and "reader" in str(r.get("actor")) for r in trail.records()):
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


def test_scopes_by_domain(service):
    listed = service.ask("GET", "/api/v1/domains", token="web")[1]["details"]
    assert [row["name"] for row in listed["rows"]] == ["web1"]
    assert "counts" not in listed
    assert service.ask("GET", "/api/v1/domains/web1", token="web")[0] == 200
    for path in ("/api/v1/domains/db1", "/api/v1/domains/6695eb01-f6a4-8304-79aa-97f2502e1940", "/api/v1/interfaces",
                 "/api/v1/interfaces/lan0", "/api/v1/interfaces:change"):  # fmt: skip
        assert service.problem("GET", path, token="web") == (403, "forbidden")
    assert service.problem("GET", "/metrics", token="web") == (403, "forbidden")
    assert service.problem("GET", "/api/v1/domains/web9", token="web") == (404, "not-found")


def test_ids_and_uuids_tried_out_tell_a_narrow_token_nothing(service):
    """What is out of scope and what is not there: the same answer, in the caller's own words."""
    there = [str(service.ask("GET", f"/api/v1/domains/{name}")[1]["details"]["id"]) for name in ("web1", "db1")]
    assert service.ask("GET", f"/api/v1/domains/{there[0]}", token="web")[0] == 200
    for asked in (there[1], "77", "6695eb01-f6a4-8304-79aa-97f2502e1940", "6695eb01-f6a4-8304-79aa-97f2502e19ff",
                  "db1", "db2", "uuid:6695eb01-f6a4-8304-79aa-97f2502e1940", f"id:{there[1]}"):  # fmt: skip
        for method, path in (("GET", ""), ("GET", "/xml"), ("POST", "/suspend")):
            status, document = service.ask(method, f"/api/v1/domains/{asked}{path}", {} if path == "/suspend" else None,
                                           token="web")  # fmt: skip
            assert (status, document["detail"]) == (403, f"token web reaches no domain {asked!r}")
            assert "nearest" not in document


@pytest.mark.parametrize("operation", [o for o in OPERATIONS if not o.reads], ids=lambda o: o.name)
def test_nothing_is_changed_by_get(service, operation):
    reference = "lan0" if operation.noun == "interface" else "web1"
    before = names(service)
    path = operation_path(operation).replace("{reference}", reference)
    assert service.problem("GET", path) == (405, "no-such-method")
    assert service.headers["allow"] == "POST"
    assert names(service) == before


def test_define_with_a_dry_run_first(service):
    body = {"parameters": {"parent": "lan0", "tag": 11, "commit": True}, "reason": "a test"}
    status, plan = service.ask("POST", "/api/v1/interfaces:define-vlan", {**body, "dry_run": True})
    assert (status, plan["dry_run"], "lan0.11" in plan["plan"]["diff"]) == (200, True, True)
    assert "lan0.11" not in names(service)
    status, result = service.ask("POST", "/api/v1/interfaces:define-vlan", body)
    assert (status, result["changed"], result["after"]["type"]) == (200, True, "vlan")
    assert "lan0.11" in names(service)
    begun, ended = [r for r in Trail(service.state / "control/audit.jsonl").records() if r.get("operation") ==
                    "interface.define-vlan"][-2:]  # fmt: skip
    assert (begun["event"], ended["event"], begun["reason"], begun["way"]) == ("begin", "end", "a test", "api")
    assert begun["actor"].startswith("admin (")
    status, result = service.ask(
        "POST", "/api/v1/interfaces/lan0.11/undefine", {"parameters": {"commit": True}, "confirm": "lan0.11"}
    )
    assert (status, "lan0.11" in names(service)) == (200, False)


def test_a_job_is_answered_at_once_where_asked(service):
    status, job = service.ask(
        "POST", "/api/v1/interfaces:define-vlan", {"parameters": {"parent": "lan0", "tag": 12, "commit": True}},
        Prefer="respond-async",
    )  # fmt: skip
    assert (status, job["state"]) == (202, "running")
    done = service.finished(service.headers["location"])
    assert (done["state"], done["status"], done["outcome"]["changed"]) == ("succeeded", 200, True)
    assert any(one["id"] == job["id"] for one in service.ask("GET", "/api/v1/jobs")[1]["jobs"])
    assert service.problem("GET", f"/api/v1/jobs/{job['id']}", token="web") == (404, "not-found")
    assert service.problem("POST", f"/api/v1/jobs/{job['id']}/cancel", {}) == (409, "refused")


def test_an_idempotency_key_does_it_once_even_for_many_at_once(service):
    body = {"parameters": {"parent": "lan0", "tag": 13, "commit": True}, "wait_s": 20}

    def ask(_):
        return service.ask("POST", "/api/v1/interfaces:define-vlan", body, Idempotency_Key="key 13")

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    assert {status for status, _ in answers} <= {200, 202}
    jobs = [job for job in service.ask("GET", "/api/v1/jobs")[1]["jobs"] if job["reference"] == "lan0.13"]
    assert len(jobs) == 1
    assert service.finished(f"/api/v1/jobs/{jobs[0]['id']}")["state"] == "succeeded"
    again = ask(0)
    assert (again[0], again[1]["audit"]) == (200, ask(0)[1]["audit"])
    other = {"parameters": {"parent": "lan0", "tag": 14, "commit": True}}
    path = "/api/v1/interfaces:define-vlan"
    assert service.problem("POST", path, other, Idempotency_Key="key 13") == (422, "invalid")
    assert service.ask("POST", path, {**other, "dry_run": True}, Idempotency_Key="key 13")[0] == 200
    assert service.problem("POST", path, other, Idempotency_Key="k" * 201) == (422, "invalid")
    assert "lan0.14" not in names(service)


def test_a_failure_is_replayed_too(service):
    """As it was answered first, with the request that it was the answer to."""
    first, again = (service.ask("POST", "/api/v1/interfaces:rollback", {}, Idempotency_Key="key r") for _ in range(2))
    assert first == again
    assert (first[0], first[1]["type"]) == (409, "urn:virtgauge:problem:refused")
    assert first[1]["instance"].startswith("urn:virtgauge:request:")


def test_the_command_line_and_the_api_exclude_each_other(service):
    locks = Locks(Folders(service.state / "control"))
    body = {"parameters": {"parent": "lan0", "tag": 15, "commit": True}}
    held = locks.acquire(LOCK_KEY, "the test's lock")
    try:
        assert service.problem("POST", "/api/v1/interfaces:define-vlan", body) == (423, "busy")
        assert service.headers["retry-after"]
        done = service.run("interface", "define-vlan", "--parent", "lan0", "--tag", "15", "--libvirt.uri", service.uri)
        assert done.returncode == 5
        assert "busy" in done.stderr
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(service.ask, "POST", "/api/v1/interfaces:define-vlan", {**body, "wait_s": 30})
            assert service.problem("POST", "/api/v1/interfaces:define-vlan", body, Idempotency_Key="b") == (423, "busy")
            held.release()
            held = None
            assert waiting.result()[0] == 200
        # Nothing had been done, so the same key may be used until it is.
        assert "lan0.15" in names(service)
    finally:
        if held is not None:
            held.release()


def test_a_service_killed_in_the_middle_says_so_and_repeats_nothing(tmp_path):
    service = new_service(tmp_path).start()
    lock = Locks(Folders(service.state / "control")).acquire(LOCK_KEY, "the test's lock")
    body = {"parameters": {"parent": "lan0", "tag": 16, "commit": True}, "wait_s": 30}
    ask = ("POST", "/api/v1/interfaces:define-vlan", body)
    try:
        assert service.ask(*ask, Idempotency_Key="k", Prefer="respond-async")[0] == 202
        location = service.headers["location"]
        service.stop(signal.SIGKILL)
        lock.release()
        service.start()
        job = service.finished(location)
        assert (job["state"], job["outcome"]["outcome_unknown"]) == ("interrupted", True)
        assert service.problem(*ask, Idempotency_Key="k") == (500, "interrupted")
        assert "lan0.16" not in names(service)
        assert service.ask(*ask, Idempotency_Key="another")[0] == 200
        second = subprocess.run(service.process.args, capture_output=True, text=True, env=service.environment,
                                timeout=60, check=False)  # fmt: skip
        assert (second.returncode, "already in use" in second.stderr) == (1, True)
        assert service.stop() == 0
    finally:
        service.stop(signal.SIGKILL)


def test_the_service_builds_the_models_of_parameters_before_its_threads_do(tmp_path):
    (tmp_path / "state").touch()
    words = ["control", "serve", "--control.listen-address", "127.0.0.1:0", "--state.directory", f"{tmp_path}/state"]
    code = ("from exporter.cli import run\n"
            "from exporter.control.operations import OPERATIONS\n"
            "left = lambda: {o.name for o in OPERATIONS if not o.parameters.__pydantic_complete__}\n"
            f"assert left() and run({words!r}) > 0\n"
            "assert not left(), left()\n")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, "the folder" in done.stderr) == (0, True), done.stderr


def test_an_outcome_that_found_no_room_is_written_when_the_service_stops(tmp_path):
    service = new_service(tmp_path).start()
    lock = Locks(Folders(service.state / "control")).acquire(LOCK_KEY, "the test's lock")
    body = {"parameters": {"parent": "lan0", "tag": 17, "commit": True}, "wait_s": 30}
    limits = resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE)
    try:
        assert service.ask("POST", "/api/v1/interfaces:define-vlan", body, Prefer="respond-async")[0] == 202
        location = service.headers["location"]
        resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (0, limits[1]))
        lock.release()
        assert service.finished(location)["state"] == "failed"
        jobs = JobStore(Folders(service.state / "control"))
        job_id = location.rpartition("/")[2]
        assert jobs.get(job_id).state == "running"
        resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, limits)
        assert service.stop() == 0
        assert jobs.get(job_id).state == "failed"
    finally:
        service.stop(signal.SIGKILL)


def test_a_second_service_on_the_state_folder_ends_and_touches_no_job(tmp_path):
    service = new_service(tmp_path).start()
    job = JobStore(Folders(service.state / "control")).new("domain.suspend", "web1", "web1", "admin")
    try:
        flags = ("--control.listen-address", "127.0.0.1:0", "--libvirt.uri", service.uri)
        second = service.run("control", "serve", *flags)
        holder = f"process {service.process.pid} on 127.0.0.1:{service.port}"
        assert (second.returncode, holder in second.stderr, "--state.directory" in second.stderr) == (5, True, True)
        assert service.ask("GET", f"/api/v1/jobs/{job.id}")[1]["state"] == "running"
        assert service.run("domain", "suspend", "web1", "--libvirt.uri", service.uri).returncode == 0
        # The claim goes with its holder, however that ends; the next one takes over what it left.
        service.stop(signal.SIGKILL)
        assert service.start().ask("GET", f"/api/v1/jobs/{job.id}")[1]["state"] == "interrupted"
    finally:
        service.stop(signal.SIGKILL)


def test_metrics(service):
    service.ask("GET", "/api/v1/domains")
    service.ask("GET", "/api/v1/domains/nothing")
    status, page = service.ask("GET", "/metrics", token="reader")
    assert status == 200
    assert 'virtgauge_control_operations_total{operation="domain.list",outcome="read"}' in page
    assert 'virtgauge_control_operation_duration_seconds_bucket{le="+Inf",operation="domain.list"}' in page
    assert "virtgauge_control_interface_change_open 0" in page
    assert 'virtgauge_http_refused_total{reason="token"}' in page
    assert "process_resident_memory_bytes" in page
    assert "_created" not in page


def test_no_token_is_in_the_log_or_the_state(service):
    service.ask("GET", "/api/v1/domains?token=" + service.tokens["admin"])
    found = [path for path in service.folder.rglob("*") if path.is_file()]
    for token in service.tokens.values():
        assert [path for path in found if token.encode() in path.read_bytes()] == []


def test_the_openapi_document(service):
    status, document = service.ask("GET", "/api/v1/openapi.json", token=None)
    assert (status, document["openapi"]) == (200, "3.1.0")
    assert document == json.loads(json.dumps(openapi_document(OPERATIONS)))
    text = json.dumps(document)
    for reference in {part.split('"')[0] for part in text.split('"$ref": "')[1:]}:
        assert reference.removeprefix("#/components/schemas/") in document["components"]["schemas"]
    for operation in OPERATIONS:
        method = "get" if operation.reads else "post"
        described = document["paths"][operation_path(operation)]
        assert list(described) == [method]
        assert described[method]["operationId"] == operation.name
        assert {"401", "403", "422"} <= set(described[method]["responses"])
        if not operation.reads:
            example = described[method]["requestBody"]["content"]["application/json"]["example"]
            assert example["dry_run"] is True


def test_every_example_is_of_an_operation_and_valid():
    for name, (reference, parameters) in EXAMPLES.items():
        operation = by_name()[name]
        assert (reference is not None) is operation.takes_subject
        parse_parameters(operation, parameters)
    for operation in OPERATIONS:
        if operation.parameters.model_json_schema().get("required"):
            assert operation.name in EXAMPLES, f"{operation.name} takes parameters and has no example"


def test_roles_are_the_tokens_roles():
    """But for the one that reaches no operation."""
    tokens = {role.name: int(role) for role in TokenRole if role is not TokenRole.ALERTS}
    assert {role.name: int(role) for role in Role} == tokens
    assert all(int(role) > TokenRole.ALERTS for role in Role)
