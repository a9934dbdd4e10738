"""Host interfaces on a real libvirtd: its test driver for writing (one state for all clients), its udev backend for
reading. The watchdog is a real process, which is what the timed rollback stands on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import libvirt
import pytest

from collectors.connection import start_event_loop
from exporter import cli
from exporter.control.operations import by_name
from exporter.control_reference import command_words
from exporter.demonstration.private_hypervisor import PrivateHypervisor
from tests.live.sector_guests import define, saying

WAIT_S = 60.0


@pytest.fixture
def writable(fresh_hypervisor: PrivateHypervisor) -> Iterator[Any]:
    """A connection to the test driver inside a real daemon; its state lasts while a client is connected."""
    start_event_loop()
    connection = libvirt.open(fresh_hypervisor.uri.replace("qemu+unix:///system", "test+unix:///default"))
    yield connection
    connection.close()


Run = Callable[..., tuple[int, Any, str]]


@pytest.fixture
def virtgauge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in this process with --output json: exit status, the document, standard error."""

    def run(uri: str, *words: str) -> tuple[int, Any, str]:
        capsys.readouterr()
        flags = ["--libvirt.uri", uri, "--state.directory", str(tmp_path / "state"), "--output", "json"]
        status = cli.run(["interface", *words, *flags])
        out, err = capsys.readouterr()
        return status, json.loads(out) if out else None, err

    return run


def command(uri: str, state: Path, *words: str) -> list[str]:
    program = [sys.executable, "-c", "from exporter.cli import main; main()", "interface"]
    return [*program, *words, "--libvirt.uri", uri, "--state.directory", str(state)]


def names(connection: Any) -> set[str]:
    return {interface.name() for interface in connection.listAllInterfaces(0)}


def eventually(seen: Callable[[], object]) -> bool:
    end_s = time.monotonic() + WAIT_S
    while not seen():
        if time.monotonic() > end_s:
            return False
        time.sleep(0.1)
    return True


def trail(state: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (state / "control/audit.jsonl").read_text().splitlines()]


def test_a_change_that_nobody_confirms_is_rolled_back_by_a_process_of_its_own(
    writable: Any, virtgauge: Run, tmp_path: Path
) -> None:
    uri = writable.getURI()
    status, result, _ = virtgauge(uri, "define-ethernet", "--name", "e9", "--dhcp", "--confirm-within", "5s")
    assert (status, result["changed"], result["after"]["name"]) == (0, True, "e9")
    assert (result["after"]["change"]["open"], result["after"]["change"]["watched"]) == (True, True)
    assert eventually(lambda: "e9" not in names(writable))
    assert eventually(lambda: trail(tmp_path / "state")[-1]["event"] == "rolled-back")
    status, result, _ = virtgauge(uri, "change")
    assert result["details"] == {"open": False}
    status, result, error = virtgauge(uri, "commit")
    assert (status, result["error"]["kind"]) == (3, "refused")
    assert "no interface change is open" in error


def test_a_change_confirmed_in_time_stays(writable: Any, virtgauge: Run, tmp_path: Path) -> None:
    uri = writable.getURI()
    state = tmp_path / "state"
    assert virtgauge(uri, "begin", "--confirm-within", "5m")[0] == 0
    assert watchdogs(state)
    assert virtgauge(uri, "define-bridge", "--name", "br9", "--port", "e8", "--no-stp", "--delay", "2s")[0] == 0
    assert virtgauge(uri, "up", "br9")[0] == 0
    assert virtgauge(uri, "commit")[0] == 0
    assert "br9" in names(writable)
    # Nothing is left that could undo it.
    assert eventually(lambda: not watchdogs(state))
    assert not (state / "control/interface-change.json").exists()
    assert "rolled-back" not in {record["event"] for record in trail(state)}
    assert "br9" in names(writable)


