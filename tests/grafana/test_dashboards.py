"""The committed dashboards: current, accepted by Grafana's schema, linted, laid out, linked, on metrics that exist."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from exporter import monitoring_mixin
from grafana.source.dashboards import DASHBOARDS, file_name
from grafana.source.grid import COLUMNS, dashboard_json, encoded
from tests.grafana import linting
from tests.grafana.expressions import (
    FILES,
    FOLDER,
    all_targets,
    annotation_expressions,
    dashboard,
    metrics,
    panels,
    targets,
    variable_metric,
)
from tests.grafana.known_metrics import default_page, known

EVERY = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


@pytest.mark.parametrize("source", DASHBOARDS, ids=lambda source: source.uid)
def test_regenerating_gives_the_committed_file(source: Any) -> None:
    file = FOLDER / "dashboards" / file_name(source)
    assert file.read_text() == dashboard_json(source), "run python -m grafana.source"


def test_there_is_no_file_without_a_source() -> None:
    assert [file.name for file in FILES] == sorted(file_name(source) for source in DASHBOARDS)


@EVERY
def test_grafana_knows_every_key(file: Path) -> None:
    """The SDK's reader drops keys that Grafana's schema does not have."""
    read = Dashboard.from_json(dashboard(file))
    assert encoded(json.loads(json.dumps(read, cls=JSONEncoder))) == file.read_text()


@pytest.mark.parametrize("rule", linting.RULES, ids=lambda rule: rule.__name__)
@EVERY
def test_dashboard_linter(file: Path, rule: linting.Rule) -> None:
    assert list(rule(dashboard(file))) == []


def test_the_linter_finds_what_is_wrong() -> None:
    """Each rule must be able to fail: a dashboard with one mistake for each."""
    broken = json.loads(FILES[0].read_text())
    broken["editable"] = True
    for variable in broken["templating"]["list"]:
        variable |= {"name": "x" + variable["name"], "refresh": 1}
    for panel in panels(broken):
        panel |= {"description": "", "datasource": {"uid": "fixed"}}
        panel["fieldConfig"]["defaults"]["unit"] = "ops/s"
    first, second, *_ = panels(broken)
    first["targets"][0]["expr"] = 'sum(rate(a_total[5m])) + b_total'
    second["targets"][0]["expr"] = "sum("
    for rule in set(linting.RULES) - {linting.template_label_promql, linting.panel_no_targets, linting.target_promql,
                                      linting.target_rate_interval, linting.target_job, linting.target_instance,
                                      linting.target_counter_agg}:
        assert list(rule(broken)), rule.__name__
    assert list(linting.target_promql(broken))
    second["targets"] = [dict(first["targets"][0])]
    for rule in (linting.target_rate_interval, linting.target_job, linting.target_instance,
                 linting.target_counter_agg):
        assert list(rule(broken)), rule.__name__
    first["targets"] = []
    assert list(linting.panel_no_targets(broken))
    broken["templating"]["list"][1]["query"]["query"] = "label_values(up{, job)"
    assert list(linting.template_label_promql(broken))


@EVERY
def test_panels_lie_in_the_grid_and_on_nobody_else(file: Path) -> None:
    document = dashboard(file)
    for group in [document["panels"], *(p["panels"] for p in document["panels"] if p["type"] == "row")]:
        places = [panel["gridPos"] for panel in group]
        assert all(p["x"] >= 0 and p["w"] > 0 and p["h"] > 0 and p["x"] + p["w"] <= COLUMNS for p in places)
        overlaps = [(a, b) for a, b in combinations(places, 2)
                    if a["x"] < b["x"] + b["w"] and b["x"] < a["x"] + a["w"]
                    and a["y"] < b["y"] + b["h"] and b["y"] < a["y"] + a["h"]]
        assert overlaps == []


def test_uids_titles_and_ids_are_unique() -> None:
    documents = [dashboard(file) for file in FILES]
    for key in ("uid", "title"):
        assert len({document[key] for document in documents}) == len(documents)
    for document in documents:
        assert "id" not in document
        everything = [*document["panels"], *(q for p in document["panels"] if p["type"] == "row" for q in p["panels"])]
        ids = [panel["id"] for panel in everything]
        assert len(set(ids)) == len(ids)


@EVERY
def test_links_lead_to_dashboards_that_exist_with_variables_they_have(file: Path) -> None:
    by_uid = {document["uid"]: document for document in map(dashboard, FILES)}
    runbooks = monitoring_mixin.knobs()["runbooks"]
    document = dashboard(file)
    menu = document.pop("links")
    for address in re.findall(r'"url": "((?!/api/)[^"]*)"', json.dumps(document)):
        if address.startswith(runbooks):
            assert address == f"{runbooks}/${{__data.fields.alertname}}.md"
            continue
        uid, variables = re.fullmatch(r"/d/([\w-]+)\?(.*)", address).groups()  # type: ignore[union-attr]
        named = set(re.findall(r"var-(\w+)=", variables)) | set(re.findall(r"\$\{(\w+):queryparam\}", variables))
        assert named <= {variable["name"] for variable in by_uid[uid]["templating"]["list"]}
        assert "${__url_time_range}" in variables
    assert all(link["keepTime"] for link in menu)
    assert [link["url"].removeprefix("/d/") in by_uid for link in menu if link["type"] == "link"] in ([], [True])
    (others,) = (link for link in menu if link["type"] == "dashboards")
    found = [one for one in by_uid.values() if set(others["tags"]) <= set(one["tags"])]
    assert {one["uid"] for one in found} == set(by_uid) - {"virtgauge-control"}
    assert others["includeVars"] == (document["uid"] != "virtgauge-control")


def test_the_dashboards_that_hand_their_variables_on_fill_them_from_the_same_job() -> None:
    for file in FILES:
        document = dashboard(file)
        (job,) = (one for one in document["templating"]["list"] if one["name"] == "job")
        assert ("libvirt" in document["tags"]) == (variable_metric(job["definition"]) in default_page()), file


def test_a_click_leads_from_the_fleet_to_the_host_to_the_guest() -> None:
    texts = {file.stem: file.read_text() for file in FILES}
    assert "/d/virtgauge-host?" in texts["virtgauge-fleet"]
    assert "/d/virtgauge-domain?" in texts["virtgauge-fleet"]
    assert "/d/virtgauge-domain?" in texts["virtgauge-host"]


def test_the_one_guest_of_a_dashboard_is_compared_as_it_is() -> None:
    """Grafana escapes only variables of several values: `web (copy)` as a regular expression would match nothing."""
    for file in FILES:
        document = dashboard(file)
        several = {one["name"]: one.get("multi", False) for one in document["templating"]["list"]}
        for expr in [target.expr for target in targets(file)] + annotation_expressions(document):
            for way, name in re.findall(r'(=~|=)"\$(\w+)"', expr):
                assert (way == "=~") == several[name], expr


@EVERY
def test_every_panel_says_what_no_value_means(file: Path) -> None:
    for panel in panels(dashboard(file)):
        assert panel["fieldConfig"]["defaults"].get("noValue"), panel["title"]
        assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"][0]["value"] is None


@EVERY
def test_titles_are_unique_in_a_dashboard(file: Path) -> None:
    document = dashboard(file)
    titles = [panel["title"] for panel in panels(document)]
    assert len(set(titles)) == len(titles)
    assert len(titles) > 8
    assert all(title[0].isupper() or title.startswith(("libvirt", "vCPU", "pCPU")) for title in titles)


@pytest.mark.parametrize("target", all_targets(), ids=str)
def test_every_metric_of_a_panel_exists(target: Any) -> None:
    assert metrics(target.expr) - known() == set()


@EVERY
def test_every_metric_of_variables_and_annotations_exists(file: Path) -> None:
    document = dashboard(file)
    asked = {name for expr in annotation_expressions(document) for name in metrics(expr)}
    asked |= {variable_metric(v["query"]["query"]) for v in document["templating"]["list"] if v["type"] == "query"}
    assert asked - known() == set()
