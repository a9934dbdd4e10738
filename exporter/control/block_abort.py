"""A block job of a running guest's disk, stopped from elsewhere."""

from __future__ import annotations

import dataclasses
from typing import Any

import libvirt

from exporter.control.block_chain import job_of, known_job
from exporter.control.block_jobs import DiskParameters, OnDisk
from exporter.control.connection import Session
from exporter.control.domain import find_domain
from exporter.control.errors import TimedOutError
from exporter.control.operation import Call, Operation, Plan, Subject


class BlockAbort(OnDisk[DiskParameters]):
    """Does not take the guest's own lock, which the commit or pull holds that it is to stop."""

    verb = "block-abort"
    summary = "Stops the block job on a guest's disk; the guest goes on with the disk as it was."
    parameters = DiskParameters

    def find(self, session: Session, reference: str | None, parameters: DiskParameters) -> Subject:
        subject = find_domain(session, reference or "")
        return dataclasses.replace(subject, key=f"block-abort-{subject.uuid}")

    def plan(self, call: Call, parameters: DiskParameters) -> Plan:
        job = job_of(call.subject.handle, parameters.device)
        return Plan(state=self.state(call, parameters), steps=["stop it"], nothing_to_do=not job)

    def act(self, call: Call, parameters: DiskParameters) -> None:
        try:
            call.subject.handle.blockJobAbort(parameters.device, 0)
        except libvirt.libvirtError:  # it ended by itself meanwhile
            if known_job(call.subject.handle, parameters.device) != {}:
                raise

    def verify(self, call: Call, parameters: DiskParameters) -> None:
        handle, device = call.subject.handle, parameters.device
        if not call.deadline.within(20).wait_for(lambda: known_job(handle, device) == {}):
            told = "still runs" if known_job(handle, device) else "may still run: libvirt cannot tell now"
            raise TimedOutError(f"the job on {device} {told}", next_step="ask again")


OPERATIONS: tuple[Operation[Any], ...] = (BlockAbort(),)
