"""The union of what other monitors serve: each figure is declared here, or docs/migrating.md says why it is not."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from collectors import COLLECTORS
from collectors.agent import AGENT
from collectors.sampling import sampling
from tests.samples import REPOSITORY

NAMES = {d.name for collector in (sampling(COLLECTORS), *COLLECTORS, AGENT) for d in collector.declarations}
DOCUMENT = (REPOSITORY / "docs" / "migrating.md").read_text()
TABLE = DOCUMENT.split("## Every figure of theirs")[1].split("\n\n")[2]
ROWS = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in TABLE.splitlines()[2:]]
# Features that some of the 21 monitors have, by a word of their row: none may be forgotten.
FEATURES = (
    "reachable", "time-outs", "state of a domain", "reason of its state", "do not run", "lifecycle", "title", "owner",
    "OS type", "CPU time", "percent", "halt polling", "RDT cache", "number of vCPUs", "run time", "state of each vCPU",
    "wait of each vCPU", "steal", "halted", "may run on", "memory at most", "own memory", "memory used", "reports on",
    "times of a disk", "errors of a disk", "threshold", "backing chain", "what a disk is", "limits of a disk", "drops",
    "MTU", "limits of network", "IO threads", "perf", "dirty rate", "bandwidth monitors", "jobs", "storage pools",
    "volumes", "virtual networks", "host interfaces", "topology", "NUMA", "huge pages", "KSM", "snapshots",
    "checkpoints", "filesystems", "users", "GPUs", "versions", "PSI", "replication", "autostart", "graphics",
    "histograms", "KVM's", "energy", "overcommit")


def expanded(text: str) -> Iterator[str]:
    """Names of a pattern with alternatives in braces."""
    match = re.search(r"\{([a-z0-9_,]+)\}", text)
    if match is None:
        yield text
        return
    for word in match.group(1).split(","):
        yield from expanded(text[:match.start()] + word + text[match.end():])


def test_every_feature_has_a_row() -> None:
    first = [row[0] for row in ROWS]
    assert [word for word in FEATURES if not any(word in cell for cell in first)] == []
    assert len(ROWS) > 50


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_a_figure_is_served_or_has_a_reason(row: tuple[str, str]) -> None:
    _, here = row
    served, _, reason = here.partition("- ") if here.startswith("- ") else here.partition(" - ")
    names = [name for text in re.findall(r"`((?:libvirt|virtgauge)_[^`]+)`", served)
             for name in expanded(re.sub(r'\{[a-z_]+="[^"]*"\}', "", text))]
    assert names or len(reason) > 20
    for name in names:
        known = any(n.startswith(name[:-1]) for n in NAMES) if name.endswith("*") else name in NAMES
        assert known, name
    if "off)" in served:
        flags = re.findall(r"\(([a-z.]+(?: and [a-z.]+)?), off\)", served)
        assert {flag for text in flags for flag in text.split(" and ")} <= {c.name for c in COLLECTORS if not c.default}
