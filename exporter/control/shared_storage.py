"""Storage that other hosts may use at the same time, where what their guests use is not seen from here."""

from __future__ import annotations

import os
from pathlib import Path
from xml.etree import ElementTree

# File systems that several hosts see at the same time; libvirt's own list is in virfile.c (virFileIsSharedFSType).
SHARED_FILE_SYSTEMS = frozenset(
    ("nfs", "nfs4", "cifs", "smb3", "ceph", "fuse.ceph", "fuse.cephfs", "glusterfs", "fuse.glusterfs", "gfs2", "ocfs2",
     "afs", "gpfs", "lustre", "acfs", "vxfs", "beegfs", "fuse.quobyte", "pvfs2")
)  # fmt: skip
SHARED_POOLS = frozenset(("netfs", "iscsi", "iscsi-direct", "rbd", "sheepdog", "gluster", "vstorage", "scsi", "mpath"))
MOUNTS = Path("/proc/self/mountinfo")


def shared_with_others(pool_xml: str, mounts: Path | None = MOUNTS) -> str:
    """What a pool lies on that other hosts may use, too; empty where nothing is known to be.

    `mounts` None where its folder is not this machine's.
    """
    root = ElementTree.fromstring(pool_xml)
    kind = root.get("type", "")
    if kind in SHARED_POOLS:
        return kind
    folder = root.findtext("target/path")
    if kind in ("dir", "fs") and folder and mounts is not None:
        file_system = file_system_of(folder, mounts)
        return file_system if file_system in SHARED_FILE_SYSTEMS else ""
    return ""


def file_system_of(path: str, mounts: Path) -> str:
    """The type of the file system that holds `path`, links resolved; proc(5), mountinfo. Empty where unknown."""
    real = os.path.realpath(path)
    best, kind = "", ""
    for line in mounts.read_text(errors="surrogateescape").splitlines():
        fields, _, rest = line.partition(" - ")
        point = _unescaped(fields.split()[4])
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        # Of two mounts on one place the later one is seen.
        if inside and len(point) >= len(best):
            best, kind = point, rest.split()[0]
    return kind


def _unescaped(text: str) -> str:
    """mountinfo writes blanks and backslashes in octal."""
    return text.encode("utf-8", "surrogateescape").decode("unicode_escape").encode("latin-1").decode(
        "utf-8", "surrogateescape"
    ) if "\\" in text else text  # fmt: skip
