"""The version of virtgauge, in one place."""

VERSION = "0.1.0"
