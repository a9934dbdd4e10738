"""Domain: why is this guest slow, and what happened to it?"""

from __future__ import annotations

from grafana.source import infinity, levels
from grafana.source.causes import LATENCY, OF_LIMIT
from grafana.source.fleet import ALERTS_OF_GUEST, EVENTS, STARTS
from grafana.source.grid import Dashboard, Row
from grafana.source.infinity import Past, history
from grafana.source.panels import ALARM, ORANGE, YES_NO, Query, graph, listing, number, timeline
from grafana.source.states import DISK_ERROR, DISK_ERROR_WORDS, STATE, STATE_WORDS

DEVICE = "{{target_device}}"

DOMAIN = Dashboard(
    uid="virtgauge-domain", title="virtgauge / Domain", domains="one", annotations=(ALERTS_OF_GUEST, STARTS, EVENTS),
    more_annotations=(infinity.acts(),), more_variables=(infinity.variable("archive"), infinity.variable("control")),
    description="Why is this guest slow, and what happened to it? Its state, CPUs, memory, disks and interfaces in the "
                "order in which work flows through them.",
    rows=(
        Row("Now", (
            number("State", "The state libvirt gives, and the reason where it is told.", "none", STATE, words=STATE_WORDS,
                   trend=False, width=3),
            number("Running since", "When the guest's process started.", "dateTimeFromNow",
                   "max(libvirt_domain_start_timestamp_seconds{@domain}) * 1000", trend=False, empty="Not running",
                   width=3),
            number("pCPUs in use", "pCPUs in use, QEMU's own threads included.", "short",
                   "sum(libvirt_domain_cpu_usage_cores{@domain})", width=3),
            number("Worst steal", "Share of time that its worst vCPU was ready and had no pCPU: the host is short of CPU.",
                   "percentunit", "max(libvirt_domain_vcpu_steal_ratio{@domain})", steps=levels.STEAL,
                   empty="Not measured", width=3),
            number("Memory used", "What the guest says it uses of what it sees.", "percentunit",
                   "max(libvirt_domain_memory_used_ratio{@domain})", steps=levels.MEMORY,
                   empty="Guest does not say", width=3),
            number("Slowest disk", "Mean seconds of its slowest disk's reads, writes or flushes, whichever are slowest.", "s",
                   f"max({LATENCY})", steps=levels.LATENCY, empty="No requests", width=3),
            number("Nearest limit", "The highest share that it uses of any limit set for it: of a disk, an interface, CPUs. "
                   "Near 100 % the limit makes it slow, not the host.", "percentunit", f"max({OF_LIMIT})",
                   steps=levels.LIMIT, empty="No limit set", width=3),
            number("Monitor", "Seconds that the guest's monitor has not answered; 0 is well.", "s",
                   "max(libvirt_domain_monitor_busy_seconds{@domain})", steps=ALARM, width=3),
        )),
        Row("What happened", (
            timeline("State and its reason", "The guest's state over time: 'paused: io_error' is a guest whose storage "
                     "failed, 'paused: user' one that somebody paused. A line of a disk's own says why that disk holds the "
                     "guest up, within a minute. The marks in the graphs below are starts, events and alerts.",
                     Query(STATE, "{{domain}}"), Query(DISK_ERROR, DEVICE), words={**STATE_WORDS, **DISK_ERROR_WORDS},
                     height=5),
            timeline("Sample", "Whether libvirt answered in full. In part: the figures that are missing are absent, "
                     "never zero; the reason says why.",
                     Query("min(libvirt_domain_sample_complete{@domain})", "complete"),
                     Query("max by (reason) (libvirt_domain_sample_incomplete_reason{@domain}) + 1",
                           "why in part: {{reason}}"),
                     words={"1": ("in full", "green"), "0": ("in part", "red"), "2": ("yes", "orange")}, width=24,
                     height=4),
        )),
        Row("Events and jobs", (
            graph("Events", "How many events the guest had of late, by libvirt's name and detail. Prometheus counts them over the "
                  "width of a point, so that several at once are told about right.", "none",
                  Query("round(sum by (event, detail) (increase(libvirt_domain_events_total{@domain}[$__rate_interval])))",
                        "{{event}} {{detail}}"), calcs=("max",), empty="No event"),
            graph("Job: bytes to go", "What a migration, save or dump still has to move; disks' jobs beside it.",
                  "bytes",
                  Query("max(libvirt_domain_job_data_remaining_bytes{@domain})", "job"),
                  Query("max by (target_device, type) (libvirt_domain_block_job_end_bytes{@domain} - "
                        "libvirt_domain_block_job_current_bytes{@domain})", f"{DEVICE} {{{{type}}}}"),
                  empty="No job runs"),
            graph("Job: memory written against memory moved", "A migration converges while it moves memory faster than "
                  "the guest writes it anew.", "binBps",
                  Query("max(libvirt_domain_job_memory_bytes_per_second{@domain})", "moved"),
                  Query("max(libvirt_domain_job_memory_dirty_pages_per_second{@domain} * "
                        "libvirt_domain_job_memory_page_bytes{@domain})", "written anew"), empty="No job runs"),
            listing("Settings and last job", "What libvirt knows of the guest besides its figures.",
                    Query("max by (domain) (libvirt_domain_autostart{@domain})", "Autostart", words=YES_NO),
                    Query("max by (domain) (libvirt_domain_persistent{@domain})", "Persistent", words=YES_NO),
                    Query("max by (domain) (libvirt_domain_managed_save{@domain})", "Managed save", words=YES_NO),
                    Query("max by (domain) (libvirt_domain_snapshots{@domain})", "Snapshots"),
                    Query("max by (domain) (libvirt_domain_memory_stats_period_seconds{@domain})", "Reports every", "s",
                          words={"0": ("never asked", ORANGE)}),
                    Query("max by (domain) (libvirt_domain_job_last_elapsed_seconds{@domain})", "Last job took", "s"),
                    labels={"domain": "Guest"}, width=12, height=8),
            infinity.acts_listing("${domain}", height=7),
        ), collapsed=True),
        Row("Limits", (
            graph("Use of its limits", "Share that it uses of each limit set for its disks, interfaces and CPUs. A line near "
                  "100 % is a guest that is slow because somebody set it so.", "percentunit",
                  Query(f"max by (target_device, limit) ({OF_LIMIT})", f"{DEVICE} {{{{limit}}}}"), steps=levels.LIMIT,
                  ratio=True, width=24, height=7, empty="No limit is set for this guest"),
        )),
        Row("CPU", (
            graph("Use of each vCPU", "Share of a pCPU each vCPU used. One at 100 % beside idle ones is a program with "
                  "one thread.", "percentunit",
                  Query("max by (vcpu) (libvirt_domain_vcpu_usage_ratio{@domain})", "vCPU {{vcpu}}"), ratio=True),
            graph("Steal of each vCPU", "Share of time each vCPU was ready and had no pCPU. The host is short of CPU, "
                  "whatever the guest says of itself.", "percentunit",
                  Query("max by (vcpu) (libvirt_domain_vcpu_steal_ratio{@domain})", "vCPU {{vcpu}}"),
                  steps=levels.STEAL, empty="Not measured"),
            graph("CPU inside and around the guest", "All CPU time of the guest's process against that of its vCPUs: "
                  "the difference is QEMU's own work, mostly I/O. What of the vCPUs' time was not the guest's own code "
                  "went into exits and emulation. Kernel and user are the host's view of it. Dashed lines are quotas set.",
                  "short",
                  Query("max(rate(libvirt_domain_info_cpu_time_seconds_total{@domain}[$__rate_interval]))", "all"),
                  Query("sum(rate(libvirt_domain_vcpu_time_seconds_total{@domain}[$__rate_interval]))", "vCPUs"),
                  Query("sum(rate(libvirt_domain_vcpu_guest_seconds_total{@domain}[$__rate_interval]))",
                        "guest's own code"),
                  Query("max(rate(libvirt_domain_cpu_user_seconds_total{@domain}[$__rate_interval]))", "user"),
                  Query("max(rate(libvirt_domain_cpu_system_seconds_total{@domain}[$__rate_interval]))", "kernel"),
                  Query("max(libvirt_domain_limit_cores{@domain})", "quota of all"),
                  Query("max(libvirt_domain_limit_vcpu_cores{@domain} * libvirt_domain_info_virtual_cpus{@domain})",
                        "quota of the vCPUs"), dashed="quota.*", aside=True, width=24),
            graph("Wait of each vCPU", "Share of time each vCPU slept or waited for I/O. Absent where the host's kernel "
                  "does not tell.", "percentunit",
                  Query("max by (vcpu) (rate(libvirt_domain_vcpu_wait_seconds_total{@domain}[$__rate_interval]))",
                        "vCPU {{vcpu}}"), width=8, empty="This host's kernel does not tell"),
            graph("pCPU of each vCPU", "The number of the pCPU that each vCPU ran on last. Many changes cost caches; "
                  "steal beside a line that never moves is pinning.", "none",
                  Query("max by (vcpu) (libvirt_domain_vcpu_cpu{@domain})", "vCPU {{vcpu}}"), calcs=("lastNotNull",),
                  numbers=True, width=8),
            graph("Use of all vCPUs", "Use of the vCPUs together, now and a week ago.", "percentunit",
                  Query("max(libvirt_domain_cpu_usage_ratio{@domain})", "now"),
                  Query("max(libvirt_domain_cpu_usage_ratio{@domain} offset 1w)", "a week ago"), ratio=True,
                  dashed="a week ago", width=8),
        )),
        Row("Memory", (
            graph("Balloon, guest and host in one", "Maximum: what it may have. Assigned: what the balloon leaves it "
                  "now. Seen and used: what the guest says. Resident: what the host pays.", "bytes",
                  Query("max(libvirt_domain_info_maximum_memory_bytes{@domain})", "maximum"),
                  Query("max(libvirt_domain_info_memory_usage_bytes{@domain})", "assigned"),
                  Query("max(libvirt_domain_memory_stats_available_bytes{@domain})", "seen by the guest"),
                  Query("max(libvirt_domain_memory_stats_available_bytes{@domain} - "
                        "libvirt_domain_memory_stats_usable_bytes{@domain})", "used by the guest"),
                  Query("max(libvirt_domain_memory_stats_disk_cache_bytes{@domain})", "page cache of the guest"),
                  Query("max(libvirt_domain_memory_stats_unused_bytes{@domain})", "unused by the guest"),
                  Query("max(libvirt_domain_memory_stats_rss_bytes{@domain})", "resident on the host"),
                  Query("max(libvirt_domain_limit_memory_hard_bytes{@domain})", "limit of the process"),
                  dashed="maximum|assigned|limit.*", aside=True, width=24, height=9),
            graph("Swap of the guest", "Bytes a second the guest reads from and writes to its swap. Steady reading is a "
                  "guest that lacks memory.", "binBps",
                  Query("max(rate(libvirt_domain_memory_stats_swap_in_bytes_total{@domain}[$__rate_interval]))", "in",
                        slow=True),
                  Query("max(rate(libvirt_domain_memory_stats_swap_out_bytes_total{@domain}[$__rate_interval]))", "out",
                        slow=True),
                  below="out", empty="Guest does not say", width=8),
            graph("Page faults, in the guest and on the host", "Major faults need I/O: many of them in the guest is one "
                  "that reads its programs again and again; many on the host is a host that swapped the guest's memory "
                  "out, which the guest cannot know.", "cps",
                  Query("max(rate(libvirt_domain_memory_stats_major_fault_total{@domain}[$__rate_interval]))",
                        "guest, major", slow=True),
                  Query("max(rate(libvirt_domain_memory_stats_minor_fault_total{@domain}[$__rate_interval]))",
                        "guest, minor", slow=True),
                  Query("max(rate(libvirt_domain_process_major_faults_total{@domain}[$__rate_interval]))",
                        "host, major"),
                  width=8, empty="Guest does not say"),
            graph("Age of the guest's report", "Seconds since the guest last told its memory. It grows where the "
                  "balloon driver stopped or no stats period is set (row Events and jobs, Settings): then the guest's "
                  "figures are old.", "s",
                  Query("max(time() - libvirt_domain_memory_stats_last_update_timestamp_seconds{@domain})", "age"),
                  width=8, empty="Guest never reported"),
        )),
        Row("Disks", (
            graph("Disk throughput", "Bytes a second read (up) and written (down), each disk; dashed lines are limits set.",
                  "binBps",
                  Query("max by (target_device) (libvirt_domain_block_read_bytes_per_second{@domain})",
                        f"{DEVICE} read"),
                  Query("max by (target_device) (libvirt_domain_block_write_bytes_per_second{@domain})",
                        f"{DEVICE} written"),
                  Query("max by (target_device) (libvirt_domain_block_stats_limit_read_bytes{@domain} or "
                        "libvirt_domain_block_stats_limit_total_bytes{@domain})", f"{DEVICE} read limit"),
                  Query("max by (target_device) (libvirt_domain_block_stats_limit_write_bytes{@domain} or "
                        "libvirt_domain_block_stats_limit_total_bytes{@domain})", f"{DEVICE} write limit"),
                  below=".* (written|write limit)", dashed=".* limit"),
            graph("Requests", "Requests a second: reads up, writes down, flushes up; dashed lines are limits set.",
                  "iops",
                  Query("max by (target_device) (libvirt_domain_block_reads_per_second{@domain})", f"{DEVICE} reads"),
                  Query("max by (target_device) (libvirt_domain_block_writes_per_second{@domain})", f"{DEVICE} writes"),
                  Query("max by (target_device) (libvirt_domain_block_flushes_per_second{@domain})",
                        f"{DEVICE} flushes"),
                  Query("max by (target_device) (libvirt_domain_block_stats_limit_read_requests{@domain} or "
                        "libvirt_domain_block_stats_limit_total_requests{@domain})", f"{DEVICE} reads limit"),
                  Query("max by (target_device) (libvirt_domain_block_stats_limit_write_requests{@domain} or "
                        "libvirt_domain_block_stats_limit_total_requests{@domain})", f"{DEVICE} writes limit"),
                  below=".* writes.*", dashed=".* limit"),
            graph("Latency", "Mean seconds a request took; absent while there are none. Slow flushes make databases "
                  "slow long before reads and writes show it.", "s",
                  Query("max by (target_device) (libvirt_domain_block_read_latency_seconds{@domain})",
                        f"{DEVICE} read"),
                  Query("max by (target_device) (libvirt_domain_block_write_latency_seconds{@domain})",
                        f"{DEVICE} write"),
                  Query("max by (target_device) (libvirt_domain_block_flush_latency_seconds{@domain})",
                        f"{DEVICE} flush"), steps=levels.LATENCY, empty="No requests"),
            graph("Write latency against last week", "The same disk's latency a week ago: is this slow for it?", "s",
                  Query("max by (target_device) (libvirt_domain_block_write_latency_seconds{@domain})",
                        f"{DEVICE} now"),
                  Query("max by (target_device) (libvirt_domain_block_write_latency_seconds{@domain} offset 1w)",
                        f"{DEVICE} a week ago"), dashed=".*a week ago", empty="No writes"),
            graph("Bytes a request", "Mean size of reads and writes: small ones cost requests, large ones bandwidth.",
                  "bytes",
                  Query("max by (target_device) (libvirt_domain_block_read_bytes_per_second{@domain} / "
                        "(libvirt_domain_block_reads_per_second{@domain} > 0))", f"{DEVICE} read"),
                  Query("max by (target_device) (libvirt_domain_block_write_bytes_per_second{@domain} / "
                        "(libvirt_domain_block_writes_per_second{@domain} > 0))", f"{DEVICE} write"),
                  empty="No requests"),
            graph("Requests in flight", "Mean number of requests that a disk works on at once: the time spent in "
                  "requests, each second.", "short",
                  Query("max by (target_device) (rate(libvirt_domain_block_stats_read_time_seconds_total{@domain}"
                        "[$__rate_interval]))", f"{DEVICE} reads"),
                  Query("max by (target_device) (rate(libvirt_domain_block_stats_write_time_seconds_total{@domain}"
                        "[$__rate_interval]))", f"{DEVICE} writes"),
                  Query("max by (target_device) (rate(libvirt_domain_block_stats_flush_time_seconds_total{@domain}"
                        "[$__rate_interval]))", f"{DEVICE} flushes")),
            listing("Disks", "What each disk is, its size to the guest, and what its image takes on the host.",
                    Query("max by (target_device, bus, disk_type, driver_type, cache, discard, serial, source_file) "
                          "(libvirt_domain_block_info{@domain})"),
                    Query("max by (target_device) (libvirt_domain_block_stats_capacity_bytes{@domain})", "Size",
                          "bytes", narrow=True),
                    Query("max by (target_device) (libvirt_domain_block_stats_physicalsize_bytes{@domain})",
                          "On the host", "bytes", narrow=True),
                    Query("max by (target_device) (libvirt_domain_block_stats_allocation_bytes{@domain})",
                          "Highest offset written", "bytes"),
                    labels={"target_device": "Disk", "bus": "Bus", "disk_type": "Type", "driver_type": "Format",
                            "cache": "Cache", "discard": "Discard", "serial": "Serial", "source_file": "Source"},
                    narrow=("target_device", "bus", "disk_type", "driver_type", "cache", "discard"), height=5,
                    empty="No disk"),
        )),
        Row("Network", (
            graph("Network throughput", "Bytes a second received (up) and sent (down), as the guest sees it; dashed lines are "
                  "limits set.", "binBps",
                  Query("max by (target_device) (libvirt_domain_interface_receive_bytes_per_second{@domain})",
                        f"{DEVICE} received"),
                  Query("max by (target_device) (libvirt_domain_interface_transmit_bytes_per_second{@domain})",
                        f"{DEVICE} sent"),
                  Query("max by (target_device) "
                        "(libvirt_domain_interface_limit_receive_average_bytes_per_second{@domain})",
                        f"{DEVICE} received limit"),
                  Query("max by (target_device) "
                        "(libvirt_domain_interface_limit_transmit_average_bytes_per_second{@domain})",
                        f"{DEVICE} sent limit"), below=".* (sent|sent limit)", dashed=".* limit"),
            graph("Packets", "Packets a second received (up) and sent (down).", "pps",
                  Query("max by (target_device) (libvirt_domain_interface_receive_packets_per_second{@domain})",
                        f"{DEVICE} received"),
                  Query("max by (target_device) (libvirt_domain_interface_transmit_packets_per_second{@domain})",
                        f"{DEVICE} sent"), below=".* sent"),
            graph("Errors and drops", "Packets a second that were lost.", "pps",
                  Query("max by (target_device) (rate(libvirt_domain_interface_stats_receive_drops_total{@domain}"
                        "[$__rate_interval]))", f"{DEVICE} dropped, received"),
                  Query("max by (target_device) (rate(libvirt_domain_interface_stats_transmit_drops_total{@domain}"
                        "[$__rate_interval]))", f"{DEVICE} dropped, sent"),
                  Query("max by (target_device) (rate(libvirt_domain_interface_stats_receive_errors_total{@domain}"
                        "[$__rate_interval]))", f"{DEVICE} errors, received"),
                  Query("max by (target_device) (rate(libvirt_domain_interface_stats_transmit_errors_total{@domain}"
                        "[$__rate_interval]))", f"{DEVICE} errors, sent")),
            listing("Interfaces", "What each interface is.",
                    Query("max by (target_device, mac, model, type, source_bridge, mtu) "
                          "(libvirt_domain_interface_info{@domain})"),
                    labels={"target_device": "Interface", "mac": "MAC", "model": "Model", "type": "Type",
                            "source_bridge": "Bridge", "mtu": "MTU"}, width=12, height=8, empty="No interface"),
        )),
        Row("Long ago, from the archive", (
            history("CPU in the archive", "Share of all vCPUs, as far back as the archive goes: the mean of each point, "
                    "and its highest single sample dashed.", "percentunit", Past("cpu.usage_ratio", "use"), ratio=True),
            history("Steal in the archive", "Share of time that each vCPU was ready and had no pCPU.", "percentunit",
                    Past("vcpu.steal_ratio", "vCPU")),
            history("Memory in the archive", "What the guest said it used, and what it cost the host.", "bytes",
                    Past("memory.rss_bytes", "resident"), Past("memory.usage_bytes", "assigned")),
            history("Memory used in the archive", "Share of its memory that the guest said it used.", "percentunit",
                    Past("memory.used_ratio", "used"), ratio=True),
            history("Disks in the archive", "Bytes a second read (up) and written (down).", "binBps",
                    Past("block.read_bytes_per_second", "read"), Past("block.write_bytes_per_second", "written"),
                    below="written.*"),
            history("Latency in the archive", "Mean seconds a write and a flush took.", "s",
                    Past("block.write_latency_seconds", "write"), Past("block.flush_latency_seconds", "flush")),
            history("Network in the archive", "Bytes a second received (up) and sent (down).", "binBps",
                    Past("interface.receive_bytes_per_second", "received"),
                    Past("interface.transmit_bytes_per_second", "sent"), below="sent.*"),
            history("Images in the archive", "What each disk's image took on the host.", "bytes",
                    Past("block.physicalsize_bytes", "on the host")),
        ), collapsed=True),
        Row("What it is", (
            listing("Guest", "What the guest is and who owns it.",
                    Query("max by (domain, uuid, title, type, os_type, arch, machine, project_name, user_name, flavor, "
                          "instance_name, project_uuid, user_uuid) (libvirt_domain_info{@domain})"),
                    Query("max by (domain) (libvirt_domain_info_virtual_cpus{@domain})", "vCPUs"),
                    Query("max by (domain) (libvirt_domain_vcpu_maximum{@domain})", "vCPUs at most"),
                    labels={"domain": "Guest", "uuid": "UUID", "title": "Title", "type": "Type", "os_type": "OS type",
                            "arch": "Architecture", "machine": "Machine", "project_name": "Project",
                            "user_name": "User", "flavor": "Flavour"},
                    hidden=("instance_name", "project_uuid", "user_uuid"), wide=("uuid",), height=5, empty="No guest"),
        ), collapsed=True),
    ))
