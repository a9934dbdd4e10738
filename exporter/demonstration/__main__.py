"""`python -m exporter.demonstration`: the program behind `make run`."""

from __future__ import annotations

import sys

from exporter.demonstration.watch import watch
from exporter.errors import VirtgaugeError


def main() -> int:
    """Run until interrupted; an error is one line and its exit status."""
    try:
        return watch(sys.argv[1:])
    except VirtgaugeError as error:
        print(f"virtgauge: {error}", file=sys.stderr)
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
