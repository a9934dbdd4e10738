"""Cadence: who is asked for what, and when."""

from __future__ import annotations

import pytest

from collectors.bulk import GROUP_BITS, group_bits
from collectors.cadence import Cadence
from collectors.domain_xml import Definition, parse
from collectors.kernel import KernelSource

GROUPS = ("state", "cpu-total", "balloon", "vcpu", "interface", "block")
KEY = ("4f5e79a0-e003-465a-a61b-179d016ae986", 3)


class ServedByKernel(KernelSource):
    def serves(self, key: tuple[str, int]) -> bool:
        return True


def definition(period_s: int, nic: str = "bridge") -> Definition:
    return parse("<domain type='kvm' id='3'><name>a</name><uuid>u</uuid><devices><memballoon model='virtio'>"
                 f"<stats period='{period_s}'/></memballoon><interface type='bridge'/><interface type='{nic}'/>"
                 "</devices></domain>")


def cadence(kernel: bool, period_s: int = 10) -> Cadence:
    return Cadence(GROUPS, ServedByKernel() if kernel else None, lambda _uuid, _id: definition(period_s))


def test_without_the_kernel_all_groups_are_asked_and_balloon_once_a_minute() -> None:
    slow = cadence(kernel=False)
    assert slow.mask(KEY, 0.0) == group_bits(GROUPS)
    slow.take(KEY, {"balloon.rss": 1}, 0.0, complete=True)
    assert slow.mask(KEY, 1.0) == group_bits(set(GROUPS) - {"balloon"})
    assert slow.mask(KEY, 60.0) == group_bits(GROUPS)


def test_with_the_kernel_only_block_is_asked_of_the_monitor() -> None:
    assert cadence(kernel=True, period_s=0).mask(KEY, 0.0) == GROUP_BITS["state"] | GROUP_BITS["block"]


@pytest.mark.parametrize("kernel", [ServedByKernel(), None])
@pytest.mark.parametrize("known", [definition(0, "vhostuser"), None])
def test_the_sampling_never_has_libvirt_ask_a_switch(kernel: KernelSource | None, known: Definition | None) -> None:
    assert not Cadence(GROUPS, kernel, lambda _uuid, _id: known).mask(KEY, 0.0) & GROUP_BITS["interface"]


def test_with_the_kernel_and_a_guest_that_reports_balloon_is_asked_once_a_minute() -> None:
    asked = []
    slow = cadence(kernel=True)
    for sample in range(41):
        now_s = 15.0 * sample
        balloon = bool(slow.mask(KEY, now_s) & GROUP_BITS["balloon"])
        asked.append(balloon)
        slow.take(KEY, {"balloon.usable": 5} if balloon else {}, now_s, complete=True)
        assert slow.carried(KEY, now_s) is not None
    assert sum(asked[1:]) == 10


def test_values_are_carried_with_their_own_time_and_not_for_ever() -> None:
    slow = cadence(kernel=False)
    stats = {"balloon.usable": 5, "balloon.current": 7, "block.count": 0}
    slow.take(KEY, stats, 100.0, complete=True)
    assert stats == {"block.count": 0}
    carried = slow.carried(KEY, 150.0)
    assert carried is not None
    assert (carried.sampled_at_s, carried.stats) == (100.0, {"balloon.usable": 5})
    assert slow.carried(KEY, 100.0 + 80) is None


def test_a_hung_domains_values_go_at_once() -> None:
    slow = cadence(kernel=False)
    slow.take(KEY, {"balloon.usable": 5}, 100.0, complete=True)
    slow.take(KEY, {}, 101.0, complete=False)
    assert slow.carried(KEY, 101.0) is None
    assert slow.mask(KEY, 102.0) & GROUP_BITS["balloon"]


def test_domains_are_not_all_due_at_once() -> None:
    slow = cadence(kernel=False)
    keys = [(f"00000000-0000-0000-0000-{number:012}", number) for number in range(200)]
    for key in keys:
        slow.take(key, {"balloon.usable": 5}, 0.0, complete=True)
    due = [sum(bool(slow.mask(key, 15.0 * n) & GROUP_BITS["balloon"]) for key in keys) for n in range(1, 5)]
    assert due[0] < 100
    assert due[3] == 200


def test_what_no_longer_runs_is_forgotten() -> None:
    slow = cadence(kernel=False)
    slow.take(KEY, {"balloon.usable": 5}, 100.0, complete=True)
    slow.forget([])
    assert slow.carried(KEY, 100.0) is None
