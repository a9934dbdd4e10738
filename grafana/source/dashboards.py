"""The list of dashboards, in the order of a walk from the whole to the one."""

from __future__ import annotations

from grafana.source.control_audit import CONTROL
from grafana.source.domain import DOMAIN
from grafana.source.exporter_health import EXPORTER
from grafana.source.fleet import FLEET
from grafana.source.grid import Dashboard
from grafana.source.host import HOST
from grafana.source.storage import STORAGE

DASHBOARDS: tuple[Dashboard, ...] = (FLEET, HOST, DOMAIN, STORAGE, EXPORTER, CONTROL)


def file_name(dashboard: Dashboard) -> str:
    """The file of a dashboard in grafana/dashboards."""
    return f"{dashboard.uid}.json"
