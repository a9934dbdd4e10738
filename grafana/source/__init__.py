"""What makes grafana/dashboards: `python -m grafana.source` writes them all; a test keeps them current."""
