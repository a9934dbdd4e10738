"""The frame that runs every operation: locks, the trail, confirmation, deadlines. On libvirt's test driver."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from exporter.control import lookup, power
from exporter.control.api_running import MOST_READS, Runner
from exporter.control.audit import Trail, TrailDamagedError
from exporter.control.connection import Session, SessionPool
from exporter.control.control_metrics import ControlMetrics
from exporter.control.domain import DomainOperation, find_domain
from exporter.control.errors import (
    BusyError,
    InvalidError,
    NotFoundError,
    RefusedError,
    TimedOutError,
    UnconfirmedError,
    UnreachableError,
)
from exporter.control.executor import Actor, Executor, Request
from exporter.control.folders import Folders
from exporter.control.jobs import JobStore
from exporter.control.operation import NoParameters, Operation, Plan, Progress

TESTER = Actor("tester", "command line", reason="a test")


NODE = """<node><domain type='test'><name>test</name><uuid>6695eb01-f6a4-8304-79aa-97f2502e193f</uuid>
<memory>8192</memory><os><type>hvm</type></os></domain></node>"""


@pytest.fixture
def session(tmp_path):
    # A node file of our own: test:///default is one for the whole process.
    (tmp_path / "node.xml").write_text(NODE)
    session = Session(f"test://{tmp_path}/node.xml")
    yield session
    session.close()


@pytest.fixture
def folders(tmp_path):
    return Folders(state=tmp_path / "control")


@pytest.fixture
def executor(session, folders):
    return Executor(session, folders)


class Pause(DomainOperation[NoParameters]):
    """A real, small act, for the frame's sake."""

    verb = "pause"
    area = "test"
    summary = "Pauses."

    def plan(self, call, parameters):
        return Plan(nothing_to_do=self.state(call, parameters)["state"] == "paused")

    def act(self, call, parameters):
        call.subject.handle.suspend()


class Burn(Pause):
    verb = "burn"
    destructive = True


class Stuck(Pause):
    """Holds its domain until it is let go, as a libvirt call to a hung QEMU does."""

    verb = "stuck"
    deadline_s = 0.2

    def __init__(self):
        self.running = threading.Event()
        self.let_go = threading.Event()

    def act(self, call, parameters):
        self.running.set()
        self.let_go.wait(60)


def run(executor, operation, reference="test", parameters=None, **request):
    return executor.run(operation, reference, parameters or NoParameters(), Request(TESTER, **request))


def events(folders):
    return [record["event"] for record in Trail(folders.trail).records()]


def test_an_act_is_told_before_and_after(executor, folders):
    result = run(executor, Pause())
    assert (result.changed, result.before["state"], result.after["state"]) == (True, "running", "paused")
    begin, end = Trail(folders.trail).records()
    assert (begin["event"], end["event"], begin["act"]) == ("begin", "end", end["act"])
    assert (begin["actor"], begin["reason"], end["after"]["state"]) == ("tester", "a test", "paused")
    assert result.audit == [1, 2]
    assert Trail(folders.trail).verify() == 2


def test_a_second_time_changes_nothing(executor, folders):
    run(executor, Pause())
    result = run(executor, Pause())
    assert not result.changed
    assert events(folders) == ["begin", "end", "unchanged"]


def test_a_dry_run_changes_and_writes_nothing(executor, folders):
    assert run(executor, Pause(), dry_run=True).dry_run
    assert run(executor, lookup.ShowDomain()).details["state"] == "running"
    assert not folders.trail.exists()


def test_a_defect_before_the_act_leaves_the_domain_free(executor):
    class Broken(Pause):
        def plan(self, call, parameters):
            return Plan()

        def state(self, call, parameters):
            raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        run(executor, Broken())
    assert run(executor, Pause()).changed


def test_a_full_disk_does_nothing_and_leaves_the_domain_free(executor):
    executor.folders.private(executor.folders.locks)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        with pytest.raises(UnreachableError, match="make room"):
            run(executor, Pause())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    result = run(executor, Pause())
    assert (result.before["state"], result.after["state"]) == ("running", "paused")


def test_a_shutdown_cancelled_before_its_first_push_says_so(executor):
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(TimedOutError, match="domain test was asked nothing"):
        run(executor, power.Shutdown(), parameters=power.ShutdownParameters(mode="acpi"), cancelled=cancelled)


def test_progress_that_finds_no_room_breaks_no_act_off(executor, folders):
    class Told(Pause):
        def act(self, call, parameters):
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
            try:
                call.progress(Progress("half way", 0.5))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            super().act(call, parameters)

    jobs = JobStore(folders)
    runner = Runner(executor, jobs, ControlMetrics(folders))
    job = jobs.new("domain.pause", "test", "test", "tester")
    done = runner.change(job, Told(), "test", NoParameters(), Request(TESTER)).result(60)
    assert (done.state, jobs.get(job.id).state) == ("succeeded", "succeeded")


