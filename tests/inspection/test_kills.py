"""A watch that is killed at any moment judges each photograph exactly once; `hub.benchmarks.watch_kills` runs all of it."""

from hub.benchmarks.watch_kills import kill_at_random, operations
from modeling_anople.inspection.delivery import WEBHOOK_SECRET


def test_each_photograph_is_judged_once_however_often_the_watch_is_killed(tmp_path, fitted, monkeypatch):
    monkeypatch.setenv(WEBHOOK_SECRET, "between us")
    found = kill_at_random(fitted, tmp_path, count=12, kills=3, seed=0)
    assert (found.faults, found.told, found.code) == ([], 12, 0)


def test_a_watch_that_ends_at_an_operation_is_gone_on_with(tmp_path, fitted):
    """At every 17th of them."""
    ended, found = operations(fitted, tmp_path, every=17)
    assert found == [] and ended > 1
