"""Knobs of the alerts in the dashboards: where a threshold is shown, it is the alert's."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from exporter import monitoring_mixin
from tests.grafana.expressions import panels
from tests.samples import REPOSITORY

KNOBS: dict[str, Any] = yaml.safe_load((REPOSITORY / "grafana" / "alerts" / "knobs.yml").read_text())
SHOWN = [name for name, knob in KNOBS.items() if "shown" in knob]


def exported(**changes: str) -> dict[str, Any]:
    texts = monitoring_mixin.dashboards("", monitoring_mixin.turned(changes))
    return {name: json.loads(text) for name, text in texts.items()}


def panel(documents: dict[str, Any], name: str, title: str) -> dict[str, Any]:
    (found,) = (one for one in panels(documents[f"virtgauge-{name}.json"]) if one["title"] == title)
    return found


def steps(found: dict[str, Any]) -> list[float | None]:
    return [step["value"] for step in found["thresholds"]["steps"]]


def test_a_threshold_is_turned_in_graphs_columns_and_expressions() -> None:
    documents = exported(steal_warning_ratio="0.25")
    assert steps(panel(documents, "host", "Steal by guest")["fieldConfig"]["defaults"]) == [None, 0.25, 0.3]
    unwell = panel(documents, "fleet", "Guests that are unwell")
    (steal,) = (target["expr"] for target in unwell["targets"] if "steal" in target["expr"])
    assert steal.endswith(" > 0.25")
    (column,) = (one for one in unwell["fieldConfig"]["overrides"] if one["matcher"]["options"] == "Worst steal")
    (found,) = (one["value"] for one in column["properties"] if one["id"] == "thresholds")
    assert [step["value"] for step in found["steps"]] == [None, 0.25, 0.3]


def test_a_threshold_of_another_metric_with_the_same_value_stays() -> None:
    """The throttle ratio and the guest's memory are 0.95 both."""
    assert KNOBS["throttle_ratio"]["value"] == KNOBS["guest_memory_ratio"]["value"]
    documents = exported(throttle_ratio="0.5")
    assert steps(panel(documents, "domain", "Nearest limit")["fieldConfig"]["defaults"]) == [None, 0.5]
    assert steps(panel(documents, "domain", "Memory used")["fieldConfig"]["defaults"]) == [None, 0.95]


def test_two_knobs_of_one_metric_are_not_mixed_up() -> None:
    documents = exported(steal_warning_ratio="0.3", steal_critical_ratio="0.6")
    assert steps(panel(documents, "host", "Steal by guest")["fieldConfig"]["defaults"]) == [None, 0.3, 0.6]


@pytest.mark.parametrize("name", SHOWN)
def test_a_knob_that_says_it_is_shown_is(name: str) -> None:
    before = json.dumps(exported(), sort_keys=True)
    after = json.dumps(exported(**{name: "0.4242"}), sort_keys=True)
    assert after.count("0.4242") > 0
    assert after.replace("0.4242", str(KNOBS[name]["value"])) == before


def test_with_all_knobs_as_they_are_nothing_changes() -> None:
    for name, document in exported().items():
        assert document == json.loads((REPOSITORY / "grafana" / "dashboards" / name).read_text())
