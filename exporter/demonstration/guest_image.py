"""The demonstration guest's kernel and initial root file system, built once and kept in the user's cache folder."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from exporter.demonstration.errors import DemonstrationError
from exporter.demonstration.guest_kernel import OPTIONAL_MODULES, REQUIRED_MODULES, fetch_kernel
from exporter.demonstration.initramfs import build_initramfs
from exporter.demonstration.programs import find_program, run_program

# Raised when the way of building changes, so that an older image in the cache is not taken.
FORM = 1
NEEDED_APPLETS = {"dd", "insmod", "taskset", "usleep", "poweroff", "ip", "ping", "arp", "stty", "nc"}


@dataclass(frozen=True)
class GuestImage:
    """Files that QEMU boots directly; `digest` tells one build from another."""

    kernel: Path
    initramfs: Path
    digest: str


def cache_folder() -> Path:
    """Where built images and probe results are kept: `virtgauge` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "virtgauge"


def guest_image(cache: Path) -> GuestImage:
    """The guest image from `cache`, built first where it is missing (5 to 10 s, and a 12 MB download).

    Several processes may call at once: one builds, the others wait for it.
    Raises DemonstrationError where BusyBox or the kernel cannot be had.
    """
    busybox = _static_busybox()
    init_script = (resources.files(__package__) / "guest-init.sh").read_bytes()
    recipe = repr((FORM, REQUIRED_MODULES, OPTIONAL_MODULES)).encode()
    digest = hashlib.sha256(b"\0".join([recipe, init_script, busybox])).hexdigest()[:16]
    image = GuestImage(cache / f"guest-{digest}" / "kernel", cache / f"guest-{digest}" / "initramfs", digest)
    with lock_folder(cache):
        if not image.initramfs.exists():
            _build(image, busybox, init_script)
    return image


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold the folder for one process at a time; it is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(image: GuestImage, busybox: bytes, init_script: bytes) -> None:
    kernel = fetch_kernel()
    applets = run_program(["busybox", "--list"]).decode().split()
    missing = NEEDED_APPLETS - set(applets)
    if missing:
        raise DemonstrationError(f"this BusyBox lacks {', '.join(sorted(missing))}; install Debian's busybox-static")
    image.kernel.parent.mkdir(exist_ok=True)
    _write(image.kernel, kernel.image)
    # Written last: its presence says that the image is whole.
    _write(image.initramfs, build_initramfs(busybox, applets, kernel.modules, init_script))


def _write(path: Path, data: bytes) -> None:
    unfinished = path.with_suffix(".new")
    unfinished.write_bytes(data)
    unfinished.rename(path)


def _static_busybox() -> bytes:
    path = Path(find_program("busybox"))
    data = path.read_bytes()
    if b"/ld-linux" in data[:4096]:
        raise DemonstrationError(f"{path} is not a static program; install Debian's busybox-static")
    return data
