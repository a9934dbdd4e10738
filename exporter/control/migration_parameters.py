"""What a migration can be asked for, and libvirt's flags and typed parameters made of it. Pure."""

from __future__ import annotations

from typing import Any, Literal

import libvirt
from pydantic import Field, model_validator

from exporter.control.destinations import Destination
from exporter.control.guest_fields import DomainName
from exporter.control.operation import Parameters

# libvirt's words for compression (VIR_MIGRATE_PARAM_COMPRESSION); zlib and zstd need parallel connections.
Compression = Literal["none", "xbzrle", "mt", "zlib", "zstd"]


class MigrateParameters(Parameters):
    to: str = Field(min_length=1, max_length=63, description="Name of the destination, one of the settings'.")
    mode: Literal["live", "paused", "offline"] = Field(
        default="live",
        description="live: it runs meanwhile; paused: its CPUs stand still meanwhile; offline: only the definition of"
        " one that does not run.",
    )
    transport: Literal["direct", "peer-to-peer", "tunnelled"] = Field(
        default="direct",
        description="direct: virtgauge leads both hosts; peer-to-peer: the two libvirts by themselves, even if"
        " virtgauge ends; tunnelled: so, and the memory through their connection.",
    )
    new_name: DomainName | None = Field(default=None, description="Another name on the destination.")
    copy_storage: Literal["none", "full", "incremental"] = Field(
        default="none", description="Copy local disks along: whole, or only what differs from a shared backing file."
    )
    copy_disk: tuple[str, ...] = Field(default=(), description="Copy this target (vda) only; repeatable.")
    shared_disk: tuple[str, ...] = Field(
        default=(),
        description="This target is the same disk on both hosts, though that cannot be seen from here; repeatable.",
    )
    keep_source: bool = Field(
        default=False, description="Leave the definition here too, inactive; else it moves to the destination."
    )
    bandwidth_mib_per_second: int | None = Field(
        default=None, ge=1, le=1 << 20, description="Most MiB a second for the memory."
    )
    max_downtime_s: float | None = Field(
        default=None, ge=0.001, le=2000, description="Longest stand-still that is accepted at the end."
    )
    auto_converge: bool = Field(
        default=False, description="Slow the guest's CPUs down where it writes faster than its memory moves."
    )
    auto_converge_initial_percent: int | None = Field(default=None, ge=1, le=99, description="By how much at first.")
    auto_converge_step_percent: int | None = Field(default=None, ge=1, le=99, description="By how much more each time.")
    post_copy: Literal["never", "allowed", "after-first-pass"] = Field(
        default="never",
        description="Run it on the destination before all its memory is there; a failure then loses the guest."
        " allowed: when told by migrate-tune or by on-timeout.",
    )
    compression: Compression = Field(default="none", description="How the memory is compressed.")
    parallel_connections: int | None = Field(default=None, ge=2, le=64, description="Connections for the memory.")
    encrypt: bool = Field(default=False, description="Memory and disks by TLS, with the hosts' own certificates.")
    within_s: float = Field(default=600.0, ge=5, le=86400, description="Time it may take.")
    on_timeout: Literal["abort", "pause", "post-copy"] = Field(
        default="abort",
        description="What is done when that is over: abort; pause the guest so that it ends, and abort after the same"
        " time again; or switch to post-copy.",
    )

    @model_validator(mode="after")
    def _fits_together(self) -> MigrateParameters:
        if self.copy_disk and self.copy_storage == "none":
            raise ValueError("copy_disk names disks, but copy_storage is none; choose full or incremental")
        both = set(self.copy_disk) & set(self.shared_disk)
        if both:
            raise ValueError(f"{', '.join(sorted(both))} cannot be both shared and copied; name it once")
        if self.transport == "tunnelled" and (self.copy_storage != "none" or self.parallel_connections or self.encrypt):
            raise ValueError("tunnelled goes without disks, parallel connections and encrypt; choose peer-to-peer")
        if self.mode == "offline" and self.copy_storage != "none":
            raise ValueError("offline moves the definition only, no disks; copy them by other means")
        if self.on_timeout == "post-copy" and self.post_copy == "never":
            raise ValueError("on_timeout post-copy needs post_copy allowed")
        if (self.auto_converge_initial_percent or self.auto_converge_step_percent) and not self.auto_converge:
            raise ValueError("auto_converge's percentages need auto_converge")
        return self

    @property
    def longest_s(self) -> float:
        """The time after which the migration itself is given up."""
        return self.within_s if self.on_timeout == "abort" else 2 * self.within_s


def migration_flags(parameters: MigrateParameters, persistent: bool) -> int:
    """libvirt's VIR_MIGRATE_* flags; `persistent` says whether the guest has a definition to move."""
    p = parameters
    chosen = {
        libvirt.VIR_MIGRATE_LIVE: p.mode == "live",
        libvirt.VIR_MIGRATE_OFFLINE: p.mode == "offline",
        libvirt.VIR_MIGRATE_PEER2PEER: p.transport != "direct",
        libvirt.VIR_MIGRATE_TUNNELLED: p.transport == "tunnelled",
        libvirt.VIR_MIGRATE_PERSIST_DEST: persistent,
        libvirt.VIR_MIGRATE_UNDEFINE_SOURCE: persistent and not p.keep_source,
        libvirt.VIR_MIGRATE_NON_SHARED_DISK: p.copy_storage == "full",
        libvirt.VIR_MIGRATE_NON_SHARED_INC: p.copy_storage == "incremental",
        libvirt.VIR_MIGRATE_AUTO_CONVERGE: p.auto_converge,
        libvirt.VIR_MIGRATE_POSTCOPY: p.post_copy != "never",
        libvirt.VIR_MIGRATE_COMPRESSED: p.compression != "none",
        libvirt.VIR_MIGRATE_PARALLEL: p.parallel_connections is not None,
        libvirt.VIR_MIGRATE_TLS: p.encrypt,
        # libvirt knows shared storage by its file system only; what it cannot see has been checked and confirmed.
        libvirt.VIR_MIGRATE_UNSAFE: bool(p.shared_disk) and p.mode != "offline",
        # A guest whose disk fails meanwhile must not arrive with that.
        libvirt.VIR_MIGRATE_ABORT_ON_ERROR: p.mode != "offline",
    }
    return sum(flag for flag, wanted in chosen.items() if wanted)


def typed_parameters(parameters: MigrateParameters, destination: Destination, copied: list[str]) -> dict[str, Any]:
    """libvirt's VIR_MIGRATE_PARAM_*; `copied` are the targets whose disks go along."""
    p = parameters
    found: dict[str, Any] = {
        libvirt.VIR_MIGRATE_PARAM_DEST_NAME: p.new_name,
        libvirt.VIR_MIGRATE_PARAM_BANDWIDTH: p.bandwidth_mib_per_second,
        libvirt.VIR_MIGRATE_PARAM_AUTO_CONVERGE_INITIAL: p.auto_converge_initial_percent,
        libvirt.VIR_MIGRATE_PARAM_AUTO_CONVERGE_INCREMENT: p.auto_converge_step_percent,
        libvirt.VIR_MIGRATE_PARAM_COMPRESSION: None if p.compression == "none" else p.compression,
        libvirt.VIR_MIGRATE_PARAM_PARALLEL_CONNECTIONS: p.parallel_connections,
        libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS: copied or None,
    }
    if p.mode != "offline" and p.transport != "tunnelled":
        found[libvirt.VIR_MIGRATE_PARAM_URI] = destination.stream_uri
    return {name: value for name, value in found.items() if value is not None}
