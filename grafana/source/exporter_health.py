"""Exporter and archive health: can I believe what I see?"""

from __future__ import annotations

from grafana.source import levels
from grafana.source.fleet import ALERTS
from grafana.source.grid import Dashboard, Row
from grafana.source.panels import ALARM, UP_DOWN, Query, graph, listing, number, ours, timeline, upper

EXPORTER = Dashboard(
    uid="virtgauge-exporter", title="virtgauge / Exporter and archive health", annotations=(ALERTS,),
    description="Can I believe what I see? Scrapes, samples, calls that hang, and whether the archive keeps up.",
    source="virtgauge_build_info",
    rows=(
        Row("Now", (
            number("Exporters", "Exporters that Prometheus reaches, of those it should.", "percentunit",
                   f"avg({ours('up{@host}')})", steps=((None, "red"), (1, "green"))),
            number("libvirt", "Exporters whose libvirt answers.", "percentunit", "avg(libvirt_up{@host})",
                   steps=((None, "red"), (1, "green"))),
            number("Slowest scrape", "Seconds the slowest scrape takes. Prometheus gives up after its scrape timeout.",
                   "s", f"max({ours('scrape_duration_seconds{@host}')})", steps=levels.SCRAPE),
            number("Oldest sample", "Age of the sample on the page; above the maximum age libvirt does not answer.",
                   "s", "max(virtgauge_sample_age_seconds{@host})", steps=upper(15, 60)),
            number("Stuck calls", "libvirt calls that were left to themselves: each is held by a hung guest.", "none",
                   'sum(virtgauge_sampler_calls{@host,state="stuck"})', steps=ALARM),
            number("Series", "Series on all pages.", "short", "sum(virtgauge_series{@host})"),
        )),
        Row("Scrapes", (
            timeline("Reached by Prometheus", "Whether each exporter answered.", Query(ours("up{@host}"), "{{instance}}"),
                     words=UP_DOWN, width=12, height=6),
            timeline("libvirt answers", "Whether libvirt answered each exporter.",
                     Query("libvirt_up{@host}", "{{instance}}"), words=UP_DOWN,
                     width=12, height=6),
            graph("Scrape duration", "Seconds a scrape takes, as Prometheus sees it.", "s",
                  Query(ours("scrape_duration_seconds{@host}"), "{{instance}}"), width=8),
            graph("Series on the page", "A jump means guests or devices came or went; the size is what Prometheus "
                  "stores.", "short", Query("virtgauge_series{@host}", "{{instance}}"), width=8),
            graph("Series that came new", "New series in a scrape. Many at each scrape is churn: costly for "
                  "Prometheus.", "short", Query(ours("scrape_series_added{@host}"), "{{instance}}"), width=8),
        )),
        Row("Sampling", (
            graph("Age of the sample", "Seconds since the sample on the page was whole.", "s",
                  Query("virtgauge_sample_age_seconds{@host}", "{{instance}}")),
            graph("Samplings", "Samplings a second: about one an interval for each set of scrapers.", "ops",
                  Query("rate(virtgauge_sampler_samples_total{@host}[$__rate_interval])", "{{instance}}")),
            graph("Calls to libvirt", "Calls that are waited for, and calls left to themselves as stuck.", "none",
                  Query("sum by (instance, state) (virtgauge_sampler_calls{@host})", "{{instance}} {{state}}")),
            graph("Calls asked again, calls that came late", "Asked again: the first was late, so another connection "
                  "asked. Came late: given up, and answered after all.", "ops",
                  Query("rate(virtgauge_sampler_hedged_total{@host}[$__rate_interval])", "{{instance}} asked again"),
                  Query("rate(virtgauge_sampler_late_total{@host}[$__rate_interval])", "{{instance}} came late")),
            graph("Duration of each collector", "Seconds of each collector's calls, the slowest host. Collectors that "
                  "share a bulk call share its time.", "s",
                  Query("max by (collector) (libvirt_scrape_collector_duration_seconds{@host})", "{{collector}}")),
            timeline("Success of each collector", "Whether each collector got all that it asked for, on every host.",
                     Query("min by (collector) (libvirt_scrape_collector_success{@host})", "{{collector}}"),
                     words={"1": ("all", "green"), "0": ("not all", "red")}, width=12),
            listing("Guests answered in part", "Who, and why: monitor (QEMU hangs), job (a migration, save or snapshot "
                    "holds it), agent, storage.",
                    Query("max by (instance, domain, reason) (libvirt_domain_sample_incomplete_reason{@host})"),
                    Query("max by (instance, domain) (libvirt_domain_monitor_busy_seconds{@host} > 0)", "Busy for", "s"),
                    labels={"domain": "Guest", "reason": "Why", "instance": "Host"}, width=12, height=7,
                    empty="All answered in full"),
            listing("Calls that libvirt does not support", "What this hypervisor's driver, or this version of libvirt, "
                    "does not know: asked once, and the figures from it are absent.",
                    Query("max by (instance, call) (virtgauge_unsupported_call_info{@host})"),
                    labels={"instance": "Host", "call": "Call"}, width=12, height=7, empty="All are supported"),
        )),
        Row("Archive", (
            graph("Archive lag", "Seconds since the newest sample that the database has.", "s",
                  Query("virtgauge_archive_lag_seconds{@host}", "{{instance}}"), steps=levels.LAG,
                  empty="The archive is off"),
            graph("Spool", "Share of its limit that the spool takes: what waits for the database. When it is full, samples "
                  "are lost.", "percentunit",
                  Query("virtgauge_archive_spool_bytes{@host} / (virtgauge_archive_spool_limit_bytes{@host} > 0)",
                        "{{instance}}"), steps=levels.SPOOL, ratio=True, empty="The archive is off"),
            graph("Samples spooled, stored and lost", "Spooled and stored run level, stored a minute later; "
                  "lost is a gap for ever.", "ops",
                  Query("sum by (instance) (rate(virtgauge_archive_spooled_samples_total{@host}[$__rate_interval]))",
                        "{{instance}} spooled", slow=True),
                  Query("sum by (instance) (rate(virtgauge_archive_stored_samples_total{@host}[$__rate_interval]))",
                        "{{instance}} stored", slow=True),
                  Query("sum by (instance, reason) (rate(virtgauge_archive_dropped_samples_total{@host}"
                        "[$__rate_interval])) > 0", "{{instance}} lost: {{reason}}", slow=True), empty="The archive is off"),
            graph("Faults of the database", "1 while the database takes no samples for this reason.", "none",
                  Query("max by (instance, fault) (virtgauge_archive_fault{@host}) > 0", "{{instance}} {{fault}}"),
                  empty="No fault"),
        )),
        Row("Refused requests", (
            graph("Refused requests by reason", "Requests and connections that exporter and control service refused, a "
                  "minute. token, role, domain, basic_auth, client_certificate: somebody without the right. rate, busy, "
                  "connections, slow: too much at once. configuration: the web configuration is broken.", "opm",
                  Query("60 * sum by (instance, reason) (rate(virtgauge_http_refused_total{@host}[$__rate_interval])) "
                        "> 0", "{{instance}} {{reason}}"), empty="None"),
            listing("Refused", "How many, in the time shown. Who it was is kept of the control API alone: virtgauge "
                    "control audit, records access-refused.",
                    Query("round(sum by (instance, reason) (increase(virtgauge_http_refused_total{@host}[$__range]))) "
                          "> 0", "Times", narrow=True),
                    labels={"instance": "Host", "reason": "Why"}, sort="Times", width=12, height=8),
        )),
        Row("The process", (
            graph("CPU", "Share of a CPU that virtgauge itself uses.", "percentunit",
                  Query(ours("rate(process_cpu_seconds_total{@host}[$__rate_interval])"), "{{instance}}"), width=8),
            graph("Memory", "Resident bytes of virtgauge.", "bytes",
                  Query(ours("process_resident_memory_bytes{@host}"), "{{instance}}"), width=8),
            graph("Open files", "Share of the open files and sockets that the process may have.", "percentunit",
                  Query(ours("process_open_fds{@host} / process_max_fds{@host}"), "{{instance}}"), width=8,
                  steps=upper(0.8), ratio=True),
        )),
    ))
