"""Gzip for the page, done once for all scrapers that get the same page."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Callable, Hashable

# A body that fits one packet gains nothing.
SMALLEST_BYTES = 1024
# 16 asks zlib for the gzip container.
_GZIP_WINDOW = 16 + zlib.MAX_WBITS


def fastest_gzip() -> Callable[[bytes | memoryview], bytes]:
    """ISA-L where the `isal` package is installed (several times faster), else zlib at level 1."""
    try:
        igzip = importlib.import_module("isal.igzip")
    except ImportError:
        return zlib_gzip
    # mtime 0: equal pages compress to equal bytes.
    return lambda page: bytes(igzip.compress(page, compresslevel=1, mtime=0))


def zlib_gzip(page: bytes | memoryview) -> bytes:
    """`page` in the gzip container, by zlib at level 1: any higher level costs more than formatting the page."""
    deflate = zlib.compressobj(1, zlib.DEFLATED, _GZIP_WINDOW)
    return deflate.compress(page) + deflate.flush()


class CompressedPages:
    """The last compressed body of each format. For the event loop's thread only.

    Pages are told apart by identity, which costs nothing; the entry holds the page, so its identity cannot be
    given to another. One page a format is kept: the one its source holds on to anyway.
    """

    def __init__(self, gzip: Callable[[bytes | memoryview], bytes]) -> None:
        self._gzip = gzip
        self._last: dict[Hashable, tuple[bytes, bytes]] = {}

    def compressed(self, kind: Hashable, page: bytes | memoryview) -> bytes:
        """`page` as gzip; `kind` is what the last page is kept for, the format."""
        whole = _whole_bytes(page)
        if whole is None:
            return self._gzip(page)
        last = self._last.get(kind)
        if last is None or last[0] is not whole:
            last = self._last[kind] = whole, self._gzip(whole)
        return last[1]


def _whole_bytes(page: bytes | memoryview) -> bytes | None:
    """The immutable object behind a page; None for a view whose content may change under the same identity."""
    if isinstance(page, bytes):
        return page
    owner = page.obj
    return owner if isinstance(owner, bytes) and len(owner) == page.nbytes else None
