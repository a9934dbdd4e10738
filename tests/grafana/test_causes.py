"""What the dashboards say is wrong with a guest: each cause on series that promtool makes; no test host has all."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from collectors.domain import REASONS, STATES
from grafana.source.causes import OF_LIMIT
from grafana.source.panels import expanded, ours
from grafana.source.states import DISK_ERROR, DISK_ERROR_WORDS, ERRORS, STATE, STATE_WORDS
from tests.grafana.expressions import FOLDER, plain, targets

FLEET = FOLDER / "dashboards" / "virtgauge-fleet.json"
OURS = 'job="libvirt",instance="h"'
GUEST = f'{OURS},domain="web1"'
DISK = f'{GUEST},target_device="vda"'
Series = Mapping[str, str]
"""Names with labels, and their samples, one a minute."""


def values(folder: Path, expr: str, series: Series, at: str = "10m") -> list[tuple[dict[str, str], float]]:
    """What the expression gives on the series: promtool shows it where nothing was expected."""
    file = folder / "tests.yml"
    file.write_text(yaml.safe_dump({"evaluation_interval": "1m", "tests": [{
        "interval": "1m", "input_series": [{"series": one, "values": text} for one, text in series.items()],
        "promql_expr_test": [{"expr": plain(expr), "eval_time": at, "exp_samples": []}]}]}))
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False,
                          timeout=60)
    if done.returncode == 0:
        return []
    got = re.search(r"got:(.*)", done.stdout + done.stderr, re.S)
    assert got, done.stdout + done.stderr
    return [(dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value))
            for labels, value in re.findall(r"\{(.*?)\} ([-+.\dE]+)", got[1])] or pytest.fail(got[1])


def states(state: str, reason: str) -> dict[str, str]:
    """A guest's series of state as the exporter has them."""
    found = {f'libvirt_domain_state{{{GUEST},state="{one}"}}': f"{int(one == state)}x10" for one in STATES}
    return {**found, f'libvirt_domain_state_reason{{{GUEST},state="{state}",reason="{reason}"}}': "1x10"}


@pytest.mark.parametrize(("number", "state"), list(enumerate(STATES)))
def test_a_state_is_told_in_words_and_its_reason_where_it_matters(tmp_path: Path, number: int, state: str) -> None:
    series = {one.replace("web1", reason): text for reason in REASONS[number]
              for one, text in states(state, reason).items()}
    shown = {labels["domain"]: STATE_WORDS[f"{value:.0f}"]
             for labels, value in values(tmp_path, expanded(STATE), series)}
    assert set(shown) == set(REASONS[number])
    for reason, (words, colour) in shown.items():
        assert words in (state, f"{state}: {reason}")
        if state in ("paused", "shutoff", "crashed") and reason != "unknown":
            assert words == f"{state}: {reason}"
            assert (colour == "red") == (reason in ERRORS or state == "crashed")


