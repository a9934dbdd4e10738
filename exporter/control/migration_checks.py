"""What must hold on the destination before a guest is moved there. Asks both hosts, changes nothing."""

from __future__ import annotations

import contextlib
from pathlib import PurePosixPath
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import libvirt
from pydantic import JsonValue

from collectors.domain_xml import element_tree
from exporter.control.domain import domain_state
from exporter.control.errors import RefusedError, UnsupportedError
from exporter.control.migration_disks import GuestDisk, copied_targets
from exporter.control.migration_parameters import MigrateParameters

# QEMU's own memory besides the guest's: libvirt's old estimate for a memory limit was of this size.
QEMU_OVERHEAD_BYTES = 64 << 20


def check_destination(source: Any, there: Any, handle: Any, parameters: MigrateParameters) -> dict[str, JsonValue]:
    """What was found out about the destination. Raises RefusedError or UnsupportedError with what stands against it."""
    place = parameters.to
    if there.getType() != source.getType():
        raise UnsupportedError(
            f"the destination {place} runs {there.getType()}, not {source.getType()}", next_step="choose another"
        )
    _refuse_same_host(source, there, place)
    name, uuid = parameters.new_name or handle.name(), handle.UUIDString()
    _refuse_name_clash(there, name, uuid, place)
    xml = handle.XMLDesc(0)
    facts: dict[str, JsonValue] = {"destination": place, "hypervisor_version": there.getVersion()}
    if parameters.mode != "offline":
        need, free = (handle.info()[1] << 10) + QEMU_OVERHEAD_BYTES, free_memory_bytes(there)
        facts |= {"memory_needed_bytes": need, "memory_free_bytes": free}
        refuse_without_memory(place, need, free)
        _refuse_without_networks(there, element_tree(xml), place)
    facts["cpu"] = check_cpu(source, there, element_tree(xml), place)
    return {key: value for key, value in facts.items() if value is not None}


def _refuse_same_host(source: Any, there: Any, place: str) -> None:
    if host_uuid(source) and host_uuid(source) == host_uuid(there):
        raise RefusedError(f"the destination {place} is this very host", next_step="choose another destination")


def host_uuid(connection: Any) -> str:
    """libvirt's UUID of the host; empty where the driver tells none."""
    return ElementTree.fromstring(connection.getCapabilities()).findtext("host/uuid") or ""


def _refuse_name_clash(there: Any, name: str, uuid: str, place: str) -> None:
    for lookup, word in ((there.lookupByName, name), (there.lookupByUUIDString, uuid)):
        try:
            known = lookup(word)
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                raise
            continue
        if known.UUIDString() != uuid:
            raise RefusedError(
                f"the destination {place} has another domain {name} (UUID {known.UUIDString()})",
                next_step="give it another name there (--new-name)",
            )
        if known.name() != name:
            raise RefusedError(
                f"the destination {place} knows this guest's UUID as {known.name()}",
                next_step=f"migrate it as --new-name {known.name()}, or undefine that one first",
            )
        if known.isActive():
            raise RefusedError(
                f"this guest already runs on the destination {place} ({domain_state(known)['state']})",
                next_step="destroy one of the two at once: both write to the same disks",
            )


def _refuse_without_networks(there: Any, domain: Element, place: str) -> None:
    wanted = {source.get("network") for source in domain.iterfind("devices/interface[@type='network']/source")}
    for name in sorted(name for name in wanted if name):
        try:
            if there.networkLookupByName(name).isActive():
                continue
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_NETWORK:
                continue  # it cannot be known; libvirt itself will say
            raise RefusedError(
                f"the destination {place} has no virtual network {name}", next_step="define it there first"
            ) from error
        raise RefusedError(f"the virtual network {name} is not active on {place}", next_step="start it there first")


def free_memory_bytes(connection: Any) -> int | None:
    """Memory a new guest can have: free, and what the kernel would give back. None where it is not told."""
    try:
        stats = connection.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS, 0)
    except libvirt.libvirtError:
        return None
    return sum(int(stats.get(key, 0)) for key in ("free", "buffers", "cached")) << 10


def refuse_without_memory(place: str, need_bytes: int, free_bytes: int | None) -> None:
    """Raises RefusedError where the destination has less memory than the guest may take."""
    if free_bytes is not None and free_bytes < need_bytes:
        raise RefusedError(
            f"the destination {place} has {free_bytes >> 20} MiB of memory free, and the guest may need"
            f" {need_bytes >> 20} MiB",
            next_step="make room there, or choose another destination",
        )


