"""Moving a guest to another host: checked on both, watched, abortable, and found on exactly one afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import libvirt
from pydantic import JsonValue

from collectors.domain_xml import element_tree
from exporter.control import migration_job
from exporter.control.connection import Session, is_remote
from exporter.control.destinations import Destination, destination_named, destinations_listed
from exporter.control.domain import DomainOperation, domain_state, live_state
from exporter.control.errors import ControlError, RefusedError, TimedOutError, UnreachableError, from_libvirt
from exporter.control.folders import Folders
from exporter.control.migration_checks import CopyPlan, check_destination, copies
from exporter.control.migration_disks import GuestDisk, check_disks, copied_targets, guest_disks, media
from exporter.control.migration_parameters import MigrateParameters, migration_flags, typed_parameters
from exporter.control.migration_progress import Watch, job_facts
from exporter.control.migration_sides import look_at_both
from exporter.control.node_device_xml import pci_address_of
from exporter.control.operation import Call, NoParameters, Operation, Plan, Role, State, Subject

_MOVABLE = ("running", "blocked", "paused")
# What looking at both hosts, the destination's answer and the records may take besides the migration itself.
_BESIDES_S = 60.0
_POST_COPY_LOSES = "the guest itself, where the destination or the network fails during post-copy"


class Migrate(DomainOperation[MigrateParameters]):
    """`details`: destination, disks, what libvirt's statistics say of the way (bytes, passes, downtime)."""

    verb = "migrate"
    area = "migration"
    summary = "Moves a guest to another host: live, paused, or its definition only."
    parameters = MigrateParameters
    role = Role.OPERATOR
    long_running = True

    def time_needed_s(self, parameters: MigrateParameters) -> float:
        return parameters.longest_s + _BESIDES_S

    def check(self, call: Call, parameters: MigrateParameters) -> None:
        handle, name = call.subject.handle, call.subject.name
        _refuse_by_state(handle, name, parameters)
        destination = destination_named(call.folders.destinations, parameters.to)
        check_disks(name, _disks(call), parameters)
        with destination.connection() as there:
            call.details.update(check_destination(call.session.connection, there, handle, parameters))
        call.details["disks"] = [disk.as_json() for disk in _disks(call)]

    def plan(self, call: Call, parameters: MigrateParameters) -> Plan:
        handle, p = call.subject.handle, parameters
        destination = destination_named(call.folders.destinations, p.to)
        disks = _disks(call)
        with destination.connection() as there:
            copied = copies(there, disks, p, _sizes(handle, disks))
        how = {"live": "while it runs", "paused": "with its CPUs stopped", "offline": "its definition only"}[p.mode]
        named = f" as {p.new_name}" if p.new_name else ""
        steps = [f"move it to {p.to}{named}, {how}, {p.transport}", *copied.steps]
        if p.mode != "offline":
            steps.append(f"after {p.within_s:g} s: {p.on_timeout}")
        if handle.isPersistent():
            steps.append("keep its definition here, inactive" if p.keep_source else "undefine it here")
        steps.append("look on both hosts that it runs on exactly one")
        return Plan(
            state=domain_state(handle), steps=steps, lost=_lost(disks, p, copied),
            warnings=_warnings(handle, destination, p, copied, disks),
        )  # fmt: skip

    def act(self, call: Call, parameters: MigrateParameters) -> None:
        destination = destination_named(call.folders.destinations, parameters.to)
        before = live_state(call.subject.handle)
        call.intent({"destination": destination.name, "was": before})
        call.details["destination"] = destination.name
        aborted = migration_job.abort_mark(call.folders, str(call.subject.uuid))
        aborted.unlink(missing_ok=True)  # of an earlier one
        with destination.connection() as there:
            watch = Watch(call, parameters, there)
            # Measured on libvirt 9.0: set on a running guest, before any job, it holds for the next migration.
            if parameters.max_downtime_s is not None and parameters.mode == "live":
                call.subject.handle.migrateSetMaxDowntime(max(1, round(parameters.max_downtime_s * 1000)), 0)
            try:
                with watch.watching():
                    self._migrate(call, parameters, destination, there)
            except libvirt.libvirtError as error:
                raise self._failed(call, destination, watch, error) from error
            finally:
                aborted.unlink(missing_ok=True)
            call.details.update(_statistics(there, str(call.subject.uuid), watch))

    def _migrate(self, call: Call, parameters: MigrateParameters, destination: Destination, there: Any) -> None:
        handle = call.subject.handle
        flags = migration_flags(parameters, bool(handle.isPersistent()))
        typed = typed_parameters(parameters, destination, copied_targets(_disks(call), parameters))
        if parameters.transport == "direct":
            handle.migrate3(there, typed, flags)
        else:
            handle.migrateToURI3(destination.uri, typed, flags)

    def _failed(
        self, call: Call, destination: Destination, watch: Watch, error: libvirt.libvirtError
    ) -> ControlError:
        """What became of the guest, in one line; a guest that we paused goes on."""
        uuid = str(call.subject.uuid)
        if watch.paused:
            _let_run(call.session, uuid)
        sides = look_at_both(call.session, destination, uuid)
        doing = f"migration of domain {call.subject.name} to {destination.name}"
        if watch.destination_lost:
            return UnreachableError(
                f"{doing}: {watch.stopped}; {sides.told()}",
                next_step="look at the destination, then ask again",
                outcome_unknown=not sides.runs_here,
            )
        if watch.stopped:
            return TimedOutError(
                f"{doing}: {watch.stopped}; {sides.told()}",
                next_step="give it more time or bandwidth, or let it converge (--auto-converge, --on-timeout pause)",
                outcome_unknown=not sides.runs_here,
            )
        failed = from_libvirt(error, doing)
        asked_for = migration_job.abort_mark(call.folders, uuid).exists()
        if asked_for or error.get_error_code() == libvirt.VIR_ERR_OPERATION_ABORTED:
            failed.cause, failed.next_step = f"{doing} was aborted", "ask again when it may go on"
        return type(failed)(
            f"{failed.cause}; {sides.told()}",
            next_step=failed.next_step if sides.runs_here else "look at both hosts before anything else",
            libvirt_code=failed.libvirt_code,
            libvirt_message=failed.libvirt_message,
            **({} if sides.runs_here else {"outcome_unknown": True}),
        )

    def verify(self, call: Call, parameters: MigrateParameters) -> None:
        destination = destination_named(call.folders.destinations, parameters.to)
        uuid = str(call.subject.uuid)
        if parameters.mode == "offline":
            _verify_definitions(call, parameters, destination)
            return
        settled = call.deadline.within(20).wait_for(
            lambda: look_at_both(call.session, destination, uuid).exactly_one, poll_s=0.5
        )
        sides = look_at_both(call.session, destination, uuid)
        call.details["runs_on"] = destination.name if sides.runs_there else "this host"
        if not settled or not sides.runs_there:
            raise ControlError(
                f"domain {call.subject.name} was migrated to {destination.name}, but {sides.told()}",
                next_step="look at both hosts before anything else",
                outcome_unknown=True,
            )

    def after(self, call: Call, parameters: MigrateParameters) -> State:
        destination = destination_named(call.folders.destinations, parameters.to)
        with destination.connection() as there:
            state = domain_state(there.lookupByUUIDString(str(call.subject.uuid)))
        return {**state, "host": destination.name}

    def aftermath(self, session: Session, folders: Folders, begun: Mapping[str, JsonValue]) -> str:
        subject = begun.get("subject")
        uuid = str(subject.get("uuid")) if isinstance(subject, dict) else ""
        try:
            destination = destination_named(folders.destinations, str(begun.get("destination")))
        except ControlError:
            return "interrupted, and its destination is no longer in the settings; look at both hosts"
        sides = look_at_both(session, destination, uuid)
        goes_on = sides.here is not None and migration_job.is_migrating(session.connection, uuid)
        more = "; libvirt is still migrating it ('domain migrate-abort' stops it)" if goes_on else ""
        return f"interrupted in the middle; {sides.told()}{more}; it is not repeated"


