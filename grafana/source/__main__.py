"""Writes grafana/dashboards: `python -m grafana.source`."""

from __future__ import annotations

from pathlib import Path

from grafana.source.dashboards import DASHBOARDS, file_name
from grafana.source.grid import dashboard_json

FOLDER = Path(__file__).parent.parent / "dashboards"

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.json"):
        old.unlink()
    for dashboard in DASHBOARDS:
        (FOLDER / file_name(dashboard)).write_text(dashboard_json(dashboard))
