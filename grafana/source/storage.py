"""Storage and capacity: what fills up, when, and who has more than they use?"""

from __future__ import annotations

from grafana.source import levels
from grafana.source.causes import BYTES_OF_LIMIT, REQUESTS_OF_LIMIT
from grafana.source.fleet import ALERTS
from grafana.source.grid import Dashboard, Row
from grafana.source.panels import YES_NO, Query, graph, guest_link, listing, number

DISK = "{{domain}} {{target_device}}"
GROWTH = ("deriv(libvirt_domain_block_stats_physicalsize_bytes{@domain}[6h])")

STORAGE = Dashboard(
    uid="virtgauge-storage", title="virtgauge / Storage and capacity", domains="many", annotations=(ALERTS,),
    span="now-7d",
    description="What fills up, when, and who has more than they use? Growth of images, promises against what is "
                "there, and sizes that a guest could give back.",
    rows=(
        Row("Promised and used", (
            number("Promised to guests", "Sum of all disks as guests see them.", "bytes",
                   "sum(libvirt_domain_block_stats_capacity_bytes{@domain})"),
            number("Taken on the host", "Sum of what images take on the host's storage; a raw image counts with its whole "
                   "size, sparse or not.", "bytes",
                   "sum(libvirt_domain_block_stats_physicalsize_bytes{@domain})"),
            number("Used of promised", "Below 100 % the rest is promised but not there: thin provisioning.",
                   "percentunit", "sum(libvirt_domain_block_stats_physicalsize_bytes{@domain}) / "
                   "sum(libvirt_domain_block_stats_capacity_bytes{@domain})"),
            number("Growth a day", "Bytes that all images grow by in a day, at the pace of the last six hours.",
                   "bytes", f"sum({GROWTH}) * 86400"),
            number("Memory assigned", "What balloons leave to guests now.", "bytes",
                   "sum(libvirt_domain_info_memory_usage_bytes{@domain})"),
            number("vCPUs assigned", "vCPUs online in all guests.", "none",
                   "sum(libvirt_domain_info_virtual_cpus{@domain})"),
        )),
        Row("Pools", (
            graph("Pools", "Share of each storage pool that is taken.", "percentunit",
                  Query("max by (instance, pool) (libvirt_pool_info_allocation_bytes{@host} / "
                        "(libvirt_pool_info_capacity_bytes{@host} > 0))", "{{pool}} on {{instance}}"),
                  steps=levels.POOL, ratio=True, width=8, empty="No storage pool"),
            listing("Pools now", "State, size and room of each pool as of its last refresh, and when it is full at the "
                    "pace of the last six hours.",
                    Query("max by (instance, pool) (libvirt_pool_info_capacity_bytes{@host})", "Capacity", "bytes"),
                    Query("max by (instance, pool) (libvirt_pool_info_available_bytes{@host})", "Free", "bytes"),
                    Query("max by (instance, pool) (libvirt_pool_info_available_bytes{@host} / "
                          "(deriv(libvirt_pool_info_allocation_bytes{@host}[6h]) > 0))", "Full in", "s"),
                    Query("max by (instance, pool) (libvirt_pool_volumes{@host})", "Volumes", narrow=True),
                    Query('max by (instance, pool) (libvirt_pool_state{@host,state="running"})', "Running", narrow=True,
                          words=YES_NO),
                    Query("max by (instance, pool) (libvirt_pool_autostart{@host})", "Autostart", narrow=True,
                          words=YES_NO),
                    labels={"pool": "Pool", "instance": "Host"}, width=16, height=8, empty="No storage pool"),
            listing("Snapshots", "Guests with snapshots: how many, and since when. Old ones are often forgotten.",
                    Query("max by (instance, domain) (libvirt_domain_snapshots{@domain})", "Snapshots"),
                    Query("max by (instance, domain) (time() - "
                          "libvirt_domain_snapshot_oldest_timestamp_seconds{@domain})", "Oldest", "s"),
                    Query("max by (instance, domain) (time() - "
                          "libvirt_domain_snapshot_newest_timestamp_seconds{@domain})", "Newest", "s"),
                    Query("max by (instance, domain) (libvirt_domain_checkpoints{@domain})", "Checkpoints"),
                    labels={"domain": "Guest", "instance": "Host"}, links={"domain": guest_link("data.fields")},
                    height=6, empty="No snapshot"),
        )),
        Row("Images", (
            graph("Images that are fullest", "Share of its size that an image takes on the host. At 100 % a thin image "
                  "has nothing left to grow; a raw image is always there, since libvirt tells its length.", "percentunit",
                  Query("topk(10, max by (instance, domain, target_device) "
                        "(libvirt_domain_block_stats_physicalsize_bytes{@domain} / "
                        "(libvirt_domain_block_stats_capacity_bytes{@domain} > 0)))", DISK), ratio=True,
                  link=guest_link(), empty="No disk"),
            graph("Images that grow fastest", "Bytes a second an image grows on the host, over six hours.", "binBps",
                  Query(f"topk(10, max by (instance, domain, target_device) ({GROWTH}) > 1)", DISK), link=guest_link(),
                  empty="No image grows"),
            listing("Time until an image is full", "At the pace of the last six hours; only images that grow. Full means "
                    "that the image takes as much as the guest's disk is large: count this into the room it lies in.",
                    Query("min by (instance, domain, target_device) ("
                          "(libvirt_domain_block_stats_capacity_bytes{@domain} - "
                          "libvirt_domain_block_stats_physicalsize_bytes{@domain} > 0) / "
                          f"({GROWTH} > 0))", "Full in", "s"),
                    labels={"domain": "Guest", "target_device": "Disk", "instance": "Host"},
                    links={"domain": guest_link("data.fields")}, sort="Full in", rising=True, width=12, empty="No image grows"),
            listing("Largest images", "What each image takes, and what it was promised.",
                    Query("topk(50, max by (instance, domain, target_device) "
                          "(libvirt_domain_block_stats_physicalsize_bytes{@domain}))", "On the host", "bytes"),
                    Query("max by (instance, domain, target_device) "
                          "(libvirt_domain_block_stats_capacity_bytes{@domain})", "Size", "bytes"),
                    labels={"domain": "Guest", "target_device": "Disk", "instance": "Host"},
                    links={"domain": guest_link("data.fields")}, sort="On the host", width=12, empty="No disk"),
        )),
        Row("Disk limits", (
            graph("Bytes against the limit", "Share of its byte limit that a disk uses; near 100 % the guest is held "
                  "back by its limit, not by the storage.", "percentunit", Query(
                      f"topk(10, max by (instance, domain, target_device, limit) ({BYTES_OF_LIMIT}))", DISK + " {{limit}}"),
                  steps=levels.LIMIT, ratio=True, link=guest_link(), empty="No disk has a limit of bytes"),
            graph("Requests against the limit", "Share of its request limit that a disk uses.", "percentunit", Query(
                      f"topk(10, max by (instance, domain, target_device, limit) ({REQUESTS_OF_LIMIT}))",
                      DISK + " {{limit}}"),
                  steps=levels.LIMIT, ratio=True, link=guest_link(), empty="No disk has a limit of requests"),
        )),
        Row("A year", (
            graph("Images in a year", "What images take on the host, the largest ten. Prometheus answers from the archive "
                  "where its own retention ends, if it reads it (examples/prometheus.yml).", "bytes",
                  Query("topk(10, max by (instance, domain, target_device) "
                        "(libvirt_domain_block_stats_physicalsize_bytes{@domain}))", DISK), always="1y",
                  link=guest_link(), empty="No disk"),
            graph("Memory in a year", "Memory assigned to all guests, and what their processes really took; both "
                  "as far back as Prometheus or the archive goes.", "bytes",
                  Query("sum(libvirt_domain_info_memory_usage_bytes{@domain})", "assigned"),
                  Query("sum(libvirt_domain_memory_stats_rss_bytes{@domain})", "resident"), always="1y"),
        ), collapsed=True),
        Row("Right-sizing", (
            listing("More vCPUs than used", "vCPUs of each guest against the pCPUs it needed 95 % of the last week, and "
                    "at most. A guest far below could do with fewer; beside high steal it should.",
                    Query("max by (instance, domain) (libvirt_domain_info_virtual_cpus{@domain})", "vCPUs", narrow=True),
                    Query("max by (instance, domain) (quantile_over_time(0.95, "
                          "libvirt_domain_cpu_usage_cores{@domain}[1w]))", "pCPUs, 95 %"),
                    Query("max by (instance, domain) (max_over_time("
                          "libvirt_domain_cpu_usage_cores{@domain}[1w]))", "At most", narrow=True),
                    Query("max by (instance, domain) (quantile_over_time(0.95, "
                          "libvirt_domain_cpu_usage_ratio{@domain}[1w]))", "Used, 95 %", "percentunit",
                          gauge=True),
                    labels={"domain": "Guest", "instance": "Host"}, links={"domain": guest_link("data.fields")},
                    sort="vCPUs", width=12, empty="No guest"),
            listing("More memory than used", "Assigned memory against the most that the guest used in the last week by "
                    "its own words. Only guests that report.",
                    Query("max by (instance, domain) (libvirt_domain_info_memory_usage_bytes{@domain})", "Assigned",
                          "bytes"),
                    Query("max by (instance, domain) (max_over_time(libvirt_domain_memory_used_ratio{@domain}[1w]))",
                          "Used at most", "percentunit", gauge=True),
                    Query("max by (instance, domain) (libvirt_domain_info_maximum_memory_bytes{@domain})", "Maximum",
                          "bytes"),
                    labels={"domain": "Guest", "instance": "Host"}, links={"domain": guest_link("data.fields")},
                    sort="Assigned", width=12, empty="No guest reports"),
        )),
    ))
