"""What Prometheus's naming rules and ours ask of every declared metric."""

from __future__ import annotations

import re

import pytest

from collectors import COLLECTORS
from collectors.agent import AGENT
from collectors.fields import Computed, Declaration, Field, Info, Kind, StateSet
from collectors.sampling import sampling
from tests.samples import computed_rows, golden_batches, text, values_of

DECLARATIONS = [d for collector in (sampling(COLLECTORS), *COLLECTORS, AGENT) for d in collector.declarations]
PAGE_MADE = {"virtgauge_sample_age_seconds"}  # the page adds it as it is served
UNITS = {"nanoseconds", "milliseconds", "seconds", "KiB", "bytes", "count", "number", "ratio", "boolean",
         "enumeration", "text", "version", "domains", "calls", "samplings", "series", "seconds since the epoch",
         "seconds a second", "bytes a second", "requests a second", "MiB a second",
         "pages a second", "cores", "percent", "megahertz", "joules", "farads"}
UNUSUAL_UNITS = ("nanosecond", "millisecond", "kib", "mib", "kilobyte", "percent", "minute", "hour", "celsius")
# From the rates' helps: they name the key whose change they are.
RATE = re.compile(r"\((?:rate|change) of libvirt ")


def ids(declaration: Declaration) -> str:
    return f"{declaration.name}:{declaration.source}"


@pytest.mark.parametrize("declaration", DECLARATIONS, ids=ids)
def test_name(declaration: Declaration) -> None:
    name = declaration.name
    assert re.fullmatch(r"(libvirt|virtgauge)_[a-z0-9_]*[a-z0-9]", name)
    assert name.endswith("_total") == (declaration.kind is Kind.COUNTER)
    assert not [unit for unit in UNUSUAL_UNITS if unit in name]
    assert not name.endswith(("_count", "_sum", "_bucket", "_created"))
    if isinstance(declaration, Info):
        # The limits carry the widely used family's names.
        assert name.endswith(("_info", "_reason", "size_iops_bytes", "_period_seconds")) or "_limit_" in name
    if name.endswith("_ratio"):
        assert isinstance(declaration, Computed) or (isinstance(declaration, Field) and declaration.scale == 0.01)


@pytest.mark.parametrize("declaration", DECLARATIONS, ids=ids)
def test_help_is_a_sentence_that_names_the_source_and_its_unit(declaration: Declaration) -> None:
    text = declaration.help
    assert re.match(r"[0-9A-Zlp]", text)
    assert text.endswith(".")
    assert "\n" not in text
    bracket = re.search(r"\(([^()]*(?:\([^()]*\)[^()]*)*)\)", text)
    assert bracket, "no bracket with source and unit"
    if isinstance(declaration, Field | StateSet) and not declaration.source.startswith(("collector.", "domains.",
                                                                                     "sampler.")):
        # Fields of one family that fixed labels tell apart share one text.
        one_text = declaration.source.split(".")[-1].split("_")[-1] if declaration.labels[-1:] == ("operation",) else ""
        assert (one_text or declaration.source) in bracket.group(1)
    if isinstance(declaration, Computed):
        assert declaration.numerator in bracket.group(1)
        assert not declaration.denominator or declaration.denominator in bracket.group(1)
    if not RATE.search(text):
        words = set(re.split(r"[,;] |, as ", bracket.group(1)))
        assert words & UNITS, f"none of {words} is a unit"


@pytest.mark.parametrize("declaration", DECLARATIONS, ids=ids)
def test_scale_leads_to_the_base_unit_that_the_name_states(declaration: Declaration) -> None:
    if not isinstance(declaration, Field):
        return
    if ", nanoseconds" in declaration.help:
        assert declaration.scale == 1e-9
        assert declaration.name.removesuffix("_total").endswith("_seconds")
    elif ", MiB a second" in declaration.help:
        assert declaration.scale == 1024 * 1024
        assert declaration.name.endswith("_bytes_per_second")
    elif ", milliseconds" in declaration.help:
        assert declaration.scale == (1 if declaration.source == "monitor.busy" else 1e-3)
        assert declaration.name.endswith("_seconds")
    elif ", KiB" in declaration.help:
        assert declaration.scale == 1024
        assert declaration.name.removesuffix("_total").endswith("_bytes")
    elif ", megahertz" in declaration.help:
        assert declaration.scale == 1e6
        assert declaration.name.endswith("_hertz")
    elif ", percent" in declaration.help:
        assert declaration.scale == 0.01
        assert declaration.name.endswith("_ratio")
    elif ", bytes)" in declaration.help:
        assert declaration.scale == 1
        assert declaration.name.removesuffix("_total").endswith("_bytes")
    else:
        assert declaration.scale == 1


@pytest.mark.parametrize("declaration", DECLARATIONS, ids=ids)
def test_labels(declaration: Declaration) -> None:
    labels = declaration.labels
    assert len(set(labels)) == len(labels)
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", label) for label in labels)
    assert not set(labels) & {"instance", "job", "quantile"}
    assert ("le" in labels) == (declaration.kind is Kind.HISTOGRAM)


def test_one_name_has_one_kind_help_and_set_of_labels() -> None:
    for name in {d.name for d in DECLARATIONS}:
        same = [d for d in DECLARATIONS if d.name == name]
        assert len({(d.kind, d.help, d.labels) for d in same}) == 1, name


def test_a_family_is_in_one_collector() -> None:
    seen: dict[str, str] = {}
    for collector in (sampling(COLLECTORS), *COLLECTORS, AGENT):
        for declaration in collector.declarations:
            assert seen.setdefault(declaration.name, collector.name) == collector.name


@pytest.fixture(scope="module")
def shown() -> dict[str, set[str]]:
    """Label names by family, of the page of all fixtures."""
    first, second = golden_batches()
    found: dict[str, set[str]] = {}
    for name in values_of(text(second, computed_rows(first, second))):
        family, _, labels = name.partition("{")
        family = family.removesuffix("_bucket")
        found.setdefault(family, set()).update(re.findall(r'(?:^|,)([a-z_]+)="', labels))
    return found


# The agent's have theirs in tests/collectors/test_agent.py, since they are on another process's page.
SHOWN = [d for d in DECLARATIONS if d not in AGENT.declarations]


@pytest.mark.parametrize("declaration", SHOWN, ids=ids)
def test_every_declared_metric_has_a_fixture_that_shows_it(declaration: Declaration,
                                                           shown: dict[str, set[str]]) -> None:
    if declaration.name in PAGE_MADE:
        return
    assert declaration.name in shown, "no fixture shows it: capture one (tests/fixtures/capture.py)"
    assert shown[declaration.name] <= set(declaration.labels)


def test_every_field_is_exercised_and_no_series_is_undeclared(shown: dict[str, set[str]]) -> None:
    assert set(shown) <= {d.name for d in DECLARATIONS}
    plan = golden_batches()[1].plan
    exercised = {row.declaration for placement in plan.placements for row in placement.layout.measured}
    fields = {d for d in SHOWN if isinstance(d, Field) and d.name not in PAGE_MADE}
    assert fields - exercised == set()
