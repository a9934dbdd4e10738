"""Documents that are generated are current, and every metric and setting stands in them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from collectors import COLLECTORS
from collectors.agent import AGENT
from collectors.sampling import sampling
from exporter import command_exporter, metrics_reference
from tests.conftest import Golden
from tests.samples import REPOSITORY, situations

DOCUMENT = REPOSITORY / "docs" / "metrics.md"


def test_the_metrics_reference_is_current(golden: Golden) -> None:
    golden.check(DOCUMENT, metrics_reference.reference())


def test_every_metric_has_one_row() -> None:
    rows = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| `")]
    for collector in (sampling(COLLECTORS), *COLLECTORS, AGENT):
        for name in {declaration.name for declaration in collector.declarations}:
            row, = [row for row in rows if row.startswith(f"| `{name}` |")]
            assert row.count(" | ") == 6


def test_every_flag_of_the_reference_is_one_that_the_exporter_takes() -> None:
    flags = re.findall(r"by default \(`(--[\w.-]+)`\)", DOCUMENT.read_text())
    assert len(flags) == len(COLLECTORS) + 1  # the agent's, which is the control service's
    command = command_exporter.build()
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert set(flags) <= known


@pytest.mark.parametrize(("name", "unit"), [
    ("libvirt_domain_info_cpu_time_seconds_total", "seconds"), ("libvirt_domain_block_read_bytes_per_second",
                                                                "bytes per second"),
    ("libvirt_domain_start_timestamp_seconds", "seconds since the epoch"), ("libvirt_domain_info", ""),
    ("libvirt_domain_cpu_usage_ratio", "ratio"), ("libvirt_domain_vcpu_maximum", "count"),
    ("libvirt_domain_memory_stats_swap_in_bytes_total", "bytes")])
def test_the_unit_comes_from_the_name(name: str, unit: str) -> None:
    assert metrics_reference.unit(name) == unit


def test_every_situation_that_matters_was_captured() -> None:
    assert {"busy", "paused", "stopped", "hotplug", "no_balloon", "no_balloon_driver", "user_nic", "empty_cdrom",
            "restarted", "vcpu_hole", "partial", "kvm"} <= set(situations())


PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for target, heading in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", linked.read_text(), re.M)
            assert heading in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, heading


def test_the_readme_leads_to_every_document() -> None:
    linked = set(re.findall(r"\]\(docs/([\w-]+\.md)\)", PAGES[0].read_text()))
    assert linked == {page.name for page in PAGES[1:]}
