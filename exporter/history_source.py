"""Where the command line gets history from: a running exporter, which has the last minute too, else the database."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from exporter.archive.document_reader import Database
from exporter.archive.history_fields import HistoryFields
from exporter.archive.history_question import Question, Row, absolute, ask
from exporter.errors import UsageError, VirtgaugeError
from exporter.history_api import QUERY_PATH, RESOLUTION_HEADER

_ANSWER_S = 40.0
_MOST_ANSWER_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """The rows, and in words where they come from: `exporter at http://127.0.0.1:9177, raw`."""

    rows: Sequence[Row]
    origin: str


def history_rows(
    question: Question,
    exporter: str | None,
    database: Callable[[], AbstractContextManager[Database]],
    fields: HistoryFields,
    token: str | None = None,
) -> Found:
    """Rows from the exporter's API if it answers, else from the database.

    `exporter` is its URL, None to leave it out; `token` is shown to it. Raises UsageError for a wrong
    question, VirtgaugeError where neither answers.
    """
    if exporter and "@" in exporter.partition("://")[2].partition("/")[0]:
        raise UsageError("--exporter holds a user or password, which ps shows; a token is read from history.token")
    question = absolute(question, time.time())
    fields.all_named(question.fields)
    without = "" if exporter else "database, without what is not archived yet"
    if exporter:
        try:
            return _from_exporter(question, exporter, token)
        except _NoAnswerError as error:
            without = f"database, since {error}; what is not archived yet is missing"
    try:
        with database() as opened:
            answer = ask(opened, fields, question, time.time())
            return Found(list(answer.rows()), f"{without} ({answer.resolution})")
    except UsageError:
        raise
    except VirtgaugeError as error:
        reason = without.removeprefix("database, ").removesuffix("; what is not archived yet is missing")
        raise VirtgaugeError(f"{error} ({reason})" if exporter else str(error)) from error


class _NoAnswerError(Exception):
    """The exporter does not answer, or has no archive."""


def _from_exporter(question: Question, exporter: str, token: str | None) -> Found:
    parameters: list[tuple[str, str]] = [("field", field) for field in question.fields]
    for name in ("domain", "since", "until", "step", "points", "host"):
        if text := getattr(question, name):
            parameters.append((name, text))
    rows: list[Row] = []
    while True:
        page = urllib.parse.urlencode([*parameters, ("offset", str(len(rows)))] if rows else parameters)
        body, headers = _get(f"{exporter.rstrip('/')}{QUERY_PATH}?{page}", exporter, token)
        try:
            found = json.loads(body)
        except ValueError:
            raise _NoAnswerError(f"what answers at {exporter} is no virtgauge exporter") from None
        rows += found
        if not found or "Link" not in headers:
            return Found(rows, f"exporter at {exporter} ({headers.get(RESOLUTION_HEADER, '')})")


def _get(url: str, exporter: str, token: str | None) -> tuple[bytes, Mapping[str, str]]:
    request = urllib.request.Request(url)
    if token:
        # Unredirected: a redirect must not carry the token to another host.
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=_ANSWER_S) as answer:
            return answer.read(_MOST_ANSWER_BYTES), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            text = _error_text(error.read(1 << 16))
        if error.code == 400 and text:
            raise UsageError(text) from None
        known = {404: "has no archive", 401: "asks for a token (history.token)"}
        cause = ("" if error.code == 401 else text) or known.get(error.code, f"answers {error.code}")
        raise _NoAnswerError(f"the exporter at {exporter} {cause}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise _NoAnswerError(f"no exporter answers at {exporter} ({reason})") from None


def _error_text(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return ""
