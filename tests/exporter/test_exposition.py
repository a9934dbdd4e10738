"""The page: what is formatted again, what appears and goes, both formats, judged by other people's parsers."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from collectors import COLLECTORS
from collectors.batch import Batch
from collectors.domain import STATES
from collectors.fields import StateSet
from exporter.exposition import Exposition, format_values
from tests.samples import builder, captured, computed_rows, golden_batches, record, snapshot, subject, text, values_of

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def page_of(exposition: Exposition, batch: Batch) -> str:
    exposition.update(batch, np.full(batch.plan.formulas, np.nan))
    return exposition.text().decode()


def parsed(families: Any) -> Series:
    """Series of a parsed page; a series or a family that stands twice fails."""
    found: Series = {}
    names: set[str] = set()
    for family in families:
        assert family.name not in names, f"family {family.name} stands twice"
        names.add(family.name)
        assert family.samples, f"{family.name} has a header and no sample"
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, f"{key} stands twice"
            found[key] = sample.value
    return found


def parse_both(batch: Batch, computed: Any = None) -> Series:
    """The series that both of prometheus-client's parsers read from the page, which must be the same."""
    exposition = Exposition(batch.plan.catalogue.families)
    exposition.update(batch, np.full(batch.plan.formulas, np.nan) if computed is None else computed)
    plain = parsed(parse_text(exposition.text().decode()))
    assert plain == parsed(parse_openmetrics(exposition.openmetrics().decode() + "# EOF\n"))
    return plain


def test_only_values_that_changed_are_formatted_again() -> None:
    made = builder()
    exposition = Exposition(made.catalogue.families)
    stats = {"cpu.time": 5, "cpu.user": 3, "vcpu.current": 2}
    page_of(exposition, made.batch(snapshot(record(stats))))
    assert exposition.formatted == exposition.series == 3
    first = page_of(exposition, made.batch(snapshot(record(stats))))
    assert exposition.formatted == 0
    second = page_of(exposition, made.batch(snapshot(record({**stats, "cpu.user": 4}))))
    assert exposition.formatted == 1
    assert first.replace("seconds_total{domain=\"guest\"} 3e-9", "seconds_total{domain=\"guest\"} 4e-9") == second


def test_values_appear_and_disappear_with_their_header() -> None:
    made = builder()
    exposition = Exposition(made.catalogue.families)
    whole = {"cpu.time": 5_000_000_000, "vcpu.current": 2}
    first = page_of(exposition, made.batch(snapshot(record(whole))))
    without = page_of(exposition, made.batch(snapshot(record({**whole, "vcpu.current": -1}))))
    assert "virtual_cpus" not in without
    assert 'cpu_time_seconds_total{domain="guest"} 5\n' in without
    assert exposition.series == 1
    assert page_of(exposition, made.batch(snapshot(record(whole)))) == first


def test_domains_come_and_go_and_the_page_is_as_if_made_anew() -> None:
    made = builder()
    exposition = Exposition(made.catalogue.families)
    for situation in ("busy", "partial", "hotplug", "stopped", "busy"):
        for records in captured(situation):
            batch = made.batch(snapshot(*records))
            assert page_of(exposition, batch) == text(batch)


def test_an_empty_sample_is_an_empty_page() -> None:
    made = builder()
    exposition = Exposition(made.catalogue.families)
    assert page_of(exposition, made.batch(snapshot())) == ""
    page_of(exposition, made.batch(snapshot(*captured("busy")[0])))
    assert page_of(exposition, made.batch(snapshot())) == ""
    assert exposition.openmetrics() == b""
    assert exposition.series == 0


def test_a_family_stands_once_with_all_its_series() -> None:
    page = text(golden_batches()[1])
    headers = [line for line in page.splitlines() if line.startswith("# TYPE")]
    assert len(headers) == len(set(headers))


def test_only_some_families_may_be_shown() -> None:
    made = builder()
    exposition = Exposition(made.catalogue.families, frozenset({"libvirt_domain_info_virtual_cpus"}))
    page = page_of(exposition, made.batch(snapshot(record({"cpu.time": 5, "vcpu.current": 2}))))
    assert values_of(page) == {'libvirt_domain_info_virtual_cpus{domain="guest"}': 2}
    nothing = Exposition(made.catalogue.families, frozenset())
    assert page_of(nothing, made.batch(snapshot(record({"cpu.time": 5})))) == ""


def test_openmetrics_names_a_counter_s_family_without_total() -> None:
    batch = builder().batch(snapshot(record({"cpu.time": 5, "vcpu.current": 2})))
    exposition = Exposition(batch.plan.catalogue.families)
    exposition.update(batch, np.full(batch.plan.formulas, np.nan))
    plain, openmetrics = exposition.text().decode(), exposition.openmetrics().decode()
    assert "# TYPE libvirt_domain_info_cpu_time_seconds_total counter\n" in plain
    assert "# TYPE libvirt_domain_info_cpu_time_seconds counter\n" in openmetrics
    assert "# TYPE libvirt_domain_info_virtual_cpus gauge\n" in openmetrics
    assert exposition.text().decode() == plain, "one format must not leave its headers to the other"

    def samples(page: str) -> list[str]:
        return [line for line in page.splitlines() if not line.startswith("#")]

    assert samples(plain) == samples(openmetrics)


@pytest.mark.parametrize("name", ['say "x"', "back\\slash", "two\nlines", "Zürich 🐧", "a{b}=c,d", "tab\there", "",
                                  "\\n", "cr\rlf", "\x00", "\u2028", "ends with \\"])
