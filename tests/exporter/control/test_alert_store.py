"""The store of alerts and acts: what it keeps is bounded, whoever sends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from exporter.control import alert_store
from exporter.control.alert_store import AlertStore
from exporter.control.errors import InvalidError, UnreachableError
from tests.exporter.control.rule_bench import alert

NOW_S = 1.8e9
LARGE = {f"l{number}": "x" * 4096 for number in range(15)}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[AlertStore]:
    made = AlertStore(tmp_path)
    yield made
    made.close()


def test_alerts_that_wait_are_bounded_in_number_and_in_bytes(store: AlertStore) -> None:
    """Nothing of what is too much is taken, and there is room again for what is dealt with."""
    large = [alert(**LARGE)] * 100
    with pytest.raises(UnreachableError, match="32 MiB are kept"):  # noqa: PT012 - one of them is the first too many
        for _ in range(20):
            store.put(large, NOW_S)
    waiting = store.waiting()
    assert 400 < waiting < 600
    store.put([alert()] * (alert_store.MOST_WAITING - waiting), NOW_S)
    with pytest.raises(UnreachableError, match="10000 alerts wait already"):
        store.put([alert()], NOW_S)
    oldest = store.oldest()
    assert oldest is not None
    store.taken(oldest[0])
    store.put([alert()], NOW_S)
    assert store.waiting() == alert_store.MOST_WAITING


def test_an_alert_with_labels_of_no_end_is_refused() -> None:
    with pytest.raises(InvalidError, match=r"alerts\[0\]: has labels of more than 64 KiB in all"):
        alert(**LARGE, more="x" * 4096)


def test_acts_that_ended_are_bounded_by_age_and_by_bytes(store: AlertStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest go first, and none that is still to be done."""
    def acts() -> list[str]:
        return [act.rule for act in store.in_state("done", "pending")]

    store.add("waits", alert(), "do", "web0", "u", "pending", NOW_S - 100 * 86400)
    store.add("old", alert(), "do", "web0", "u", "done", NOW_S - 91 * 86400)
    for number in range(5):
        store.add(f"new{number}", alert(**LARGE), "do", "web0", "u", "done", NOW_S - number)
    store.forget_old(NOW_S)
    assert acts() == ["waits", "new0", "new1", "new2", "new3", "new4"]
    monkeypatch.setattr(alert_store, "MOST_ACT_BYTES", 200_000)
    store.forget_old(NOW_S)
    assert acts() == ["waits", "new0", "new1", "new2"]


def test_firings_known_to_be_over_are_bounded(store: AlertStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alert_store, "MOST_ENDED", 3)
    for number in range(5):
        store.end(alert(number=number), NOW_S + number)
    store.forget_old(NOW_S)
    assert [store.has_ended(alert(number=number)) for number in range(5)] == [False, False, True, True, True]