class MigrateDestinations(Operation[NoParameters]):
    """`rows`: name, transport, protected."""

    noun = "domain"
    verb = "migrate-destinations"
    area = "migration"
    summary = "Lists the hosts guests may be moved to (control.migration_destination)."
    role = Role.READER
    reads = True
    takes_subject = False

    def find(self, session: Session, reference: str | None, parameters: NoParameters) -> Subject:
        return Subject(kind="host", key="host", name="")

    def state(self, call: Call, parameters: NoParameters) -> State:
        return {"rows": destinations_listed(call.folders.destinations)}


def _refuse_by_state(handle: Any, name: str, parameters: MigrateParameters) -> None:
    state = live_state(handle)
    if parameters.mode == "offline":
        if not handle.isPersistent():
            raise RefusedError(f"domain {name} is transient and has no definition to move", next_step="use --mode live")
        if handle.isActive() and not parameters.keep_source:
            raise RefusedError(
                f"domain {name} is {state}, and offline moves its definition only",
                next_step="shut it down, use --mode live, or copy the definition with --keep-source",
            )
        if handle.hasManagedSaveImage(0):
            raise RefusedError(
                f"domain {name} has a managed save, which does not go along",
                next_step="start it and migrate it live, or drop it with 'domain managed-save-remove'",
            )
    elif state not in _MOVABLE:
        raise RefusedError(f"domain {name} is {state} and has no memory to move", next_step="use --mode offline")
    count = handle.snapshotNum(0)
    if count:
        raise RefusedError(
            f"domain {name} has {count} snapshots, and libvirt migrates none with any", next_step="delete them first"
        )
    if parameters.mode != "offline":
        _refuse_host_devices(handle, name)


