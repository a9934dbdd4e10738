"""Every metric of the default page and of the control service's is used by a panel or an alert, or says why not."""

from __future__ import annotations

from collections.abc import Callable, Set

import pytest
import yaml

from tests.grafana.expressions import FILES, FOLDER, annotation_expressions, dashboard, metrics, targets
from tests.grafana.known_metrics import UNUSED, UNUSED_CONTROL, control_page, default_page

Page = Callable[[], Set[str]]


def used() -> set[str]:
    rules = yaml.safe_load((FOLDER / "alerts" / "virtgauge.rules.yml").read_text())
    expressions = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    for file in FILES:
        expressions += [target.expr for target in targets(file)] + annotation_expressions(dashboard(file))
    return {name for expr in expressions for name in metrics(expr)}


PAGES = pytest.mark.parametrize(("page", "excuses"), [(default_page, UNUSED), (control_page, UNUSED_CONTROL)],
                                ids=["exporter", "control"])


@PAGES
def test_every_metric_of_a_page_is_used_or_excused(page: Page, excuses: dict[str, str]) -> None:
    left = page() - used()
    assert sorted(name for name in left if not name.startswith(tuple(excuses))) == []


@PAGES
def test_no_excuse_is_left_over(page: Page, excuses: dict[str, str]) -> None:
    left = page() - used()
    assert [prefix for prefix in excuses if not any(name.startswith(prefix) for name in left)] == []