def check_cpu(source: Any, there: Any, domain: Element, place: str) -> str:
    """How the guest's CPU and machine fit: `compatible` or `unknown`. Raises RefusedError where they do not."""
    kind, os_type = domain.get("type"), domain.find("os/type")
    arch, machine = (os_type.get("arch"), os_type.get("machine")) if os_type is not None else (None, None)
    try:
        there.getDomainCapabilities(None, arch, machine, kind, 0)
    except libvirt.libvirtError as error:
        raise RefusedError(
            f"the destination {place} cannot run machine {machine} of type {kind}",
            next_step="choose a destination with that QEMU, or boot the guest with another machine type",
            libvirt_code=error.get_error_code(),
            libvirt_message=error.get_error_message(),
        ) from error
    cpu = domain.find("cpu")
    # check='none': QEMU leaves out what the host has not, here as there; to compare would refuse what runs.
    if cpu is None or cpu.get("check") == "none":
        return "compatible"
    try:
        if cpu.get("mode") in ("host-passthrough", "maximum"):
            if kind != "kvm":
                return "compatible"
            result = there.compareCPU(_host_cpu(source), libvirt.VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE)
        else:
            flags = libvirt.VIR_CONNECT_COMPARE_CPU_FAIL_INCOMPATIBLE
            text = ElementTree.tostring(cpu, encoding="unicode")
            result = there.compareHypervisorCPU(None, arch, machine, kind, text, flags)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_CPU_INCOMPATIBLE:
            return "unknown"
        raise RefusedError(
            f"the destination {place} has no CPU like the guest's",
            next_step="choose another destination, or boot the guest with a CPU model that both hosts have",
            libvirt_code=error.get_error_code(),
            libvirt_message=error.get_error_message(),
        ) from error
    return "compatible" if result > libvirt.VIR_CPU_COMPARE_INCOMPATIBLE else "unknown"


def _host_cpu(connection: Any) -> str:
    cpu = ElementTree.fromstring(connection.getCapabilities()).find("host/cpu")
    return ElementTree.tostring(cpu, encoding="unicode") if cpu is not None else ""


def copies(there: Any, disks: list[GuestDisk], parameters: MigrateParameters, sizes: dict[str, int]) -> CopyPlan:
    """What copying the disks means on the destination. Raises RefusedError where a pool there has not the room."""
    plan = CopyPlan()
    for disk in disks:
        if disk.target not in copied_targets(disks, parameters):
            continue
        plan.steps.append(f"copy disk {disk.target} ({disk.source}, {sizes.get(disk.target, 0) >> 20} MiB)")
        with contextlib.suppress(libvirt.libvirtError):
            there.storageVolLookupByPath(disk.source)
            if parameters.copy_storage == "full":
                plan.lost.append(f"what {disk.source} holds on the destination {parameters.to}")
            continue
        if parameters.copy_storage == "incremental" and _pool_of(there, disk) is not None:
            raise RefusedError(
                f"the destination {parameters.to} has no {disk.source}, and libvirt makes none for an incremental copy",
                next_step="create it there over the same backing file (qemu-img create -b), refresh its pool, or copy"
                " the whole (--copy-storage full)",
            )
        _room(there, disk, sizes.get(disk.target, 0), parameters.to, plan)
    return plan


class CopyPlan:
    """Steps, what they overwrite, and what should be known before."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.lost: list[str] = []
        self.warnings: list[str] = []


def _pool_of(there: Any, disk: GuestDisk) -> Any | None:
    with contextlib.suppress(libvirt.libvirtError):
        pool = there.storagePoolLookupByTargetPath(str(PurePosixPath(disk.source).parent))
        return pool if pool.isActive() else None
    return None


def _room(there: Any, disk: GuestDisk, size: int, place: str, plan: CopyPlan) -> None:
    folder, pool = str(PurePosixPath(disk.source).parent), _pool_of(there, disk)
    if pool is None:
        plan.warnings.append(
            f"the destination {place} has no storage pool in {folder}: libvirt copies {disk.target} only into a file"
            " that is there already, and what it holds is overwritten"
        )
        return
    free = int(pool.info()[3])
    if free < size:
        raise RefusedError(
            f"the destination's pool {pool.name()} has {free >> 20} MiB free, and disk {disk.target} may need"
            f" {size >> 20} MiB",
            next_step="make room there",
        )
