"""Takes the guest's kernel and modules from Debian's cloud kernel package, which is fetched but never installed."""

from __future__ import annotations

import gzip
import lzma
import re
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from exporter.demonstration.errors import DemonstrationError
from exporter.demonstration.programs import run_program

PACKAGE = "linux-image-cloud-amd64"

# What a guest cannot do without; the rest makes it answer the power button, the agent and a panic.
REQUIRED_MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_balloon")
OPTIONAL_MODULES = ("virtio_console", "virtio_rng", "evdev", "button", "pvpanic", "pvpanic_mmio", "pvpanic_pci",
                    "isofs")


class GuestKernel(NamedTuple):
    """A kernel to boot directly, and its modules, unpacked, in loading order."""

    version: str
    image: bytes
    modules: dict[str, bytes]


def fetch_kernel(more: Sequence[str] = ()) -> GuestKernel:
    """Download Debian's kernel package into a temporary folder and take it apart; `more` are further modules.

    Raises DemonstrationError without network, without the package, or where a required module is missing.
    """
    with tempfile.TemporaryDirectory(prefix="virtgauge-kernel-") as name:
        folder = Path(name)
        package = _download(folder)
        run_program(["dpkg-deb", "-x", str(package), str(folder / "root")], timeout_s=300)
        images = sorted((folder / "root" / "boot").glob("vmlinuz-*"))
        if not images:
            raise DemonstrationError(f"{package.name} holds no kernel; run 'apt-get update' and try again")
        packed = images[-1].read_bytes()
        modules = _pick_modules(folder / "root", more)
        return GuestKernel(images[-1].name.removeprefix("vmlinuz-"), unpack_kernel(packed) or packed, modules)


def _download(folder: Path) -> Path:
    """The kernel package as a file in `folder`; the package lists are renewed once if they are too old for it."""
    try:
        return _download_with_present_lists(folder)
    except DemonstrationError:
        run_program(["apt-get", "update"], timeout_s=300)
    return _download_with_present_lists(folder)


def _download_with_present_lists(folder: Path) -> Path:
    answer = run_program(["apt-cache", "depends", PACKAGE]).decode()
    found = re.search(r"Depends: (linux-image-\S+)", answer)
    if not found:
        raise DemonstrationError(f"apt knows no {PACKAGE}; the guest's kernel comes from Debian's package sources")
    run_program(["apt-get", "-q", "download", found[1]], timeout_s=600, folder=folder)
    packages = list(folder.glob("*.deb"))
    if not packages:
        raise DemonstrationError(f"'apt-get download {found[1]}' left no file; run 'apt-get update' and try again")
    return packages[0]


def unpack_kernel(packed: bytes) -> bytes | None:
    """The ELF kernel inside a bzImage, which QEMU boots by its PVH note without firmware or unpacking in the guest.

    None if the form is unknown here or its program is missing: the packed kernel boots too, 1 to 2 s later.
    """
    if packed[0x202:0x206] != b"HdrS" or int.from_bytes(packed[0x206:0x208], "little") < 0x208:
        return None
    start = int.from_bytes(packed[0x248:0x24C], "little") + ((packed[0x1F1] or 4) + 1) * 512
    payload = packed[start : start + int.from_bytes(packed[0x24C:0x250], "little")]
    try:
        kernel = _decompress(payload)
    except (lzma.LZMAError, zlib.error, DemonstrationError):
        return None
    return kernel if kernel[:4] == b"\x7fELF" else None


def _decompress(payload: bytes) -> bytes:
    if payload.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMADecompressor().decompress(payload)
    if payload.startswith(b"\x1f\x8b"):
        return zlib.decompressobj(31).decompress(payload)
    # The kernel's build appends the unpacked size, which these two programs would take for garbage.
    if payload.startswith(b"\x02\x21\x4c\x18"):
        return run_program(["lz4", "-dc"], stdin=payload[:-4])
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        return run_program(["zstd", "-dcq"], stdin=payload[:-4])
    return b""


def _pick_modules(root: Path, more: Sequence[str]) -> dict[str, bytes]:
    """The wanted modules and all they depend on, each after what it needs."""
    files = {_module_name(path): path for path in sorted(root.rglob("*.ko*"))}
    built_in = {_module_name(Path(line)) for listing in root.rglob("modules.builtin") for line in _lines(listing)}
    picked: dict[str, bytes] = {}

    def add(name: str) -> None:
        if name in picked or name in built_in:
            return
        if name not in files:
            if name in REQUIRED_MODULES:
                raise DemonstrationError(f"{PACKAGE} holds no module {name}; the guest image cannot be built from it")
            return
        data = _read_module(files[name])
        for needed in _dependencies(data):
            add(needed)
        picked[name] = data

    for name in (*REQUIRED_MODULES, *OPTIONAL_MODULES, *more):
        add(name)
    return picked


def _module_name(path: Path) -> str:
    return path.name.split(".ko")[0].replace("-", "_")


def _lines(path: Path) -> list[str]:
    return path.read_text().split()


def _read_module(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".gz":
        return gzip.decompress(data)
    if path.suffix == ".zst":
        return run_program(["zstd", "-dcq"], stdin=data)
    return data


def _dependencies(module: bytes) -> list[str]:
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    return [name.replace("-", "_") for name in found[1].decode().split(",") if name] if found else []