def test_the_watchdog_survives_the_death_of_everyone_else(writable: Any, tmp_path: Path) -> None:
    uri, state = writable.getURI(), tmp_path / "state"
    words = ("define-ethernet", "--name", "e9", "--confirm-within", "4s")
    starter = subprocess.Popen(command(uri, state, *words), stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        assert eventually(lambda: "e9" in names(writable))
    finally:
        os.killpg(starter.pid, signal.SIGKILL)
        starter.wait()
    assert eventually(lambda: "e9" not in names(writable))


@pytest.mark.parametrize("times", [1, 2])
def test_an_interrupted_command_leaves_a_change_that_ends_by_itself(writable: Any, tmp_path: Path, times: int) -> None:
    """Ctrl-C in the middle, or twice: whatever was begun is rolled back in its time, and no watchdog stays.

    Cut off before the watchdog runs, it is before libvirt was asked, too; the next command clears that away.
    """
    uri, state = writable.getURI(), tmp_path / "state"
    words = ("define-ethernet", "--name", "e9", "--confirm-within", "3s")
    process = subprocess.Popen(command(uri, state, *words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert eventually(lambda: (state / "control/interface-change.json").exists())
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    process.wait(60)
    if times == 2:
        subprocess.run(command(uri, state, "rollback"), stderr=subprocess.DEVNULL, check=False)
    assert eventually(lambda: not (state / "control/interface-change.json").exists())
    assert eventually(lambda: not watchdogs(state))
    assert "e9" not in names(writable)


def test_a_killed_test_run_leaves_no_watchdog(writable: Any, tmp_path: Path) -> None:
    state = tmp_path / "state"
    words = command(writable.getURI(), state, "begin", "--confirm-within", "1h")
    run = subprocess.Popen([sys.executable, "-c", A_RUN, *words], stdout=subprocess.PIPE)
    assert run.stdout is not None
    assert run.stdout.readline() == b"begun\n"
    assert watchdogs(state)
    run.kill()
    run.wait()
    run.stdout.close()
    assert eventually(lambda: not watchdogs(state))


A_RUN = """
import subprocess, sys, threading
from tests.leftover_watchdogs import ended_with_this_process
with ended_with_this_process():
    subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    print("begun", flush=True)
    threading.Event().wait()
"""


def test_a_killed_watchdog_is_replaced_by_the_next_command(writable: Any, virtgauge: Run, tmp_path: Path) -> None:
    uri, state = writable.getURI(), tmp_path / "state"
    assert virtgauge(uri, "define-ethernet", "--name", "e9", "--confirm-within", "10s")[0] == 0
    (watchdog,) = watchdogs(state)
    os.kill(watchdog, signal.SIGKILL)
    assert eventually(lambda: not watchdogs(state))
    _, result, _ = virtgauge(uri, "change")
    assert result["details"]["watched"] is False
    assert virtgauge(uri, "up", "eth1")[0] == 0  # any command that may change something looks after it
    assert eventually(lambda: "e9" not in names(writable))


def watchdogs(state: Path) -> list[int]:
    """Processes that hold the watchdog's lock file of this state folder."""
    wanted, found = str(state / "control/interface-watch.lock"), []
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            if any(os.readlink(fd) == wanted for fd in (process / "fd").iterdir()):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def test_a_daemon_that_is_gone_at_the_deadline_is_waited_for(
    fresh_hypervisor: PrivateHypervisor, writable: Any, virtgauge: Run, tmp_path: Path
) -> None:
    assert virtgauge(writable.getURI(), "define-ethernet", "--name", "e9", "--confirm-within", "2s")[0] == 0
    fresh_hypervisor.kill_daemon()
    time.sleep(3)
    fresh_hypervisor.start_daemon()
    # The new daemon's test driver knows nothing of it; what counts is that the watchdog asked and ended.
    assert eventually(lambda: trail(tmp_path / "state")[-1]["event"] == "rolled-back")
    assert not (tmp_path / "state/control/interface-change.json").exists()


def test_where_the_backend_only_reads_the_answer_says_so_and_reading_goes_on(
    hypervisor: PrivateHypervisor, virtgauge: Run, tmp_path: Path
) -> None:
    status, result, _ = virtgauge(hypervisor.uri, "list")
    assert status == 0
    assert "lo" in {row["name"] for row in result["details"]["rows"]}
    status, result, _ = virtgauge(hypervisor.uri, "show", "lo")
    assert "<interface type='ethernet' name='lo'>" in result["details"]["xml"]
    before = result["details"]
    for words in (["define-ethernet", "--name", "e9"], ["begin"], ["down", "lo"], ["undefine", "lo", "--dry-run"]):
        status, result, error = virtgauge(hypervisor.uri, *words)
        if status == 6:
            assert result["error"]["libvirt_code"] == libvirt.VIR_ERR_NO_SUPPORT
            assert "udev" in error
        else:  # a libvirt built with netcf
            pytest.skip("this libvirt can change host interfaces; nothing was confirmed, so nothing stays")
    assert virtgauge(hypervisor.uri, "show", "lo")[1]["details"] == before


def test_network_cards_as_node_devices(hypervisor: PrivateHypervisor, virtgauge: Run) -> None:
    status, result, _ = virtgauge(hypervisor.uri, "device-list")
    assert status == 0
    rows = result["details"]["rows"]
    assert result["details"]["devices"] == len(rows) > 0
    first = rows[0]
    by_device = virtgauge(hypervisor.uri, "device-show", first["name"])[1]["details"]
    by_interface = virtgauge(hypervisor.uri, "device-show", first["interface"])[1]["details"]
    assert by_device == by_interface
    assert "<capability type='net'>" in by_device["xml"]
    assert by_device.get("speed_mbit_per_second") != 4294967295


def test_the_read_only_socket_refuses_every_change(hypervisor: PrivateHypervisor) -> None:
    start_event_loop()
    connection = libvirt.openReadOnly(hypervisor.read_only_uri)
    try:
        for attempt in (
            lambda: connection.interfaceDefineXML("<interface type='ethernet' name='e9'/>", 0),
            lambda: connection.changeBegin(0),
            lambda: connection.defineXML("<domain type='qemu'><name>x</name></domain>"),
            lambda: connection.createXML("<domain type='qemu'><name>x</name></domain>", 0),
        ):
            with pytest.raises(libvirt.libvirtError) as caught:
                attempt()
            assert caught.value.get_error_code() == libvirt.VIR_ERR_OPERATION_DENIED
    finally:
        connection.close()


def test_the_examples_of_the_documentation_run(
    writable: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "state"
    verbs = (
        "list", "show", "begin", "define-ethernet", "define-bridge", "define-vlan", "define-bond", "change", "up",
        "down", "undefine", "commit", "begin", "rollback", "device-list",
    )  # fmt: skip
    for verb in verbs:
        words = command_words(by_name()[f"interface.{verb}"])
        status = cli.run([*words, "--libvirt.uri", writable.getURI(), "--state.directory", str(state)])
        assert status == 0, (words, capfd.readouterr().err)
    assert {"eth1", "eth1.42", "bond1"} == names(writable)
    capfd.readouterr()


def test_the_examples_of_reading_and_of_power_run_on_a_real_guest(
    hypervisor: PrivateHypervisor, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    guest = define(hypervisor, "web1", saying("UP"))
    state = ["--libvirt.uri", hypervisor.uri, "--state.directory", str(tmp_path / "state")]
    verbs = ("list", "show", "xml", "start", "compare", "suspend", "resume", "reset", "managed-save",
             "managed-save-remove", "start", "destroy")  # fmt: skip
    try:
        for verb in verbs:
            operation = by_name()[f"domain.{verb}"]
            yes = [] if operation.reads else ["--yes"]
            status = cli.run([*command_words(operation), *state, *yes])
            assert status == 0, (verb, capfd.readouterr().err)
    finally:
        if hypervisor.virsh("domstate", guest.name).strip() != "shut off":
            hypervisor.virsh("destroy", guest.name)
        hypervisor.virsh("undefine", "--managed-save", guest.name)
    capfd.readouterr()
