"""Overlays that are written into the image below them while the guest runs: where QEMU is known to crash at it, and
what is told of a guest that ended in the middle.

Measured on QEMU 7.2 (7.2.22) with libvirt 9.0, by `virsh blockcommit` as well: at the change over from the overlay to
a raw base, a write of the guest through IDE or AHCI (SATA) may fail "Assertion `child->perm & BLK_PERM_WRITE'", and
QEMU aborts: 15 of 19 times with a guest that never stops writing, started on the overlay or with the snapshot taken
while it ran, of 1 or 8 MiB. Never with a guest that wrote nothing just then (2 times) or was paused (8); nor with a
qcow2 base (14), nor on virtio-blk (10) or virtio-scsi (4).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.etree.ElementTree import Element

import libvirt

from exporter.control.connection import Session
from exporter.control.device_change import device_root
from exporter.control.domain import domain_state, is_state
from exporter.control.errors import ControlError, RefusedError
from exporter.control.hotplug_disk import disk_shown
from exporter.control.image_users import layers_of, source_file
from exporter.control.operation import Call, Subject

# Of no other version it is known whether it is hit, nor which one mends it: of those nothing is said, since a warning
# that is wrong for most hosts is one that nobody reads.
_CRASHING = range(7_002_000, 7_003_000)
_CRASHING_BUSES = ("ide", "sata")
_CRASHED = ("(crashed)", "(failed)")
_SETTLES_S = 2.0


def crash_warnings(call: Call, merges: Mapping[str, Sequence[str]]) -> list[str]:
    """One for each merge (by disk: an overlay, and the image that it is written into) that may crash QEMU.

    The version is that of the host's QEMU: a guest that has run since before its upgrade may have another one.
    """
    handle, name = call.subject.handle, call.subject.name
    if not merges or not is_state(handle, "running", "blocked") or qemu_version(call.session) not in _CRASHING:
        return []
    found = []
    for disk in device_root(handle, "live").iterfind("devices/disk"):
        target, shown = disk_shown(disk)
        top, base = merges.get(target, ("", ""))
        formats = _formats(call.session.connection, disk)
        # An overlay that the guest does not write to is written down without a change over.
        if shown.get("bus") in _CRASHING_BUSES and next(iter(formats), "") == top and formats.get(base) == "raw":
            found.append(
                f"QEMU 7.2 may crash, and the guest with it, while {top} is merged into the raw image {base} and the"
                f" guest writes to disk {target} ({shown['bus']}): where it may not, pause it meanwhile ('domain"
                f" suspend {name}', and 'domain resume {name}' after it), or shut it off and merge with"
                f" {_by_hand(top, base)}"
            )
    return found


def qemu_version(session: Session) -> int | None:
    """As libvirt counts it (7002022 is 7.2.22); None of other hypervisors."""
    return int(session.connection.getVersion()) if session.driver == "QEMU" else None


def has_ended(handle: Any) -> bool:
    """Whether the guest does not run any more, or is gone."""
    try:
        return not handle.isActive()
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
            raise
        return True


def how_it_is(handle: Any) -> str:
    """`shutoff (crashed)`; `gone` of a transient one that has ended."""
    state = domain_state(handle)
    return f"{state['state']} ({state['reason']})" if "reason" in state else str(state["state"])


@contextlib.contextmanager
def told_if_ended(
    call: Call, doing: str, images: Mapping[str, Sequence[str]], *, merges: bool = True
) -> Iterator[None]:
    """Where libvirt fails within it and the guest has ended, that is raised in libvirt's error's place."""
    try:
        yield
    except libvirt.libvirtError as error:
        # It may say so before it counts the guest among those that are off.
        if error.get_error_domain() == libvirt.VIR_FROM_RPC or not call.deadline.within(_SETTLES_S).wait_for(
            lambda: has_ended(call.subject.handle)
        ):
            raise
        raise guest_ended(call.subject, doing, images, error, merges=merges) from error


def guest_ended(
    subject: Subject, doing: str, images: Mapping[str, Sequence[str]], error: libvirt.libvirtError | None = None,
    *, merges: bool = True,
) -> ControlError:  # fmt: skip
    """What to tell where the guest ended in the middle; `images` are those in work by disk, the top one first."""
    how = how_it_is(subject.handle)
    crashed = how.endswith(_CRASHED)
    held = "; ".join(f"disk {device} was in work, and its data is still in {' on '.join(files)}"
                     for device, files in images.items())  # fmt: skip
    step = f"keep all of these files; 'domain start {subject.name}', and ask again"
    if crashed:
        by_hand = ", ".join(_by_hand(files[0], files[-1]) for files in images.values())
        # Measured: of what the guest has not had its disk flush, QEMU's death may lose some, as it does at any time.
        step = "keep all of these files, which are as after a power failure; see why in the guest's log of QEMU;"
        step += f" 'domain start {subject.name}' goes on with them"
        again = f"; as it may crash again, merge while it is paused, or while it is off, with {by_hand}"
        step += again if merges else ""
    kind = ControlError if crashed else RefusedError
    return kind(
        f"{doing} ended with the guest, which is {how}; {held}", next_step=step,
        libvirt_code=error.get_error_code() if error is not None else None,
        libvirt_message=error.get_error_message() if error is not None else None,
    )  # fmt: skip


def _by_hand(top: str, base: str) -> str:
    return f"'qemu-img commit -b {base} {top}', and then define it with {base} as that disk"


def _formats(connection: Any, disk: Element) -> dict[str, str]:
    """The format of each image of a disk's chain, the one that is written to first."""
    found: dict[str, str] = {}
    for layer, source in layers_of(disk):
        form = layer.find("driver" if layer is disk else "format")
        if file := source_file(connection, source):
            found[file] = (form.get("type") or "") if form is not None else ""
    return found