def test_any_name_is_read_back_as_it_was(name: str) -> None:
    stats = {"cpu.time": 1, "net.0.name": name, "net.0.rx.bytes": 5}
    found = parse_both(builder().batch(snapshot(record(stats, name=name))))
    assert ("libvirt_domain_info_cpu_time_seconds_total", frozenset({("domain", name)})) in found
    if name:
        assert found["libvirt_domain_interface_stats_receive_bytes_total",
                     frozenset({("domain", name), ("target_device", name)})] == 5


@pytest.mark.parametrize(("value", "shown"), [
    (0.0, "0"), (-0.0, "0"), (1.0, "1"), (0.1, "0.1"), (1e-9, "1e-9"), (2.0**53 - 1, "9007199254740991"),
    (2.0**64, "1.8446744073709552e+19"), (123.456789123, "123.456789123"), (1e300, "1e+300"), (-1.5, "-1.5")])
def test_values_are_short_and_exact(value: float, shown: str) -> None:
    assert format_values(np.array([value])) == [shown]
    assert format_values(np.array([value, 0.5])) == [shown, "0.5"]
    assert float(shown) == value


def test_the_whole_page_is_read_by_both_parsers() -> None:
    first, second = golden_batches()
    assert len(parse_both(second, computed_rows(first, second))) > 600


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (Debian package prometheus)")
def test_promtool_has_no_findings() -> None:
    first, second = golden_batches()
    done = subprocess.run(["promtool", "check", "metrics"], input=text(second, computed_rows(first, second)).encode(),
                          capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


# Any dictionary at all.  Keys are libvirt's with any index and any ending, known or not, and free text.

def _keys() -> st.SearchStrategy[str]:
    known = sorted({d.source for collector in COLLECTORS for d in collector.fields()}
                   | {d.label_key for collector in COLLECTORS for d in collector.fields() if d.label_key}
                   | {d.inner_label_key for collector in COLLECTORS for d in collector.fields() if d.inner_label_key}
                   | {"state.state", "state.reason", "sample.reason", "block.count"})
    index = st.one_of(st.integers(0, 3).map(str), st.sampled_from(["00", "007", "-1", "x", "", "9" * 30, "٣", "<n>"]))
    shaped = st.builds(lambda pattern, n: pattern.replace("<n>", n).replace("<m>", n), st.sampled_from(known), index)
    return st.one_of(shaped, shaped, st.builds("{}.{}".format, shaped, st.text(max_size=3)), st.text(max_size=12))


_NUMBERS = st.one_of(st.integers(), st.integers(0, 10), st.integers(0, 2**64 - 1), st.floats(), st.booleans(),
                     st.just(10**400))
_NAMES = st.one_of(st.sampled_from(["vda", "vdb", "vda", "tap0", '"', "\\", "\n", "a\r\nb"]), st.text(max_size=6))
_STATS = st.dictionaries(_keys(), st.one_of(_NUMBERS, _NUMBERS, _NAMES, st.none()), max_size=25)
_CONSTANT_FAMILIES = {"libvirt_domain_state", "libvirt_domain_state_reason", "libvirt_domain_sample_incomplete_reason",
                      *(d.name for collector in COLLECTORS for d in collector.declarations if isinstance(d, StateSet))}


def scaled_values(stats: Mapping[str, Any]) -> set[float]:
    """Every number that the stats could be shown as, in any of the units there are."""
    found: set[float] = set()
    for value in stats.values():
        if isinstance(value, int | float):
            try:
                number = float(value)
            except OverflowError:
                continue
            found |= {number, number / 1e9, number / 1e3, number * 1024, number * 1024**2}
    return {number for number in found if math.isfinite(number)}


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(_STATS, st.text(max_size=5), st.floats(0, 1e6)), min_size=1, max_size=4))
def test_any_stats_give_a_page_that_parses_without_a_false_value_or_a_double(
        samples: list[tuple[dict[str, Any], str, float]]) -> None:
    """Each sample is a neighbour's, then the same guest's: shapes, names and types change as they like."""
    made = builder()
    exposition = Exposition(made.catalogue.families)
    previous: Batch | None = None
    for stats, name, at_s in samples:
        batch = made.batch(snapshot(record(stats, at_s), record(stats, at_s, f"{name} neighbour", "uuid-2")))
        found = parse_both(batch)
        allowed = scaled_values(stats)
        for (family, labels), value in found.items():
            if family in _CONSTANT_FAMILIES:
                assert value in (0, 1)
                continue
            if family.endswith("_bucket"):
                assert value >= 0  # a sum; that buckets rise is checked by the parser
                continue
            assert value in allowed, f"{family}{set(labels)} {value} is not in {stats}"
        exposition.update(batch, np.full(batch.plan.formulas, np.nan))
        assert exposition.text().decode() == text(batch)
        if previous is not None:
            parse_both(batch, computed_rows(previous, batch))
        previous = batch


@settings(max_examples=100, deadline=None)
@given(_STATS, _STATS, st.floats(0.001, 1e6))
def test_any_pair_of_samples_gives_finite_rates_that_are_not_negative(before: dict[str, Any], after: dict[str, Any],
                                                                      elapsed_s: float) -> None:
    made = builder()
    first, second = made.batch(snapshot(record(before))), made.batch(snapshot(record({**before, **after}, elapsed_s)))
    values = computed_rows(first, second)
    known = values[~np.isnan(values)]
    assert np.isfinite(known).all()
    assert (known >= 0).all()


@given(st.integers(0, len(STATES) - 1), st.integers(-5, 50))
def test_exactly_one_state_is_one(state: int, reason: int) -> None:
    found = parse_both(builder().batch(snapshot(record({"state.state": state, "state.reason": reason}))))
    states = {labels: value for (name, labels), value in found.items() if name == "libvirt_domain_state"}
    assert len(states) == len(STATES)
    assert [labels for labels, value in states.items() if value] == [
        frozenset({("domain", subject().name), ("state", STATES[state])})]
