"""Every metric of the default page is used by a panel or an alert, or says why not."""

from __future__ import annotations

import yaml

from tests.grafana.expressions import FILES, FOLDER, annotation_expressions, dashboard, metrics, targets
from tests.grafana.known_metrics import UNUSED, default_page


def used() -> set[str]:
    rules = yaml.safe_load((FOLDER / "alerts" / "virtgauge.rules.yml").read_text())
    expressions = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    for file in FILES:
        expressions += [target.expr for target in targets(file)] + annotation_expressions(dashboard(file))
    return {name for expr in expressions for name in metrics(expr)}


def test_every_metric_of_the_default_page_is_used_or_excused() -> None:
    left = default_page() - used()
    assert sorted(name for name in left if not name.startswith(tuple(UNUSED))) == []


def test_no_excuse_is_left_over() -> None:
    left = default_page() - used()
    assert [prefix for prefix in UNUSED if not any(name.startswith(prefix) for name in left)] == []