def _refuse_host_devices(handle: Any, name: str) -> None:
    for device in element_tree(handle.XMLDesc(0)).iterfind("devices/hostdev"):
        address = device.find("source/address")
        at = (pci_address_of(address) if address is not None else None) or device.get("type") or "?"
        raise RefusedError(
            f"domain {name} has the device {at} of this host, which cannot go along",
            next_step="take it from the guest first, or shut it down and use --mode offline",
        )


def _verify_definitions(call: Call, parameters: MigrateParameters, destination: Destination) -> None:
    """Of a definition that was moved: it is there, and here only if it was to be kept."""
    sides = look_at_both(call.session, destination, str(call.subject.uuid))
    there = bool(sides.there and sides.there.get("persistent"))
    here = bool(sides.here and sides.here.get("persistent"))
    if not there or here != parameters.keep_source:
        found = [place for place, known in ((destination.name, there), ("this host", here)) if known]
        told = ", ".join(found) or "neither host"
        raise ControlError(
            f"domain {call.subject.name} was moved to {destination.name} and is defined on {told}",
            next_step="look at both hosts before anything else",
            outcome_unknown=True,
        )


def _disks(call: Call) -> list[GuestDisk]:
    session = call.session
    # The files of another host's guest are not under this machine's mounts.
    mounts = None if is_remote(session.connection.getURI()) else Path("/proc/self/mountinfo")
    return guest_disks(session.connection, call.subject.handle.XMLDesc(0), mounts)


def _sizes(handle: Any, disks: list[GuestDisk]) -> dict[str, int]:
    """Capacity in bytes by target; what libvirt cannot tell is absent."""
    found = {}
    for disk in disks:
        try:
            found[disk.target] = int(handle.blockInfo(disk.target)[0])
        except libvirt.libvirtError:
            continue
    return found


def _lost(disks: list[GuestDisk], parameters: MigrateParameters, copied: CopyPlan) -> list[str]:
    lost = list(copied.lost)
    for disk in disks:
        if disk.target in parameters.shared_disk and disk.seen == "local":
            lost.append(f"disk {disk.target} ({disk.source}), where the destination has another one of that name")
    if parameters.post_copy != "never":
        lost.append(_POST_COPY_LOSES)
    return lost


def _warnings(
    handle: Any, destination: Destination, parameters: MigrateParameters, copied: CopyPlan, disks: list[GuestDisk]
) -> list[str]:
    found = list(copied.warnings)
    safe_way = parameters.encrypt or (parameters.transport == "tunnelled" and destination.protected)
    if parameters.mode != "offline" and not safe_way:
        found.append("the guest's memory crosses the network unencrypted; see --encrypt and --transport tunnelled")
    if not destination.protected:
        found.append(f"the connection to {destination.name} is not encrypted (its URI's transport is tcp)")
    if handle.isPersistent() and handle.autostart():
        found.append("its autostart does not go along; set it on the destination")
    if parameters.keep_source and handle.isPersistent():
        found.append("it stays defined here: start it on one of the two hosts only")
    if parameters.mode != "offline":
        inserted = media(handle.XMLDesc(0))
        found += [f"{file} in a drive must be on {destination.name} too; else eject it first" for file in inserted]
    targets = copied_targets(disks, parameters)
    if targets:
        found.append(f"the files of {', '.join(targets)} stay here, and grow old")
    return found


def _statistics(there: Any, uuid: str, watch: Watch) -> dict[str, JsonValue]:
    """What the finished job says on the destination, else what was seen last."""
    facts: dict[str, JsonValue] = dict(watch.seen)
    with contextlib.suppress(libvirt.libvirtError):  # an offline one has none
        facts |= job_facts(there.lookupByUUIDString(uuid).jobStats(libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED))
    if facts:
        facts["most_dirty_pages_per_second"] = watch.most_dirty_pages_per_second
        facts["post_copy"] = watch.post_copy
    return facts


def _let_run(session: Session, uuid: str) -> None:
    with contextlib.suppress(libvirt.libvirtError, ControlError):  # where it is and in which state is told next
        session.connection.lookupByUUIDString(uuid).resume()


OPERATIONS: tuple[Operation[Any], ...] = (Migrate(), MigrateDestinations(), *migration_job.OPERATIONS)
