"""Queries through the free Infinity data source: the archive's history, and the acts of the audit trail as marks.

The data source of each is a variable of its own (`archive`, `control`), since each API has its own address and token.
Infinity (yesoreyeram-infinity-datasource) makes a wide frame of the flat rows: a field for each number column and
device, with the device as its label.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.runtime import UnknownDataquery
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models import common as kinds

from grafana.source.panels import Panel, graph, listing

PLUGIN = "yesoreyeram-infinity-datasource"
ARCHIVE = kinds.DataSourceRef(type_val=PLUGIN, uid="${archive}")
CONTROL = kinds.DataSourceRef(type_val=PLUGIN, uid="${control}")
LABELS = {"archive": "Archive", "control": "Control"}
MOST_POINTS = "500"
"""Of a series: more than a graph of half a screen has room for."""


@dataclass(frozen=True)
class Past:
    """One field of the archive (`virtgauge history --fields`) and how its lines are called."""

    field: str
    name: str


class _Query(Builder[Dataquery]):
    """A query of Infinity, as the SDK's panels and annotations take one; the SDK has no builder for it."""

    def __init__(self, ref_id: str, source: kinds.DataSourceRef, path: str, asked: dict[str, str],
                 columns: dict[str, tuple[str, str]], form: str) -> None:
        self._document: dict[str, Any] = {
            "refId": ref_id, "datasource": {"type": source.type_val, "uid": source.uid}, "type": "json",
            "source": "url", "parser": "backend", "format": form, "root_selector": "", "url": path,
            "url_options": {"method": "GET", "data": "",
                            "params": [{"key": key, "value": value} for key, value in asked.items()]},
            "columns": [{"selector": selector, "text": text, "type": kind}
                        for selector, (text, kind) in columns.items()]}

    def build(self) -> UnknownDataquery:
        return UnknownDataquery(self._document)


def history(title: str, description: str, unit: str, *asked: Past, ratio: bool = False, below: str = "") -> Panel:
    """A graph of a guest's past: the mean of each point, and its highest single sample."""
    panel = graph(title, description, unit, ratio=ratio, below=below, dashed=".*, highest.*",
                  empty="The archive has nothing of this time")
    panel.builder.datasource(ARCHIVE).display_name("${__field.name} ${__field.labels.device}")
    for at, past in enumerate(asked):
        panel.builder.with_target(_Query(
            chr(ord("A") + at), ARCHIVE, "/api/v1/history/query",
            {"domain": "${domain}", "field": past.field, "since": "${__from}", "until": "${__to}",
             "points": MOST_POINTS},
            {"time": ("time", "timestamp"), "device": ("device", "string"), "avg": (past.name, "number"),
             "max": (f"{past.name}, highest", "number")}, "timeseries"))
    return panel


def acts_listing(domain: str = "", height: int = 9) -> Panel:
    """The same as a table: who did what, how it went and why; of the guest `domain`, or of all of the service."""
    panel = listing("Who did what", "The control service's acts and refusals in the time shown, out of its audit trail: how "
                    "each went, who asked, by which way or rule, and the reason given. It needs the data source Control; "
                    "without it: virtgauge control audit.", labels={}, height=height,
                    empty="Nobody did anything in this time, or the data source Control is not chosen")
    panel.builder.datasource(CONTROL).with_target(_Query("A", CONTROL, *_asked(domain), "table"))
    return panel


def acts(domain: str = "${domain}") -> builders.AnnotationQuery:
    """Who did what to the guest (or, without one, to all of the service), from the control service's audit trail.

    Off until a data source is chosen.
    """
    path, asked, columns = _asked(domain)
    columns = {selector: (selector, kind) for selector, (_, kind) in columns.items()}
    query = _Query("Anno", CONTROL, path, asked, {**columns, "tags": ("tags", "string")}, "table")
    return (builders.AnnotationQuery().name("Acts of control").datasource(CONTROL).enable(False).icon_color("purple")
            .target(query))


def _asked(domain: str) -> tuple[str, dict[str, str], dict[str, tuple[str, str]]]:
    """Path, parameters and columns of the audit trail's rows."""
    return ("/api/v1/annotations",
            {"from": "${__from}", "to": "${__to}", **({"domain": domain} if domain else {})},
            {"time": ("Began", "timestamp"), "timeEnd": ("Ended", "timestamp"), "title": ("Act", "string"),
             "text": ("How it went, who, by which way, why", "string")})


def variable(name: str) -> builders.DatasourceVariable:
    """The variable of a data source: `archive` or `control`."""
    return builders.DatasourceVariable(name).label(LABELS[name]).type(PLUGIN)
