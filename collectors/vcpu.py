"""vCPUs: run time, steal and what each used of its pCPU."""

from __future__ import annotations

from .fields import NANOSECOND, Collector, Computed, Field, Kind, Ratio

VCPU = Collector(
    name="vcpu",
    help="vCPU counts, run time, wait and steal time.",
    groups=("vcpu",),
    declarations=(
        Field("vcpu.current", "libvirt_domain_info_virtual_cpus", Kind.GAUGE,
              "Number of vCPUs that are online (libvirt vcpu.current, count).", archive="vcpu_count"),
        Field("vcpu.maximum", "libvirt_domain_vcpu_maximum", Kind.GAUGE,
              "Number of vCPUs that can be online (libvirt vcpu.maximum, count).", archive="vcpu_maximum"),
        Field("vcpu.<n>.time", "libvirt_domain_vcpu_time_seconds_total", Kind.COUNTER,
              "Seconds the vCPU's thread ran on the host (libvirt vcpu.<n>.time, nanoseconds).",
              NANOSECOND, "vcpu", archive="time_ns"),
        Field("vcpu.<n>.wait", "libvirt_domain_vcpu_wait_seconds_total", Kind.COUNTER,
              "Seconds the vCPU's thread was ready and waited for a pCPU, by the scheduler's statistics, which must be "
              "on (libvirt vcpu.<n>.wait, nanoseconds); absent where libvirt cannot read it and says 0.",
              NANOSECOND, "vcpu", archive="wait_ns", since="1.3.3", zero_is_unknown=True),
        Field("vcpu.<n>.delay", "libvirt_domain_vcpu_delay_seconds_total", Kind.COUNTER,
              "Seconds the vCPU's thread was ready to run and had no pCPU: steal (libvirt vcpu.<n>.delay, "
              "nanoseconds).",
              NANOSECOND, "vcpu", archive="delay_ns", since="7.2.0"),
        Field("vcpu.<n>.guest", "libvirt_domain_vcpu_guest_seconds_total", Kind.COUNTER,
              "Seconds of its run time in which the vCPU ran the guest's own code; the rest went into exits and "
              "emulation, all of it without KVM (thread's stat file, field 43, as vcpu.<n>.guest, nanoseconds).",
              NANOSECOND, "vcpu", archive="guest_ns", since=""),
        Field("vcpu.<n>.timeslices", "libvirt_domain_vcpu_timeslices_total", Kind.COUNTER,
              "Times the vCPU's thread was put on a pCPU; delay divided by it is the mean wait for one (thread's "
              "schedstat file, field 3, as vcpu.<n>.timeslices, count).", 1.0, "vcpu", since=""),
        Field("vcpu.<n>.cpu", "libvirt_domain_vcpu_cpu", Kind.GAUGE,
              "Number of the pCPU the vCPU's thread ran on last (thread's stat file, field 39, as vcpu.<n>.cpu, "
              "number).", 1.0, "vcpu"),
        Field("vcpu.<n>.halted", "libvirt_domain_vcpu_halted", Kind.GAUGE,
              "1 if the guest has halted the vCPU, 0 if not; on s390x alone (libvirt vcpu.<n>.halted, boolean).",
              1.0, "vcpu", since="2.4.0"),
        Computed("libvirt_domain_vcpu_usage_ratio", Ratio.PER_SECOND, "vcpu.<n>.time",
                 "Share of a pCPU that the vCPU used (rate of libvirt vcpu.<n>.time, ratio).",
                 scale=NANOSECOND, label="vcpu", at_most=1.0),
        Computed("libvirt_domain_vcpu_steal_ratio", Ratio.PER_SECOND, "vcpu.<n>.delay",
                 "Share of time that the vCPU was ready and had no pCPU (rate of libvirt vcpu.<n>.delay, ratio).",
                 scale=NANOSECOND, label="vcpu", at_most=1.0),
    ),
)
