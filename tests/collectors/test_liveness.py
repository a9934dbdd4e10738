"""Signs of life of real processes that call themselves a domain's QEMU, and of a domain of another host."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from collectors.connection import Opener, Session
from collectors.liveness import Sign, Signs


@pytest.fixture
def nobody() -> Iterator[Session]:
    """A connection that knows none of the domains below."""
    made = Session(Opener("test:///default"))
    yield made
    made.close()


@pytest.fixture
def key() -> tuple[str, int]:
    return str(uuid.uuid4()), 1


@pytest.fixture
def process(key: tuple[str, int]) -> Iterator[subprocess.Popen[bytes]]:
    made = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "-uuid", key[0]])
    wait_for_command_line(made)
    yield made
    made.kill()
    made.wait()


def wait_for_command_line(process: subprocess.Popen[bytes]) -> None:
    """Until the kernel has put it up: Popen returns a moment before (its pipe closes earlier in the exec)."""
    end_s = time.monotonic() + 20
    while b"-uuid" not in Path(f"/proc/{process.pid}/cmdline").read_bytes():
        assert time.monotonic() < end_s


def wait_for_sign(nobody: Session, signs: Signs, key: tuple[str, int], wanted: Sign) -> None:
    end_s = time.monotonic() + 20
    while (sign := signs.look(nobody, [key])[key[0]]) is not wanted:
        assert time.monotonic() < end_s, sign
        time.sleep(0.02)


def test_a_process_that_sleeps_is_alive_until_it_is_stopped_or_gone(
        nobody: Session, process: subprocess.Popen[bytes], key: tuple[str, int]) -> None:
    signs = Signs()
    wait_for_sign(nobody, signs, key, Sign.ALIVE)
    os.kill(process.pid, signal.SIGSTOP)
    wait_for_sign(nobody, signs, key, Sign.STOPPED)
    os.kill(process.pid, signal.SIGCONT)
    wait_for_sign(nobody, signs, key, Sign.ALIVE)
    process.kill()
    process.wait()
    assert signs.look(nobody, [key])[key[0]] is Sign.STOPPED


def test_two_processes_with_one_uuid_prove_nothing(
        nobody: Session, process: subprocess.Popen[bytes], key: tuple[str, int]) -> None:
    """A migration within a host."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "-uuid", key[0]]) as second:
        try:
            wait_for_command_line(second)
            assert Signs().look(nobody, [key])[key[0]] is Sign.NONE
        finally:
            second.kill()


def test_a_domain_of_another_host_shows_life_by_its_cpu_time() -> None:
    session = Session(Opener("test:///default"))
    domain = session.connection.listAllDomains(1)[0]
    # The test driver's CPU time is the wall clock: it goes on.
    assert Signs().look(session, [(domain.UUIDString(), domain.ID())]) == {domain.UUIDString(): Sign.ALIVE}
    session.close()


def test_an_unknown_domain_gives_no_sign(nobody: Session, key: tuple[str, int]) -> None:
    assert Signs().look(nobody, [key]) == {key[0]: Sign.NONE}
