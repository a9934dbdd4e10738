"""Pictures of the dashboards, drawn from real guests at work: `make screenshots`. Needs root, Node and Chromium."""
