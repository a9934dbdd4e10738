"""Panels: the one module, with grid.py, that knows grafana-foundation-sdk.

Expressions are written with `@host` and `@domain` for the label matchers of the dashboards' variables, and with
`$__rate_interval` as the only range of rates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from grafana_foundation_sdk.builders import bargauge, common, prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from exporter.monitoring_mixin import knobs

JOB = 'job=~"$job"'
HOST = JOB + ',instance=~"$instance"'
DOMAIN = HOST + ',domain=~"$domain"'
DATASOURCE = kinds.DataSourceRef(type_val="prometheus", uid="${datasource}")

GREEN, ORANGE, RED, BLUE, GREY = "green", "orange", "red", "blue", "text"
Steps = Sequence[tuple[float | None, str]]
NEUTRAL: Steps = ((None, BLUE),)
PLAIN: Steps = ((None, GREY),)
ALARM: Steps = ((None, GREEN), (1, RED))
NOTHING = "–"
RUNBOOKS = knobs()["runbooks"]
Words = dict[str, tuple[str, str]]
YES_NO: Words = {"1": ("yes", GREEN), "0": ("no", GREY)}
UP_DOWN: Words = {"1": ("up", GREEN), "0": ("down", RED)}
NARROW, WIDE = 90, 300
LEAST = 80
"""Pixels of a table's column: with Grafana's 150 the last of ten columns lie outside."""
SLOW = "120s"


def upper(warning: float, critical: float | None = None) -> Steps:
    """Colours of a value that is bad when it is high."""
    return ((None, GREEN), (warning, ORANGE), *(((critical, RED),) if critical is not None else ()))


def only_bad(steps: Steps) -> Steps:
    """The same for a table that shows only what is bad: its empty cells are in no colour."""
    return (*PLAIN, *steps[1:])


class _Builder(Protocol):
    def build(self) -> models.Panel: ...


@dataclass(frozen=True)
class Query:
    """One expression; `legend` names its series in graphs, its column in tables.

    `slow` is for counters that are asked for once a minute only (the balloon's): over $__rate_interval of a quick
    scrape their rate would be zero most of the time, and too high for the rest.
    """

    expr: str
    legend: str = ""
    unit: str = ""
    gauge: bool = False
    steps: Steps = ((None, GREEN), (0.8, ORANGE), (0.95, RED))  # of the gauge or the text
    coloured: bool = False  # the text of a table's cells, by `steps`
    narrow: bool = False
    slow: bool = False
    words: Words | None = None  # of a table's cells


@dataclass(frozen=True)
class Panel:
    """A panel with its size on the grid."""

    builder: Any
    width: int
    height: int


def expanded(expr: str) -> str:
    """An expression with the variables' matchers in it."""
    return expr.replace("@domain", DOMAIN).replace("@host", HOST).replace("@job", JOB)


def ours(expr: str) -> str:
    """What every program that Prometheus scrapes has (`up`), of virtgauge's own: the variables may stand for all jobs.

    One that is down is known as ours by what it served at a full hour of the day before.
    """
    own = [f"{name}{{@host}}" for name in ("virtgauge_build_info", "virtgauge_control_operations_running")]
    known = " or ".join([*own, *(f"last_over_time({one}[1d:1h])" for one in own)])
    return f"({expr} and on (job, instance) ({known}))"


def guest_link(where: str = "field.labels") -> str:
    """The address of the domain dashboard for the series (`field.labels`) or the table's row (`data.fields`)."""
    return (f"/d/virtgauge-domain?${{datasource:queryparam}}&${{job:queryparam}}"
            f"&var-instance=${{__{where}.instance:percentencode}}&var-domain=${{__{where}.domain:percentencode}}"
            "&${__url_time_range}")


def runbook_link() -> str:
    """The address of the runbook of the alert in a table's row; `virtgauge dashboards export` puts yours in."""
    return f"{RUNBOOKS}/${{__data.fields.alertname}}.md"


def host_link(where: str = "field.labels") -> str:
    """The address of the host dashboard for the series or the table's row."""
    return (f"/d/virtgauge-host?${{datasource:queryparam}}&${{job:queryparam}}"
            f"&var-instance=${{__{where}.instance:percentencode}}&${{__url_time_range}}")


def graph(title: str, description: str, unit: str, *queries: Query, width: int = 12, height: int = 8,
          steps: Steps = (), stacked: bool = False, link: str = "", ratio: bool = False, below: str = "",
          empty: str = "No data", calcs: Sequence[str] = ("mean", "max", "lastNotNull"),
          dashed: str = "", always: str = "", colours: Mapping[str, str] | None = None, aside: bool = False,
          numbers: bool = False) -> Panel:
    """Lines over time. `below` is a pattern of series drawn downwards, `dashed` of limits and comparisons.

    `always` is a span like `1y` that is shown whatever the dashboard's time is; `colours` of series by name. `aside` puts
    the legend to the right, where there are more series than lines below; `numbers` are those of things, not amounts.
    """
    made = timeseries.Panel()
    if always:
        made.time_from(always)
    _describe(made, title, description, unit, empty, steps or NEUTRAL)
    # Sorted, since only the first few lines of a legend are seen.
    made.legend(common.VizLegendOptions().display_mode(kinds.LegendDisplayMode.TABLE)
                .placement(kinds.LegendPlacement.RIGHT if aside else kinds.LegendPlacement.BOTTOM)
                .show_legend(True).calcs(list(calcs))
                .sort_by("Max" if "max" in calcs else "Last *").sort_desc(True))
    made.tooltip(common.VizTooltipOptions().mode(kinds.TooltipDisplayMode.MULTI).sort(kinds.SortOrder.DESCENDING))
    if numbers:
        made.line_interpolation(kinds.LineInterpolation.STEP_AFTER).decimals(0)
    made.line_width(1).fill_opacity(0 if numbers else 30 if stacked else 8).show_points(kinds.VisibilityMode.NEVER)
    made.span_nulls(False)
    if not below:
        made.min(0)
    if ratio:
        made.axis_soft_max(1)
    if stacked:
        made.stacking(common.StackingConfig().mode(kinds.StackingMode.NORMAL).group("A"))
    if steps:
        made.thresholds_style(common.GraphThresholdsStyleConfig().mode(kinds.GraphThresholdsStyleMode.DASHED))
    if below:
        made.override_by_regexp(below, [models.DynamicConfigValue("custom.transform", "negative-Y")])
    if dashed:
        made.override_by_regexp(dashed, [
            models.DynamicConfigValue("custom.lineStyle", {"fill": "dash", "dash": [8, 6]}),
            models.DynamicConfigValue("custom.fillOpacity", 0),
            models.DynamicConfigValue("custom.stacking", {"mode": "none", "group": "B"})])
    for name, colour in (colours or {}).items():
        made.override_by_name(name, [models.DynamicConfigValue("color", {"mode": "fixed", "fixedColor": colour})])
    _link(made, link)
    for at, query in enumerate(queries):
        made.with_target(_target(query, at))
    return Panel(made, width, height)


def number(title: str, description: str, unit: str, expr: str, *, width: int = 4, height: int = 4,
           steps: Steps = NEUTRAL, legend: str = "", trend: bool = True, words: Words | None = None,
           empty: str = "No data", link: str = "", name: bool = False, instant: bool = False) -> Panel:
    """One figure with its recent course; `words` gives a value a text and a colour."""
    made = stat.Panel()
    _describe(made, title, description, unit, empty, steps, words)
    made.graph_mode(kinds.BigValueGraphMode.AREA if trend else kinds.BigValueGraphMode.NONE)
    made.color_mode(kinds.BigValueColorMode.VALUE)
    made.text_mode(kinds.BigValueTextMode.NAME if name else kinds.BigValueTextMode.AUTO)
    made.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False))
    _link(made, link)
    made.with_target(_target(Query(expr, legend), 0, instant=instant))
    return Panel(made, width, height)


