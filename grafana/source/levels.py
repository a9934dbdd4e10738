"""From where on a figure is bad: where the alerts fire, by the same knobs. Orange is a warning, red critical.

`virtgauge dashboards export --set` turns them in the dashboards, too: exporter/shown_thresholds.py.
"""

from __future__ import annotations

from exporter.monitoring_mixin import knobs
from grafana.source.panels import upper

_KNOBS = knobs()
STEAL_FROM = _KNOBS["steal_warning_ratio"]
MEMORY_FROM = _KNOBS["guest_memory_ratio"]
LATENCY_FROM = _KNOBS["disk_latency_seconds"]
LIMIT_FROM = _KNOBS["throttle_ratio"]
SWAP_FROM = _KNOBS["swap_bytes_per_second"]
LOST_FROM = _KNOBS["network_errors_per_second"]
STEAL = upper(STEAL_FROM, _KNOBS["steal_critical_ratio"])
MEMORY = upper(MEMORY_FROM)
LATENCY = upper(LATENCY_FROM)
LIMIT = upper(LIMIT_FROM)
PROMISED = upper(1, _KNOBS["host_memory_overcommit_ratio"])
POOL = upper(_KNOBS["pool_warning_ratio"], _KNOBS["pool_critical_ratio"])
FILESYSTEM = upper(_KNOBS["filesystem_ratio"])
SCRAPE = upper(_KNOBS["scrape_seconds"])
LAG = upper(_KNOBS["archive_lag_seconds"])
SPOOL = upper(_KNOBS["spool_ratio"])
