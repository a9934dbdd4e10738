"""`virtgauge domain` and `virtgauge interface`: flags, outputs, exit statuses, confirmation, completion."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys

import pytest
import yaml
from click.shell_completion import ShellComplete

from exporter import cli
from exporter.control.audit import Trail
from exporter.control.folders import Folders
from exporter.control.locks import Locks
from exporter.control.operations import OPERATIONS
from exporter.operation_flags import parameter_document, parameter_options
from exporter.operation_output import printable, render, uptime

NODE = """<node>
<interface type='ethernet' name='lan0'><mac address='52:54:00:aa:bb:01'/></interface>
<domain type='test'><name>web1</name><uuid>6695eb01-f6a4-8304-79aa-97f2502e193f</uuid>
<memory>8192</memory><os><type>hvm</type></os>
<devices><interface type='network'><source network='lan'/></interface></devices></domain>
<network><name>lan</name><bridge name='virbr9'/></network></node>"""


@pytest.fixture
def flags(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith("VIRTGAUGE_"):
            monkeypatch.delenv(name)
    (tmp_path / "node.xml").write_text(NODE)
    return ["--libvirt.uri", f"test://{tmp_path}/node.xml", "--state.directory", str(tmp_path / "state")]


@pytest.fixture
def virtgauge(capsys, flags):
    def run(noun, verb, *words):
        status = cli.run([noun, verb, *words, *flags])
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_every_operation_is_a_command_with_help(capsys, operation):
    assert cli.run([*operation.words, "--help"]) == 0
    out = capsys.readouterr().out
    assert operation.summary.split()[0] in out
    assert "Exit status" in out
    assert ("--dry-run" in out) is not operation.reads
    for option in parameter_options(operation.parameters, frozenset()):
        assert option.help, f"{option.name} has no description"


def test_the_help_of_many_commands_is_by_area(capsys):
    assert cli.run(["domain", "--help"]) == 0
    out = capsys.readouterr().out
    places = [out.index(part) for part in ("Look:", "  show ", "Start, stop, dump:", "  start ", "Save and restore:")]
    assert places == sorted(places)
    for operation in OPERATIONS:
        assert operation.noun != "domain" or f"  {operation.words[1]} " in out


def test_no_two_operations_have_one_name():
    assert len({operation.name for operation in OPERATIONS}) == len(OPERATIONS)


def test_no_two_parameter_models_have_one_name():
    """The API's document names their schemas so."""
    models = {operation.parameters for operation in OPERATIONS if not operation.reads}
    assert len({model.__name__ for model in models}) == len(models)


def test_a_list_as_table_json_and_yaml(virtgauge):
    status, out, err = virtgauge("interface", "list")
    assert (status, err) == (0, "")
    head, row, counts = out.splitlines()
    assert head.split() == ["name", "active", "mac", "type"]
    assert row.split() == ["lan0", "yes", "52:54:00:aa:bb:01", "ethernet"]
    assert counts.startswith("active: 1; inactive: 0")
    as_json = json.loads(virtgauge("interface", "list", "--output", "json")[1])
    as_yaml = yaml.safe_load(virtgauge("interface", "list", "-o", "yaml")[1])
    assert as_json["details"] == as_yaml["details"]
    assert as_json["operation"] == "interface.list"


@pytest.mark.parametrize(
    ("words", "status", "part"),
    [
        (["interface", "show", "lan1"], 4, "the nearest: lan0"),
        (["domain", "show", "web2"], 4, "the nearest: web1"),
        (["interface", "up", "lan0", "--confirm-within", "soon"], 2, "is not a duration"),
        (["interface", "up", "lan0", "--wait", "x"], 2, "--wait"),
        (["interface", "define-ethernet"], 2, "name is missing"),
        (["interface", "define-ethernet", "--name", "a b"], 2, "is no interface name"),
        (["interface", "define-ethernet", "--name", "e9", "--mtu", "big"], 2, "--mtu 'big': is not a size"),
        (["interface", "define-vlan", "--parent", "lan0", "--tag", "5000"], 2, "tag 5000 should be less than"),
        (["interface", "define-vlan", "--parent", "lan0", "--tag", "x"], 2, "--tag 'x': is not a whole number"),
        (["domain", "show", "zzz"], 4, "there is no domain 'zzz'; list them with 'domain list'"),
        (["interface", "show", "ZZZ"], 4, "there is no interface 'ZZZ'; list what there is with 'interface list'"),
        (["domain", "shutdown", "web1"], 6, "unsupported flags (0x1) in function testDomainShutdown"),
        (["domain", "suspend", "web1", "--deadline", "0s"], 2, "--deadline '0s': nothing can be done in no time"),
        (["domain", "define", "--name", "a", "--memory-mib", "64MiB", "--disks",
          '[{"file": "/a.img"}, {"file": "/b.img", "bus": "x"}]'], 2, "disks.1.bus 'x' should be"),
        (["interface", "commit"], 3, "no interface change is open"),
        (["interface", "shwo"], 2, "nearest is show"),
        (["interface", "show"], 2, "NAME"),
        (["interface", "list", "--outptu", "json"], 2, "nearest is --output"),
    ],
)
def test_exit_statuses_and_one_line_errors(virtgauge, words, status, part):
    got, out, err = virtgauge(*words)
    assert (got, out) == (status, "")
    assert part in err
    assert len(err.splitlines()) == 1


