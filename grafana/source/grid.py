"""Rows and dashboards on the 24-column grid.

The SDK's own layout does not wrap, so that places and ids are ours; so is what its encoder adds and Grafana does not
need (`_without_noise`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as models

from grafana.source.panels import DATASOURCE, Panel, expanded

COLUMNS = 24
TAG = "virtgauge"
HOSTS_TAG = "libvirt"
"""Dashboards on one set of variables. The control service has a job and a port of its own, so that its has another."""
CONTROL = "virtgauge-control"
MANY, ONE = 'domain=~"$domain"', 'domain="$domain"'


@dataclass(frozen=True)
class Row:
    """A heading and its panels, laid from left to right and wrapped."""

    title: str
    panels: Sequence[Panel]
    collapsed: bool = False


@dataclass(frozen=True)
class Annotation:
    """Marks in every graph, on by default or a switch away."""

    name: str
    expr: str
    text: str
    colour: str
    tags: str = "domain,instance"
    enabled: bool = True
    value_is_time: bool = False


@dataclass(frozen=True)
class Dashboard:
    """One question and the rows that answer it. `source` is the metric whose labels fill the variables."""

    uid: str
    title: str
    description: str
    rows: Sequence[Row]
    source: str = "libvirt_up"
    domains: str = ""  # "", "many" or "one": how many guests the variable `domain` takes
    annotations: Sequence[Annotation] = field(default_factory=tuple)
    more_annotations: Sequence[Any] = field(default_factory=tuple)  # built ones, of other data sources
    more_variables: Sequence[Any] = field(default_factory=tuple)
    span: str = "now-6h"


def dashboard_json(dashboard: Dashboard) -> str:
    """The dashboard's file: sorted JSON with a line end."""
    made = (builders.Dashboard(dashboard.title).uid(dashboard.uid).description(dashboard.description)
            .tags([TAG] if dashboard.uid == CONTROL else [TAG, HOSTS_TAG])
            .timezone("browser").readonly().tooltip(models.DashboardCursorSync.CROSSHAIR)
            .time(dashboard.span, "now").refresh("30s"))
    for variable in _variables(dashboard):
        made.with_variable(variable)
    for link in _links(dashboard.uid):
        made.link(link)
    for annotation in dashboard.annotations:
        made.annotation(_annotation(annotation))
    for other in dashboard.more_annotations:
        made.annotation(other)
    document = json.loads(json.dumps(made.build(), cls=JSONEncoder))
    document["panels"] = _laid_out(dashboard.rows)
    return encoded(_of_one(document) if dashboard.domains == "one" else document)


def _of_one(document: dict[str, Any]) -> dict[str, Any]:
    """The dashboard with its one guest compared as it is: Grafana escapes only variables of several values, so that a
    name like `web (copy)` would be a regular expression that is not its own."""
    for panel in [*document["panels"], *(one for row in document["panels"] for one in row.get("panels", ()))]:
        for target in panel.get("targets", ()):
            if "expr" in target:
                target["expr"] = target["expr"].replace(MANY, ONE)
    for annotation in document["annotations"]["list"]:
        if "expr" in annotation:
            annotation["expr"] = annotation["expr"].replace(MANY, ONE)
    return document


def encoded(document: dict[str, Any]) -> str:
    """A dashboard's dictionary in the form that is kept: sorted, without the SDK's noise."""
    return json.dumps(_without_noise(document), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _links(uid: str) -> list[builders.DashboardLink]:
    """To the other dashboards: the time goes along, and the variables where they mean the same."""
    same = (builders.DashboardLink("virtgauge").type(models.DashboardLinkType.DASHBOARDS).tags([TAG, HOSTS_TAG])
            .icon("external link").tooltip("The other dashboards").keep_time(True).include_vars(uid != CONTROL)
            .as_dropdown(True))
    control = (builders.DashboardLink("Control and audit").type(models.DashboardLinkType.LINK).url(f"/d/{CONTROL}")
               .icon("bolt").tooltip("Who did what to the guests").keep_time(True))
    return [same] if uid == CONTROL else [same, control]


def _variables(dashboard: Dashboard) -> list[Any]:
    source = dashboard.source
    found: list[Any] = [builders.DatasourceVariable("datasource").label("Data source").type("prometheus")]
    chain = ""
    for name, label in (("job", "Job"), ("instance", "Instance")):
        found.append(_query_variable(name, label, f"label_values({source}{{{chain}}}, {name})").multi(True)
                     .include_all(True).all_value(".+").current(_everything()))
        chain += f'{"," if chain else ""}{name}=~"${name}"'
    if dashboard.domains:
        made = _query_variable("domain", "Domain", f"label_values(libvirt_domain_state{{{chain}}}, domain)")
        if dashboard.domains == "many":
            made.multi(True).include_all(True).all_value(".+").current(_everything())
        found.append(made)
    return [*found, *dashboard.more_variables]


def _query_variable(name: str, label: str, query: str) -> Any:
    query = query.replace("{}", "")
    return (builders.QueryVariable(name).label(label).datasource(DATASOURCE).definition(query)
            .query({"query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"})
            .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED).sort(models.VariableSort.ALPHABETICAL_ASC))


def _everything() -> models.VariableOption:
    return models.VariableOption(selected=True, text=["All"], value=["$__all"])


def _annotation(annotation: Annotation) -> builders.AnnotationQuery:
    made = (builders.AnnotationQuery().name(annotation.name).datasource(DATASOURCE).enable(annotation.enabled)
            .icon_color(annotation.colour).expr(expanded(annotation.expr)).title_format(annotation.name)
            .text_format(annotation.text).tag_keys(annotation.tags).step("60s"))
    return made.use_value_for_time(True) if annotation.value_is_time else made


def _laid_out(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """All panels in their places, with ids counted from 1; those of a collapsed row lie in it."""
    found: list[dict[str, Any]] = []
    next_id, y = 1, 0
    for row in rows:
        heading = {"type": "row", "id": next_id, "title": row.title, "collapsed": row.collapsed, "panels": [],
                   "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1}}
        found.append(heading)
        next_id += 1
        x, line_height, bottom = 0, 0, y + 1
        inside: list[dict[str, Any]] = []
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, bottom, line_height = 0, bottom + line_height, 0
            document = json.loads(json.dumps(panel.builder.build(), cls=JSONEncoder))
            inside.append({**document, "id": next_id,
                           "gridPos": {"x": x, "y": bottom, "w": panel.width, "h": panel.height}})
            next_id += 1
            x, line_height = x + panel.width, max(line_height, panel.height)
        if row.collapsed:
            heading["panels"] = inside
            y += 1
        else:
            found.extend(inside)
            y = bottom + line_height
    return found


def _without_noise(value: Any) -> Any:
    """Without nulls, empty annotations, and defaults the SDK writes that change what Grafana shows."""
    if isinstance(value, list):
        return [_without_noise(item) for item in value]
    if not isinstance(value, dict):
        return value
    noise = {"auto", "auto_min", "auto_count"} if "skipUrlSync" in value or "allowCustomValue" in value else set()
    if "targetBlank" in value or "iconColor" in value:
        noise.add("placement")  # the SDK hides links and annotations in a menu
    if "cellHeight" in value:
        noise.add("footer")  # no table has one, and Grafana's schema has none there since 13
    kept = {key: _without_noise(item) for key, item in value.items() if key not in noise}
    is_step = set(kept) == {"color", "value"}
    return {key: item for key, item in kept.items() if item is not None or (is_step and key == "value")}
