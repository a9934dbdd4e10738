"""libvirt's own jobs on a domain (a save, a migration), which no lock of ours tells of."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import libvirt

from exporter.control.connection import Session
from exporter.control.threads import start_thread

_ANSWER_S = 3.0
_HANGS = "asking its QEMU, which does not answer"

# A backup job is none of these: libvirt lets changes happen beside it.
_JOBS = {
    libvirt.VIR_DOMAIN_JOB_OPERATION_SAVE: "saving it",
    libvirt.VIR_DOMAIN_JOB_OPERATION_DUMP: "dumping its memory",
    libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN: "receiving it from another host",
    libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT: "migrating it to another host ('domain migrate-abort' stops that)",
    libvirt.VIR_DOMAIN_JOB_OPERATION_SNAPSHOT: "taking a snapshot of it",
}

_waiting: dict[tuple[str | None, str], threading.Thread] = {}
"""Who waits for a QEMU that hangs, by URI and UUID: one a domain, however often it is asked for."""


def job_in_words(session: Session, handle: Any) -> str:
    """libvirt's own job on the domain that holds up every change: begun elsewhere, or by a virtgauge that died.

    Of some libvirt asks QEMU: one that hangs is given up after 3 s, and told as that for as long as the question
    is not answered. The session that waits is then nobody's any more.
    """
    asked = (session.uri, handle.UUIDString())
    earlier = _waiting.get(asked)
    if earlier is not None and earlier.is_alive():
        return _HANGS
    _waiting.pop(asked, None)
    found: list[int | None] = []

    def ask() -> None:
        with contextlib.suppress(libvirt.libvirtError):
            found.append(handle.jobStats(0).get("operation"))

    try:
        # jobStats waits 30 s where a call holds the domain; controlInfo tells that at once.
        if handle.controlInfo()[0] != libvirt.VIR_DOMAIN_CONTROL_OK:
            return ""
    except libvirt.libvirtError:
        return ""
    asking = start_thread(ask, "control-job")
    asking.join(_ANSWER_S)
    if asking.is_alive():
        _waiting[asked] = asking
        session.abandon()
        return _HANGS
    return _JOBS.get(found[0], "") if found and found[0] is not None else ""
