"""Fleet: which hosts and guests need me now?"""

from __future__ import annotations

from dataclasses import replace

from grafana.source import levels
from grafana.source.causes import LATENCY, LOST, OF_LIMIT, SWAPPED
from grafana.source.grid import Annotation, Dashboard, Row
from grafana.source.panels import (
                    ALARM,
                    ORANGE,
                    RED,
                    UP_DOWN,
                    Query,
                    graph,
                    guest_link,
                    host_link,
                    listing,
                    number,
                    only_bad,
                    ours,
                    runbook_link,
                    upper,
)
from grafana.source.states import ERRORS, STATE, STATE_COLOURS, STATE_WORDS

STARTS = Annotation("Guest started", "libvirt_domain_start_timestamp_seconds{@domain} * 1000", "{{domain}} started",
                    "green", value_is_time=True)
_EVENTS = "libvirt_domain_events_total{@domain}"
EVENTS = Annotation("What happened to guests", "sum by (instance, domain, event, detail) "
                    f"(increase(libvirt_domain_events_total{{@domain}}[$__rate_interval]) > 0 or ({_EVENTS} unless "
                    f"{_EVENTS} offset 1m) and on (job, instance) libvirt_up{{@host}} offset 1m == 1)",
                    "{{domain}}: {{event}} {{detail}}", "blue", tags="domain,event,detail")
"""An event's counter begins with its first event, which is no increase: hence the second half, but not after a scrape
that failed, where all begin anew."""
_ALERT = 'alertname=~"(Libvirt|Virtgauge).*",alertstate="firing"'
FIRING = f'ALERTS{{@host,{_ALERT}}} or ALERTS{{@job,instance="",{_ALERT}}}'
"""Alerts of the fleet as a whole have no instance."""
ALERTS = Annotation("Alerts", FIRING, "{{alertname}} {{domain}}", RED, tags="alertname,severity,domain,instance")
ALERTS_OF_GUEST = replace(ALERTS, expr=f'ALERTS{{@domain,{_ALERT}}} or ALERTS{{@host,domain="",{_ALERT}}} or '
                                       f'ALERTS{{@job,instance="",{_ALERT}}}')
"""Where one guest is shown: no other guest's."""
OPERATIONS = Annotation(
    "Acts of control",
    'sum by (instance, operation) (increase(virtgauge_control_operations_total{@host,outcome="changed"}'
    "[$__rate_interval])) > 0", "{{operation}} by {{instance}}", "purple", tags="operation,instance", enabled=False)
"""A switch away: a busy service would fill the graphs with them."""
GUEST = {"instance": "Host", "domain": "Guest"}
TROUBLE = f'libvirt_domain_state_reason{{@domain,state!="running",reason=~"{"|".join(ERRORS)}"}}'
DISK = 'label_join(libvirt_domain_block_error_info{@domain}, "disk", ": ", "target_device", "error")'
SEVERITIES = {"critical": ("critical", RED), "warning": ("warning", ORANGE), "info": ("info", "blue")}

