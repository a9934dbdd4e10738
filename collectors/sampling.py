"""Series about the sampling itself: libvirt's reachability, each collector's success, calls in flight."""

from __future__ import annotations

from collections.abc import Iterable

from .domain import STATES
from .fields import Collector, Declaration, Field, Info, Kind
from .support import UNSUPPORTED_INFO


def _own(source: str, name: str, text: str, kind: Kind = Kind.GAUGE, fixed: tuple[tuple[str, str], ...] = ()) -> Field:
    return Field(source, name, kind, text, fixed=fixed, subject_labels=(), since="")


def sampling(collectors: Iterable[Collector]) -> Collector:
    """The collector of the program's own series; it has no flag and is always on."""
    declarations: list[Declaration] = [
        _own("libvirt.up", "libvirt_up", "1 if libvirt answered this sample, 0 if not (libvirt.up, boolean)."),
        Info("libvirt_versions_info",
             "Always 1; versions of the running hypervisor, the daemon and the client library (virConnectGetVersion, "
             "virConnectGetLibVersion, virGetVersion, number).",
             ("hypervisor_running", "libvirtd_running", "libvirt_library"), source="versions", since=""),
    ]
    for state in STATES:
        declarations.append(_own(f"domains.{state}", "libvirt_domains",
                                 "Number of domains by state (count of libvirt state.state, domains).",
                                 fixed=(("state", state),)))
    names = [collector.name for collector in collectors]
    for word, text in (("success", "1 if the collector got all it asked for, 0 if not (collector.success, boolean)."),
                       ("duration_seconds", "Seconds the collector's calls took; collectors that share a bulk call "
                        "share its time (collector.duration, seconds).")):
        for name in names:
            declarations.append(_own(f"collector.{name}.{word}", f"libvirt_scrape_collector_{word}", text,
                                     fixed=(("collector", name),)))
    declarations += [
        Info("virtgauge_build_info", "Always 1; version of virtgauge and of the Python that runs it (build, version).",
             ("version", "python_version"), source="build", since=""),
        _own("sampler.in_flight", "virtgauge_sampler_calls",
             "libvirt calls that are waited for, or left to themselves as stuck (sampler.calls, calls).",
             fixed=(("state", "in_flight"),)),
        _own("sampler.stuck", "virtgauge_sampler_calls",
             "libvirt calls that are waited for, or left to themselves as stuck (sampler.calls, calls).",
             fixed=(("state", "stuck"),)),
        _own("sampler.hedged", "virtgauge_sampler_hedged_total",
             "Calls asked again on another connection because the first was late (sampler.hedged, calls).",
             Kind.COUNTER),
        _own("sampler.late", "virtgauge_sampler_late_total",
             "Calls that came back after they had been given up (sampler.late, calls).", Kind.COUNTER),
        _own("sampler.samples", "virtgauge_sampler_samples_total",
             "Samplings of libvirt, whoever asked (sampler.samples, samplings).", Kind.COUNTER),
        _own("page.series", "virtgauge_series", "Series on the page before this one (page.series, series)."),
        *(_own(f"cut.{limit}", "virtgauge_series_cut_domains",
               "Domains that are not on the page because they, or all together, have too many series "
               "(filter.max_series_per_domain, filter.max_series; cut.domain, cut.all, domains).",
               fixed=(("limit", limit),)) for limit in ("domain", "all")),
        Info(UNSUPPORTED_INFO,
             "Always 1; a libvirt call that the hypervisor's driver does not support, so that what it would give is "
             "absent; it is not made again (support, text).", ("call",), source="support", since=""),
        # The page itself adds this one, since a sample ages after it was taken.
        _own("sample.age", "virtgauge_sample_age_seconds",
             "Seconds since the sample on this page was whole (sample.age, seconds)."),
    ]
    return Collector("sampling", "The sampling itself.", tuple(declarations))