def test_what_was_done_is_told_though_the_disk_is_full_by_then(executor, folders, caplog):
    """The job's outcome and the end record find no room: both are told, the job again once there is some."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Filling(Pause):
        def after(self, call, parameters):
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
            return super().after(call, parameters)

    jobs = JobStore(folders)
    job = jobs.new("domain.pause", "test", "test", "tester")
    try:
        runner = Runner(executor, jobs, ControlMetrics(folders))
        done = runner.change(job, Filling(), "test", NoParameters(), Request(TESTER)).result(60)
        assert (done.state, done.outcome["changed"], jobs.get(job.id)) == ("succeeded", True, done)
        assert "its end is not in the audit trail" in done.outcome["warnings"][0]
        assert job.id in [record.job for record in caplog.records if "kept in memory" in record.message]
        assert JobStore(folders).get(job.id).state == "running"
        with pytest.raises(UnreachableError, match="nothing is done; make room"):
            jobs.new("domain.pause", "test", "test", "tester")
        with pytest.raises(UnreachableError, match="nothing is done; make room"):
            jobs.claim("key", "token", b"request", done)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert jobs.get(job.id) == done
    assert JobStore(folders).get(job.id) == done
    assert not [path for path in (folders.state / "jobs").iterdir() if path.suffix != ".json"]
    assert executor.run(Pause(), "test", NoParameters(), Request(TESTER)).changed is False
    assert events(folders) == ["begin", "interrupted", "unchanged"]


@pytest.mark.parametrize("given_up", [False, True])
def test_the_lost_end_of_an_act_that_failed_or_was_given_up_is_told_in_the_log(executor, folders, caplog, given_up):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Filling(Stuck):
        deadline_s = 0.2 if given_up else 60

        def act(self, call, parameters):
            super().act(call, parameters)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
            if not given_up:
                raise RefusedError("it is not")

    filling = Filling()
    if not given_up:
        filling.let_go.set()
    try:
        with pytest.raises(TimedOutError if given_up else RefusedError):
            run(executor, filling)
        filling.let_go.set()
        for thread in threading.enumerate():
            if thread.name == "control-domain.stuck":
                thread.join(60)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (told,) = [record for record in caplog.records if "its end is not in the audit trail" in record.message]
    assert (told.levelname, told.operation, told.subject) == ("ERROR", "domain.stuck", "test")
    assert told.act == Trail(folders.trail).records()[0]["act"]
    assert events(folders) == (["begin", "unanswered"] if given_up else ["begin"])


def test_an_end_that_is_in_the_trail_is_not_said_to_be_lost(executor, folders, caplog, monkeypatch):
    def refuse(_fd, _length):
        raise OSError(5, "Input/output error")

    class Failing(Pause):
        def after(self, call, parameters):
            monkeypatch.setattr(os, "ftruncate", refuse)  # what clears the lock, on a disk that fails by then
            return super().after(call, parameters)

    (warning,) = run(executor, Failing()).warnings
    assert "still open in its lock, though its end is in the audit trail ([Errno 5] Input/output error)" in warning
    assert "still open in its lock" in caplog.text
    monkeypatch.undo()
    assert run(executor, Pause()).changed is False
    assert events(folders) == ["begin", "end", "interrupted", "unchanged"]


def test_a_lock_that_cannot_be_cleared_is_let_go_of_and_the_first_error_told(executor, folders, caplog, monkeypatch):
    def fail(*_asked):
        raise OSError(5, "Input/output error")

    class Failing(Pause):
        def state(self, call, parameters):
            if "begun" in seen:
                monkeypatch.setattr(os, "ftruncate", fail)  # what clears the lock
                raise RefusedError("it is not")
            seen.append("begun")  # the plan's look; the next one is the act's
            return super().state(call, parameters)

    seen = []
    with pytest.raises(RefusedError, match="it is not"):
        run(executor, Failing())
    assert "an act has not begun, but it is open in its lock" in caplog.text
    monkeypatch.undo()
    assert run(executor, Pause()).changed


@pytest.mark.parametrize("later", ["another begins", "another ends"])
def test_an_outcome_that_found_no_room_is_written_though_nobody_asks_for_it(folders, later):
    jobs = JobStore(folders)
    mine, another = (jobs.new("domain.pause", "test", "test", "tester") for _ in range(2))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        jobs.finish(mine, "succeeded", 200, {})
        assert jobs.write_late() == [mine.id]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    if later == "another begins":
        jobs.new("domain.pause", "test", "test", "tester")
    else:
        jobs.finish(another, "succeeded", 200, {})
    assert JobStore(folders).get(mine.id).state == "succeeded"


def test_where_no_thread_starts_nothing_is_done_and_the_domain_stays_free(executor, folders, monkeypatch):
    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    class Unheld(Pause):
        held_by = Operation.held_by  # which starts no thread

    with monkeypatch.context() as machine:
        # As it does where the system refuses; a stack too large is one only where memory is not overcommitted.
        machine.setattr(threading.Thread, "start", refuse)
        for operation in (Pause(), Unheld()):
            with pytest.raises(UnreachableError, match=r"no more threads.*nothing is done"):
                run(executor, operation)
        runner = Runner(executor, JobStore(folders), ControlMetrics(folders))
        for _ in range(MOST_READS + 1):
            with pytest.raises(UnreachableError, match="no more threads"):
                runner.look(lambda: None)
    assert events(folders) == ["refused", "begin", "end"]
    assert run(executor, Pause()).before["state"] == "running"
    assert runner.look(lambda: 1).result(60) == 1


def test_what_cannot_be_undone_needs_the_name(executor, folders):
    with pytest.raises(UnconfirmedError, match="repeat the name 'test'"):
        run(executor, Burn(), confirmed="tset")
    assert events(folders) == ["refused"]
    assert run(executor, Burn(), confirmed="test").changed


@pytest.mark.parametrize("reference", ["test", "1", "6695eb01-f6a4-8304-79aa-97f2502e193f", "id:1", "name:test"])
def test_found_by_each_way(session, reference):
    assert find_domain(session, reference).uuid == "6695eb01-f6a4-8304-79aa-97f2502e193f"


@pytest.mark.parametrize("reference", ["tesst", "99", "6695eb01-f6a4-8304-79aa-97f2502e1930", "name:1", "Ж", "../test"])
def test_not_found_names_the_nearest(session, reference):
    with pytest.raises(NotFoundError) as caught:
        find_domain(session, reference)
    assert (caught.value.nearest == ("test",)) == (reference in ("tesst", "../test"))


@pytest.mark.parametrize("reference", ["", "a\0b", "x" * 5000, "a\nb"])
def test_no_name_at_all_is_refused(session, reference):
    with pytest.raises(InvalidError):
        find_domain(session, reference)


def test_a_name_that_is_anothers_id_is_ambiguous(session):
    xml = "<domain type='test'><name>1</name><memory>1024</memory><os><type>hvm</type></os></domain>"
    named_one = session.connection.defineXML(xml)
    try:
        with pytest.raises(RefusedError, match=r"name:1, id:1"):
            find_domain(session, "1")
        assert find_domain(session, "name:1").name == "1"
        assert find_domain(session, "id:1").name == "test"
    finally:
        named_one.undefine()


def test_a_late_answer_keeps_the_lock_and_is_told(executor, folders):
    stuck = Stuck()
    with pytest.raises(TimedOutError) as caught:
        run(executor, stuck)
    assert caught.value.outcome_unknown
    with pytest.raises(BusyError, match=r"busy with domain\.stuck asked by tester"):
        run(executor, Pause())
    stuck.let_go.set()
    assert run(executor, Pause(), lock_wait_s=30).changed
    assert events(folders) == ["begin", "unanswered", "refused", "late", "begin", "end"]


def test_what_libvirt_is_seen_at_is_told_and_not_asked_again(executor, folders):
    """The question to a QEMU that hangs holds the domain itself, so that a second one finds nothing amiss."""
    class Held(Pause):
        def __init__(self, *seen):
            self.seen = list(seen)

        def held_by(self, session, subject):
            return self.seen.pop(0) if self.seen else ""

    for dry_run in (False, True):
        with pytest.raises(BusyError, match="libvirt is asking its QEMU"):
            run(executor, Held("asking its QEMU"), dry_run=dry_run)
    assert events(folders) == ["refused"]
    for dry_run in (True, False):
        assert run(executor, Held("saving it", "saving it"), dry_run=dry_run, lock_wait_s=30).changed is not dry_run


def test_a_guest_that_reboots_again_and_again_fills_no_trail(executor, folders):
    class Rebooted(Pause):
        def act(self, call, parameters):
            super().act(call, parameters)
            for _ in range(20_000):
                call.heard.lifecycle(4, 0)
            assert not call.heard.reboot
            call.heard.add("reboot")
            assert call.heard.reboot

    heard = run(executor, Rebooted()).details["events"]
    assert len(heard) < 200
    assert heard[-1].endswith(" more")
    trail = Trail(folders.trail)
    assert trail.append("after it", {}) == 3
    assert trail.verify() == 3


def test_no_act_takes_the_connection_that_others_look_with():
    """A call to a hung QEMU holds up the others on its connection."""
    model = Session("qemu:///system")
    pool = SessionPool(model)
    first, second = pool.take(), pool.take()
    assert len({id(model), id(first), id(second)}) == 3
    pool.give_back(first)
    assert pool.take() is first


def test_a_connection_that_a_thread_is_stuck_in_is_nobodys_any_more():
    pool = SessionPool(Session("qemu:///system"))
    session = pool.take()
    session.abandon()
    pool.give_back(session)
    assert pool.take() is not session


def test_another_process_is_excluded_and_its_death_explained(executor, folders):
    """A real kill -9 in the middle of an act."""
    script = f"""
        import pathlib, sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        from test_executor import *
        stuck = Stuck()
        stuck.deadline_s = 60
        executor = Executor(Session("test:///default"), Folders(state=pathlib.Path({str(folders.state)!r})))
        threading.Thread(target=run, args=(executor, stuck), daemon=True).start()
        stuck.running.wait()
        print("in the middle", flush=True)
        threading.Event().wait()
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE)
    try:
        assert child.stdout.readline() == b"in the middle\n"
        with pytest.raises(BusyError):
            run(executor, Pause())
        assert executor.explain_left_open({}) == []
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    (explained,) = executor.explain_left_open({})
    assert explained["operation"] == "domain.stuck"
    assert "unknown" in explained["outcome"]
    assert "not repeated" in explained["outcome"]
    assert executor.explain_left_open({}) == []
    assert run(executor, Pause()).changed
    assert events(folders) == ["begin", "refused", "interrupted", "begin", "end"]
    assert Trail(folders.trail).verify() == 5