FLEET = Dashboard(
    uid="virtgauge-fleet", title="virtgauge / Fleet", domains="many", annotations=(ALERTS, OPERATIONS),
    description="Which hosts and guests need me now? From here a click leads to the host, and from there to the guest.",
    rows=(
        Row("Now", (
            number("Hosts", "Hosts whose libvirt answers its exporter.", "none", "sum(libvirt_up{@host})"),
            number("Hosts not seen", "Hosts whose exporter, or whose libvirt, does not answer: nothing is known of their "
                   "guests.", "none", f"count({ours('up{@host}')} == 0 or libvirt_up{{@host}} == 0) or vector(0)",
                   steps=ALARM),
            number("Guests running", "Running guests on all hosts chosen above.", "none",
                   'sum(libvirt_domains{@host,state="running"})'),
            number("Guests in trouble", "Guests that crashed, or are paused by an error rather than by somebody.",
                   "none", f"count({TROUBLE}) or 0 * count(libvirt_up{{@host}})", steps=ALARM),
            number("Guests answered in part", "Guests of whom libvirt gave only a part: hung, busy with a job, or their "
                   "storage waits. Their missing figures are absent, never zero.", "none",
                   "sum(libvirt_domain_sample_complete{@domain} == bool 0)", steps=upper(1)),
            number("Alerts firing", "Alerts of virtgauge's rules that fire now.", "none",
                   f"count({FIRING}) or 0 * count(libvirt_up{{@host}})", steps=upper(1)),
        )),
        Row("Who is unwell, and why", (
            listing("Guests that are unwell", "Only guests with something wrong, and only what is wrong, from where "
                    "alerts would fire if it lasted: state, the disk whose error paused the guest, steal, memory, slow "
                    "requests, use near a limit set for the guest, swapping, packets lost, figures that libvirt gave only "
                    "in part. A click leads to the guest.",
                    Query(f"max by (instance, domain, state, reason) ({TROUBLE})"),
                    Query("max by (instance, domain) (libvirt_domain_autostart{@domain} == 1 and on (job, instance, domain) "
                          'libvirt_domain_state{@domain,state=~"shutoff|crashed"} == 1)', "Autostart",
                          words={"1": ("but it is off", RED)}),
                    Query(f"max by (instance, domain) (libvirt_domain_vcpu_steal_ratio{{@domain}}) > {levels.STEAL_FROM}", "Worst steal",
                          "percentunit", coloured=True, steps=only_bad(levels.STEAL)),
                    Query(f"max by (instance, domain) (libvirt_domain_memory_used_ratio{{@domain}}) > {levels.MEMORY_FROM}", "Memory used",
                          "percentunit", coloured=True, steps=only_bad(levels.MEMORY)),
                    Query(f"max by (instance, domain) ({LATENCY}) > {levels.LATENCY_FROM}", "Slowest disk", "s", coloured=True,
                          steps=only_bad(levels.LATENCY)),
                    Query(f"max by (instance, domain) ({OF_LIMIT}) > {levels.LIMIT_FROM}", "Of its limit", "percentunit", coloured=True,
                          steps=only_bad(levels.LIMIT)),
                    Query(f"max by (instance, domain) ({SWAPPED}) > {levels.SWAP_FROM}", "Swaps", "binBps", coloured=True,
                          steps=only_bad(upper(0)), slow=True),
                    Query(f"max by (instance, domain) ({LOST}) > {levels.LOST_FROM}", "Loses packets", "pps", coloured=True,
                          steps=only_bad(upper(0))),
                    Query("min by (instance, domain) (libvirt_domain_sample_complete{@domain} == 0)", "libvirt answers",
                          words={"0": ("in part", ORANGE)}),
                    Query(f"max by (instance, domain, disk) ({DISK})"),
                    labels={"domain": "Guest", "instance": "Host", "state": "State", "reason": "Because of",
                            "disk": "Disk in error"},
                    words={"reason": {reason: (reason, RED) for reason in ERRORS}},
                    links={"domain": guest_link("data.fields"), "instance": host_link("data.fields")},
                    sort="State", height=8, empty="All guests are well"),
            listing("Alerts that fire", "What fires now. A click on an alert opens its runbook, on a guest its dashboard.",
                    Query(f"max by (alertname, severity, instance, domain, target_device, pool) ({FIRING})"),
                    labels={"severity": "Severity", "alertname": "Alert", "domain": "Guest", "instance": "Host",
                            "target_device": "Device", "pool": "Pool"}, words={"severity": SEVERITIES},
                    links={"alertname": runbook_link(), "domain": guest_link("data.fields"),
                           "instance": host_link("data.fields")}, height=8, sort="Severity", rising=True,
                    empty="No alert fires"),
        )),
        Row("Hosts", (
            listing("All hosts", "One line a host. Steal is the worst of all its vCPUs; assigned memory is what balloons "
                    "leave to guests now.",
                    Query("max by (instance) (libvirt_up{@host})", "libvirt", words=UP_DOWN),
                    Query('sum by (instance) (libvirt_domains{@host,state="running"})', "Running"),
                    Query("sum by (instance) (libvirt_domain_info_virtual_cpus{@host})", "vCPUs"),
                    Query("sum by (instance) (libvirt_domain_cpu_usage_cores{@host})", "pCPUs in use"),
                    Query("max by (instance) (libvirt_domain_vcpu_steal_ratio{@host})", "Worst steal", "percentunit",
                          gauge=True, steps=levels.STEAL),
                    Query("sum by (instance) (libvirt_node_memory_allocated_bytes{@host}) / "
                          "sum by (instance) (libvirt_node_memory_total_bytes{@host})", "Memory promised", "percentunit",
                          coloured=True, steps=levels.PROMISED),
                    Query("sum by (instance) (libvirt_domain_info_memory_usage_bytes{@host})", "Assigned memory",
                          "bytes"),
                    Query("sum by (instance) (libvirt_domain_memory_stats_rss_bytes{@host})", "Resident memory", "bytes"),
                    Query("sum by (instance) (libvirt_domain_sample_complete{@host} == bool 0)", "In part", coloured=True,
                          steps=upper(1)),
                    labels={"instance": "Host"}, links={"instance": host_link("data.fields")}, sort="Worst steal",
                    height=7),
        )),
        Row("Who suffers", (
            graph("CPU steal, worst ten", "Share of time a guest's worst vCPU was ready to run and had no pCPU.",
                  "percentunit", Query("topk(10, max by (instance, domain) (libvirt_domain_vcpu_steal_ratio{@domain}))",
                                       "{{domain}} on {{instance}}"), steps=levels.STEAL, link=guest_link(),
                  empty="No steal measured"),
            graph("Memory used by the guest, top ten", "What the guest itself says it uses of what it sees. Absent where "
                  "a guest has no balloon driver or no stats period.", "percentunit",
                  Query("topk(10, max by (instance, domain) (libvirt_domain_memory_used_ratio{@domain}))",
                        "{{domain}} on {{instance}}"), steps=levels.MEMORY, link=guest_link(), ratio=True,
                  empty="No guest reports its memory"),
            graph("Write latency, worst ten", "Mean seconds a write took, the worst disk of each guest; absent while "
                  "there are no writes.", "s",
                  Query("topk(10, max by (instance, domain) (libvirt_domain_block_write_latency_seconds{@domain}))",
                        "{{domain}} on {{instance}}"), steps=levels.LATENCY, link=guest_link(),
                  empty="No writes"),
            graph("Read latency, worst ten", "Mean seconds a read took, the worst disk of each guest; absent while "
                  "there are no reads.", "s",
                  Query("topk(10, max by (instance, domain) (libvirt_domain_block_read_latency_seconds{@domain}))",
                        "{{domain}} on {{instance}}"), steps=levels.LATENCY, link=guest_link(),
                  empty="No reads"),
        )),
        Row("Who uses most", (
            graph("pCPUs in use, top ten", "pCPUs in use, QEMU's own threads included.", "short",
                  Query("topk(10, sum by (instance, domain) (libvirt_domain_cpu_usage_cores{@domain}))",
                        "{{domain}} on {{instance}}"), link=guest_link()),
            graph("Disk throughput, top ten", "Bytes a second read and written, all disks of a guest.", "binBps",
                  Query("topk(10, sum by (instance, domain) (libvirt_domain_block_read_bytes_per_second{@domain} + "
                        "libvirt_domain_block_write_bytes_per_second{@domain}))", "{{domain}} on {{instance}}"),
                  link=guest_link()),
            graph("Network throughput, top ten", "Bytes a second received and sent by a guest, all its interfaces.",
                  "binBps", Query("topk(10, sum by (instance, domain) "
                                  "(libvirt_domain_interface_receive_bytes_per_second{@domain} + "
                                  "libvirt_domain_interface_transmit_bytes_per_second{@domain}))",
                                  "{{domain}} on {{instance}}"), link=guest_link()),
            graph("CPU of the fleet, against last week", "pCPUs in use by all guests, now and a week ago: the usual shape "
                  "of a week shows what is unusual today.", "short",
                  Query("sum(libvirt_domain_cpu_usage_cores{@domain})", "now"),
                  Query("sum(libvirt_domain_cpu_usage_cores{@domain} offset 1w)", "a week ago"), dashed="a week ago"),
        )),
        Row("Inventory", (
            graph("Guests by state", "How many guests are in each state, over all hosts.", "none",
                  Query("sum by (state) (libvirt_domains{@host})", "{{state}}"), stacked=True, width=8, height=9,
                  colours=STATE_COLOURS, aside=True, calcs=("lastNotNull",)),
            listing("Guests", "Every guest, with its owner where the XML of a running one names it.",
                    Query(STATE, "State", words=STATE_WORDS),
                    Query("max by (instance, domain, title, type, project_name, flavor, uuid) "
                          "(libvirt_domain_info{@domain})"),
                    labels={**GUEST, "Value #A": "State", "title": "Title", "project_name": "Project",
                            "flavor": "Flavour", "type": "Type", "uuid": "UUID"}, narrow=("type",),
                    links={"domain": guest_link("data.fields"), "instance": host_link("data.fields")}, width=16),
        )),
        Row("Versions", (
            listing("Versions", "What runs where; different versions in one fleet explain different behaviour.",
                    Query("max by (instance, version, python_version) (virtgauge_build_info{@host})"),
                    labels={"instance": "Host", "version": "virtgauge", "python_version": "Python"}, width=12),
            listing("Hypervisor and libvirt", "Versions of the running hypervisor, the daemon and the client library.",
                    Query("max by (instance, hypervisor_running, libvirtd_running, libvirt_library) "
                          "(libvirt_versions_info{@host})"),
                    labels={"instance": "Host", "hypervisor_running": "Hypervisor", "libvirtd_running": "libvirtd",
                            "libvirt_library": "libvirt library"}, width=12),
        ), collapsed=True),
    ))
