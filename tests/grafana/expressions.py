"""Dashboards and their expressions as the tests read them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import promql_parser as promql

from tests.samples import REPOSITORY

FOLDER = REPOSITORY / "grafana"
FILES = sorted((FOLDER / "dashboards").glob("*.json"))
_CHILDREN = ("expr", "lhs", "rhs", "param", "args", "vector_selector")
RATES = {"rate", "irate", "increase"}


@dataclass(frozen=True)
class Target:
    """One query of a panel."""

    file: Path
    panel: dict[str, Any]
    target: dict[str, Any]

    @property
    def expr(self) -> str:
        return str(self.target["expr"])

    def __str__(self) -> str:
        return f"{self.file.stem}: {self.panel['title']} {self.target['refId']}"


def dashboard(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def panels(document: dict[str, Any]) -> list[dict[str, Any]]:
    """All panels but row headings, those of collapsed rows too."""
    return [panel for top in document["panels"]
            for panel in (top["panels"] if top["type"] == "row" else [top])]


def targets(file: Path) -> list[Target]:
    """The queries to Prometheus."""
    return [Target(file, panel, target) for panel in panels(dashboard(file)) for target in panel["targets"]
            if "expr" in target]


def history_targets() -> list[Target]:
    """The queries through Infinity to the archive's history."""
    return [target for target in _infinity() if target.target["format"] == "timeseries"]


def acts_targets() -> list[Target]:
    """The queries through Infinity to the control service's audit trail."""
    return [target for target in _infinity() if target.target["format"] == "table"]


def _infinity() -> list[Target]:
    return [Target(file, panel, target) for file in FILES for panel in panels(dashboard(file))
            for target in panel["targets"] if "expr" not in target]


def all_targets() -> list[Target]:
    return [target for file in FILES for target in targets(file)]


def plain(expr: str, instance: str = ".+", domain: str = ".+", job: str = ".+", rate: str = "5m") -> str:
    """An expression as Grafana sends it: its variables replaced."""
    expr = expr.replace('domain="$domain"', 'domain=~"$domain"')  # for `.+`; of one guest both say the same
    values = {"$__rate_interval": rate, "$__range": "6h", "$job": job, "$instance": instance, "$domain": domain}
    for name, value in values.items():
        expr = expr.replace(name, value)
    assert "$" not in expr, expr
    return expr


def nodes(expr: str, rate: str = "5m") -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Each node of a parsed expression with its ancestors, outermost first."""
    yield from _walk(promql.parse(expr.replace("$__rate_interval", rate).replace("$__range", "456s")), ())


def _walk(node: Any, above: tuple[Any, ...]) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    yield node, above
    for name in _CHILDREN:
        child = getattr(node, name, None)
        for one in child if isinstance(child, list) else [child]:
            if one is not None and type(one).__module__.startswith("promql_parser"):
                yield from _walk(one, (*above, node))


def selectors(expr: str) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    for node, above in nodes(expr):
        if isinstance(node, promql.VectorSelector):
            yield node, above


def metrics(expr: str) -> set[str]:
    """Names of the metrics that an expression reads."""
    return {selector.name for selector, _ in selectors(expr)}


def annotation_expressions(document: dict[str, Any]) -> list[str]:
    return [str(one["expr"]) for one in document.get("annotations", {}).get("list", []) if "expr" in one]


def variable_metric(definition: str) -> str:
    found = re.fullmatch(r"label_values\((\w+)(\{.*\})?, \w+\)", definition)
    assert found, definition
    return found[1]
