"""How the C library keeps memory for the threads of a service."""

from __future__ import annotations

import ctypes

_M_ARENA_MAX = -8  # mallopt(3); glibc's malloc.h
MOST_ARENAS = 2


def share_arenas() -> bool:
    """Let all threads share two of the C library's arenas; whether it took that. Before threads are started.

    Each thread that lives beside another gets a heap of its own otherwise, and keeps what it once used: 3 MiB of an
    exporter with 60 guests, and there is nothing to win, since the interpreter's lock lets one of them run at a time.
    """
    try:
        return bool(ctypes.CDLL(None).mallopt(_M_ARENA_MAX, MOST_ARENAS))
    except AttributeError:  # another C library, such as musl
        return False