def test_without_a_trail_nothing_is_done(executor, session, folders):
    folders.private(folders.state)
    folders.trail.mkdir()
    with pytest.raises(UnreachableError, match="nothing is done"):
        run(executor, Pause())
    assert find_domain(session, "test").handle.state()[0] == 1


@pytest.mark.parametrize("line", [0, 1, 2])
@pytest.mark.parametrize("harm", ["change", "remove", "insert", "swap"])
def test_a_changed_trail_shows(tmp_path, line, harm):
    trail = Trail(tmp_path / "audit.jsonl")
    for number in range(4):
        trail.append("begin", {"number": number, "name": "a\nb\u2028 é"})
    lines = trail.path.read_bytes().splitlines(keepends=True)
    assert len(lines) == trail.verify() == 4
    if harm == "change":
        lines[line] = lines[line].replace(b'"number":', b'"nUmber":')
    elif harm == "remove":
        del lines[line]
    elif harm == "insert":
        lines.insert(line, json.dumps({"sequence": line + 1, "hash": "0" * 64, "previous": "0" * 64}).encode() + b"\n")
    else:
        lines[line], lines[line + 1] = lines[line + 1], lines[line]
    trail.path.write_bytes(b"".join(lines))
    with pytest.raises(TrailDamagedError, match="line"):
        trail.verify()


