"""The whole page of all fixtures, as files; ``pytest --update-golden`` rewrites them: look at the difference."""

from __future__ import annotations

from exporter.exposition import Exposition
from tests.conftest import Golden
from tests.samples import REPOSITORY, computed_rows, golden_batches

FOLDER = REPOSITORY / "tests" / "golden"


def exposition() -> Exposition:
    first, second = golden_batches()
    made = Exposition(second.plan.catalogue.families)
    made.update(second, computed_rows(first, second))
    return made


def test_text(golden: Golden) -> None:
    golden.check(FOLDER / "metrics.txt", exposition().text().decode())


def test_openmetrics_differs_in_the_headers_of_counters_alone() -> None:
    made = exposition()
    text, openmetrics = made.text().decode().splitlines(), made.openmetrics().decode().splitlines()
    assert len(text) == len(openmetrics)
    for plain, other in zip(text, openmetrics, strict=True):
        if plain != other:
            assert plain.startswith("#")
            assert plain.replace("_total ", " ", 1) == other
