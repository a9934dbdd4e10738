"""A command whose output nobody takes: exit status and standard error still tell what came of it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

VIRTGAUGE = [sys.executable, "-c", "from exporter.cli import main; main()"]
OUTPUTS = ("table", "json", "yaml")
ABSENT = "virtgauge: error: there is no domain 'nobody'; list them with 'domain list'\n"


@pytest.fixture
def suspend(tmp_path):
    """Runs `domain suspend NAME` of libvirt's test driver; how it buffers is Python's way and the machine's."""

    def run(name, *words, unbuffered="", before=VIRTGAUGE, **streams):
        environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
        flags = ["--libvirt.uri", "test:///default", "--state.directory", str(tmp_path)]
        return subprocess.run([*before, "domain", "suspend", name, "--yes", *words, *flags], text=True, check=False,
                              env=environment, **{"stderr": subprocess.PIPE, **streams})  # fmt: skip

    return run


@pytest.fixture
def readerless():
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("output", OUTPUTS)
def test_a_reader_that_went_away_makes_no_failure_and_hides_none(suspend, readerless, output, unbuffered):
    done = suspend("test", "-o", output, stdout=readerless, unbuffered=unbuffered)
    assert (done.returncode, done.stderr) == (0, "")
    absent = suspend("nobody", "-o", output, stdout=readerless, unbuffered=unbuffered)
    assert (absent.returncode, absent.stderr) == (4, ABSENT)


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_disk_that_is_full_is_told(suspend, output):
    with open("/dev/full", "w") as full:
        done = suspend("test", "-o", output, stdout=full)
        absent = suspend("nobody", "-o", output, stdout=full)
    assert done.returncode == 1
    assert done.stderr.startswith("virtgauge: error: standard output cannot be written (No space left on device), so")
    assert (absent.returncode, absent.stderr) == (4, ABSENT)


def test_where_nobody_reads_errors_the_status_tells(suspend, readerless):
    assert suspend("nobody", stdout=readerless, stderr=readerless).returncode == 4
    assert suspend("test", stdout=readerless, stderr=readerless).returncode == 0


@pytest.mark.parametrize("numbers", [(1,), (2,), (0, 1, 2)], ids=str)
def test_streams_that_are_closed_from_the_start(suspend, numbers):
    """As `>&-` leaves them: what is opened next must not get their numbers, and be written to."""
    closed = [*VIRTGAUGE[:-1], f"import os, sys; [os.close(n) for n in {numbers}]; os.execv(sys.argv[1], sys.argv[1:])"]
    for name, output, status in (("test", "table", 0), ("test", "json", 0), ("nobody", "json", 4)):
        done = suspend(name, "-o", output, before=[*closed, sys.executable, *VIRTGAUGE[1:]], stdout=subprocess.PIPE)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr


LOGGING = """
import logging, resource
from exporter import standard_streams
from exporter.logs import configure_logging
standard_streams.guard()
configure_logging("info", "logfmt")
whole = resource.getrlimit(resource.RLIMIT_FSIZE)
logging.info("before")
resource.setrlimit(resource.RLIMIT_FSIZE, (0, whole[1]))
logging.info("lost")
resource.setrlimit(resource.RLIMIT_FSIZE, whole)
logging.info("after")
"""


def test_a_log_goes_on_once_its_disk_has_room_again(tmp_path):
    """A service's `2>>log`: one record that finds no room is not the last one for ever."""
    with (tmp_path / "log").open("a") as log:
        assert subprocess.run([sys.executable, "-c", LOGGING], stderr=log, check=False).returncode == 0
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line.split(" msg=")[1].split()[0] for line in lines] == ["before", "after"]
