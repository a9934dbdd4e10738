"""Checks user and password against bcrypt hashes: off the event loop, one at a time, cached, in constant time."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import secrets
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import bcrypt
from pydantic import SecretStr

# All that bcrypt looks at. Go cuts the rest off without a word, the Python library raises.
_BCRYPT_BYTES = 72
_MOST_CACHED = 100
# A check takes a tenth of a second: a longer queue would only be a way to make others wait.
_MOST_WAITING = 8


class BusyError(Exception):
    """Too many passwords wait to be checked."""


class BasicAuth:
    """Remembers what it has checked, as keyed digests: neither passwords nor hashes. For one event loop's thread.

    Good ones are kept apart from bad ones, so that guessing does not push a scraper's password out.
    """

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._good: OrderedDict[bytes, bool] = OrderedDict()
        self._bad: OrderedDict[bytes, bool] = OrderedDict()
        self._checking: dict[bytes, asyncio.Future[bool]] = {}
        # One thread: as in the toolkit, guessing costs one processor at most.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="bcrypt")

    async def allows(self, header: str | None, users: Mapping[str, SecretStr]) -> bool:
        """Whether an Authorization header holds the password of one of `users` (user to bcrypt hash).

        Raises BusyError where too many others wait for their check.
        """
        found = parse_basic(header)
        if found is None:
            return False
        user, password = found
        known = users.get(user)
        # An unknown user is checked too, against someone's hash, so that time tells nothing about who exists.
        hashed = (known or next(iter(users.values()))).get_secret_value().encode()
        key = self._digest(user.encode(), hashed, password)
        for cache in (self._good, self._bad):
            if key in cache:
                cache.move_to_end(key)
                return cache[key]
        matches = await self._check(key, password, hashed) and known is not None
        cache = self._good if matches else self._bad
        cache[key] = matches
        if len(cache) > _MOST_CACHED:
            cache.popitem(last=False)
        return matches

    def close(self) -> None:
        """Ends the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _check(self, key: bytes, password: bytes, hashed: bytes) -> bool:
        waiting = self._checking.get(key)
        if waiting is None:
            if len(self._checking) >= _MOST_WAITING:
                raise BusyError
            loop = asyncio.get_running_loop()
            waiting = self._checking[key] = loop.run_in_executor(self._thread, _matches, password, hashed)
            waiting.add_done_callback(lambda _: self._checking.pop(key, None))
        # Shielded: others may wait for the same check when this client goes away.
        return await asyncio.shield(waiting)

    def _digest(self, *parts: bytes) -> bytes:
        digest = hmac.new(self._key, digestmod=hashlib.sha256)
        for part in parts:
            digest.update(len(part).to_bytes(8, "big") + part)
        return digest.digest()


def parse_basic(header: str | None) -> tuple[str, bytes] | None:
    """User and password of an Authorization header; None for any other."""
    scheme, _, encoded = (header or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
        return (user.decode(), password) if colon else None
    except (binascii.Error, ValueError):
        return None


def _matches(password: bytes, hashed: bytes) -> bool:
    try:
        return bcrypt.checkpw(password[:_BCRYPT_BYTES], hashed)
    except ValueError:
        return False