def bars(title: str, description: str, unit: str, query: Query, *, width: int = 8, height: int = 8,
         steps: Steps = NEUTRAL, most: float | None = None, link: str = "", empty: str = "No data") -> Panel:
    """The values of now as bars, highest first where the expression sorts."""
    made = bargauge.Panel()
    _describe(made, title, description, unit, empty, steps)
    made.min(0)
    if most is not None:
        made.max(most)
    made.orientation(kinds.VizOrientation.HORIZONTAL).display_mode(kinds.BarGaugeDisplayMode.BASIC)
    made.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]).fields("").values(False))
    _link(made, link)
    made.with_target(_target(query, 0, instant=True))
    return Panel(made, width, height)


def timeline(title: str, description: str, *queries: Query, words: Words, width: int = 24,
             height: int = 8, link: str = "", empty: str = "No data") -> Panel:
    """States over time, each in its colour."""
    made = statetimeline.Panel()
    _describe(made, title, description, "none", empty, NEUTRAL, words)
    made.show_value(kinds.VisibilityMode.AUTO).merge_values(True).row_height(0.85).fill_opacity(75)
    made.legend(common.VizLegendOptions().display_mode(kinds.LegendDisplayMode.LIST)
                .placement(kinds.LegendPlacement.BOTTOM).show_legend(True).calcs([]))
    _link(made, link)
    for at, query in enumerate(queries):
        made.with_target(_target(query, at))
    return Panel(made, width, height)


