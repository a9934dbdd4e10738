"""Acts of rules in threads of their own, and on a machine that gives no more of them."""

from __future__ import annotations

import threading

from exporter.control.rule_turns import Turns


def test_acts_run_side_by_side_up_to_the_most():
    turns, together, done = Turns(), threading.Barrier(3), []
    for number in (1, 2):
        turns.run(number, "lift", lambda: (together.wait(30), done.append(1)), most=2)
    assert turns.of_rule("lift") == 2
    together.wait(30)
    turns.wait_for_end(1)
    turns.end(30)
    assert done == [1, 1]
    assert turns.of_rule("lift") == 0


def test_without_a_thread_an_act_runs_where_it_is_asked_for(monkeypatch):
    def refused(_thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    turns, ran_in = Turns(), []
    turns.run(1, "lift", lambda: ran_in.append(threading.current_thread()), most=2)
    assert ran_in == [threading.current_thread()]
    assert turns.of_rule("lift") == 0
