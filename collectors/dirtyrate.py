"""How fast the guest dirties its memory, by the last calculation that somebody started; none is ever started here."""

from __future__ import annotations

from .fields import MEBIBYTE, Collector, Field, Kind, StateSet

GROUPS = ("dirtyrate",)

DIRTYRATE = Collector(
    name="dirtyrate",
    help="Result of the last dirty-rate calculation.",
    declarations=(
        StateSet("dirtyrate.calc_status", "libvirt_domain_dirtyrate_status",
                 "State of the dirty-rate calculation, 1 for the one it is in (libvirt dirtyrate.calc_status, "
                 "enumeration).", ("unstarted", "measuring", "measured"), label="status", since="7.2.0"),
        Field("dirtyrate.calc_period", "libvirt_domain_dirtyrate_period_seconds", Kind.GAUGE,
              "Seconds over which it was measured (libvirt dirtyrate.calc_period, seconds).", since="7.2.0",
              zero_is_unknown=True),
        Field("dirtyrate.megabytes_per_second", "libvirt_domain_dirtyrate_bytes_per_second", Kind.GAUGE,
              "Bytes of memory a second that the guest wrote to anew (libvirt dirtyrate.megabytes_per_second, MiB a "
              "second).", MEBIBYTE, since="7.2.0"),
        Field("dirtyrate.vcpu.<n>.megabytes_per_second", "libvirt_domain_vcpu_dirtyrate_bytes_per_second", Kind.GAUGE,
              "Bytes of memory a second that the vCPU wrote to anew, in dirty-ring mode (libvirt "
              "dirtyrate.vcpu.<n>.megabytes_per_second, MiB a second).", MEBIBYTE, "vcpu", since="8.1.0"),
    ),
    default=False,
)