@pytest.mark.parametrize("name", ["events", "parameters", "error"])
def test_a_record_that_is_too_long_is_cut_and_the_chain_goes_on(tmp_path, name):
    trail = Trail(tmp_path / "audit.jsonl")
    numbers = [trail.append("begin", {}), trail.append("end", {"act": "1", name: ["x" * 10] * 20_000}),
               trail.append("begin", {})]  # fmt: skip
    assert numbers == [1, 2, 3]
    assert trail.verify() == 3
    assert (trail.records()[1]["cut"], trail.records()[1]["act"], name in trail.records()[1]) == (True, "1", False)


@pytest.mark.parametrize("keep", [1, 40, -1])
def test_a_torn_line_is_told_and_the_chain_goes_on(tmp_path, keep):
    trail = Trail(tmp_path / "audit.jsonl")
    trail.append("begin", {"number": 0})
    whole = trail.path.read_bytes()
    trail.append("begin", {"number": 1})
    line = trail.path.read_bytes()[len(whole) :]
    trail.path.write_bytes(whole + line[:keep])
    trail.append("end", {"number": 2})
    assert trail.verify() == (3 if keep == -1 else 2)
    assert trail.records()[-1].get("torn_bytes_before") == (None if keep == -1 else keep)


def test_writers_at_once_make_one_chain(tmp_path):
    trail = Trail(tmp_path / "audit.jsonl")
    threads = [threading.Thread(target=lambda: [trail.append("begin", {}) for _ in range(20)]) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert trail.verify() == 100
