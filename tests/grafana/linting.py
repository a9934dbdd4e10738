"""The rules of grafana/dashboard-linter that fit (all but the two of Loki), as functions over a dashboard.

Each yields what is wrong in words. The names are the linter's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import promql_parser as promql
from grafana_foundation_sdk.models import units

from tests.grafana.expressions import RATES, nodes, panels, plain, selectors

INFINITY = "yesoreyeram-infinity-datasource"
Document = dict[str, Any]
Rule = Callable[[Document], Iterator[str]]
UNITS = {value for name, value in vars(units).items() if not name.startswith("_") and isinstance(value, str)}


def template_datasource(document: Document) -> Iterator[str]:
    # Those of Infinity are beside it: the archive's and the control service's APIs.
    found = [v for v in _variables(document) if v["type"] == "datasource" and v["query"] != INFINITY]
    if [(v["name"], v["label"], v["query"]) for v in found] != [("datasource", "Data source", "prometheus")]:
        yield "there must be one variable of data sources, named datasource"


def template_job(document: Document) -> Iterator[str]:
    yield from _target_variable(document, "job", "Job")


def template_instance(document: Document) -> Iterator[str]:
    yield from _target_variable(document, "instance", "Instance")


def template_label_promql(document: Document) -> Iterator[str]:
    for variable in _variables(document):
        if variable["type"] == "query":
            definition = variable["query"]["query"]
            found = re.fullmatch(r"label_values\((.*), \w+\)", definition)
            try:
                promql.parse(found[1] if found else definition)
            except ValueError as error:
                yield f"variable {variable['name']}: {error}"


def template_on_time_change_reload(document: Document) -> Iterator[str]:
    for variable in _variables(document):
        if variable["type"] == "query" and variable["refresh"] != 2:
            yield f"variable {variable['name']} does not refresh when the time changes"


def panel_datasource(document: Document) -> Iterator[str]:
    variables = {f"${{{v['name']}}}" for v in _variables(document) if v["type"] == "datasource"}
    for panel in panels(document):
        used = {panel["datasource"]["uid"], *(t["datasource"]["uid"] for t in panel["targets"])}
        if len(used) != 1 or not used <= variables:
            yield f"{panel['title']} has a data source that is no variable"


def panel_title_description(document: Document) -> Iterator[str]:
    for panel in panels(document):
        if not panel.get("title") or len(panel.get("description", "")) < 10:
            yield f"panel {panel['id']} {panel.get('title')} lacks a title or a description"


def panel_units(document: Document) -> Iterator[str]:
    for panel in panels(document):
        defaults = panel["fieldConfig"]["defaults"]
        overridden = [p["value"] for o in panel["fieldConfig"]["overrides"] for p in o["properties"]
                      if p["id"] == "unit"]
        for unit in [defaults.get("unit"), *overridden]:
            if unit not in UNITS:
                yield f"{panel['title']} has the unit {unit}, which Grafana does not know"


def panel_no_targets(document: Document) -> Iterator[str]:
    for panel in panels(document):
        if not panel.get("targets"):
            yield f"{panel['title']} asks nothing"


def target_promql(document: Document) -> Iterator[str]:
    for title, expr in _expressions(document):
        try:
            promql.parse(plain(expr))
        except ValueError as error:
            yield f"{title}: {error}"


def target_rate_interval(document: Document) -> Iterator[str]:
    for title, expr in _expressions(document):
        for node, _ in nodes(expr, rate="123s"):
            # increase over all of the time shown (456 s here) is a count, no rate.
            allowed = (123, 456) if isinstance(node, promql.Call) and node.func.name == "increase" else (123,)
            if (isinstance(node, promql.Call) and node.func.name in RATES
                    and node.args[0].range.seconds not in allowed):
                yield f"{title}: {node.func.name} over another range than $__rate_interval"


def target_job(document: Document) -> Iterator[str]:
    yield from _matched(document, "job")


def target_instance(document: Document) -> Iterator[str]:
    yield from _matched(document, "instance")


def target_counter_agg(document: Document) -> Iterator[str]:
    """But for counters of `unless`, which finds series that began: their first event is no increase."""
    for title, expr in _expressions(document):
        for selector, above in selectors(expr):
            if selector.name.endswith("_total") and not any(
                    (isinstance(node, promql.Call) and node.func.name in RATES)
                    or (isinstance(node, promql.BinaryExpr) and str(node.op) == "unless") for node in above):
                yield f"{title}: the counter {selector.name} without a rate"


def uneditable_dashboard(document: Document) -> Iterator[str]:
    if document.get("editable") is not False:
        yield "the dashboard can be edited where it is provisioned"


RULES: tuple[Rule, ...] = (
    template_datasource, template_job, template_instance, template_label_promql, template_on_time_change_reload,
    panel_datasource, panel_title_description, panel_units, panel_no_targets, target_promql, target_rate_interval,
    target_job, target_instance, target_counter_agg, uneditable_dashboard,
)


def _variables(document: Document) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = document["templating"]["list"]
    return found


def _target_variable(document: Document, name: str, label: str) -> Iterator[str]:
    found = [v for v in _variables(document) if v["name"] == name]
    if len(found) != 1 or found[0]["type"] != "query":
        yield f"there must be one query variable {name}"
        return
    variable = found[0]
    wanted = {"label": label, "multi": True, "allValue": ".+", "includeAll": True}
    for key, value in wanted.items():
        if variable.get(key) != value:
            yield f"variable {name}: {key} is {variable.get(key)!r}, not {value!r}"
    if variable["datasource"]["uid"] != "${datasource}":
        yield f"variable {name} asks another data source"


def _expressions(document: Document) -> Iterator[tuple[str, str]]:
    for panel in panels(document):
        for target in panel["targets"]:
            if target["datasource"]["type"] != INFINITY:
                yield f"{panel['title']} {target['refId']}", target["expr"]


def _matched(document: Document, label: str) -> Iterator[str]:
    for title, expr in _expressions(document):
        for selector, _ in selectors(expr):
            matchers = {(m.name, str(m.op), m.value) for m in selector.matchers.matchers}
            if selector.name == "ALERTS" and (label, "MatchOp.Equal", "") in matchers:
                continue  # alerts of the fleet as a whole have no instance
            if (label, "MatchOp.Re", f"${label}") not in matchers:
                yield f"{title}: {selector.name} is not bound to the variable {label}"