def listing(title: str, description: str, *queries: Query, labels: dict[str, str], links: dict[str, str] | None = None,
            hidden: Sequence[str] = (), narrow: Sequence[str] = (), wide: Sequence[str] = (), words: Mapping[str, Words] | None = None,
            width: int = 24, height: int = 9, sort: str = "", rising: bool = False, empty: str = "None") -> Panel:
    """A table: `labels` maps the label columns to headings; each query adds the column named by its legend.

    A query's column is after the labels, or where `labels` has it, by the name that Grafana gives it (`Value #A`).
    `narrow` are labels with short values, so that the others get the room, `wide` those with a UUID; `words` colour a
    label's values.
    """
    made = table.Panel()
    _describe(made, title, description, "short", empty, PLAIN)
    made.filterable(True).cell_height(kinds.TableCellHeight.SM).min_width(LEAST)
    values = {(f"Value #{_letter(at)}" if len(queries) > 1 else "Value"): query for at, query in enumerate(queries)}
    if len(queries) > 1:
        made.with_transformation(models.DataTransformerConfig("merge", options={}))
    order = {name: at for at, name in enumerate(dict.fromkeys([*labels, *values]))}
    hide = {name: True for name in ("Time", "__name__", "job", *hidden)}
    hide |= {name: True for name, query in values.items() if not query.legend}
    hide = {name: True for name in hide if name not in labels}
    made.with_transformation(models.DataTransformerConfig("organize", options={
        "excludeByName": hide, "indexByName": order,
        "renameByName": {**labels, **{name: query.legend for name, query in values.items() if query.legend}}}))
    # The panel's own noValue is for a table without rows; in a cell it would be a sentence.
    made.override_by_regexp(".*", [models.DynamicConfigValue("noValue", NOTHING)])
    for query in queries:
        if query.legend:
            made.override_by_name(query.legend, _column(query))
    for label in (*narrow, *wide):
        made.override_by_name(labels[label], [models.DynamicConfigValue("custom.width", WIDE if label in wide else NARROW)])
    for label, meanings in (words or {}).items():
        made.override_by_name(labels[label], [
            models.DynamicConfigValue("mappings", [_mapping(meanings)]),
            models.DynamicConfigValue("custom.cellOptions", {"type": "color-text"})])
    for label, address in (links or {}).items():
        made.override_by_name(labels[label], [models.DynamicConfigValue(
            "links", [{"title": "Open runbook" if label == "alertname" else f"Open {labels[label].lower()}",
                       "url": address, "targetBlank": label == "alertname"}])])
    if sort:
        made.sort_by([common.TableSortByFieldState().display_name(sort).desc(not rising)])
    for at, query in enumerate(queries):
        made.with_target(_target(query, at, instant=True, as_table=True))
    return Panel(made, width, height)


def _describe(made: Any, title: str, description: str, unit: str, empty: str, steps: Steps,
              words: Words | None = None) -> None:
    made.title(title).description(description).unit(unit).no_value(empty).datasource(DATASOURCE)
    made.thresholds(builders.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(
        [models.Threshold(value=value, color=colour) for value, colour in steps]))
    if words:
        made.mappings([_mapping(words)])


def _mapping(words: Words) -> models.ValueMap:
    return models.ValueMap({value: models.ValueMappingResult(text=text, color=colour, index=at)
                            for at, (value, (text, colour)) in enumerate(words.items())})


def _link(made: Any, address: str) -> None:
    if address:
        title = "Open the guest" if "domain?" in address else "Open the host"
        made.data_links([builders.DashboardLink(title).url(address)])


def _column(query: Query) -> list[models.DynamicConfigValue]:
    found = [models.DynamicConfigValue("unit", query.unit or "short")]
    if query.narrow:
        found.append(models.DynamicConfigValue("custom.width", NARROW))
    if query.words:
        found.append(models.DynamicConfigValue("custom.align", "left"))
        found += [models.DynamicConfigValue("mappings", [_mapping(query.words)]),
                  models.DynamicConfigValue("custom.cellOptions", {"type": "color-text"})]
    if query.gauge:
        found += [models.DynamicConfigValue("custom.cellOptions", {"type": "gauge", "mode": "basic"}),
                  models.DynamicConfigValue("min", 0), models.DynamicConfigValue("max", 1)]
    if query.coloured:
        found.append(models.DynamicConfigValue("custom.cellOptions", {"type": "color-text"}))
    if query.gauge or query.coloured:
        found.append(models.DynamicConfigValue("thresholds", {"mode": "absolute", "steps": [
            {"value": value, "color": colour} for value, colour in query.steps]}))
    return found


def _target(query: Query, at: int, instant: bool = False, as_table: bool = False) -> prometheus.Dataquery:
    made = prometheus.Dataquery().ref_id(_letter(at)).expr(expanded(query.expr)).datasource(DATASOURCE)
    made = made.instant() if instant else made.range()
    if query.slow:
        made = made.interval(SLOW)
    if as_table:
        return made.format(PromQueryFormat.TABLE)
    return made.legend_format(query.legend) if query.legend else made


def _letter(at: int) -> str:
    return chr(ord("A") + at)
