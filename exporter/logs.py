"""Logging as Prometheus's own programs do it: one line an event, logfmt or JSON, to stderr.

    ts=2025-01-31T12:00:00.123Z level=warn msg="libvirt does not answer" component=connection uri=qemu:///system

Fields come from `extra`: `log.warning("libvirt does not answer", extra={"uri": uri})`. The message stays constant,
so that it can be searched for; what varies is a field.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import TextIO

from exporter.setting_types import mask_passwords
from exporter.token_form import mask_tokens

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING, "error": logging.ERROR}
_LEVEL_NAMES = {logging.DEBUG: "debug", logging.INFO: "info", logging.WARNING: "warn", logging.ERROR: "error"}

# What every LogRecord has; any other attribute is a field that the caller gave.
_OWN_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
_BARE = re.compile(r"[^\s\"=\\\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_UNSAFE_KEY = re.compile(r"[^A-Za-z0-9_.\[\]-]")
_PACKAGES = ("exporter", "collectors")
_FOREIGN = ("uvicorn", "asyncio", "pymongo")


def configure_logging(level: str, form: str, stream: TextIO | None = None) -> None:
    """Sends all log records to `stream` (stderr by default), replacing what the root logger had.

    `level` is debug, info, warn or error; `form` is logfmt or json. Libraries are heard from warn on, or on debug.
    Called once, from the command line.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else LogfmtFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(_LEVELS[level])
    for name in _FOREIGN:
        logging.getLogger(name).setLevel(max(_LEVELS[level], logging.WARNING) if level != "debug" else logging.INFO)


class LogfmtFormatter(logging.Formatter):
    """One `key=value` line a record; values with blanks or control characters are quoted and escaped."""

    def format(self, record: logging.LogRecord) -> str:
        return " ".join(f"{_UNSAFE_KEY.sub('_', key)}={_quoted(text)}" for key, text in _texts(record).items())


class JsonFormatter(logging.Formatter):
    """One JSON object a line; every value is text, as in the logfmt form."""

    def format(self, record: logging.LogRecord) -> str:
        return _escaped(_texts(record))


def _texts(record: logging.LogRecord) -> dict[str, str]:
    """The record's keys and texts in the order of the line, passwords in URIs and tokens masked."""
    when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    texts = {
        "ts": when,
        "level": _LEVEL_NAMES.get(record.levelno, "error" if record.levelno > logging.ERROR else "debug"),
        "msg": record.getMessage(),
        "component": _component(record.name),
    }
    given = {key: value for key, value in vars(record).items() if key not in _OWN_ATTRIBUTES}
    texts |= {key: _text(value) for key, value in given.items() if key not in texts}
    if record.exc_info and record.exc_info[1] is not None:
        texts.setdefault("error", f"{type(record.exc_info[1]).__name__}: {record.exc_info[1]}")
        texts["traceback"] = logging.Formatter().formatException(record.exc_info)
    return {key: mask_tokens(mask_passwords(text)) for key, text in texts.items()}


def _component(logger: str) -> str:
    """`exporter.server` is the component server; a library is its own name."""
    package, _, rest = logger.partition(".")
    return (rest or package) if package in _PACKAGES else package


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _quoted(text: str) -> str:
    """Bare where it can be; else in quotes with everything escaped that could forge a line."""
    if _BARE.fullmatch(text):
        return text
    return _escaped(text)


def _escaped(value: object) -> str:
    """The value as JSON in one line, whoever reads the line."""
    quoted = json.dumps(value, ensure_ascii=False)
    # JSON leaves these alone, yet terminals and line readers do not.
    return re.sub(r"[\x7f-\x9f\u2028\u2029]", lambda found: f"\\u{ord(found[0]):04x}", quoted)
