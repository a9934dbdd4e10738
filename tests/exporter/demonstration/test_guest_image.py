"""The guest image's parts: an archive that BusyBox reads, the same each time; kernels of unknown form left packed."""

from __future__ import annotations

import gzip
import subprocess
from importlib import resources

from exporter.demonstration.guest_kernel import unpack_kernel
from exporter.demonstration.initramfs import build_initramfs

PARTS = (b"program", ["sh", "busybox", "cat"], {"virtio": b"one", "virtio_blk": b"three"}, b"#!/bin/sh\n")


def test_the_archive_is_read_by_busybox() -> None:
    archive = gzip.decompress(build_initramfs(*PARTS))
    listed = subprocess.run(["busybox", "cpio", "-t"], input=archive, capture_output=True, check=True).stdout.split()
    assert {b"init", b"bin/busybox", b"bin/sh", b"dev/console", b"modules/virtio.ko"} <= set(listed)
    assert listed.count(b"bin/busybox") == 1


def test_modules_are_loaded_in_the_given_order() -> None:
    assert b"virtio.ko\nvirtio_blk.ko\n" in gzip.decompress(build_initramfs(*PARTS))


def test_the_same_parts_give_the_same_bytes() -> None:
    assert build_initramfs(*PARTS) == build_initramfs(*PARTS)


def test_a_kernel_of_unknown_form_is_left_packed() -> None:
    assert unpack_kernel(b"") is None
    header = bytearray(0x300)
    header[0x202:0x208] = b"HdrS\x0f\x02"
    assert unpack_kernel(bytes(header)) is None


def test_the_scripts_are_valid_shell() -> None:
    for name in ("guest-init.sh", "private-namespaces.sh"):
        script = (resources.files("exporter.demonstration") / name).read_bytes()
        subprocess.run(["busybox", "sh", "-n"], input=script, check=True)