def test_an_unreachable_libvirt_is_status_1(capsys, flags, tmp_path):
    uri = f"qemu+unix:///system?socket={tmp_path}/nothing"
    assert cli.run(["interface", "list", *flags[2:], "--libvirt.uri", uri]) == 1
    assert "check that libvirtd runs" in capsys.readouterr().err


def test_an_error_as_json(virtgauge):
    status, out, err = virtgauge("interface", "show", "lan1", "--output", "json")
    error = json.loads(out)["error"]
    assert (error["kind"], error["exit_status"], error["nearest"]) == ("not-found", 4, ["lan0"])
    assert status == 4
    assert err.startswith("virtgauge: error: there is no interface")


def test_a_dry_run_tells_and_changes_nothing(virtgauge):
    status, out, _ = virtgauge("interface", "define-vlan", "--parent", "lan0", "--tag", "7", "--dry-run")
    assert status == 0
    assert "lan0.7: define-vlan would do this" in out
    assert '+  <vlan tag="7">' in out
    assert "lan0.7" not in virtgauge("interface", "list")[1]


def test_what_cannot_be_undone_needs_yes_where_nobody_can_be_asked(virtgauge, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    status, _, err = virtgauge("interface", "undefine", "lan0", "--commit")
    assert (status, "give --yes" in err) == (2, True)
    status, out, _ = virtgauge("interface", "undefine", "lan0", "--commit", "--yes", "--reason", "spring cleaning")
    assert (status, out.splitlines()[0]) == (0, "interface lan0: undefine")
    status, _, err = virtgauge("domain", "destroy", "web1")
    assert (status, "destroy of domain web1 (running) cannot be undone; give --yes" in err) == (2, True)


def test_who_says_yes_is_not_refused_first_where_it_only_turns_out_what_is_lost(virtgauge, tmp_path):
    trail = Trail(tmp_path / "state/control/audit.jsonl")
    assert virtgauge("network", "stop", "lan", "--yes", "--dry-run")[0] == 0
    assert trail.records() == []
    assert virtgauge("network", "stop", "lan", "--yes")[0] == 0
    assert [record["event"] for record in trail.records()] == ["begin", "end"]


@pytest.fixture
def answering(flags):
    """Runs a command as a person would, who answers its question; its exit status and what it said."""

    def run(answer, *words):
        primary, secondary = pty.openpty()
        program = [sys.executable, "-c", "from exporter.cli import main; main()", *words, *flags]
        try:
            process = subprocess.Popen(program, stdin=secondary, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                       text=True)  # fmt: skip
            os.write(primary, answer.encode())
            _, err = process.communicate(timeout=300)
        finally:
            os.close(primary)
            os.close(secondary)
        return process.returncode, err

    return run


@pytest.mark.parametrize(("answer", "status"), [("n\n", 130), ("\n", 130), ("y\n", 0)])
def test_a_person_is_asked_with_the_name_and_what_would_be_lost(answering, answer, status):
    returned, err = answering(answer, "interface", "undefine", "lan0", "--commit")
    assert returned == status
    assert "would be lost: the definition of lan0" in err
    assert "undefine of interface lan0 cannot be undone. Go on? [y/N]" in err


@pytest.mark.parametrize(("answer", "events"), [("n\n", []), ("y\n", ["begin", "end"])])
def test_a_person_who_is_asked_for_what_only_the_plan_shows_is_not_refused(answering, tmp_path, answer, events):
    status, err = answering(answer, "network", "stop", "lan")
    assert status == (0 if events else 130)
    assert "stop of network lan cannot be undone. Go on? [y/N]" in err
    assert [record["event"] for record in Trail(tmp_path / "state/control/audit.jsonl").records()] == events


def test_names_and_commands_are_completed(flags, monkeypatch, tmp_path):
    monkeypatch.setenv("VIRTGAUGE_LIBVIRT_URI", flags[1])
    complete = ShellComplete(cli.build(), {}, "virtgauge", "_VIRTGAUGE_COMPLETE")
    assert {item.value for item in complete.get_completions(["domain"], "")} >= {"list", "show"}
    assert [item.value for item in complete.get_completions(["domain", "show"], "w")] == ["web1"]
    assert [item.value for item in complete.get_completions(["interface", "up"], "")] == ["lan0"]
    saved = "6695eb01-f6a4-8304-79aa-97f2502e193f-20261122T221500Z-1a2b3c4d"
    saves = tmp_path / "state/control/saves"
    saves.mkdir(parents=True)
    (saves / f"{saved}.img").write_bytes(b"")
    monkeypatch.setenv("VIRTGAUGE_STATE_DIRECTORY", str(tmp_path / "state"))
    assert [item.value for item in complete.get_completions(["saved", "restore"], "66")] == [saved]
    assert "--confirm-within" in {item.value for item in complete.get_completions(["interface", "up"], "--conf")}
    monkeypatch.setenv("VIRTGAUGE_LIBVIRT_URI", "nonsense")
    assert complete.get_completions(["domain", "show"], "w") == []


def test_what_an_earlier_command_left_in_the_middle_is_told_once(virtgauge, tmp_path):
    """As a kill -9 leaves it: an act in a lock that nobody holds."""
    uuid = "6695eb01-f6a4-8304-79aa-97f2502e193f"
    lock = Locks(Folders(tmp_path / "state" / "control")).acquire(f"domain-{uuid}", "domain web1")
    subject = {"kind": "domain", "name": "web1", "uuid": uuid}
    lock.open_act({"act": "1", "operation": "domain.set-memory", "subject": subject, "parameters": {"memory_mib": 4}})
    lock.release()
    status, _, err = virtgauge("domain", "suspend", "web1")
    assert status == 0
    assert "virtgauge: warning: an earlier domain.set-memory of domain web1: interrupted; the running guest has" in err
    assert virtgauge("domain", "resume", "web1")[2] == ""


def test_an_xml_field_is_read_from_a_file(tmp_path):
    from pydantic import BaseModel

    class Model(BaseModel):
        xml: str
        memory_bytes: int = 0
        timeout_s: float = 1
        tag: list[str] = []
        change_mib: int = 0

    (tmp_path / "x.xml").write_text("<a>ü</a>")
    read = parameter_document(
        Model, {"xml": str(tmp_path / "x.xml"), "memory_bytes": "1.5GiB", "timeout_s": "2m", "tag": ("a", "b"),
                "change_mib": "-1GiB"}
    )
    assert read == {"xml": "<a>ü</a>", "memory_bytes": 3 << 29, "timeout_s": 120, "tag": ["a", "b"],
                    "change_mib": -1024}
    for values, part in (
        ({"xml": str(tmp_path / "absent")}, "No such file"),
        ({"xml": str(tmp_path)}, "Is a directory"),
        ({"memory_bytes": "0.3B"}, "not a multiple"),
        ({"memory_bytes": "-1"}, "is not a size"),
    ):
        with pytest.raises(Exception, match=part):
            parameter_document(Model, values)


def test_hostile_names_cannot_steer_the_terminal():
    hostile = "a\x1b[2Jb\nc\x9bd[red]x[/red]\u202eend"
    assert printable(hostile) == "a\\x1b[2Jb\\nc\\x9bd[red]x[/red]\\u202eend"
    file = io.StringIO()
    result = {"details": {"rows": [{"name": hostile}], "counts": {"all": 1}}}
    for output in ("table", "json", "yaml"):
        render(result, output, file)
    assert not {"\x1b", "\x9b", "\u202e"} & set(file.getvalue())
    assert "[red]x[/red]" in file.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (5.9, "5 s"), (65, "1 min 5 s"), (3600, "1 h"), (273845, "3 d 4 h")]
)
def test_uptime(seconds, text):
    assert uptime(seconds) == text
