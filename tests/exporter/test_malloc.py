"""Threads share the C library's heaps."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

# Threads that allocate at the same time, then the C library's own account of its heaps (malloc_info(3)).
PROGRAM = """
import ctypes, sys, threading
from exporter.malloc import share_arenas
if sys.argv[1] == "shared":
    assert share_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
together = threading.Barrier(6)
def allocate():
    together.wait()
    libc.malloc(100_000)
    together.wait()
threads = [threading.Thread(target=allocate) for _ in range(6)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
file = libc.fopen(sys.argv[2].encode(), b"w")
libc.malloc_info(0, ctypes.c_void_p(file))
libc.fclose(ctypes.c_void_p(file))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc",
                    reason="a C library other than glibc keeps memory in its own way")
def test_threads_share_two_heaps(tmp_path: Path) -> None:
    heaps = {}
    for how in ("shared", "own"):
        told = tmp_path / how
        subprocess.run([sys.executable, "-c", PROGRAM, how, told], check=True, timeout=60)
        heaps[how] = told.read_text().count("<heap ")
    assert heaps["shared"] <= 2 < heaps["own"]
