"""Names in a client's certificate: which of them the web configuration lets in."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

# The kinds of names the toolkit compares, as Python calls them.
_SAN_KINDS = {"DNS", "email", "IP Address", "URI"}


def has_allowed_name(certificate: Mapping[str, Any] | None, allowed: tuple[str, ...]) -> bool:
    """Whether a client's certificate (as `getpeercert` gives it) has one of the allowed names, exactly.

    True where nothing is limited, or where no certificate was given and none is required.
    """
    if not allowed or not certificate:
        return True
    names = {_plain_name(kind, value) for kind, value in certificate.get("subjectAltName", ()) if kind in _SAN_KINDS}
    return not names.isdisjoint(allowed)


def _plain_name(kind: str, value: str) -> str:
    """OpenSSL writes IPv6 addresses in full and in capitals; Go, and so the file, in the short form."""
    if kind != "IP Address":
        return value
    try:
        return str(ipaddress.ip_address(value.strip()))
    except ValueError:
        return value
