"""libvirt's event loop at the end of a process."""

from __future__ import annotations

import subprocess
import sys

OUTLIVED = """
import ctypes, sys, threading, time
import libvirt
from collectors.connection import start_event_loop
start_event_loop()
turned = threading.Event()
libvirt.virEventAddTimeout(0, lambda number, _: (libvirt.virEventRemoveTimeout(number), turned.set()), None)
assert turned.wait(60)
time.sleep(0.1)  # once more inside libvirt, where it waits for its timers
libc = ctypes.CDLL(None)
# Once the interpreter is gone, C's exit takes two seconds (sleep(exit status)): the loop's timer comes in them.
libc.on_exit(ctypes.cast(libc.sleep, ctypes.c_void_p), None)
sys.exit(2)
"""


def test_the_event_loop_does_not_outlive_the_interpreter():
    """It crashed commands at their end, now and then on a busy machine, without a word."""
    done = subprocess.run([sys.executable, "-c", OUTLIVED], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")
