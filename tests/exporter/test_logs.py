"""Log lines: logfmt, JSON, no forged lines, no passwords, no floods."""

from __future__ import annotations

import io
import json
import logging
import re

import pytest

from exporter.logs import JsonFormatter, LogfmtFormatter, configure_logging
from exporter.repeated_log import RepeatedLog


def record(message="hello there", *args, name="exporter.server", level=logging.INFO, exc_info=None, **fields):
    made = logging.makeLogRecord({"name": name, "msg": message, "args": args, "levelno": level, "created": 0.0625})
    made.__dict__.update(fields)
    made.exc_info = exc_info
    return made


def test_a_logfmt_line():
    line = LogfmtFormatter().format(record(domain="web 1", elapsed_s=0.1234567, up=True, empty=""))
    assert line == (
        'ts=1970-01-01T00:00:00.062Z level=info msg="hello there" component=server '
        'domain="web 1" elapsed_s=0.123457 up=true empty=""'
    )


def test_a_json_line():
    line = json.loads(JsonFormatter().format(record("a %s", "b", name="collectors.sampler", level=logging.WARNING)))
    assert line == {"ts": "1970-01-01T00:00:00.062Z", "level": "warn", "msg": "a b", "component": "sampler"}


def test_a_value_cannot_forge_a_line_or_a_terminal_code():
    line = LogfmtFormatter().format(record('x\nlevel=error msg="y"', domain="a\r\n\x1b[31m\x9b\u2028b", **{"k\n=": 1}))
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u2028]", line)
    assert "k__=1" in line
    assert r'msg="x\nlevel=error msg=\"y\""' in line


@pytest.mark.parametrize("formatter", [LogfmtFormatter(), JsonFormatter()])
def test_passwords_in_uris_are_masked(formatter):
    try:
        raise ValueError("no mongodb://op:hunter2@db/x")
    except ValueError as error:
        failure = (ValueError, error, error.__traceback__)
    text = formatter.format(record("at %s", "mongodb://op:hunter2@db", uri="x://a:hunter2@h", exc_info=failure))
    assert "hunter2" not in text
    assert "op:***@db" in text


def test_a_traceback_is_one_line():
    try:
        raise KeyError("x")
    except KeyError as error:
        line = LogfmtFormatter().format(record(exc_info=(KeyError, error, error.__traceback__)))
    assert "\n" not in line
    assert "error=\"KeyError: 'x'\"" in line
    assert "Traceback (most recent call last)" in line


def test_configure_logging(monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    stream = io.StringIO()
    configure_logging("warn", "json", stream)
    configure_logging("warn", "json", stream)
    logging.getLogger("exporter.x").info("not this")
    logging.getLogger("exporter.x").warning("this")
    root.setLevel(logging.WARNING)
    assert [json.loads(line)["msg"] for line in stream.getvalue().splitlines()] == ["this"]


def repeated(clock, **settings):
    logger = logging.getLogger("exporter.test_repeated")
    return RepeatedLog(logger, clock=lambda: clock[0], **settings)


def test_a_lasting_fault_is_logged_once_with_a_count_at_recovery(caplog):
    clock = [0.0]
    log = repeated(clock, every_s=300)
    for second in range(0, 150, 15):
        clock[0] = second
        log.failed("web1", "domain does not answer", domain="web1")
    assert [(r.message, r.domain) for r in caplog.records] == [("domain does not answer", "web1")]
    caplog.clear()
    with caplog.at_level(logging.INFO):
        log.recovered("web1", "domain answers again", domain="web1")
        log.recovered("web1", "domain answers again", domain="web1")
    (line,) = caplog.records
    assert (line.repeats, line.after, line.lasting_seconds) == (9, "domain does not answer", 135)


def test_a_lasting_fault_is_told_again_every_interval(caplog):
    clock = [0.0]
    log = repeated(clock, every_s=60)
    for second in range(0, 181, 15):
        clock[0] = second
        log.failed("k", "no", level=logging.ERROR)
    assert [getattr(r, "repeats", 0) for r in caplog.records] == [0, 4, 4, 4]
    assert {r.levelno for r in caplog.records} == {logging.ERROR}


def test_faults_are_apart_forgotten_and_bounded(caplog):
    log = repeated([0.0], most_faults=2)
    for key in ("a", "b", "a", "c", "c"):
        log.failed(key, f"fault {key}")
    assert [r.message for r in caplog.records] == ["fault a", "fault b", "fault c"]
    log.forget("c")
    log.failed("c", "fault c")
    assert len(caplog.records) == 4


@pytest.mark.parametrize("formatter", [LogfmtFormatter(), JsonFormatter()], ids=["logfmt", "json"])
def test_no_text_reaches_a_terminal_or_breaks_a_line_and_no_secret_is_written(formatter):
    hostile = "a\nb\r\x1b[2J\x9b2J\x85\u2028\u2029\x7f\x00"
    written = formatter.format(record(
        text=hostile, uri="qemu+tls://u:pw1@h/s", option="mongodb://h/?password=pw2",
        path="/vgt_0123456789ab_" + "A" * 43, **{"k\n=\x9b": "v"}))  # fmt: skip
    assert not [character for character in written if not character.isprintable()]
    assert "pw1" not in written
    assert "pw2" not in written
    assert "vgt_0123456789ab_***" in written
    if isinstance(formatter, JsonFormatter):
        assert json.loads(written)["text"] == hostile
