"""The domain itself: state with its reason, CPU time, start time, completeness of the sample."""

from __future__ import annotations

from .fields import NANOSECOND, Collector, Computed, Field, Info, Kind, Ratio, StateSet

STATES = ("nostate", "running", "blocked", "paused", "shutdown", "shutoff", "crashed", "pmsuspended")
"""virDomainState by number."""

REASONS: dict[int, tuple[str, ...]] = {
    0: ("unknown",),
    1: ("unknown", "booted", "migrated", "restored", "from_snapshot", "unpaused", "migration_canceled",
        "save_canceled", "wakeup", "crashed", "postcopy", "postcopy_failed"),
    2: ("unknown",),
    3: ("unknown", "user", "migration", "save", "dump", "io_error", "watchdog", "from_snapshot", "shutting_down",
        "snapshot", "crashed", "starting_up", "postcopy", "postcopy_failed", "api_error"),
    4: ("unknown", "user"),
    5: ("unknown", "shutdown", "destroyed", "crashed", "migrated", "saved", "failed", "from_snapshot", "daemon"),
    6: ("unknown", "panicked"),
    7: ("unknown",),
}
"""virDomain*Reason by state and number (include/libvirt/libvirt-domain.h)."""

INCOMPLETE_REASONS = ("monitor", "job", "agent", "storage")
"""Why a domain's sample is not whole."""


def state_name(state: int) -> str | None:
    """The name of a virDomainState; None for a number this version does not know."""
    return STATES[state] if 0 <= state < len(STATES) else None


def reason_name(state: int, reason: int) -> str:
    """The name of a state's reason; ``unknown`` for a number this version does not know."""
    names = REASONS.get(state, ("unknown",))
    return names[reason] if 0 <= reason < len(names) else "unknown"


DOMAIN = Collector(
    name="domain",
    help="Domain state and reason, CPU time, start time.",
    groups=("state", "cpu-total"),
    declarations=(
        StateSet("state.state", "libvirt_domain_state",
                 "State of the domain, 1 for the one it is in (libvirt state.state, enumeration).", STATES,
                 archive="state"),
        Info("libvirt_domain_state_reason",
             "Always 1; why the domain is in its state (libvirt state.reason, enumeration).",
             ("domain", "state", "reason"), source="state.reason"),
        Field("process.start-time", "libvirt_domain_start_timestamp_seconds", Kind.GAUGE,
              "Time the domain's process started (start time of its stat file as process.start-time, seconds since "
              "the epoch); absent where it is unknown.", archive="started_s"),
        Field("cpu.time", "libvirt_domain_info_cpu_time_seconds_total", Kind.COUNTER,
              "CPU seconds of the domain, QEMU's own threads included (libvirt cpu.time, nanoseconds).",
              NANOSECOND, archive="cpu_time_ns", identity=True),
        Field("cpu.user", "libvirt_domain_cpu_user_seconds_total", Kind.COUNTER,
              "CPU seconds of the domain's process in user mode on the host (libvirt cpu.user, nanoseconds).",
              NANOSECOND, archive="cpu_user_ns"),
        Field("cpu.system", "libvirt_domain_cpu_system_seconds_total", Kind.COUNTER,
              "CPU seconds of the domain's process in kernel mode on the host (libvirt cpu.system, nanoseconds).",
              NANOSECOND, archive="cpu_system_ns"),
        Field("sample.complete", "libvirt_domain_sample_complete", Kind.GAUGE,
              "1 if libvirt answered in full for the domain, 0 if only in part (sample.complete, boolean)."),
        Field("monitor.busy", "libvirt_domain_monitor_busy_seconds", Kind.GAUGE,
              "Seconds the domain's monitor has not answered, 0 if it does (virDomainGetControlInfo, milliseconds, "
              "as monitor.busy)."),
        Info("libvirt_domain_sample_incomplete_reason",
             "Always 1; why the domain's sample is not whole (monitor, job, agent or storage; libvirt's "
             "virDomainGetControlInfo state, enumeration).", ("domain", "reason"), source="sample.reason"),
        Computed("libvirt_domain_cpu_usage_cores", Ratio.PER_SECOND, "cpu.time",
                 "pCPUs in use by the domain (rate of libvirt cpu.time, seconds a second).", scale=NANOSECOND),
        Computed("libvirt_domain_cpu_usage_ratio", Ratio.PER_SECOND_AND_VALUE, "cpu.time",
                 "pCPUs in use by the domain for each of its vCPUs (rate of libvirt cpu.time / vcpu.current, ratio); "
                 "QEMU's own threads can lift it above 1.", denominator="vcpu.current", scale=NANOSECOND),
    ),
)
