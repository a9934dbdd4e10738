"""Everything of virtgauge that faces out: settings, page, archive, control."""
