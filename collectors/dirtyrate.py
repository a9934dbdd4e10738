"""How fast the guest dirties its memory, by the last calculation that somebody started; none is ever started here."""

from __future__ import annotations

from collections.abc import Mapping

from .fields import MEBIBYTE, Collector, Field, Kind, StateSet
from .snapshot import Value

GROUPS = ("dirtyrate",)
MODES = ("page-sampling", "dirty-bitmap", "dirty-ring")

DIRTYRATE = Collector(
    name="dirtyrate",
    help="Result of the last dirty-rate calculation.",
    declarations=(
        StateSet("dirtyrate.calc_status", "libvirt_domain_dirtyrate_status",
                 "State of the dirty-rate calculation, 1 for the one it is in (libvirt dirtyrate.calc_status, "
                 "enumeration).", ("unstarted", "measuring", "measured"), label="status", since="7.2.0"),
        StateSet("dirtyrate.mode", "libvirt_domain_dirtyrate_mode",
                 "How it was measured, 1 for the way it was (libvirt dirtyrate.calc_mode as dirtyrate.mode, "
                 "enumeration).", MODES, label="mode", since="8.1.0"),
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


def numbered(stats: Mapping[str, Value]) -> dict[str, Value]:
    """The keys that DIRTYRATE reads: libvirt's, with the mode as a number once something was measured.

    Its start is left out: it is by a clock of QEMU's own, which means nothing elsewhere.
    """
    found = {key: value for key, value in stats.items() if key.startswith("dirtyrate.")}
    mode = found.pop("dirtyrate.calc_mode", None)
    found.pop("dirtyrate.calc_start_time", None)
    if mode in MODES and found.get("dirtyrate.calc_status"):
        found["dirtyrate.mode"] = MODES.index(str(mode))
    return found
