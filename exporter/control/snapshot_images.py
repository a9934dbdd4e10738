"""The images that a domain's snapshots need: none is taken from under a snapshot, and no revert meets a missing one.

Measured on libvirt 9.0 and QEMU 7.2: neither looks after an internal snapshot that lies inside an overlay. Where that
is merged away, the revert ends the running guest, and its definition names a file that is gone; where what is below it
is pulled up or changed, the revert brings zeros or other data.
"""

from __future__ import annotations

import os
from typing import Any

from collectors.domain_xml import element_tree
from exporter.control.connection import is_remote
from exporter.control.device_change import device_root
from exporter.control.errors import RefusedError, UnsupportedError
from exporter.control.hotplug_disk import disk_shown
from exporter.control.image_users import files_of, source_file, users_of
from exporter.control.operation import Call

_KNOWS_VOLUMES = 9_001_000  # libvirt 9.1.0, the first that is not known to fail


def made_by(connection: Any, snapshot: Any) -> dict[str, str]:
    """The files or devices that an external snapshot's disks went on in, by target; {} of an internal one.

    Empty for one on the network.
    """
    disks = element_tree(snapshot.getXMLDesc(0)).iterfind("disks/disk")
    sources = {disk.get("name", ""): disk.find("source") for disk in disks if disk.get("snapshot") == "external"}
    return {target: source_file(connection, source) for target, source in sources.items() if source is not None}


def images_at(connection: Any, snapshot: Any) -> list[str]:
    """The files and devices of the disks that the domain had when it was taken."""
    sources = element_tree(snapshot.getXMLDesc(0)).iterfind("domain/devices/disk/source")
    return [file for source in sources if (file := source_file(connection, source))]


def refuse_if_inside(handle: Any, name: str, files: list[str]) -> None:
    """Raises RefusedError where an internal snapshot lies inside one of the files, which are to change underneath."""
    connection = handle.connect()
    for snapshot in handle.listAllSnapshots(0):
        images = [] if made_by(connection, snapshot) else images_at(connection, snapshot)
        inside = [file for file in images if file in files]
        if inside:
            raise RefusedError(
                f"snapshot {snapshot.getName()} of domain {name} lies inside {inside[0]} and would be lost",
                next_step="delete that snapshot first, if it is not needed",
            )


def refuse_missing(call: Call, snapshot: Any) -> None:
    """Raises RefusedError where an image that a revert needs is not there: libvirt would end the guest first."""
    if is_remote(call.session.connection.getURI()):
        return
    for file in images_at(call.session.connection, snapshot):
        try:
            os.stat(file)
        except FileNotFoundError as error:
            raise RefusedError(
                f"snapshot {snapshot.getName()} needs {file}, which is not there",
                next_step="bring it back, or forget the snapshot ('snapshot delete --metadata-only')",
            ) from error
        except OSError:  # not ours to see
            continue


def _refuse_volumes_taken_off(call: Call, snapshot: Any) -> None:
    """Raises UnsupportedError where an external snapshot of a pool's volume was taken while the guest was off.

    Measured on libvirt 9.0, which does not know the volume again, whether the guest runs now or not ("snapshot VM disk
    source and parent disk source are not the same"); of one taken while it ran it does. Of later ones it is not known:
    they say so themselves.
    """
    if call.session.connection.getLibVersion() >= _KNOWS_VOLUMES:
        return
    root, made = element_tree(snapshot.getXMLDesc(0)), made_by(call.session.connection, snapshot)
    for disk in root.iterfind("domain/devices/disk") if root.findtext("state") == "shutoff" else ():
        target, source = disk_shown(disk)[0], disk.find("source")
        if source is not None and source.get("volume") and target in made:
            raise UnsupportedError(
                f"snapshot {snapshot.getName()} of domain {call.subject.name} was taken while the guest was off, of"
                f" disk {target}, which is volume {source.get('volume')} of pool {source.get('pool')}: this host's"
                f" libvirt cannot write {made[target]} back into it",
                next_step=f"merge it while the guest runs ('domain block-commit {call.subject.name} --device"
                f" {target}'), and forget the snapshot: --metadata-only",
            )


def merged_away(call: Call, snapshot: Any) -> dict[str, tuple[str, str]]:
    """What deleting an external snapshot does: by disk the file that it made, and the image below
    that it is written into.

    Raises RefusedError where one is no longer of the guest's disk, or another guest or snapshot needs one of them;
    UnsupportedError where libvirt cannot.
    """
    _refuse_volumes_taken_off(call, snapshot)
    handle, name, connection = call.subject.handle, call.subject.name, call.session.connection
    side: Any = "live" if handle.isActive() else "persistent"
    local = not is_remote(connection.getURI())
    disks = {disk_shown(disk)[0]: disk for disk in device_root(handle, side).iterfind("devices/disk")}
    found = {}
    for target, file in made_by(connection, snapshot).items():
        if not file:
            raise RefusedError(
                f"snapshot {snapshot.getName()} has disk {target} of domain {name} go on in an image on the network:"
                " what else needs that cannot be seen",
                next_step="forget the snapshot: --metadata-only",
            )
        chain = list(files_of(connection, disks[target], local=local)) if target in disks else []
        if file not in chain[:-1]:
            raise RefusedError(
                f"{file}, made by snapshot {snapshot.getName()}, is no longer on another image in disk {target} of"
                f" domain {name}",
                next_step="forget the snapshot: --metadata-only",
            )
        found[target] = (file, chain[chain.index(file) + 1])
    refuse_if_inside(handle, name, [file for file, _ in found.values()])
    for image in (image for pair in found.values() for image in pair):
        users = users_of(connection, image, running=False, besides=call.subject.uuid, reaches=call.reaches)
        if users:
            raise RefusedError(
                f"{image} is in use by {', '.join(users)}, whose disk would be destroyed",
                next_step="pull the disk up ('domain block-pull'), and forget the snapshot (--metadata-only)",
            )
    return found
