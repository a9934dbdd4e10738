"""Thresholds in dashboards that follow the alerts' knobs: a line and a colour are where the alert fires."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Turned:
    """A knob that was turned; `shown` is a pattern of the metrics whose panels show it."""

    shown: str
    old: float
    new: float

    def reads(self, expr: str) -> bool:
        return re.search(self.shown, expr) is not None


def turn(document: dict[str, Any], knobs: Iterable[Turned]) -> None:
    """Changes a dashboard in place: thresholds of panels and columns, and comparisons that end an expression.

    All knobs are turned at once, so that one that takes another's value is not turned with it.
    """
    turned = list(knobs)
    for panel in _panels(document) if turned else ():
        asked = {target["refId"]: str(target["expr"]) for target in panel["targets"] if "expr" in target}
        for target in panel["targets"]:
            if "expr" in target:
                target["expr"] = _compared(target["expr"], turned)
        _steps(panel["fieldConfig"]["defaults"].get("thresholds"), list(asked.values()), turned)
        columns = _columns(panel)
        for override in panel["fieldConfig"]["overrides"]:
            expr = asked.get(columns.get(override["matcher"]["options"], ""))
            for one in override["properties"]:
                if one["id"] == "thresholds" and expr is not None:
                    _steps(one["value"], [expr], turned)


def _panels(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for top in document["panels"] for panel in (top["panels"] if top["type"] == "row" else [top])]


def _columns(panel: dict[str, Any]) -> dict[str, str]:
    """The query of each column by the column's heading."""
    names: dict[str, str] = {}
    for one in panel.get("transformations", ()):
        names |= one["options"].get("renameByName", {})
    only = panel["targets"][0]["refId"]
    return {heading: name.removeprefix("Value #") if "#" in name else only
            for name, heading in names.items() if name.startswith("Value")}


def _compared(expr: str, turned: list[Turned]) -> str:
    for knob in turned:
        end = f" > {knob.old}"
        if expr.endswith(end) and knob.reads(expr):
            return f"{expr.removesuffix(end)} > {knob.new}"
    return expr


def _steps(thresholds: dict[str, Any] | None, exprs: list[str], turned: list[Turned]) -> None:
    for step in (thresholds or {}).get("steps", ()):
        for knob in turned:
            if step["value"] == knob.old and any(knob.reads(expr) for expr in exprs):
                step["value"] = knob.new
                break
