"""Counts the requests and connections that were refused, by reason, so that an attack or a mistake can be seen.

Shown as virtgauge_http_refused_total{reason}; every reason is there from the start, at 0.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

REASONS = {
    "bad_request": "not HTTP, of unclear length, or a head that is too large",
    "basic_auth": "basic authentication failed or was missing (401)",
    "body": "the request's body was too large (413)",
    "busy": "too many requests at the same time (503)",
    "client_certificate": "the client's certificate has none of the allowed names",
    "configuration": "the web configuration file was broken meanwhile (500)",
    "connections": "too many connections",
    "domain": "the token does not reach that domain (403)",
    "rate": "above the rate limit, or too many passwords to check (429)",
    "role": "the token's role is too small (403)",
    "slow": "no whole request, or no reading of the answer, in time",
    "tls": "the TLS handshake failed or was late",
    "token": "no bearer token, or one that is unknown, revoked or expired (401)",
    "timeout": "the answer took too long (503)",
}


class Refusals:
    """One counter a reason. Any thread may call."""

    def __init__(self, told: Callable[[str], None] | None = None) -> None:
        """`told` is called with the reason of each refusal, for what else wants to know; it must be quick."""
        self._counts = dict.fromkeys(REASONS, 0)
        self._lock = threading.Lock()
        self._told = told

    def count(self, reason: str) -> None:
        """One more refusal for a reason of REASONS."""
        with self._lock:
            self._counts[reason] += 1
        if self._told:
            self._told(reason)

    def __getitem__(self, reason: str) -> int:
        return self._counts[reason]

    def __iter__(self) -> Iterator[tuple[str, int]]:
        with self._lock:
            return iter(tuple(self._counts.items()))
