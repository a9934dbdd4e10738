"""A virtgauge that is going to be killed: records known samples and writes down what it is about to, then what is safe.

Run as ``python -m tests.exporter.archive.archive_child STATE DATABASE TRUTH RUN`` with TEST_ARCHIVE_URI set.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.exporter.archive.archive_samples import Guests, Truth, truth_of


@dataclass
class Known:
    """What children wrote down: every sample they were about to record, and those that they saw safe."""

    attempted: Truth = field(default_factory=dict)
    safe: Truth = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)

    def sampled(self, run: int) -> int:
        return self.counts.get(run, 0)


def known(path: Path) -> Known:
    """What is in the file; a record that its writer did not finish is left out."""
    found = Known()
    last: Truth = {}
    if not path.exists():
        return found
    with open(path, "rb") as file:
        while True:
            try:
                word, run, truth = pickle.load(file)
            except (EOFError, pickle.UnpicklingError, ValueError, AttributeError, IndexError, KeyError):
                return found
            if word == "about":
                last = truth
                found.attempted |= truth
            else:
                found.safe |= last
                found.counts[run] = found.sampled(run) + 1


def main() -> None:
    from tests.exporter.archive.archive_rig import Rig

    state, database, truth_path, run = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    rig = Rig(state, os.environ["TEST_ARCHIVE_URI"], database, guests=Guests(4, seed=run))
    rig.clock_s += 3607 * run
    rig.monotonic_s += 3607 * run
    rig.archive.start()
    size = truth_path.stat().st_size if truth_path.exists() else 0
    with open(truth_path, "ab", buffering=0) as file:
        assert file.tell() in (0, size)
        while True:
            batch = rig.guests.batch(rig.clock_s, rig.monotonic_s)
            before = rig.archive.spool.counts.spooled_samples
            file.write(pickle.dumps(("about", run, truth_of(batch))))
            rig.archive.record(batch)
            while rig.archive.spool.counts.spooled_samples == before:
                time.sleep(0.001)
            file.write(pickle.dumps(("safe", run, None)))
            rig.clock_s += 25
            rig.monotonic_s += 25


if __name__ == "__main__":
    main()
