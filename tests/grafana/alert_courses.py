"""What promtool is asked of each alert: courses of samples in which it fires and ends, stays quiet, and flaps."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from tests.grafana.alert_cases import ALWAYS, CASES, WEEK, Case, Grows
from tests.grafana.expressions import FOLDER

FILE = FOLDER / "alerts" / "virtgauge.rules.yml"
ALL_RULES: list[dict[str, Any]] = [rule for group in yaml.safe_load(FILE.read_text())["groups"]
                                   for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in ALL_RULES if "alert" in rule}
RECORDS = {rule["record"]: rule for rule in ALL_RULES if "record" in rule}
KINDS = ("firing", "quiet", "flapping")
Test = dict[str, Any]
"""A test as promtool's files have it."""


def courses(name: str) -> dict[str, list[Test]]:
    """The tests of an alert by kind. Flapping: what comes and goes is never told, or is told once for all of it."""
    if name == ALWAYS:
        return {"firing": [one_test(name, {}, {5: [expected(name, {})]})]}
    if name == WEEK:
        return week()
    case = CASES[name]
    fired = [expected(name, own_labels(name, case))]
    quiet = one_test(name, {bound(one, case.job): constant(value, case.minutes) for one, value in case.good.items()},
                 {case.minutes // 2: [], case.minutes: []})
    found = of_event(name, case, fired) if case.at_once else of_condition(name, case, fired)
    return {**found, "quiet": [quiet, *found.get("quiet", [])]}


def of_event(name: str, case: Case, fired: list[Test]) -> dict[str, list[Test]]:
    """A counter of events: one burst, or its first event, fires at once and ends; bursts in a row are told once."""
    def course(values: str, checks: Mapping[int, list[Test]]) -> Test:
        return one_test(name, {bound(one, case.job): values for one in case.bad}, checks)

    def watched(values: str, seen: str, checks: Mapping[int, list[Test]], start: str = "-86400") -> Test:
        up = bound("libvirt_up" if "libvirt_" in "".join(case.bad) else "up", case.job)
        process = re.sub(r"\b[01](x\d+)?\b", lambda found: f"{start}+0{found[1] or 'x0'}", seen)
        return one_test(name, {**{bound(one, case.job): values for one in case.bad}, up: seen,
                               bound("process_start_time_seconds", case.job): process}, checks)

    steady = {bound(one, case.job): constant(value, case.minutes) for one, value in case.bad.items()}
    again = " ".join(str(max(0, (min(minute, 70) - 23) // 7)) for minute in range(121))  # at 30, 37, ... 65
    never: dict[int, list[Test]] = {at: [] for at in range(131)}
    return {"firing": [course("0x30 1+0x90", {30: [], 34: fired, 110: []}),
                       course("_x30 1+0x90", {34: fired}), one_test(name, steady, {case.minutes: fired}),
                       watched("3x40 stale _x29 3x5 4x60", "1x40 stale _x29 1x66", {40: [], 76: [], 78: fired}),
                       # A program that was started anew counts from the beginning.
                       watched("_x71 1x60", "1x40 stale _x29 1x66", {72: fired}, start="4200")],
            # An event of long ago is no news: neither to a new Prometheus, nor after half an hour of scrapes that
            # failed, or one, or of no libvirt.
            "quiet": [watched("3x40 stale _x29 3x60", "1x40 stale _x29 1x60", never),
                      watched("3x40 stale 3x89", "1x40 stale 1x89" if case.job == "libvirt" else "1x40 0 1x89", never),
                      watched("3x40 stale _x29 3x60", "1x40 0x30 1x60", never)],
            "flapping": [course(again, {**dict.fromkeys(range(32, 74), fired), 120: []})]}


def of_condition(name: str, case: Case, fired: list[Test]) -> dict[str, list[Test]]:
    """A level: it fires after a while and ends; a blip neither makes it fire nor ends it."""
    both = {one: (case.bad.get(one), case.good.get(one)) for one in {**case.good, **case.bad}}

    def course(good: Sequence[bool], checks: Mapping[int, list[Test]]) -> Test:
        return one_test(name, {bound(one, case.job): samples(*values, good) for one, values in both.items()}, checks)

    end = case.minutes
    ending = [False] * (end + 1) + [True] * case.ended
    twice = [False] * (end + 1) + [True] * 2 + [False] * 10 + [True] * case.ended
    return {"firing": [course(ending, {end: fired, len(ending) - 1: []})],
            "flapping": [
                # Two bad minutes in every ten never make it fire.
                course([minute % 10 not in (4, 5) for minute in range(end + 1)], {end // 2: [], end: []}),
                # Two good minutes do not end it, so that it is told once.
                course(twice, {**dict.fromkeys(range(end, end + 1 + case.held), fired), len(twice) - 1: []})]}


def week() -> dict[str, list[Test]]:
    """A disk against its own week, a sample every five minutes: days at 4 ms, then 40 ms."""
    name = 'libvirt_domain_block_write_latency_seconds{job="libvirt",instance="h",domain="web1",target_device="%s"}'
    fired = [expected(WEEK, {"job": "libvirt", "instance": "h", "domain": "web1", "target_device": "vda"})]

    def course(after: str, checks: Mapping[int, list[Test]], days: int = 2) -> Test:
        before = days * 288
        later = {5 * before + at: alerts for at, alerts in checks.items()}
        return one_test(WEEK, {name % "vda": f"0.004+0x{before} {after}"}, later, "5m")

    comes_and_goes = " ".join(["0.04 0.04 0.004 0.004 0.004 0.004"] * 8)
    slower, ends = "0.04+0x24 0.004+0x12", {-20: [], 120: fired, 180: []}
    return {"firing": [course(slower, ends), course(slower, ends, days=8)],
            "quiet": [one_test(WEEK, {name % "vdb": "0.04+0x600"}, {1440: [], 3000: []}, "5m")],
            "flapping": [course(comes_and_goes, {at: [] for at in range(30, 240, 30)}),
                         course("0.04+0x24 0.004 0.004 0.04+0x4 0.004+0x12",
                                {**dict.fromkeys(range(120, 155, 5), fired), 220: []})]}


def one_test(name: str, series: Mapping[str, str], checks: Mapping[int, list[Test]], interval: str = "1m") -> Test:
    """`checks`: the alerts that must fire after so many minutes."""
    return {"interval": interval, "input_series": [{"series": one, "values": values} for one, values in series.items()],
            "alert_rule_test": [{"eval_time": f"{at}m", "alertname": name, "exp_alerts": alerts}
                                for at, alerts in checks.items()]}


def bound(series: str, job: str) -> str:
    metric, _, labels = series.rstrip("}").partition("{")
    instance = "h2" if 'cell="b"' in labels else "h"
    return f'{metric}{{job="{job}",instance="{instance}"{"," if labels else ""}{labels}}}'


def constant(value: float | Grows, minutes: int) -> str:
    if isinstance(value, Grows):
        start = 1e6 if value.by < 0 else 0
        return f"{start:.0f}{value.by:+.0f}x{minutes}"
    return f"{value}+0x{minutes}"


def samples(bad: float | Grows | None, good: float | Grows | None, course: Sequence[bool]) -> str:
    """A sample a minute: of `good` where it is true, else of `bad`; a counter goes on from where it is."""
    found = []
    total = 1e6 if any(isinstance(one, Grows) and one.by < 0 for one in (bad, good)) else 0.0
    for is_good in course:
        value = good if is_good else bad
        if isinstance(value, Grows):
            total += value.by
            found.append(f"{total:.0f}")
        elif isinstance(bad, Grows) or isinstance(good, Grows):
            found.append(f"{total:.0f}")
        else:
            found.append("stale" if value is None else str(value))
    return " ".join(found)


def own_labels(name: str, case: Case) -> dict[str, str]:
    """The labels the alert must have: those of the first bad series, as the expression keeps them."""
    if not case.bad or name == "LibvirtNoRoomForOneHostLess":
        return {"job": case.job}
    labels = dict(re.findall(r'(\w+)="([^"]*)"', bound(next(iter(case.bad)), case.job)))
    if name.startswith("LibvirtDomainSteal"):
        labels.pop("vcpu")
    return labels


def expected(name: str, labels: Mapping[str, str]) -> Test:
    return {"exp_labels": {"severity": ALERTS[name]["labels"]["severity"], **labels}}
