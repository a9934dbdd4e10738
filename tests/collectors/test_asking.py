"""Hedging, slots and evidence, with a scripted libvirt; tests/live/test_never_blocked_guests.py has the real one."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterable, Iterator

import numpy as np
import pytest

from collectors.configuration import CONFIGURATION
from collectors.domain_xml import Definition
from collectors.kernel import KernelSource, KernelSourceError
from collectors.limits import LIMITS
from collectors.rates import rates
from collectors.sampler import Sampler
from collectors.snapshot import Snapshot, Value
from tests.collectors.scripted import CORE, ScriptedLibvirt, sampler_of
from tests.samples import builder, series

NAMES = [f"guest{number}" for number in range(10)]


@pytest.fixture
def scripted() -> Iterator[ScriptedLibvirt]:
    made = ScriptedLibvirt()
    yield made
    for guest in made.guests():
        guest.running.set()


def sample(sampler: Sampler, seconds: float = 1.4) -> Snapshot:
    until_s = time.monotonic() + seconds
    found = sampler.sample(lambda: until_s)
    assert time.monotonic() < until_s + 3  # on a loaded machine
    return found


def complete(snapshot: Snapshot) -> dict[str, bool]:
    return {r.subject.name: bool(r.stats["sample.complete"]) for r in snapshot.records
            if r.source == "bulk" and "sample.complete" in r.stats}


def own(snapshot: Snapshot, key: str) -> float:
    return next(float(r.stats[key]) for r in snapshot.records if r.source == "sampling")


def until_settled(sampler: Sampler, wanted: dict[str, bool]) -> Snapshot:
    until_s = time.monotonic() + 60  # a call that is let go comes back when its thread has its turn
    while complete(snapshot := sample(sampler)) != wanted:
        if time.monotonic() > until_s:
            pytest.fail(f"not {wanted} after a minute, but {complete(snapshot)}")
    return snapshot


@pytest.mark.parametrize("count", [1, 3, 5, 8])
def test_hung_guests_hold_six_calls_at_most_and_the_others_are_whole(scripted: ScriptedLibvirt, count: int) -> None:
    for name in NAMES:
        scripted.start(name)
    sampler = sampler_of(scripted)
    assert complete(sample(sampler)) == dict.fromkeys(NAMES, True)
    hung = [guest for guest in scripted.guests() if guest.name in NAMES[:count]]
    for guest in hung:
        guest.running.clear()
    wanted = {name: name not in NAMES[:count] for name in NAMES}
    until_settled(sampler, wanted)
    for _ in range(5):  # and it stays so
        assert complete(sample(sampler)) == wanted
        assert all(guest.stuck_calls <= 1 for guest in hung)
    assert scripted.most_calls <= 6
    assert own(sample(sampler), "sampler.stuck") <= 6
    for guest in hung:
        guest.running.set()
    until_settled(sampler, dict.fromkeys(NAMES, True))
    snapshot = until_settled(sampler, dict.fromkeys(NAMES, True))
    assert own(snapshot, "sampler.stuck") == 0
    assert own(snapshot, "sampler.late") >= min(count, 5)


def test_idle_guests_of_another_host_never_cost_the_last_slot(scripted: ScriptedLibvirt) -> None:
    """Nothing tells healthy from hung there: they are asked for what is safe, and no guess takes the last slot."""
    for name in NAMES:
        scripted.start(name, busy_cpu=False)
    sampler = sampler_of(scripted)
    sample(sampler)
    for guest in scripted.guests()[:8]:
        guest.running.clear()
    for _ in range(6):
        snapshot = sample(sampler)
    assert own(snapshot, "sampler.stuck") <= 5
    records = {r.subject.name: r.stats for r in snapshot.records if r.source == "bulk"}
    assert all("net.0.rx.bytes" in stats or not stats["sample.complete"] for stats in records.values())


def test_a_guest_started_while_five_hang_is_whole(scripted: ScriptedLibvirt) -> None:
    for name in NAMES:
        scripted.start(name)
    sampler = sampler_of(scripted)
    sample(sampler)
    for guest in scripted.guests()[:5]:
        guest.running.clear()
    wanted = {name: name not in NAMES[:5] for name in NAMES}
    until_settled(sampler, wanted)
    scripted.start("new")
    until_settled(sampler, {**wanted, "new": True})


def test_nothing_of_before_is_shown_of_a_hung_guest(scripted: ScriptedLibvirt) -> None:
    scripted.start("hangs").running.clear()
    scripted.start("fine")
    sampler = sampler_of(scripted)
    for _ in range(3):
        snapshot = sample(sampler)
        for record in snapshot.records:
            assert record.sampled_at_s >= snapshot.started_s
        hangs = next(r.stats for r in snapshot.records if r.subject.name == "hangs")
        assert "block.0.rd.reqs" not in hangs
        assert "balloon.rss" not in hangs
    assert hangs["sample.reason"] == "monitor"
    assert float(hangs["monitor.busy"]) > 0.4


def test_a_slow_but_healthy_chunk_is_whole_in_its_round(scripted: ScriptedLibvirt) -> None:
    for name in NAMES[:4]:
        scripted.start(name, delay_s=0.2)
    sampler = sampler_of(scripted)
    snapshot = sample(sampler, 5.0)
    assert complete(snapshot) == dict.fromkeys(NAMES[:4], True)
    assert own(snapshot, "sampler.hedged") >= 1


def test_a_job_held_for_a_moment_makes_nothing_incomplete(scripted: ScriptedLibvirt) -> None:
    guest = scripted.start("shared")
    sampler = sampler_of(scripted)
    assert complete(sample(sampler)) == {"shared": True}
    guest.job.acquire()
    threading.Timer(0.1, guest.job.release).start()
    assert complete(sample(sampler)) == {"shared": True}


def test_a_job_held_for_long_is_the_reason(scripted: ScriptedLibvirt) -> None:
    guest = scripted.start("migrating")
    sampler = sampler_of(scripted)
    with guest.job:
        snapshot = sample(sampler)
    stats = next(r.stats for r in snapshot.records if r.source == "bulk")
    assert (stats["sample.complete"], stats["sample.reason"], stats["monitor.busy"]) == (False, "job", 0)


def test_one_domain_that_fails_the_call_costs_itself(scripted: ScriptedLibvirt) -> None:
    for name in NAMES[:4]:
        scripted.start(name)
    scripted.start("broken", fails=True)
    snapshot = sample(sampler_of(scripted))
    assert complete(snapshot) == {**dict.fromkeys(NAMES[:4], True), "broken": False}


def test_an_xml_that_does_not_parse_costs_its_info_series_only(scripted: ScriptedLibvirt) -> None:
    scripted.start("fine")
    scripted.start("odd", xml="<domain><name>odd</na")
    made = builder(CORE)
    sampler = sampler_of(scripted)
    sample(sampler)
    shown = series(made.batch(sample(sampler)))
    assert shown['libvirt_domain_sample_complete{domain="odd"}'] == 1
    assert shown['libvirt_domain_block_stats_read_bytes_total{domain="odd",target_device="vda"}'] > 0
    infos = [name for name in shown if name.startswith("libvirt_domain_info{")]
    assert len(infos) == 1
    assert 'domain="fine"' in infos[0]
    assert shown['libvirt_scrape_collector_success{collector="inventory"}'] == 0
    assert shown['libvirt_scrape_collector_success{collector="block"}'] == 1


def successes(snapshot: Snapshot) -> dict[str, bool]:
    return dict(snapshot.success)


@pytest.mark.parametrize(("xml", "read"), [("<domain><name>odd</na", False), (
    "<domain type='qemu' id='1'><name>odd</name><uuid>u</uuid><metadata><a xmlns='urn:a'>&odd;</a></metadata><devices/>"
    "</domain>", True)])
def test_what_else_the_xml_gives_says_so_where_it_does_not_parse(scripted: ScriptedLibvirt, xml: str,
                                                                 read: bool) -> None:
    scripted.start("odd", xml=xml)
    sampler = sampler_of(scripted, collectors=(*CORE, LIMITS, CONFIGURATION))
    sample(sampler)
    told = successes(sample(sampler))
    assert (told["inventory"], told["limits"], told["configuration"], told["block"]) == (False, read, read, True)


class UnreadableProcesses(KernelSource):
    """Processes that were found, whose files then cannot be read."""

    broken = True

    def find(self, wanted: Iterable[tuple[str, int]]) -> None:
        """They are there."""

    def decided(self, key: tuple[str, int]) -> bool:
        return True

    def serves(self, key: tuple[str, int]) -> bool:
        return True

    def stats(self, key: tuple[str, int], definition: Definition | None, interfaces: bool = True) -> dict[str, Value]:
        if self.broken:
            raise KernelSourceError("process 7: Too many open files")
        return {"cpu.time": 5}


def test_processes_that_cannot_be_read_are_told_of(scripted: ScriptedLibvirt, caplog: pytest.LogCaptureFixture) -> None:
    scripted.start("web")
    kernel = UnreadableProcesses()
    sampler = sampler_of(scripted, kernel=kernel)
    assert all(successes(sample(sampler)).values())  # it may have ended in between
    for _ in range(2):
        told = successes(sample(sampler))
        assert {name for name, success in told.items() if not success} == {"domain", "vcpu", "memory", "interface"}
    assert caplog.text.count("Too many open files") == 1
    kernel.broken = False
    assert all(successes(sample(sampler)).values())
    kernel.broken = True
    assert all(successes(sample(sampler)).values())
    scripted.end("web")
    assert all(successes(sample(sampler)).values())


def test_twenty_starts_and_stops_a_second_during_200_samples(scripted: ScriptedLibvirt) -> None:
    """No failure, no negative or absurd rate, no series of what ended."""
    scripted.start("stays")
    sampler, made = sampler_of(scripted), builder(CORE)
    ended = threading.Event()
    last_end_s = dict.fromkeys(NAMES, 0.0)

    def churn() -> None:
        chance = random.Random(3)
        present: set[str] = set()
        while not ended.wait(0.05):
            name = chance.choice(NAMES)
            if name in present:
                scripted.end(name)
                present.discard(name)
                last_end_s[name] = time.monotonic()
            else:
                scripted.start(name)
                last_end_s[name] = 0.0
                present.add(name)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        previous = None
        for _ in range(200):
            before_s = time.monotonic()
            snapshot = sample(sampler)
            assert snapshot.up
            gone = {name for name, end_s in last_end_s.items() if 0 < end_s < before_s}
            shown = {r.subject.name for r in snapshot.records if r.subject.kind == "domain"}
            assert "stays" in shown
            assert not {name for name in shown & gone if 0 < last_end_s[name] < before_s}
            batch = made.batch(snapshot)
            if previous is not None:
                values = rates(previous, batch)
                assert not (values[~np.isnan(values)] < 0).any()
                cores = [value for name, value in series(batch, values).items() if "cpu_usage_cores" in name]
                assert all(value < 3 for value in cores)  # their CPU time goes by one second a second
            previous = batch
            time.sleep(0.02)
    finally:
        ended.set()
        thread.join(10)


class _Deciding(KernelSource):
    """Decides for none, and notes whom it was asked to look for."""

    def __init__(self) -> None:
        super().__init__()
        self.looked_for: list[tuple[str, int]] = []

    def find(self, wanted: Iterable[tuple[str, int]]) -> None:
        keys = list(wanted)
        self.looked_for += [key for key in keys if not self.decided(key)]
        super().find(keys)


def test_what_serves_a_guest_stays_decided_while_libvirt_lists_it(scripted: ScriptedLibvirt,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose QEMU was killed is listed for a moment and gives no answer; libvirt's own figures are zeros then."""
    guest, kernel = scripted.start("killed"), _Deciding()
    sampler = sampler_of(scripted, kernel=kernel)
    sample(sampler)
    with monkeypatch.context() as ending:
        ending.setattr(scripted, "domainListGetStats", lambda *_asked: [])
        sample(sampler)
    sample(sampler)
    assert kernel.looked_for == [(guest.uuid, guest.id)]
    scripted.end("killed")
    sample(sampler)
    assert not kernel.decided((guest.uuid, guest.id))
