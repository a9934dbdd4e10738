"""Host: what happens on this host, and who does it to whom?"""

from __future__ import annotations

from dataclasses import replace

from grafana.source import infinity, levels
from grafana.source.causes import LATENCY
from grafana.source.fleet import ALERTS, EVENTS, STARTS
from grafana.source.grid import Dashboard, Row
from grafana.source.panels import ALARM, UP_DOWN, Query, bars, graph, guest_link, listing, number, timeline
from grafana.source.states import STATE, STATE_WORDS

HOST = Dashboard(
    uid="virtgauge-host", title="virtgauge / Host", domains="many", annotations=(ALERTS, STARTS, replace(EVENTS, enabled=False)),
    more_annotations=(infinity.acts(domain=""),), more_variables=(infinity.variable("control"),),
    description="What happens on this host, and who does it to whom? Who uses the CPUs, the disks and the network, and "
                "who waits because of it.",
    rows=(
        Row("Now", (
            number("libvirt", "Whether libvirt answered the last sample.", "none", "min(libvirt_up{@host})",
                   words=UP_DOWN, trend=False),
            number("Guests running", "Running guests.", "none", 'sum(libvirt_domains{@host,state="running"})'),
            number("vCPUs", "vCPUs online in all guests.", "none", "sum(libvirt_domain_info_virtual_cpus{@host})"),
            number("pCPUs in use", "pCPUs that guests and their QEMUs use.", "short",
                   "sum(libvirt_domain_cpu_usage_cores{@host})"),
            number("Worst steal", "Share of time that the worst vCPU was ready and had no pCPU.", "percentunit",
                   "max(libvirt_domain_vcpu_steal_ratio{@host})", steps=levels.STEAL),
            number("Answered in part", "Guests of whom libvirt gave only a part of the figures.", "none",
                   "sum(libvirt_domain_sample_complete{@host} == bool 0)", steps=ALARM),
        )),
        Row("Guests", (
            timeline("State of each guest", "The state of each guest over time, with its reason. A stretch of another "
                     "colour than its neighbours is where to look.", Query(STATE, "{{domain}}"), words=STATE_WORDS, link=guest_link(),
                     height=9, empty="No guest"),
            listing("Guests now", "The figures of now, a line a guest. Latency and steal are the worst of its disks and "
                    "vCPUs.",
                    Query(STATE, "State", words=STATE_WORDS),
                    Query("max by (instance, domain) (libvirt_domain_cpu_usage_cores{@domain})", "pCPUs in use"),
                    Query("max by (instance, domain) (libvirt_domain_cpu_usage_ratio{@domain})", "Of its vCPUs",
                          "percentunit", gauge=True),
                    Query("max by (instance, domain) (libvirt_domain_vcpu_steal_ratio{@domain})", "Worst steal",
                          "percentunit", gauge=True, steps=levels.STEAL),
                    Query("max by (instance, domain) (libvirt_domain_memory_used_ratio{@domain})", "Memory used",
                          "percentunit", gauge=True, steps=levels.MEMORY),
                    Query("max by (instance, domain) (libvirt_domain_memory_stats_rss_bytes{@domain})", "Resident",
                          "bytes"),
                    Query("sum by (instance, domain) (libvirt_domain_block_reads_per_second{@domain} + "
                          "libvirt_domain_block_writes_per_second{@domain})", "Disk requests", "iops"),
                    Query(f"max by (instance, domain) ({LATENCY})", "Slowest disk", "s", coloured=True,
                          steps=levels.LATENCY),
                    Query("sum by (instance, domain) (libvirt_domain_interface_receive_bytes_per_second{@domain} + "
                          "libvirt_domain_interface_transmit_bytes_per_second{@domain})", "Network", "binBps"),
                    labels={"domain": "Guest", "instance": "Host"}, links={"domain": guest_link("data.fields")},
                    sort="pCPUs in use", height=10, empty="No guest"),
        )),
        Row("Noisy neighbours: who uses, who waits", (
            bars("Uses most CPU now", "The ten guests with the most pCPUs. Beside those who wait: the same name on "
                 "both sides is a guest that wants more than the host has.", "short",
                 Query("topk(10, sum by (instance, domain) (libvirt_domain_cpu_usage_cores{@domain}))", "{{domain}}"),
                 width=6, link=guest_link()),
            bars("Waits most for a pCPU now", "The ten guests whose worst vCPU waits most.", "percentunit",
                 Query("topk(10, max by (instance, domain) (libvirt_domain_vcpu_steal_ratio{@domain}))", "{{domain}}"),
                 width=6, steps=levels.STEAL, most=1, link=guest_link(), empty="No steal measured"),
            bars("Uses the disks most now", "The ten guests that read and write most bytes a second.", "binBps",
                 Query("topk(10, sum by (instance, domain) (libvirt_domain_block_read_bytes_per_second{@domain} + "
                       "libvirt_domain_block_write_bytes_per_second{@domain}))", "{{domain}}"), width=6,
                 link=guest_link(), empty="No disk"),
            bars("Waits longest for a disk now", "The ten guests whose worst disk is slowest, of reads, writes and "
                 "flushes. Beside those who use the disks most: another name here is who suffers from them.", "s",
                 Query(f"topk(10, max by (instance, domain) ({LATENCY}))", "{{domain}}"), width=6,
                 steps=levels.LATENCY, link=guest_link(), empty="No requests"),
        )),
        Row("The host itself", (
            graph("Host CPUs", "CPUs busy with each mode of work, of those that are online.", "short",
                  Query('sum by (mode) (rate(libvirt_node_cpu_seconds_total{@host,mode!="idle"}[$__rate_interval]))',
                        "{{mode}}", slow=True),
                  Query("sum(libvirt_node_cpus{@host})", "online", slow=True), stacked=True, dashed="online"),
            graph("Host memory", "Available is what new processes could have; promised is what all running guests may "
                  "have. Above the total it is overcommitted.", "bytes",
                  Query("sum(libvirt_node_memory_total_bytes{@host})", "total"),
                  Query("sum(libvirt_node_memory_available_bytes{@host} or libvirt_node_memory_free_bytes{@host} + "
                        "libvirt_node_memory_buffers_bytes{@host} + libvirt_node_memory_cached_bytes{@host})", "available"),
                  Query("sum(libvirt_node_memory_free_bytes{@host})", "free"),
                  Query("sum(libvirt_node_memory_cached_bytes{@host})", "page cache"),
                  Query("sum(libvirt_node_memory_allocated_bytes{@host})", "promised to guests"),
                  dashed="total|promised.*", aside=True, calcs=("lastNotNull",)),
            graph("vCPUs for each pCPU", "vCPUs of running guests for each CPU of the host.", "short",
                  Query("sum by (instance) (libvirt_node_vcpus_allocated{@host}) / "
                        "sum by (instance) (libvirt_node_cpus{@host})", "{{instance}}"), width=8),
            graph("Free memory by NUMA cell", "A full cell beside an empty one: guests pay for far memory.", "bytes",
                  Query("sum by (instance, cell) (libvirt_node_cell_memory_free_bytes{@host})",
                        "{{instance}} cell {{cell}}"), width=8),
            graph("Virtual networks", "DHCP leases that each virtual network gave.", "none",
                  Query("max by (instance, network) (libvirt_network_dhcp_leases{@host})", "{{network}}"), width=8,
                  empty="No virtual network with leases"),
        )),
        Row("CPU", (
            graph("pCPUs in use by guest", "Stacked: the height is what all guests take from the host.", "short",
                  Query("topk(20, sum by (instance, domain) (libvirt_domain_cpu_usage_cores{@domain}))", "{{domain}}"),
                  stacked=True, link=guest_link()),
            graph("Steal by guest", "Share of time a guest's worst vCPU was ready and had no pCPU. Above 10 % people "
                  "notice.", "percentunit",
                  Query("topk(20, max by (instance, domain) (libvirt_domain_vcpu_steal_ratio{@domain}))", "{{domain}}"),
                  steps=levels.STEAL, link=guest_link(), empty="No steal measured"),
            graph("vCPUs that ran last on each pCPU", "How many vCPU threads each pCPU ran last. A pCPU with many while "
                  "others have none: pinning, or a scheduler that cannot spread.", "none",
                  Query('count by (pcpu) (count_values by (instance, domain, vcpu) '
                        '("pcpu", libvirt_domain_vcpu_cpu{@domain}))', "pCPU {{pcpu}}"),
                  empty="No vCPU placement known"),
            graph("CPU against last week", "pCPUs in use by all guests of the host, now and a week ago.", "short",
                  Query("sum(libvirt_domain_cpu_usage_cores{@domain})", "now"),
                  Query("sum(libvirt_domain_cpu_usage_cores{@domain} offset 1w)", "a week ago"), dashed="a week ago"),
        )),
        Row("Memory", (
            graph("Memory of all guests", "Maximum is what guests may have, assigned what balloons leave them, "
                  "resident what their QEMUs really take.", "bytes",
                  Query("sum(libvirt_domain_info_maximum_memory_bytes{@domain})", "maximum"),
                  Query("sum(libvirt_domain_info_memory_usage_bytes{@domain})", "assigned"),
                  Query("sum(libvirt_domain_memory_stats_rss_bytes{@domain})", "resident"), dashed="maximum"),
            graph("Resident memory by guest", "Resident bytes of each QEMU, stacked.", "bytes",
                  Query("topk(20, max by (instance, domain) (libvirt_domain_memory_stats_rss_bytes{@domain}))",
                        "{{domain}}"), stacked=True, link=guest_link()),
        )),
        Row("Disk and network", (
            graph("Disk requests by guest", "Reads and writes a second, all disks of a guest.", "iops",
                  Query("topk(15, sum by (instance, domain) (libvirt_domain_block_reads_per_second{@domain} + "
                        "libvirt_domain_block_writes_per_second{@domain}))", "{{domain}}"), stacked=True,
                  link=guest_link()),
            graph("Latency of the worst disks", "Mean seconds a write, read or flush took, worst five disks of each; "
                  "absent while there are no requests.", "s",
                  Query("topk(5, max by (instance, domain, target_device) "
                        "(libvirt_domain_block_write_latency_seconds{@domain}))", "{{domain}} {{target_device}} write"),
                  Query("topk(5, max by (instance, domain, target_device) "
                        "(libvirt_domain_block_read_latency_seconds{@domain}))", "{{domain}} {{target_device}} read"),
                  Query("topk(5, max by (instance, domain, target_device) "
                        "(libvirt_domain_block_flush_latency_seconds{@domain}))", "{{domain}} {{target_device}} flush"),
                  steps=levels.LATENCY, link=guest_link(), empty="No requests"),
            graph("Network by guest", "Received upwards, sent downwards, as the guest sees it.", "binBps",
                  Query("topk(10, sum by (instance, domain) (libvirt_domain_interface_receive_bytes_per_second{@domain}"
                        "))", "{{domain}} received"),
                  Query("topk(10, sum by (instance, domain) "
                        "(libvirt_domain_interface_transmit_bytes_per_second{@domain}))", "{{domain}} sent"),
                  below=".* sent", link=guest_link()),
            graph("Network errors and drops", "Packets a second that were lost on guests' interfaces.", "pps",
                  Query("sum by (instance, domain) (rate(libvirt_domain_interface_stats_receive_errors_total{@domain}"
                        "[$__rate_interval]) + rate(libvirt_domain_interface_stats_transmit_errors_total{@domain}"
                        "[$__rate_interval]))", "{{domain}} errors"),
                  Query("sum by (instance, domain) (rate(libvirt_domain_interface_stats_receive_drops_total{@domain}"
                        "[$__rate_interval]) + rate(libvirt_domain_interface_stats_transmit_drops_total{@domain}"
                        "[$__rate_interval]))", "{{domain}} drops"), link=guest_link()),
        )),
    ))