LIMITS = {
    "bytes read": ("block_read_bytes_per_second", "block_stats_limit_read_bytes"),
    "bytes written": ("block_write_bytes_per_second", "block_stats_limit_write_bytes"),
    "bytes": ("block_write_bytes_per_second", "block_stats_limit_total_bytes"),
    "requests read": ("block_reads_per_second", "block_stats_limit_read_requests"),
    "requests written": ("block_writes_per_second", "block_stats_limit_write_requests"),
    "requests": ("block_reads_per_second", "block_stats_limit_total_requests"),
    "received": ("interface_receive_bytes_per_second", "interface_limit_receive_average_bytes_per_second"),
    "sent": ("interface_transmit_bytes_per_second", "interface_limit_transmit_average_bytes_per_second"),
    "CPU": ("cpu_usage_cores", "limit_cores"),
    "vCPU": ("vcpu_usage_ratio", "limit_vcpu_cores"),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_the_use_of_each_limit_is_told_by_name(tmp_path: Path, limit: str) -> None:
    """Labels that a scrape configuration adds do not get in the way."""
    use, most = LIMITS[limit]
    labels = (GUEST if "CPU" in limit else DISK) + ',rack="1"'
    series = {f"libvirt_domain_{most}{{{labels}}}": "100x10"}
    for way in ("read", "write"):  # a sum needs both
        for what in ("bytes", "s"):
            name = f"block_{way}_bytes" if what == "bytes" else f"block_{way}s"
            series[f"libvirt_domain_{name}_per_second{{{labels}}}"] = "0x10"
    vcpu = ',vcpu="1"' if limit == "vCPU" else ""
    series[f"libvirt_domain_{use}{{{labels}{vcpu}}}"] = "95x10"
    ((found, value),) = values(tmp_path, expanded(OF_LIMIT), series)
    assert (found["limit"], value) == (limit, 0.95)


WELL = {
    **states("running", "booted"), f"libvirt_domain_autostart{{{GUEST}}}": "1x10",
    f'libvirt_domain_vcpu_steal_ratio{{{GUEST},vcpu="0"}}': "0.05x10",
    f"libvirt_domain_memory_used_ratio{{{GUEST}}}": "0.8x10",
    f"libvirt_domain_block_read_latency_seconds{{{DISK}}}": "0.001x10",
    f"libvirt_domain_block_write_latency_seconds{{{DISK}}}": "0.001x10",
    f"libvirt_domain_block_flush_latency_seconds{{{DISK}}}": "0.001x10",
    f"libvirt_domain_cpu_usage_cores{{{GUEST}}}": "1x10", f"libvirt_domain_limit_cores{{{GUEST}}}": "2x10",
    **{f"libvirt_domain_memory_stats_swap_{way}_bytes_total{{{GUEST}}}": "0+600x10" for way in ("in", "out")},
    **{f"libvirt_domain_interface_stats_{way}_{what}_total{{{DISK}}}": "0+6x10"
       for way in ("receive", "transmit") for what in ("errors", "drops")},
    f"libvirt_domain_sample_complete{{{GUEST}}}": "1x10",
}
UNWELL: dict[str, Series] = {
    "Because of": states("paused", "io_error"),
    "Disk in error": {f'libvirt_domain_block_error_info{{{DISK},error="no_space"}}': "1x10"},
    "Autostart": states("shutoff", "shutdown"),
    "Worst steal": {f'libvirt_domain_vcpu_steal_ratio{{{GUEST},vcpu="1"}}': "0.4x10"},
    "Memory used": {f"libvirt_domain_memory_used_ratio{{{GUEST}}}": "0.98x10"},
    "Slowest disk": {f"libvirt_domain_block_flush_latency_seconds{{{DISK}}}": "0.4x10"},
    "Of its limit": {f"libvirt_domain_cpu_usage_cores{{{GUEST}}}": "1.98x10"},
    "Swaps": {f"libvirt_domain_memory_stats_swap_in_bytes_total{{{GUEST}}}": "0+600000000x10"},
    "Loses packets": {f"libvirt_domain_interface_stats_receive_drops_total{{{DISK}}}": "0+600x10"},
    "libvirt answers": {f"libvirt_domain_sample_complete{{{GUEST}}}": "0x10"},
}


def last_label(expr: str) -> str:
    """The label that a query without a column of its own is there for."""
    return expr.partition(")")[0].rpartition(" ")[2]


(PANEL,) = {target.panel["title"]: target.panel for target in targets(FLEET)
            if target.panel["title"] == "Guests that are unwell"}.values()
ORGANIZED = next(one["options"]["renameByName"] for one in PANEL["transformations"] if one["id"] == "organize")
COLUMNS = {ORGANIZED.get(f"Value #{target['refId']}") or ORGANIZED[last_label(target["expr"])]: target["expr"]
           for target in PANEL["targets"]}


def test_each_cause_has_a_column() -> None:
    assert set(COLUMNS) == set(UNWELL)


@pytest.mark.parametrize("column", UNWELL)
def test_a_guest_that_is_unwell_is_listed_and_one_that_is_well_is_not(tmp_path: Path, column: str) -> None:
    assert values(tmp_path, COLUMNS[column], WELL) == []
    bad = {one: text for one, text in {**WELL, **UNWELL[column]}.items()
           if column != "Because of" or 'reason="booted"' not in one}
    ((labels, _),) = values(tmp_path, COLUMNS[column], bad)
    assert (labels["domain"], labels["instance"]) == ("web1", "h")
    if column == "Because of":
        assert (labels["state"], labels["reason"]) == ("paused", "io_error")
    if column == "Disk in error":
        assert labels["disk"] == "vda: no_space"


def test_what_holds_up_each_disk_is_told_in_words_that_no_state_has(tmp_path: Path) -> None:
    series = {f'libvirt_domain_block_error_info{{{GUEST},target_device="{disk}",error="{error}"}}': "1x10"
              for disk, error in (("vda", "no_space"), ("vdb", "unspecified"))}
    shown = {labels["target_device"]: DISK_ERROR_WORDS[f"{value:.0f}"][0]
             for labels, value in values(tmp_path, expanded(DISK_ERROR), series)}
    assert shown == {"vda": "no space left", "vdb": "I/O error"}
    assert not set(DISK_ERROR_WORDS) & set(STATE_WORDS)


def test_programs_of_others_are_none_of_virtgauge(tmp_path: Path) -> None:
    """With all jobs chosen: an exporter that has just gone is still ours, a node exporter never was."""
    other = 'job="node",instance="h:9100"'
    found = values(tmp_path, expanded(ours("up{@host}")), {
        f"up{{{OURS}}}": "1x5 0x5", f"virtgauge_build_info{{{OURS}}}": "1x5 stale", f"up{{{other}}}": "1x10"})
    assert [(labels["job"], value) for labels, value in found] == [("libvirt", 0.0)]
