"""Whether an alert still fires: Prometheus and Alertmanager asked, where the rule file names them. Any thread.

What they answer is data: it can keep a rule from acting, and lead to nothing else. Labels go out quoted.
"""

from __future__ import annotations

import base64
import json
import ssl
import time
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any
from urllib.parse import urlencode

from exporter.control.rules import RuleFile, Server
from exporter.control.webhook import Alert

_ASK_S = 5.0
_MOST_BYTES = 1 << 20
# Prometheus gives alerts that it sends labels of its own (external_labels), which ALERTS does not have.
_IDENTIFYING = frozenset({"alertname", "instance", "job", "domain", "uuid", "target_device", "reason"})


def why_not_firing(file: RuleFile, alert: Alert, *, wanted: bool = True) -> tuple[str, str] | None:
    """(word, text) where one of them says that it does not fire, or does not answer; None where all say it does.

    `wanted` False asks for an alert that has resolved: then one that fires again is what stands in the way.
    """
    asked = ((file.prometheus, "Prometheus", _prometheus), (file.alertmanager, "Alertmanager", _alertmanager))
    for server, name, ask in asked:
        if server is None:
            continue
        try:
            found = ask(server, alert)
        except (OSError, HTTPException, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return "unconfirmed", f"{name} was asked whether the alert still fires, and did not answer"
        if wanted and found != "fires":
            return "silenced" if found == "silenced" else "resolved", f"{name} says that the alert {_SAID[found]}"
        if not wanted and found != "resolved":
            return "fires", f"{name} says that the alert fires again"
    return None


_SAID = {"silenced": "is silenced or inhibited", "resolved": "no longer fires"}


def _prometheus(server: Server, alert: Alert) -> str:
    labels = {name: value for name, value in alert.labels.items() if name in _IDENTIFYING}
    found = _get(server, "/api/v1/query", {"query": f'count(ALERTS{{alertstate="firing",{_matchers(labels)}}})'})
    return "fires" if found["data"]["result"] else "resolved"


def _alertmanager(server: Server, alert: Alert) -> str:
    """By its labels, since the fingerprint may have been made here."""
    filters = [("filter", _matchers({name: value})) for name, value in sorted(alert.labels.items())]
    found = _get(server, "/api/v2/alerts", [("unprocessed", "false"), *filters])
    states = {one["status"]["state"] for one in found if one["labels"] == dict(alert.labels)}
    return "fires" if "active" in states else "silenced" if states else "resolved"


def _matchers(labels: Mapping[str, str]) -> str:
    return ",".join(f"{name}={_quoted(value)}" for name, value in sorted(labels.items()))


def _quoted(text: str) -> str:
    """As both read it: Alertmanager knows no other escapes."""
    for plain, escaped in (("\\", r"\\"), ('"', r"\""), ("\n", r"\n")):
        text = text.replace(plain, escaped)
    return f'"{text}"'


def _get(server: Server, path: str, query: Any) -> Any:
    request = urllib.request.Request(f"{server.url.rstrip('/')}{path}?{urlencode(query)}")
    if server.credentials_file is not None:
        request.add_header("Authorization", f"Bearer {server.credentials_file.read_text().strip()}")
    elif server.password_file is not None:
        both = f"{server.username}:{server.password_file.read_text().strip()}"
        request.add_header("Authorization", f"Basic {base64.b64encode(both.encode()).decode()}")
    # Straight there: no proxy of the environment, and no redirect, which would take the credentials along.
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({}), _NoRedirect()]
    if server.url.startswith("https:"):
        ca_file = str(server.ca_file) if server.ca_file is not None else None
        handlers.append(urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ca_file)))
    end_s = time.monotonic() + _ASK_S
    with urllib.request.build_opener(*handlers).open(request, timeout=_ASK_S) as answer:
        body = b""
        while part := answer.read1(65536):
            body += part
            if len(body) > _MOST_BYTES or time.monotonic() > end_s:
                raise TimeoutError("too long an answer")
        return json.loads(body)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None
