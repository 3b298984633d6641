import pytest

from hone.core.errors import ConfigError
from hone.engine.policies import make_policy


class Line:
    """So many wait, the first since a time."""

    def __init__(self, count, since=0.0):
        self.count, self.since = count, since

    def __len__(self):
        return self.count

    def oldest(self):
        return self.since if self.count else float("inf")


def admitted(policy, now, running, line):
    """How many are let in, one after the other."""
    found = 0
    while line.count and policy.admits(now, running + found, line):
        policy.admitted()
        line.count -= 1
        found += 1
    return found


def test_continuous_lets_everybody_in_at_any_time():
    policy = make_policy("continuous", 2, 1.0)
    assert admitted(policy, 0.0, 5, Line(3)) == 3
    assert policy.delay(0.0, 0, Line(1)) == 0.0


def test_static_starts_at_once_and_lets_nobody_join():
    policy = make_policy("static", 3, 1.0)
    assert admitted(policy, 0.0, 0, Line(2)) == 2
    assert admitted(policy, 0.1, 2, Line(4)) == 0
    assert admitted(policy, 0.2, 1, Line(4)) == 0
    assert admitted(policy, 0.3, 0, Line(4)) == 3


def test_dynamic_waits_for_company_but_not_for_ever():
    policy = make_policy("dynamic", 3, 0.5)
    line = Line(2, since=10.0)
    assert admitted(policy, 10.1, 0, line) == 0
    assert policy.delay(10.1, 0, line) == pytest.approx(0.4)
    assert admitted(policy, 10.5, 0, line) == 2


def test_dynamic_does_not_wait_when_its_batch_is_full():
    policy = make_policy("dynamic", 3, 0.5)
    assert policy.delay(0.0, 0, Line(3)) == 0.0
    assert admitted(policy, 0.0, 0, Line(4)) == 3


def test_a_batch_may_fill_over_several_steps():
    policy = make_policy("static", 3, 0.0)
    assert policy.admits(0.0, 0, Line(5))
    policy.admitted()
    assert admitted(policy, 0.0, 1, Line(4)) == 2


def test_places_that_a_batch_did_not_fill_are_no_part_of_the_next():
    policy = make_policy("dynamic", 3, 0.5)
    assert policy.admits(0.6, 0, Line(2))
    policy.admitted()  # the other one is taken back, and the first ends
    line = Line(1, since=1.0)
    assert policy.delay(1.1, 0, line) == pytest.approx(0.4)
    assert admitted(policy, 1.1, 0, line) == 0
    assert admitted(policy, 1.5, 0, line) == 1


def test_an_unknown_policy_is_refused_with_the_nearest():
    with pytest.raises(ConfigError, match="continuous"):
        make_policy("continous", 1, 0.0)
