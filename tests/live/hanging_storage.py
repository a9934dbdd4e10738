"""A file system that can be made to hang: a FUSE server of one file, ``disk.raw``, which is stopped by a signal.

Run as a program it mounts itself on the folder given and serves until it is killed.  As dead network storage does,
it leaves those who wait for it in state D, for which the kernel must have been told once that it knows no INTERRUPT.
Formats: the kernel's include/uapi/linux/fuse.h, protocol 7.31.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

SIZE = 1 << 20
_ROOT, _DISK = 1, 2
_SLOW = b"slow"
(_LOOKUP, _FORGET, _GETATTR, _SETATTR, _OPEN, _READ, _WRITE, _STATFS, _RELEASE, _FSYNC, _FLUSH, _INIT, _OPENDIR,
 _READDIR, _RELEASEDIR, _ACCESS, _INTERRUPT, _BATCH_FORGET) = (
    1, 2, 3, 4, 14, 15, 16, 17, 18, 20, 25, 26, 27, 28, 29, 34, 36, 42)
_DIRECT_IO = 1


class HangingStorage:
    """The mounted file system.  Mount it before the private hypervisor starts, which sees what was mounted then."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def disk(self) -> Path:
        return self.folder / "disk.raw"

    def __enter__(self) -> Self:
        self.folder.mkdir()
        self._server = subprocess.Popen([sys.executable, __file__, str(self.folder)], stdout=subprocess.PIPE)
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == b"mounted\n", "no FUSE mount"
        # The kernel interrupts this look-up, is told that there is no INTERRUPT, and asks no more.
        subprocess.run(["timeout", "--signal=USR1", "1", "stat", str(self.folder / "slow")], capture_output=True,
                       check=False, timeout=30)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.kill()  # whoever waits gets an error
        self._server.wait()
        if self._server.stdout is not None:
            self._server.stdout.close()
        subprocess.run(["umount", "--lazy", str(self.folder)], check=False, timeout=30)

    def hang(self) -> None:
        assert self._server is not None
        self._server.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._server is not None
        self._server.send_signal(signal.SIGCONT)


def attributes(node: int) -> bytes:
    now, folder = int(time.time()), node == _ROOT
    size = 0 if folder else SIZE
    return struct.pack("<6Q10I", node, size, size // 512, now, now, now, 0, 0, 0, 0o40755 if folder else 0o100644,
                       2 if folder else 1, 0, 0, 0, 4096, 0)


def entries(offset: int) -> bytes:
    out = b""
    for place, (node, kind, name) in enumerate(((_ROOT, 4, b"."), (_ROOT, 4, b".."), (_DISK, 8, b"disk.raw")), 1):
        if place > offset:
            out += struct.pack("<QQII", node, place, len(name), kind) + name + bytes(-len(name) % 8)
    return out


def serve(device: int) -> None:
    """Answer the kernel until the mount ends."""
    data = bytearray(SIZE)
    slow = 0
    while True:
        try:
            request = os.read(device, 1 << 18)
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.EBADF):
                return
            continue
        _length, opcode, unique, node = struct.unpack_from("<IIQQ", request)
        body = request[40:]
        if opcode in (_FORGET, _BATCH_FORGET):
            continue
        if opcode == _LOOKUP and body.rstrip(b"\0") == _SLOW:
            slow = unique
            continue
        if opcode == _INTERRUPT and slow:
            reply(device, unique, -errno.ENOSYS)
            reply(device, slow, -errno.ENOENT)
            slow = 0
            continue
        error_number, payload = answer(opcode, node, body, data)
        reply(device, unique, error_number, payload)


def answer(opcode: int, node: int, body: bytes, data: bytearray) -> tuple[int, bytes]:
    """Error (negative) and payload for one request."""
    if opcode == _INIT:
        # Within what the kernel offers: nothing special.
        return 0, struct.pack("<4I2H2I2HI28x", 7, 31, 1 << 16, 0, 12, 9, 1 << 16, 1, 0, 0, 0)
    if opcode == _LOOKUP:
        if body.rstrip(b"\0") != b"disk.raw":
            return -errno.ENOENT, b""
        return 0, struct.pack("<4Q2I", _DISK, 0, 0, 0, 0, 0) + attributes(_DISK)
    if opcode in (_GETATTR, _SETATTR):
        return 0, struct.pack("<QII", 0, 0, 0) + attributes(node)
    if opcode in (_OPEN, _OPENDIR):
        return 0, struct.pack("<QII", 0, _DIRECT_IO if opcode == _OPEN else 0, 0)
    if opcode in (_READ, _READDIR):
        _handle, offset, size = struct.unpack_from("<QQI", body)
        return 0, bytes(data[offset:offset + size]) if opcode == _READ else entries(offset)
    if opcode == _WRITE:
        _handle, offset, size = struct.unpack_from("<QQI", body)
        data[offset:offset + size] = body[40:40 + size]
        return 0, struct.pack("<II", size, 0)
    if opcode == _STATFS:
        return 0, struct.pack("<5Q4I24x", 4096, 2048, 2048, 10, 5, 4096, 255, 4096, 0)
    if opcode in (_RELEASE, _RELEASEDIR, _FLUSH, _FSYNC, _ACCESS):
        return 0, b""
    return -errno.ENOSYS, b""


def reply(device: int, unique: int, error_number: int, payload: bytes = b"") -> None:
    try:
        os.write(device, struct.pack("<IiQ", 16 + len(payload), error_number, unique) + payload)
    except OSError as error:
        if error.errno != errno.ENOENT:  # the asker was killed meanwhile
            raise


def main() -> None:
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"hanging", sys.argv[1].encode(), b"fuse", 0, options.encode()) != 0:
        raise OSError(ctypes.get_errno(), "mount")
    os.write(1, b"mounted\n")
    serve(device)


if __name__ == "__main__":
    main()
